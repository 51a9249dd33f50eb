"""What fsspec's HTTP file system does where a server breaks the rules, beside mtpref's own reader.

    python tools/measure_fsspec.py

Needs fsspec and aiohttp, which the package itself does not. Each case is a server on the loopback and a read of 1 MiB
at byte 1,000,000 of a file of 4 MB; docs/keeping-the-head.md has what was found.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from mtpref.base.errors import MtprefError
from mtpref.files.remote import Client, Limits, RemoteFile, Token
from mtpref.files.remote.address import parse_address
from tests.range_server import Server, serving

BODY = bytes(range(256)) * 16_384
PATH, FIRST, SIZE = "/m.gguf", 1_000_000, 1 << 20
PATIENCE = 8.0  # seconds for a case
ENOUGH = 64 << 20  # bytes that an endless body has before it is called one

Rule = Callable[[Any, Any], Any]


def _range(h: Any, a: Any, shift: int = 0, body: bytes = BODY, **headers: str) -> Any:
    last = min(a.last, len(BODY) - 1)
    said = {"Content-Range": f"bytes {a.first + shift}-{last + shift}/{len(BODY)}", "ETag": h.state.etag(a.path)}
    said |= {name.replace("_", "-"): value for name, value in headers.items()}
    return h.answer(206, body[a.first + shift : last + 1 + shift], said)


def _later(rule: Rule) -> Rule:
    return lambda h, a: bool(a.first) and rule(h, a)


class _Endless:
    """A body without end, of which bytes are counted."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def __call__(self, h: Any, a: Any) -> Any:
        said = f"Content-Range: bytes {a.first}-{a.last}/{len(BODY)}\r\nTransfer-Encoding: chunked\r\n"
        said += f"ETag: {h.state.etag(a.path)}\r\n\r\n"
        h.close_connection = True
        h.wfile.write(f"HTTP/1.1 206 Partial Content\r\n{said}".encode())
        try:
            body = BODY[a.first : a.last + 1]
            h.wfile.write(b"%x\r\n" % len(body) + body + b"\r\n")
            while self.n_bytes < ENOUGH:
                h.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                self.n_bytes += 65536
        except OSError:
            pass
        return True


def _n_later(h: Any) -> int:
    """Requests so far that are not for the beginning."""
    return len([one for one in h.state.asked if one.first])


def _cut(h: Any, a: Any) -> Any:
    if _n_later(h) > 1:
        return False
    n = min(a.last, len(BODY) - 1) - a.first + 1
    said = f"Content-Range: bytes {a.first}-{a.first + n - 1}/{len(BODY)}\r\nContent-Length: {n}\r\n"
    said += f"ETag: {h.state.etag(a.path)}\r\n\r\n"
    return h.raw(f"HTTP/1.1 206 Partial Content\r\n{said}".encode() + BODY[a.first : a.first + n // 2])


def _with_fsspec(server: Server) -> bytes:
    import fsspec

    session = {"headers": {"Authorization": "Bearer secret"}}  # as its documentation has it
    fs = fsspec.filesystem("http", client_kwargs=session, skip_instance_cache=True)
    with fs.open(server.url + PATH, block_size=256 << 10) as file:
        file.read(10)
        file.seek(FIRST)
        return bytes(file.read(SIZE))


def _with_mtpref(server: Server) -> bytes:
    token = Token(parse_address(server.url).origin, "secret")
    with Client(Limits(timeout=0.5, pause=0.05, tries=4), token) as client:
        file = RemoteFile(client, parse_address(server.url + PATH))
        return file.read(FIRST, SIZE)


def _outcome(read: Callable[[Server], bytes], server: Server) -> str:
    """How a read ended, in a few words."""
    found: list[str] = []

    def run() -> None:
        try:
            data = read(server)
            found.append("right bytes" if data == BODY[FIRST : FIRST + SIZE] else f"WRONG BYTES ({len(data)})")
        except MtprefError as error:
            found.append(f"refused: {str(error).partition(': ')[2][:90]}")
        except Exception as error:
            found.append(f"{type(error).__name__}: {str(error)[:60]}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else f"no end after {PATIENCE:.0f} s"


def measure(reader: Callable[[Server], bytes]) -> dict[str, str]:
    """Each case's outcome."""
    rules: dict[str, Rule] = {
        "by the rules": lambda h, a: False,
        "another ETag": _later(lambda h, a: _range(h, a, body=BODY[::-1], ETag='"other"')),
        "another range": _later(lambda h, a: _range(h, a, shift=100)),
        "range ignored": _later(lambda h, a: h.answer(200, BODY)),
        "cut once": _later(_cut),
        "gzip announced": _later(lambda h, a: _range(h, a, Content_Encoding="gzip")),
        "busy once (503)": _later(lambda h, a: _n_later(h) == 1 and h.answer(503, b"")),
        "silence": _later(lambda h, a: time.sleep(PATIENCE)),
        "to file:": _later(lambda h, a: h.answer(302, b"", {"Location": "file:///etc/passwd"})),
        "to http of another host": _later(lambda h, a: h.answer(302, b"", {"Location": "http://198.51.100.7/"})),
        "in a circle": _later(lambda h, a: h.answer(302, b"", {"Location": PATH})),
    }
    found = {}
    for name, rule in rules.items():
        with serving({PATH: BODY}, [rule]) as server:
            found[name] = _outcome(reader, server)
    endless = _Endless()
    with serving({PATH: BODY}, [_later(endless)]) as server:
        ended = _outcome(reader, server)
        found["endless body"] = f"{ended}; took {endless.n_bytes >> 20} MiB"
    with serving() as front, serving({PATH: BODY}) as store:
        front.rules.append(lambda h, a: h.answer(302, b"", {"Location": store.url + PATH}))
        ended = _outcome(reader, front)
        told = sum("Authorization" in one.headers for one in store.asked)
        found["token along a redirect"] = f"{ended}; the other host was told the token {told} times"
    return found


def main() -> int:
    both = {"fsspec": measure(_with_fsspec), "mtpref": measure(_with_mtpref)}
    for case in both["fsspec"]:
        print(case)
        for who, found in both.items():
            print(f"  {who:8s}{found[case]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
