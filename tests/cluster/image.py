"""Run the Dockerfile's steps where there is no Docker engine: in clean Debian roots made by debootstrap.

    python tests/cluster/image.py [FOLDER] [--bind PATH ...]

Each stage is a copy of one minimal Debian 12 with its own Python 3.11 in place of the official Python image; ENV, COPY,
WORKDIR, USER and RUN mean what they mean to Docker. `--bind` shows a file or folder of this machine in the roots, to be
read (a mirror of packages, pip's configuration); variables PIP_* are passed on. The last RUN is the image's own check: a
study from data to report. Needs root, debootstrap, a network connection, 20 GB and ten minutes. Ends with `the image
builds`. What it made in FOLDER is removed, nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNSHARED = "unshared"
"""the folder of roots that only a process with mounts of its own works in"""
PACKAGES = "ca-certificates,python3.11,python3.11-venv,python3-distutils"
"""the last provides what the one before needs by a name that debootstrap cannot find"""


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every line of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]  # type: ignore[misc]


def sh(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


class Stage:
    """A root with what the instructions so far have made of it."""

    def __init__(self, root: Path, binds: list[Path]):
        self.root, self.folder, self.user = root, "/", "0"
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        self.args: dict[str, str] = {}
        for bind in [Path("/proc"), Path("/dev"), *binds]:
            place = root / bind.relative_to("/")
            if bind.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            else:
                place.mkdir(parents=True, exist_ok=True)
            sh("mount", "--rbind", bind, place)
            if bind in binds:
                sh("mount", "-o", "remount,ro,bind", place)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")

    def value(self, text: str) -> str:
        for name, value in {**self.args, **self.env}.items():
            text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
        return text

    def run(self, command: str) -> None:
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        home = {"HOME": "/root" if self.user == "0" else "/home/raygrid"}
        env = [f"{name}={value}" for name, value in {**pip, **home, **self.args, **self.env}.items()]
        inner = f"cd {shlex.quote(self.folder)} && {command}"
        sh(
            "chroot",
            f"--userspec={self.user}:{self.user}",
            self.root,
            "/usr/bin/env",
            "-i",
            *env,
            "/bin/sh",
            "-ec",
            inner,
        )

    def copy(self, words: list[str], stages: dict[str, Stage]) -> None:
        origin = ROOT
        if words[0].startswith("--from="):
            origin = stages[words.pop(0).removeprefix("--from=")].root
        *sources, to = words
        target = self.root / os.path.join(self.folder, to).lstrip("/")  # noqa: PTH118 - an absolute one stands
        for source in sources:
            start = origin / source.lstrip("/")
            place = target / start.name if to.endswith("/") and start.is_file() else target
            place.parent.mkdir(parents=True, exist_ok=True)
            sh("cp", "-a", "--no-preserve=ownership", "-T", start, place)


def build(folder: Path, binds: list[Path]) -> None:
    mounts = [Path(f"/proc/{process}/ns/mnt").readlink() for process in (os.getpid(), os.getppid())]
    assert mounts[0] != mounts[1], "run without a folder named unshared: mounts must be seen by nobody else"
    base = folder / "base"
    try:
        sh("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", base)
    except subprocess.CalledProcessError:
        log = base / "debootstrap" / "debootstrap.log"
        print(log.read_text()[-3000:] if log.exists() else "debootstrap left no log", flush=True)
        raise
    (base / "usr/bin/python").symlink_to("python3.11")
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, rest in instructions():
        print(f"=== {name} {rest}", flush=True)
        words = rest.split()
        if name == "FROM":
            root = folder / f"stage{len(stages)}"
            sh("cp", "-a", base, root)
            stage = stages[words[-1] if "AS" in words else f"stage{len(stages)}"] = Stage(root, binds)
        elif stage is None:
            assert name == "ARG", f"{name} before FROM"
        elif name == "ARG":
            key, _, value = rest.partition("=")
            stage.args[key] = value.strip('"')
        elif name == "ENV":
            stage.env |= {key: stage.value(value) for key, _, value in (word.partition("=") for word in words)}
        elif name == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            stage.user = rest
        elif name == "COPY":
            stage.copy(words, stages)
        elif name == "RUN":
            stage.run(rest)
        else:
            assert name == "CMD", f"{name}: not known here"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a folder in which the roots are made (default: a temporary one)")
    parser.add_argument("--bind", action="append", type=Path, default=[])
    options = parser.parse_args()
    if options.folder and Path(options.folder).parent.name == UNSHARED:
        build(Path(options.folder), options.bind)
        return
    place = Path(options.folder or tempfile.mkdtemp(prefix="raygrid-image-")).resolve()
    place.mkdir(parents=True, exist_ok=True)
    folder = place / UNSHARED / "roots"
    folder.parent.mkdir()  # it goes again with all in it, so it must be new
    folder.mkdir()
    binds = [word for bind in options.bind for word in ("--bind", str(bind))]
    try:  # what the child mounts (/dev, say) is never seen here, where the roots are removed
        sh("unshare", "--mount", "--propagation", "private", sys.executable, __file__, folder, *binds)
        print("the image builds")
    finally:
        assert not any(f" {place}/" in line for line in Path("/proc/mounts").read_text().splitlines())
        shutil.rmtree(folder.parent)
        if not any(place.iterdir()):
            place.rmdir()


if __name__ == "__main__":
    main()
