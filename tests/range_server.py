"""A web server on the loopback that gives ranges of files from memory, by the rules or against them on purpose."""

import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request: path, first and last byte (None: the whole file), headers."""

    path: str
    first: int | None
    last: int | None
    headers: dict[str, str]


@dataclass
class Server:
    """files: path -> bytes; rules: called in order with (handler, Asked) until one says that it has answered

    url   without a slash at its end    asked: all requests so far
    """

    files: dict[str, bytes] = field(default_factory=dict)
    rules: list = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def etag(self, path: str) -> str:
        return '"' + hashlib.sha256(self.files[path]).hexdigest()[:32] + '"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        body = self.state.files.get(self.path.partition("?")[0])
        self.answer(
            404 if body is None else 200, b"", {"Content-Length": str(len(body or b"")), "Accept-Ranges": "bytes"}
        )

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(found[1]) if found else None
        last = int(found[2]) if found and found[2] else None
        asked = Asked(self.path.partition("?")[0], first, last, dict(self.headers))
        self.state.asked.append(asked)
        try:
            if any(rule(self, asked) for rule in self.state.rules):
                return
            self.by_the_rules(asked)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def by_the_rules(self, asked: Asked) -> bool:
        body = self.state.files.get(asked.path)
        if body is None:
            return self.answer(404, b"no such file")
        headers = {"ETag": self.state.etag(asked.path), "Accept-Ranges": "bytes"}
        if asked.first is None:
            return self.answer(200, body, headers)
        if asked.first >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        last = min(len(body) - 1 if asked.last is None else asked.last, len(body) - 1)
        headers["Content-Range"] = f"bytes {asked.first}-{last}/{len(body)}"
        return self.answer(206, body[asked.first : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return True

    def raw(self, data: bytes) -> bool:
        """Bytes of our own, and the end."""
        self.wfile.write(data)
        self.wfile.flush()
        self.cut()
        return True

    def cut(self) -> bool:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def endless(self, head: bytes, piece: bytes, pause: float = 0.0) -> bool:
        """The same again and again, until the reader is gone."""
        self.close_connection = True
        self.wfile.write(head)
        try:
            while True:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            return True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def serving(files: Any = None, rules: Iterable[Any] = (), tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server in this process. tls: an SSLContext"""
    state = Server(dict(files or {}), list(rules))
    server = _Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
