"""One HTTP request and its answer, in bounded time and memory, redirects followed by rule.

Over the standard library's http.client. What that does not bound is bounded at the socket: `_Guarded` counts bytes and
time of everything before a body, 1xx answers and trailers too, so that a server cannot keep a reader for ever, and a
body that trickles is cut. A token goes to the origin that it is for, and never again after a redirect has left that
origin. Knows nothing of files (ranges.py).
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlsplit

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.remote.address import Address, is_loopback, redirected
from mtpref.files.remote.limits import Limits, Meter

REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429, 500, 502, 503, 504)
LINKED = "X-Linked-Etag"  # the host's own mark of a file that it keeps elsewhere
_STEP = 1 << 12
_OVERHEAD = 8  # raw bytes for each of a body, for chunks of a byte each


class Cut(Exception):
    """An answer that did not come, or not to its end: worth another try. wait: seconds that the server asks for

    is_first   no byte has come from this host yet: a name that is wrong, a server that is not there
    """

    def __init__(self, why: str, wait: float | None = None, *, is_first: bool = False) -> None:
        super().__init__(why)
        self.wait, self.is_first = wait, is_first


@dataclass(frozen=True)
class Token:
    """A secret, and the origin that it is for."""

    origin: tuple[str, str, int]
    secret: str = field(repr=False)


class Answer:
    """The answer to a request, at the first byte of its body. linked: what the host itself calls its version"""

    def __init__(
        self, client: Client, connection: _Connection, response: http.client.HTTPResponse, address: Address,
        linked: str | None,
    ) -> None:  # fmt: skip
        self._client, self._connection, self._response = client, connection, response
        self._guard = connection.guard
        self.address, self.linked = address, linked
        self.status, self.headers = response.status, response.headers
        self.length = response.length  # None: unknown

    def read(self, n_bytes: int) -> bytes:
        """Up to so many bytes; none at the end of the body. Errors: Cut"""
        try:
            data = self._response.read(n_bytes)
        except (OSError, http.client.IncompleteRead) as error:
            raise Cut(_why(error)) from None
        except (http.client.HTTPException, ValueError) as error:
            raise MtprefError(f"{self.address.shown}: answers what is no HTTP ({_why(error)})") from None
        self._client.meter.n_bytes += len(data)
        return data

    def allow(self, n_bytes: int) -> None:
        """How long the body may be: a guard at the socket, for what http.client reads unasked."""
        self._guard.left = _OVERHEAD * n_bytes + self._client.limits.header_bytes

    def close(self) -> None:
        """Done. The connection stays open for the next request where the body was read to its end."""
        if not self._response.isclosed() and 0 < (self._response.length or 0) <= _STEP:  # a page that says "moved"
            with contextlib.suppress(OSError, http.client.HTTPException, MtprefError):
                self._response.read()
        is_done = self._response.isclosed() or self._response.length == 0
        self._response.close()
        if is_done and self._connection.sock is not None:
            self._client.keep(self.address, self._connection)
        else:
            self._connection.close()


class Client:
    """Requests of one run: its limits, its meter, its connections, its token."""

    def __init__(
        self, limits: Limits | None = None, token: Token | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.limits, self.token, self.sleep = limits or Limits(), token, sleep
        self.meter = Meter()
        self._idle: dict[tuple[str, str, int], _Connection] = {}
        self._answered: set[tuple[str, str, int]] = set()
        self._tls: ssl.SSLContext | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in self._idle.values():
            connection.close()
        self._idle.clear()

    def keep(self, address: Address, connection: _Connection) -> None:
        old = self._idle.pop(address.origin, None)
        if old is not None:
            old.close()
        self._idle[address.origin] = connection

    def get(self, address: Address, first: int | None = None, last: int | None = None) -> Answer:
        """Ask for a file, or for bytes first .. last of it; redirects are followed.

        Errors   Cut where another try may help; MtprefError for refusals, and for redirects that are not followed
        """
        headers = {"User-Agent": "mtpref", "Accept-Encoding": "identity", "Accept": "*/*"}
        if first is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        token, linked, seen = self.token, None, {address}
        start = address
        while True:
            if token is not None and address.origin != token.origin:
                token = None  # for good: a redirect back is another's request, not the user's
            more = {"Authorization": f"Bearer {token.secret}"} if token is not None else {}
            answer = self._once(address, headers | more, linked)
            if answer.status not in REDIRECTS:
                return answer
            linked = linked or answer.headers.get(LINKED)
            location = answer.headers.get("Location", "")
            answer.close()
            if not location:
                raise MtprefError(f"{address.shown}: redirects (HTTP {answer.status}) and does not say where to")
            address = redirected(address, location)
            if address in seen or len(seen) > self.limits.redirects:
                raise MtprefError(
                    f"{start.shown}: redirects in a circle, or more than {self.limits.redirects} times; the last was "
                    f"{address.shown}"
                )
            seen.add(address)

    def _once(self, address: Address, headers: dict[str, str], linked: str | None) -> Answer:
        """One request, no redirect. An idle connection that the server has closed meanwhile is replaced once."""
        idle = self._idle.pop(address.origin, None)
        if idle is not None:
            try:
                return self._ask(idle, address, headers, linked)
            except Cut:
                idle.close()
        return self._ask(self._connect(address), address, headers, linked)

    def _ask(self, connection: _Connection, address: Address, headers: dict[str, str], linked: str | None) -> Answer:
        self.meter.n_requests += 1
        is_first = address.origin not in self._answered
        try:
            guard = connection.guard
            guard.begin_header()
            connection.request("GET", address.target, headers=headers)
            response = connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise MtprefError(f"{address.shown}: its certificate is not valid ({error.verify_message})") from None
        except (OSError, http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            connection.close()
            raise Cut(_why(error), is_first=is_first) from None
        except (http.client.HTTPException, ValueError) as error:
            connection.close()
            raise MtprefError(f"{address.shown}: answers what is no HTTP ({_why(error)})") from None
        except BaseException:
            connection.close()
            raise
        guard.begin_body(response.length)
        self._answered.add(address.origin)
        return Answer(self, connection, response, address, linked)

    def _connect(self, address: Address) -> _Connection:
        guard = Guard(self.limits, address.shown)
        proxy = _proxy(address)
        host, port = (address.host, address.port) if proxy is None else (proxy[0], proxy[1])
        connection: _Connection
        if address.scheme == "http":
            connection = _Plain(host, port, timeout=self.limits.timeout)
        else:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            connection = _Secure(host, port, timeout=self.limits.timeout, context=self._tls)
        connection.guard = guard
        if proxy is not None:
            connection.set_tunnel(address.host, address.port, proxy[2])
        return connection


def _proxy(address: Address) -> tuple[str, int, dict[str, str]] | None:
    """The proxy that the environment names for https (host, port, headers); none for this machine."""
    if address.scheme != "https" or is_loopback(address.host) or urllib.request.proxy_bypass(address.host):
        return None
    url = urllib.request.getproxies().get("https")
    if not url:
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or 8080
    except ValueError:
        host = None
    if not host:
        raise MtprefError("https_proxy: no URL of a proxy, expected one such as http://proxy:8080")
    if parts.username is None:
        return host, port, {}
    import base64

    secret = base64.b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode()
    return host, port, {"Proxy-Authorization": f"Basic {secret}"}


# THE SOCKET


class Guard:
    """What may still come through a connection, and until when."""

    def __init__(self, limits: Limits, label: str) -> None:
        self._limits, self._label = limits, label
        self.left = limits.header_bytes
        self._deadline: float | None = None
        self._window = (0.0, 0)

    def begin_header(self) -> None:
        self.left = self._limits.header_bytes
        self._deadline = time.monotonic() + self._limits.timeout

    def begin_body(self, length: int | None) -> None:
        self._deadline = None
        self._window = (time.monotonic(), 0)
        if length is not None:
            self.left = length + self._limits.header_bytes

    @property
    def step(self) -> int | None:
        """Bytes to read at a time: before a body little, as the body's bytes would count as headers'."""
        return None if self._deadline is None else _STEP

    def patience(self) -> float:
        """Seconds that the next read may take."""
        if self._deadline is None:
            return self._limits.timeout
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        return min(left, self._limits.timeout)

    def came(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise MtprefError(f"{self._label}: the server sends more than was asked for, or endless headers; refused")
        if self._deadline is None:
            start, count = self._window
            self._window = (start, count + n_bytes)
            seconds = time.monotonic() - start
            if seconds >= self._limits.timeout:
                if count + n_bytes < self._limits.slowest * seconds:
                    raise TimeoutError(f"less than {self._limits.slowest} bytes a second")
                self._window = (time.monotonic(), 0)


class _Watched(io.RawIOBase):
    """What a socket gives, under a guard. Holds the socket open as its own file would."""

    def __init__(self, sock: socket.socket, guard: Guard) -> None:
        self._sock, self._guard = sock, guard
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._guard.patience())
        n = self._raw.readinto(memoryview(buffer)[: self._guard.step]) or 0
        self._guard.came(n)
        return n

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Guarded:
    """A socket whose answers are read under a guard."""

    def __init__(self, sock: socket.socket, guard: Guard) -> None:
        self._sock, self._guard = sock, guard

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Watched(self._sock, self._guard), 1 << 16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Plain(http.client.HTTPConnection):
    guard: Guard

    def connect(self) -> None:
        super().connect()
        self.sock = _Guarded(self.sock, self.guard)


class _Secure(http.client.HTTPSConnection):
    guard: Guard

    def connect(self) -> None:
        super().connect()
        self.sock = _Guarded(self.sock, self.guard)


def _why(error: Exception) -> str:
    """An exception in a few words."""
    if isinstance(error, socket.gaierror):
        return "no such host, or no network"
    if isinstance(error, TimeoutError):
        return str(error) if "byte" in str(error) or "answer" in str(error) else "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(str(reason), 120)


def wait_of(headers: Message) -> float | None:
    """Seconds that Retry-After asks for."""
    text = headers.get("Retry-After", "")
    with contextlib.suppress(ValueError):
        return min(float(int(text)), 1e6) if text else None
    return None


_Connection = _Plain | _Secure
