"""Object storage, the only truth: a folder, `s3://`, `gs://` or `az://`, behind one small interface.

Writes are atomic (a reader sees the whole object or none), records are created if absent, reads of named content are
verified by sha256. What object storage lacks, mutual exclusion, is a lease: it only saves work, since correctness
rests on create-if-absent. Nothing read here is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
import psutil
from obstore import exceptions as failures
from obstore.store import LocalStore, from_url

from raygrid.errors import AlreadyExists, IntegrityError, StoreError, UserError, closest, expanded

SCHEMES = ("file", "s3", "gs", "az", "memory")
LEASE_DEAD_S = 60.0
"""a lease whose text has not changed for so long, by the reader's monotonic clock, is dead"""
LEASE_BEAT_S = 15.0
RETRIES = {
    "max_retries": 1000,
    "retry_timeout": timedelta(seconds=90),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=15),
        "base": 4.0,
    },
}
"""transient failures (5xx, slow-down, resets, time-outs): for 90 s, with growing random waits. Time alone is the bound:
a wait is drawn between the first and `base` times the last, so with base 2 waits hardly grow and are soon over"""
HASTE_S = 5.0
"""the same where nothing is lost yet (a store looked at, or tried before a launch): with AGAIN, half a minute"""
SILENCE_S = 30.0
"""a request that sends and receives nothing for so long is given up and made again"""
AGAIN = 4
"""tries of a whole call where obstore gives up at once: an answer that broke off, or a request that it takes for not
repeatable; none is begun later than AGAIN_S after the first, so that with obstore's 90 s and a silence it is three
minutes in all"""
AGAIN_S = 60.0
STALE_S = 3600.0
"""what a killed process left half written goes when it is older, by the store's own clock"""
_TEMPORARY = re.compile(r"#\d+$")
_TRANSIENT = re.compile(r"HTTP error|response body|Got invalid|timed out|status code: 5\d\d")


def sha256_of(data: bytes | memoryview) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()


def safe_path(path: str) -> str:
    """The path itself, if it stays inside the store. Raises StoreError otherwise."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path:
        raise StoreError(f"store: {path!r} is not a path inside the store")
    return path


class Store:
    """Objects by path under one URL. Cheap to make; pickles as its URL.

    With `make=False`, for commands that only look, a folder that is not there is a UserError, and a server that is away
    is given up after half a minute.
    """

    def __init__(self, url: str, make: bool = True):
        self.url = _normal(url)
        self.is_folder = self.url.startswith("file://")
        if self.is_folder and not make and not Path(self.url.removeprefix("file://")).is_dir():
            raise UserError(f"there is no store at {self.url.removeprefix('file://')}: was something launched there?")
        try:
            if self.is_folder:
                self.folder = Path(self.url.removeprefix("file://"))
                self.folder.mkdir(parents=True, exist_ok=True)
                self._objects: Any = LocalStore(self.folder, automatic_cleanup=False)
            else:
                endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
                config = {"endpoint": endpoint} if endpoint and self.url.startswith("s3://") else None
                options: Any = {
                    "timeout": timedelta(minutes=30),
                    "connect_timeout": timedelta(seconds=10),
                    "read_timeout": timedelta(seconds=SILENCE_S),
                }
                if endpoint.startswith("http://"):
                    options["allow_http"] = True
                retries = RETRIES if make else {**RETRIES, "retry_timeout": timedelta(seconds=HASTE_S)}
                kwargs: dict[str, Any] = (
                    {}
                    if self.url.startswith("memory")
                    else {"config": config, "client_options": options, "retry_config": retries}
                )
                self._objects = from_url(self.url, **kwargs)
        except (failures.BaseError, OSError, ValueError) as error:
            raise StoreError(f"store {self.url}: cannot be opened ({_plain(error)})") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url,)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def uri(self, path: str) -> str:
        """Full URL of an object."""
        return f"{self.url.rstrip('/')}/{path}"

    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, or not at all; what was there is replaced."""
        self._call(path, lambda: obstore.put(self._objects, safe_path(path), data))

    def create(self, path: str, data: bytes) -> None:
        """Write an object if there is none of that path; raises AlreadyExists if there is.

        An earlier try of this very call may have written it, its answer lost: then it has these bytes, and all is well.
        """
        try:
            self._call(
                path,
                lambda: obstore.put(self._objects, safe_path(path), data, mode="create", use_multipart=False),
            )
        except AlreadyExists:
            if self.is_folder or self.find(path) != data:
                raise

    def put_file(self, path: str, local: Path) -> None:
        """Write a file's bytes, in parts where it is large."""
        self._call(path, lambda: obstore.put(self._objects, safe_path(path), local))

    def get(self, path: str, sha256: str | None = None) -> bytes:
        """An object's bytes. With `sha256` they are verified, and fetched again twice before IntegrityError is raised.

        Raises FileNotFoundError where there is no such object.
        """
        for attempt in range(3):
            data = self._call(path, lambda: bytes(obstore.get(self._objects, safe_path(path)).bytes()))
            if sha256 is None or sha256_of(data) == sha256:
                return data
            time.sleep(0.2 * attempt)
        raise IntegrityError(
            f"store: {self.uri(path)} is damaged: its sha256 is {sha256_of(data)[:16]}..., expected "
            f"{(sha256 or '')[:16]}...; delete it, and what depends on it is made again"
        )

    def find(self, path: str) -> bytes | None:
        """An object's bytes, or None."""
        try:
            return self.get(path)
        except FileNotFoundError:
            return None

    def find_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Bytes of those objects that exist; many requests at a time."""
        from concurrent.futures import ThreadPoolExecutor

        wanted = list(paths)
        with ThreadPoolExecutor(16) as pool:
            return {p: d for p, d in zip(wanted, pool.map(self.find, wanted), strict=True) if d is not None}

    def get_head(self, path: str, size: int) -> bytes:
        """The first bytes of an object, fewer where it is smaller. Raises FileNotFoundError where there is none."""
        return self._call(path, lambda: bytes(obstore.get_range(self._objects, safe_path(path), start=0, length=size)))

    def get_file(self, path: str, local: Path, sha256: str) -> None:
        """Fetch an object into a file: streamed, verified, then renamed in one step. What does not have `sha256` is
        fetched again twice."""
        for attempt in range(3):
            if self._call(path, lambda: self._fetch(path, local, sha256)):
                return
            time.sleep(0.2 * attempt)
        raise IntegrityError(
            f"store: {self.uri(path)} is damaged: its sha256 is not {sha256[:16]}...; delete it, and what depends on "
            "it is made again"
        )

    def _fetch(self, path: str, local: Path, sha256: str) -> bool:
        """One try; False where other bytes came."""
        chunks = iter(obstore.get(self._objects, safe_path(path)).stream())
        name = None
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=local.parent, prefix=".part-")
            seen = hashlib.sha256()
            with os.fdopen(handle, "wb") as out:
                for chunk in chunks:
                    out.write(chunk)
                    seen.update(chunk)
            if seen.hexdigest() != sha256:
                return False
            Path(name).replace(local)
            return True
        except failures.BaseError:
            raise
        except OSError as error:
            raise StoreError(f"{local.parent}: cannot be written ({error.strerror or error})") from None
        finally:
            if name is not None:
                Path(name).unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether there is an object of that path."""
        try:
            self._call(path, lambda: obstore.head(self._objects, safe_path(path)))
        except FileNotFoundError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Remove an object; none is no error."""
        try:
            self._call(path, lambda: obstore.delete(self._objects, safe_path(path)))
        except FileNotFoundError:
            return

    def list(self, prefix: str = "") -> Iterator[str]:
        """Paths under a prefix; a few requests however many cells there are."""
        for meta in self._listed(prefix):
            if not _TEMPORARY.search(meta["path"]):
                yield meta["path"]

    def written(self, prefix: str = "") -> dict[str, float]:
        """Paths under a prefix, with the second since 1970 at which each was written, by the store's clock."""
        metas = self._listed(prefix)
        return {m["path"]: m["last_modified"].timestamp() for m in metas if not _TEMPORARY.search(m["path"])}

    def _listed(self, prefix: str) -> Iterable[Any]:
        """What lies under a prefix; a listing that broke off is begun again."""

        def all_of_it() -> Any:
            return [meta for chunk in obstore.list(self._objects, prefix=prefix or None) for meta in chunk]

        return self._call(prefix, all_of_it)

    def check(self) -> None:
        """Write, read and remove a small object, so that a store that cannot serve is found before anything is paid
        for. Raises StoreError."""
        path = f"check/{socket.gethostname()}-{os.getpid()}"
        hasty = self if self.url.startswith("memory") else Store(self.url, make=False)
        try:
            hasty.put(path, b"raygrid")
        except FileNotFoundError:
            raise StoreError(f"store {self.url}: no such bucket, or no right to it") from None
        if self.get(path) != b"raygrid":
            raise StoreError(f"store {self.url}: what was written could not be read back")
        self._sweep(path)
        self.delete(path)

    def _sweep(self, mine: str) -> None:
        """Remove what killed processes left half written, here and among the checks. `mine` was written just now: its
        time is the store's clock. A file that is being written is younger."""
        metas = list(self._listed("check"))
        now = next((meta["last_modified"] for meta in metas if meta["path"] == mine), None)
        for meta in metas:
            if now and meta["path"] != mine and (now - meta["last_modified"]).total_seconds() > STALE_S:
                self.delete(meta["path"])
        if self.is_folder:
            clock = (self.folder / mine).stat().st_mtime
            for left in self.folder.rglob("*#*"):
                with contextlib.suppress(OSError):
                    if _TEMPORARY.search(left.name) and clock - left.stat().st_mtime > STALE_S:
                        left.unlink()

    def _call(self, path: str, action: Any) -> Any:
        """Do it, or say in one line why not. What obstore does not try again by itself is tried again here."""
        begun = time.monotonic()
        for attempt in range(1, AGAIN + 1):
            try:
                return self._try(path, action)
            except _Again as error:
                if attempt == AGAIN or time.monotonic() - begun > AGAIN_S:
                    raise StoreError(str(error)) from None
            time.sleep(random.uniform(0.5, 1.0) * 0.2 * 3**attempt)
        raise AssertionError("unreachable")

    def _try(self, path: str, action: Any) -> Any:
        try:
            return action()
        except failures.AlreadyExistsError:
            raise AlreadyExists(f"store: {self.uri(path)} exists") from None
        except (failures.NotFoundError, FileNotFoundError):
            raise FileNotFoundError(self.uri(path)) from None
        except failures.BaseError as error:
            again = not self.is_folder and _TRANSIENT.search(str(error).split("\n\nDebug source")[0])
            raise (_Again if again else StoreError)(f"store: {self.uri(path)}: {_plain(error)}") from None
        except OSError as error:
            raise StoreError(f"store: {self.uri(path)}: {error.strerror or error}") from None


class _Again(StoreError):
    """A failure that may be gone the next time."""


def _normal(url: str) -> str:
    """A folder becomes an absolute `file://` URL; other schemes are checked."""
    if "://" not in url:
        return f"file://{expanded(url).resolve()}"
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise UserError(f"store {url}: unknown scheme {scheme!r}{closest(scheme, ('a folder', *SCHEMES[:-1]))}")
    if scheme != "file" and (urlsplit(url).username or urlsplit(url).password):
        raise UserError(
            "store: the URL holds credentials; give them in the environment instead (AWS_ACCESS_KEY_ID, ...)"
        )
    if scheme != "file" and (urlsplit(url).query or urlsplit(url).fragment):
        raise UserError(
            "store: the URL has a query (is it signed?); give bucket and prefix alone, credentials in the environment"
        )
    return url if scheme != "file" else f"file://{Path(url.removeprefix('file://')).resolve()}"


def _plain(error: Exception) -> str:
    """First line of an obstore message, without the debug dump and without query strings (they can be signed)."""
    text = str(error).split("\n\nDebug source")[0].strip()
    said = re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)", text)
    if said:
        return f"the server says {said[1]} ({' '.join(said[2].split())[:200]})"
    return re.sub(r"\?[^\s\"')]*", "", " ".join(text.split()))[:300]


# --- leases ----------------------------------------------------------------------------------------------------------


def host_identity() -> str:
    """This host, as far as process numbers are concerned: name, boot, and process namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.exists():
        parts.append(boot.read_text().strip()[:8])
    if space.exists():
        parts.append(str(space.stat().st_ino))
    return ":".join(parts)


class _Held:
    """A lease that is held: `busy` while it is written or removed, `over` once it was let go."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.over = threading.Event()


class Leases:
    """The leases that one process holds, each kept alive by a thread of its own: a call of the store that takes minutes
    silences its own lease and no other.

    A lease is an object `{host, pid, started, beat}`. It is dead when its text has not changed for 60 s of the
    reader's monotonic clock (no clock of two machines is compared), or at once when its owner is a process of this
    host that no longer exists.
    """

    def __init__(self, store: Store):
        self.store = store
        self._me = {"host": host_identity(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._nonce = os.urandom(6).hex()
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}

    def take(self, path: str) -> bool:
        """Try to hold a lease; False while another process holds it alive."""
        for _ in range(2):
            try:
                self.store.create(path, self._text())
            except AlreadyExists:
                text = self.store.find(path)
                if text is not None:
                    if not self._dead(path, text):
                        return False
                    if self.store.find(path) != text:
                        return False  # another process took it over meanwhile, or its owner has woken
                    self.store.delete(path)
            else:
                held = self._held[path] = _Held()
                threading.Thread(target=self._keep, args=(path, held), name="raygrid-lease", daemon=True).start()
                return True
        return False

    def release(self, path: str) -> None:
        """Let go of a lease."""
        held = self._held.pop(path, None)
        if held is None:
            return
        held.over.set()
        with held.busy:  # a beat on its way would bring the lease back
            self.store.delete(path)

    def close(self) -> None:
        """Let go of all."""
        for path in list(self._held):
            try:
                self.release(path)
            except StoreError:
                continue  # it dies by itself

    def _text(self, beat: int = 0) -> bytes:
        return json.dumps({**self._me, "nonce": self._nonce, "beat": beat}).encode()

    def _dead(self, path: str, text: bytes) -> bool:
        try:
            owner = json.loads(text)
            if owner["host"] == self._me["host"] and not _alive(owner["pid"], owner["started"]):
                return True
        except (ValueError, KeyError, TypeError):
            pass  # not a lease of ours: it dies by the clock
        now = time.monotonic()
        seen, since = self._seen.get(path, (b"", now))
        if seen != text:
            self._seen[path] = (text, now)
            return False
        return now - since >= LEASE_DEAD_S

    def _keep(self, path: str, held: _Held) -> None:
        beat = 0
        while not held.over.wait(LEASE_BEAT_S):
            beat += 1
            with held.busy:
                if held.over.is_set():
                    return
                try:
                    self.store.put(path, self._text(beat))
                except StoreError:
                    continue  # the next beat tries again


def _alive(pid: int, started: float) -> bool:
    try:
        return abs(_started(pid) - started) < 2 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started(pid: int) -> float:
    """When a process of this host started, in seconds since it booted where the system says so: the wall clock may be
    set meanwhile. Raises psutil.Error where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return psutil.Process(pid).create_time()
