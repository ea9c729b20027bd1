"""Throughput of ingest: images a second with all cores, against cores x the rate of one thread that only decodes.

    python benchmarks/ingest.py [--images 20000] [--pixels 500x375] [--size 256] [--folder DIR] [--dest DIR_OR_URL]
                                [--workers N] [--kill]

The images are JPEGs about as large as ImageNet's (500 x 375 pixels, 85 KB): mosaics of CIFAR-10 photographs where they
are in the cache, else of icons; one in 200 is damaged (and must be left out and listed). With `--kill` the run is
killed with SIGKILL half way and resumed. Prints one JSON line last. `cpu_of_decoding` is the share of the CPU time of
ingest (of both runs, where one was killed) that decoding alone would need: it holds on a busy machine too. Beside it
stands what a machine allows that must also write the pixels: processes that decode and write to plain files, and do
nothing else (`of_decode_and_write`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from raygrid.data.arrays import Images, open_folder
from raygrid.data.cache import cache_folder, cached, data_folder
from raygrid.data.decode import pixels
from raygrid.data.known import KNOWN, prepare
from raygrid.data.making import shard_images
from raygrid.data.manifest import read_manifest
from raygrid.ingest import SHARD_MB
from raygrid.store import Store
from raygrid.study import Dataset

BAD_EVERY = 200
QUALITY = 88
TARGET = 0.9


def tiles() -> tuple[str, Images]:
    """Photographs if they were fetched before, else icons."""
    sha256 = KNOWN["cifar10"].sha256
    folder = data_folder(cache_folder(), sha256)
    if (manifest := cached(folder, sha256)) is not None:
        return "cifar10", open_folder(folder, manifest).train
    manifest, place = prepare(Dataset(name="icons40"), progress=False)
    return "icons40", open_folder(place, manifest).train


def make_images(root: Path, count: int, wide: int, high: int) -> str:
    """Write `count` JPEGs in class folders, one in ten of them for testing; the name of the source of their pixels."""
    name, images = tiles()
    across, down = -(-wide // 32), -(-high // 32)
    for i in range(count):
        random = np.random.default_rng(i)
        some = images.gather(random.integers(0, len(images), across * down))
        mosaic = some.reshape(down, across, 32, 32, 3).swapaxes(1, 2).reshape(down * 32, across * 32, 3)[:high, :wide]
        path = root / ("val" if i % 10 == 9 else "train") / f"class{i % 19:02d}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic).save(path, "JPEG", quality=QUALITY)
        if i % BAD_EVERY == 7:
            data = path.read_bytes()
            path.write_bytes((data[: len(data) // 2], b"", b"not an image")[i // BAD_EVERY % 3])
    return name


def decode_rate(files: list[Path], size: int, out: str | None = None) -> tuple[float, float]:
    """Images a second, and images a CPU second, of a process that reads and decodes, and does nothing else; with `out`
    it also writes the pixels to a new file there."""
    pixels(files[0].read_bytes(), size)
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryFile(dir=out) as sink:
        for file in files:
            decoded = pixels(file.read_bytes(), size)
            if out is not None:
                sink.write(decoded.data)
        return len(files) / (time.perf_counter() - start), len(files) / (time.process_time() - cpu)


def decode_rates(files: list[Path], size: int, processes: int, out: Path) -> list[tuple[float, float]]:
    """The same in one process; then in several at once, which is what the machine's cores really give together; then in
    several at once that write."""
    with ProcessPoolExecutor(processes) as pool:
        alone = pool.submit(decode_rate, files, size).result()
        together = list(pool.map(decode_rate, *zip(*[(files, size)] * processes, strict=True)))
        writing = list(pool.map(decode_rate, *zip(*[(files, size, str(out))] * processes, strict=True)))
    return [
        alone,
        *((sum(wall), sum(cpu)) for wall, cpu in (zip(*rates, strict=True) for rates in (together, writing))),
    ]


def cpu_seconds() -> float:
    """CPU seconds of all child processes that ended, and of theirs; not of those whose parent was killed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(source: Path, dest: str, size: int, workers: int, kill_at: int | None = None) -> tuple[float, float, bool]:
    """Seconds and CPU seconds of one `python -m raygrid.ingest`, and whether it was killed: with `kill_at`, when so
    many shards are made."""
    command = [
        sys.executable,
        "-m",
        "raygrid.ingest",
        str(source),
        dest,
        "--size",
        str(size),
        "--workers",
        str(workers),
    ]
    command += ["--on-error", "skip", "--max-skipped", "1000000", "--name", "benchmark"]
    start, cpu = time.perf_counter(), cpu_seconds()
    process = subprocess.Popen(command, stdout=sys.stderr)
    killed, orphans = False, 0.0
    if kill_at is not None:
        store = Store(dest)
        while process.poll() is None and not killed:
            time.sleep(0.2)
            if sum(1 for path in store.list(".ingest") if "job" not in path) >= kill_at:
                orphans = sum(sum(p.cpu_times()[:2]) for p in psutil.Process(process.pid).children(recursive=True))
                process.kill()
                killed = True
    if process.wait() and not killed:
        raise SystemExit(f"ingest failed: exit code {process.returncode}")
    return time.perf_counter() - start, cpu_seconds() - cpu + orphans, killed


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--pixels", default="500x375")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to make the images, or where an earlier run left them")
    parser.add_argument("--dest", help="folder or URL to ingest to (default: a temporary folder)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kill", action="store_true", help="kill it half way and resume")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="raygrid-ingest-"))
    try:
        return measure(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Make images where there are none, then time decoding alone and ingest."""
    root = options.folder or scratch / "images"
    if not (root / "train").is_dir():
        make_images(root, options.images, *(int(n) for n in options.pixels.split("x")))
    files = sorted(root.glob("train/*/*.jpg"))
    good = [path for path in files if path.stat().st_size and int(path.stem) % BAD_EVERY != 7][:1500]
    alone, together, writing = decode_rates(good, options.size, options.workers, scratch)
    dest = options.dest or str(scratch / "out")
    count = len(files) + len(list(root.glob("val/*/*.jpg")))
    shards = -(-count // shard_images(options.size, SHARD_MB))
    once = (root, dest, options.size, options.workers)
    lost, lost_cpu, killed = run(*once, shards // 2) if options.kill else (0.0, 0.0, False)
    spent, cpu, _ = run(*once)
    manifest = read_manifest(dest)
    rate = count / (spent + lost)
    figures = {
        "benchmark": "ingest",
        "kind": dest.partition("://")[0] if "://" in dest else "",
        "images": count,
        "left_out": count - sum(manifest.train) - sum(manifest.test),
        "source_pixels": options.pixels,
        "size": options.size,
        "workers": options.workers,
        "decode_one_thread_images_s": round(alone[0], 1),
        "decode_all_at_once_images_s": round(together[0], 1),
        "decode_and_write_all_at_once_images_s": round(writing[0], 1),
        "ingest_images_s": round(rate, 1),
        "of_cores_x_one_thread": round(rate / (options.workers * alone[0]), 3),
        "of_all_at_once": round(rate / together[0], 3),
        "of_decode_and_write": round(rate / writing[0], 3),
        "cpu_of_decoding": round(count / (cpu + lost_cpu) / (together[1] / options.workers), 3),
        "load_average": round(os.getloadavg()[0], 1),
        "seconds": round(spent + lost, 1),
        "killed": killed,
        "target": TARGET,
        "sha256": manifest.sha256,
    }
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
