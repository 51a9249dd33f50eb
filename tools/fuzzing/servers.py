"""Answers of a server that are damaged: status lines, headers, chunks, redirects, ends that come early or late.

A case is what a server sends, as text: parts between NEXT answer one request after the other, the last all further
ones. In it {first}, {last}, {size}, {n}, {hex} and {body} stand for the range that was asked for.
"""

import atexit
from functools import cache
from pathlib import Path
from typing import Any

from fuzzing.edits import Edit
from fuzzing.targets import Random, Target
from fuzzing.texts import random_text_edit
from mtpref.files.gguf import WriteOptions
from mtpref.files.remote import Client, Limits
from mtpref.front.api import tiny_path
from mtpref.heads.fetch import look
from tests.range_server import Server, serving

NEXT = b"\n~~\n"
PATH = "/m.gguf"
_206 = b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nContent-Range: bytes {first}-{last}/{size}\r\n'
_PLAIN = _206 + b"Content-Length: {n}\r\n\r\n{body}"
_CHUNKED = _206 + b"Transfer-Encoding: chunked\r\n\r\n{hex}\r\n{body}\r\n0\r\n\r\n"
_MOVED = b"HTTP/1.1 302 Found\r\nLocation: /x.gguf?a=b\r\nContent-Length: 0\r\n\r\n"
_BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
SEEDS = [_PLAIN, _CHUNKED, NEXT.join([_MOVED, _PLAIN, _MOVED, _PLAIN]), NEXT.join([_BUSY, _PLAIN])]
WORDS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\xff", b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2 "),
    *(b"100", b"200", b"204", b"206", b"301", b"302", b"304", b"401", b"404", b"416", b"500", b"503"),
    *(b"bytes */0", b"bytes 0-0/1", b"-1", b"0", b"1", b"99999", b"18446744073709551616", b"W/", b"gzip", b"chunked"),
    *(b"{first}", b"{last}", b"{size}", b"{n}", b"{body}", b"x" * 70_000, b"X: y\r\n" * 150, NEXT),
    *(b"Content-Length: 5\r\n", b"Content-Encoding: br\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Location: file:///etc/passwd\r\n", b"Location: //127.0.0.1:1/\r\n", b"Location: ?\r\n"),
    *(b"Location: http://[\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"ffffffffffffffff\r\n", b"Connection: close\r\n"),
)


@cache
def _server() -> tuple[Server, bytes]:
    """One server of this process, and what it serves."""
    manager = serving()
    atexit.register(manager.__exit__, None, None, None)
    return manager.__enter__(), tiny_path().read_bytes()


def _answer(case: bytes, body: bytes) -> Any:
    parts = case.split(NEXT)
    asked: list[Any] = []

    def rule(h: Any, a: Any) -> Any:
        asked.append(a)
        first = a.first or 0
        last = min(len(body) - 1 if a.last is None else a.last, len(body) - 1)
        found = {b"first": first, b"last": last, b"size": len(body), b"n": last + 1 - first}
        raw = parts[min(len(asked), len(parts)) - 1]
        for name, value in found.items():
            raw = raw.replace(b"{%s}" % name, str(value).encode())
        raw = raw.replace(b"{hex}", b"%x" % (last + 1 - first))
        return h.raw(raw.replace(b"{body}", body[first : last + 1]))

    return rule


def server_target() -> Target:
    server, body = _server()

    def edit(rng: Random, raw: bytes) -> Edit:
        return random_text_edit(rng, len(raw), WORDS)

    def run(case: bytes, folder: Path, i: int) -> None:
        server.rules[:] = [_answer(case, body)]
        server.asked.clear()
        target = folder / "head.gguf"
        limits = Limits(timeout=1.0, tries=3, pause=0.0, longest=0.0)
        try:
            with Client(limits, sleep=lambda _: None) as client, look(client, server.url + PATH) as found:
                found.take(target, WriteOptions())
        finally:
            target.unlink(missing_ok=True)
            if left := list(folder.glob(".head.gguf.*")):
                raise AssertionError(f"left behind: {left}")

    return Target("server", SEEDS, run, 300, edit)
