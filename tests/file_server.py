"""An HTTP server on the loopback with the troubles that servers have, each for the requests that it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Trouble:
    """What goes wrong with one answer."""

    status: int = 0
    """Answer this instead of the file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent along with it."""
    drop_after: int | None = None
    """Cut the connection after so many bytes of the body."""
    length_off: int = 0
    """Announce so many bytes more than there are."""
    no_length: bool = False
    """Do not say how long the file is."""
    ignore_range: bool = False
    """Send all of it whatever was asked for."""
    flip: int | None = None
    """Flip the bits of this byte of the file."""
    silent_seconds: float = 0.0
    """Say nothing for so long, in the middle of the body."""
    first: Callable[[], None] = lambda: None
    """Done before the answer is made."""


@dataclass
class File:
    """A file on the server."""

    data: bytes
    etag: str = '"1"'
    modified: str = "Mon, 02 Nov 2026 10:00:00 GMT"


class FileServer:
    """Files by path, troubles by path in the order of requests, and what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.troubles: dict[str, list[Trouble]] = defaultdict(list)
        self.always: dict[str, Trouble] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.served_bytes = 0
        self.lock = threading.Lock()
        self.chunk_seconds = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    server.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def add(self, path: str, data: bytes, *troubles: Trouble, **about: str) -> str:
        """Put a file there; returns its address."""
        self.files[path] = File(data, **about)
        self.troubles[path] += troubles
        return self.url + path

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests for a path."""
        return [headers for asked, headers in self.requests if asked == path]

    def ranges(self, path: str) -> list[str]:
        """The ranges that were asked for, "" for all of the file."""
        return [headers.get("range", "") for headers in self.asked(path)]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = handler.path
        with self.lock:
            self.requests.append((path, {name.lower(): value for name, value in handler.headers.items()}))
            queue = self.troubles[path]
            trouble = queue.pop(0) if queue else self.always.get(path, Trouble())
        trouble.first()
        if trouble.status or path not in self.files:
            handler.send_response(trouble.status or 404)
            for name, value in trouble.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self.send(handler, self.files[path], trouble)

    def send(self, handler: BaseHTTPRequestHandler, file: File, trouble: Trouble) -> None:
        """Send a file, or its rest."""
        start = self.start(handler, file, trouble)
        size = len(file.data) + trouble.length_off
        if start >= len(file.data) > 0:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(file.data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if not trouble.no_length:
            handler.send_header("Content-Length", str(size - start))
        for name, value in (("ETag", file.etag), ("Last-Modified", file.modified), *trouble.headers.items()):
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        data = bytearray(file.data)
        if trouble.flip is not None:
            data[trouble.flip] ^= 0xFF
        body = bytes(data[start:])
        cut = len(body) if trouble.drop_after is None else trouble.drop_after
        if trouble.silent_seconds:
            cut = len(body) // 2
        for place in range(0, cut, 1 << 16):
            handler.wfile.write(body[place : min(place + (1 << 16), cut)])
            self.served_bytes += min(1 << 16, cut - place)
            time.sleep(self.chunk_seconds)
        if trouble.silent_seconds:
            handler.wfile.flush()
            time.sleep(trouble.silent_seconds)
        if trouble.drop_after is not None:
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def start(handler: BaseHTTPRequestHandler, file: File, trouble: Trouble) -> int:
        """The byte to send from: what is asked for, if the file still is what the asker has the beginning of."""
        asked, condition = handler.headers.get("Range", ""), handler.headers.get("If-Range")
        if not asked or trouble.ignore_range:
            return 0
        if condition is not None and condition not in {file.etag, file.modified}:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    """A server while the block runs."""
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
