"""An HTTP proxy in front of a real S3 server that does what networks and overloaded servers do."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import unquote, urlsplit

BROKEN = ("500", "503 slow down", "reset before", "reset after", "reset in upload", "reset in download", "cut")
"""answers that anybody can see are broken"""
WRONG = ("short", "flip")
"""answers that look whole"""
KINDS = (*BROKEN, *WRONG, "silence", "expired", "denied", "no bucket")
XML = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503 slow down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "no bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
}


@dataclass(frozen=True)
class Request:
    """What a rule decides by."""

    number: int
    method: str
    path: str
    query: str


Rule = Callable[[Request], str | None]


@dataclass
class Proxy:
    """Passes requests on to `upstream` (a port of this machine); `rule` names the fault of each, or None."""

    upstream: int
    rule: Rule = lambda request: None
    port: int = 0
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    """method, path and fault of every request"""

    def __enter__(self) -> Proxy:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def faults(self, kind: str | None = None) -> int:
        """How many faults were made."""
        return sum(fault is not None and kind in (None, fault) for _, _, fault in self.seen)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        length = int(_header(head, b"content-length") or 0)
        url = urlsplit(target)
        request = Request(len(self.seen), method, unquote(url.path), url.query)
        fault = self.rule(request)
        self.seen.append((method, request.path, fault))
        if fault == "reset in upload":
            await reader.readexactly(length // 2)
            return _reset(writer)
        body = await reader.readexactly(length)
        if fault in XML:
            status, code, message = XML[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            answer = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write(answer.encode() + (b"" if method == "HEAD" else text))
            await writer.drain()
            return True
        if fault == "reset before":
            return _reset(writer)
        if fault == "silence":
            await asyncio.sleep(3600)
        answer_head, answer = await self._ask(method, head, body)
        if fault == "reset after":
            return _reset(writer)
        if fault == "reset in download" and len(answer) > 1:
            writer.write(answer_head + answer[: len(answer) // 2])
            await writer.drain()
            await asyncio.sleep(0.05)
            return _reset(writer)
        if fault == "cut":
            writer.write(answer_head + answer[: len(answer) // 2])
            await writer.drain()
            return False
        if fault == "short":
            answer = answer[: len(answer) // 2]
            answer_head = _with_length(answer_head, len(answer))
        if fault == "flip" and answer:
            place = len(answer) * 2 // 3
            answer = answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]
        writer.write(answer_head + answer)
        await writer.drain()
        return True

    async def _ask(self, method: str, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=2**26)
        try:
            first, rest = head.split(b"\r\n", 1)
            writer.write(first + b"\r\nConnection: close\r\n" + rest + body)
            await writer.drain()
            answer_head = await reader.readuntil(b"\r\n\r\n")
            while answer_head.startswith(b"HTTP/1.1 100"):
                answer_head = await reader.readuntil(b"\r\n\r\n")
            answer = b"" if method == "HEAD" else await reader.read(-1)
            if b"chunked" in (_header(answer_head, b"transfer-encoding") or b""):
                answer = _dechunked(answer)
                answer_head = _without(answer_head, b"transfer-encoding")
                answer_head = answer_head[:-2] + b"Content-Length: %d\r\n\r\n" % len(answer)
            return _without(answer_head, b"connection"), answer
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection with RST instead of FIN."""
    socket: Any = writer.get_extra_info("socket")
    socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _without(head: bytes, name: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join([lines[0], *(one for one in lines[1:] if one.partition(b":")[0].strip().lower() != name)])


def _with_length(head: bytes, length: int) -> bytes:
    return _without(head, b"content-length")[:-2] + b"Content-Length: %d\r\n\r\n" % length


def _dechunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if not count:
            break
        found, data = found + data[:count], data[count + 2 :]
    return found
