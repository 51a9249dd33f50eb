"""A file on a server, read by ranges: what it is called there, how large it is, which version, and its bytes.

Every answer must be of the version that the first was of (X-Linked-Etag, ETag, or Last-Modified, and the size) and of
the very range that was asked for. A connection that is cut goes on where it was; the waits between tries grow.
Nothing is kept but the first block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import human_bytes, printable
from mtpref.files.remote.address import Address
from mtpref.files.remote.http import BUSY, Answer, Client, Cut, wait_of
from mtpref.files.remote.spool import Kept, Spool

FIRST = 256 << 10  # bytes of the first request: most headers of a split model's files, and of safetensors
PIECE = 256 << 10
NEAR = 64 << 10  # bytes between two ranges that are read along
MAX_SIZE = 1 << 48
MAX_WAIT = 120.0  # seconds that a server may ask for
_CONTENT_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})")
_NONE_THERE = re.compile(r"bytes \*/0{1,16}")
_SAYS = {
    401: "wants a token; set HF_TOKEN, or log in with `hf auth login`",
    403: "forbidden: a token is missing or lacks the right, the model's terms are to be accepted on its page, or the "
    "file is not there (buckets answer so)",
    404: "not found; is the name right, and the file there?",
    410: "gone",
}


class NotThereError(MtprefError):
    """A file that the server says it does not have."""


class RemoteFile:
    """size: bytes    version: what the server calls it, "" where it does not    head: its first block, at most FIRST

    label   what it is called in lines
    """

    def __init__(self, client: Client, address: Address, label: str | None = None) -> None:
        self.client, self.address = client, address
        self.label = printable(label or address.shown, 400)
        self.size, self.version = -1, ""
        self.n_kept = 0  # bytes that an earlier run has left
        self._kept: Kept | None = None
        self._answer: Answer | None = None
        self._at = self._end = 0  # of the open answer: its next byte, and the one after its last
        self._runs: list[tuple[int, int]] = []
        self._tries = _Tries(client, self.label)
        self.head = self._first()

    @property
    def is_versioned(self) -> bool:
        return bool(self.version)

    def keep(self, spool: Spool) -> None:
        """Keep what comes from now on, and take from there what is kept: of a file whose version is known."""
        if self.is_versioned:
            self._kept = spool.of(self.address.shown, self.size, self.version)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ranges (first byte, the one after the last) that will be read in order: near ones share a request."""
        self._runs = []
        wanted = ranges if self._kept is None else (gap for one in ranges for gap in self._kept.gaps(*one))
        for first, end in sorted(wanted):
            if self._runs and first - self._runs[-1][1] <= NEAR:
                self._runs[-1] = (self._runs[-1][0], max(end, self._runs[-1][1]))
            else:
                self._runs.append((first, end))

    def read(self, first: int, n_bytes: int) -> bytes:
        """These bytes. Errors: MtprefError as `pieces`"""
        return b"".join(self.pieces(first, n_bytes))

    def pieces(self, first: int, n_bytes: int) -> Iterator[bytes]:
        """These bytes in order, at most PIECE at a time.

        Errors   MtprefError for bytes beyond the end, a server that answers other than by the rules, another version,
                 and after as many tries in a row as the limits say
        """
        at, end = first, first + n_bytes
        if at < 0 or end > self.size:
            raise MtprefError(f"{self.label}: bytes {at} to {end} of {self.size} were asked for; the header is damaged")
        if at < min(len(self.head), end):
            yield self.head[at : min(end, len(self.head))]
            at = min(end, len(self.head))
        while at < end:
            is_here, stop = (False, end) if self._kept is None else self._kept.here(at, end)
            if is_here and self._kept is not None:
                data = self._kept.read(at, min(PIECE, stop - at))
                self.n_kept += len(data)
                at += len(data)
                yield data
                continue
            try:
                data = self._open_at(at, stop).read(min(PIECE, stop - at, self._end - at))
                if not data:
                    raise Cut("the connection was cut")
            except Cut as cut:
                self._drop()
                self._tries.failed(cut)
                continue
            self._tries.came(len(data))
            at += len(data)
            self._at = at
            if at == self._end:
                self._drop()
            if self._kept is not None:
                self._kept.write(at - len(data), data)
            yield data

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _open_at(self, at: int, end: int) -> Answer:
        """An answer whose next byte is `at`: the open one, where it comes by there."""
        if self._answer is not None and 0 <= at - self._at <= NEAR and at < self._end:
            while self._at < at:
                data = self._answer.read(min(at - self._at, PIECE))
                if not data:
                    raise Cut("the connection was cut")
                self._at += len(data)
            return self._answer
        self._drop()
        end = max([end, *(stop for start, stop in self._runs if start <= at < stop)])
        answer = self.client.get(self.address, at, end - 1)
        try:
            last = self._check(answer, at, end - 1)
        except BaseException:
            answer.close()
            raise
        answer.allow(last + 1 - at)
        self._answer, self._at, self._end = answer, at, last + 1
        return answer

    def _first(self) -> bytes:
        """The first block, with which the file becomes known."""
        while True:
            try:
                answer = self.client.get(self.address, 0, FIRST - 1)
                try:
                    last = self._check(answer, 0, FIRST - 1)
                    answer.allow(last + 1)
                    head = b""
                    while len(head) <= last and (data := answer.read(last + 1 - len(head))):
                        head += data
                    if len(head) <= last:
                        raise Cut("the connection was cut")
                    return head
                finally:
                    answer.close()
            except Cut as cut:
                self._tries.failed(cut)

    def _check(self, answer: Answer, first: int, last: int) -> int:
        """The last byte that an answer will bring. Errors: Cut for a busy server; MtprefError"""
        check_status(answer, self.label)
        if answer.status == 416 and _NONE_THERE.fullmatch(answer.headers.get("Content-Range", "")):
            raise MtprefError(f"{self.label}: the file is empty, expected a model")
        if answer.status == 416:
            self._refuse(f"does not give bytes {first} to {last} (HTTP 416)")
        if packed := packing_of(answer):
            self._refuse(f"packs what it sends ({printable(packed, 20)})")
        if answer.status == 200 and first == 0 and answer.length is not None and answer.length <= last + 1:
            begin, end, size = 0, answer.length - 1, answer.length  # the whole of a small file
        elif answer.status == 206:
            found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None:
                self._refuse(f"names the range {printable(answer.headers.get('Content-Range', 'none'), 60)!r}")
            begin, end, size = (int(text) for text in found.groups())
        else:
            raise MtprefError(
                f"{self.label}: the server does not give parts of a file (HTTP {answer.status} to a range), expected "
                "206; download the file and give its name"
            )
        if size == 0:
            raise MtprefError(f"{self.label}: the file is empty, expected a model")
        if begin != first or not first <= end <= last or end >= size or size > MAX_SIZE:
            self._refuse(f"was asked for bytes {first} to {last} and gives {begin} to {end} of {size}")
        if answer.length is not None and answer.length != end + 1 - begin:
            self._refuse(f"announces bytes {begin} to {end} and sends {answer.length}")
        if end < min(last, size - 1) and end - begin < NEAR:
            self._refuse(f"was asked for bytes {first} to {last} and gives {begin} to {end}")
        self._check_version(answer, size)
        return end

    def _check_version(self, answer: Answer, size: int) -> None:
        version = answer.linked or answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if self.size < 0:
            self.size, self.version = size, version
        if (size, version) != (self.size, self.version):
            was, now = printable(self.version or "without a version", 60), printable(version or "without a version", 60)
            raise MtprefError(
                f"{self.label}: changed on the server while it was read: {self.size} bytes, {was}; now {size} bytes, "
                f"{now}; begin again"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise MtprefError(f"{self.label}: the server {what}, expected the bytes that were asked for; refused")


def check_status(answer: Answer, label: str) -> None:
    """Cut for a server that is busy; MtprefError for a refusal."""
    status = answer.status
    if status in BUSY:
        raise Cut(f"the server is busy (HTTP {status})", wait_of(answer.headers))
    if status >= 400 and status != 416:
        kind = NotThereError if status in (404, 410) else MtprefError
        raise kind(f"{label}: {_SAYS.get(status, 'the server refuses')} (HTTP {status})")


def packing_of(answer: Answer) -> str:
    """How a body is packed, by all of its headers; "" where it is not."""
    codings = ",".join(answer.headers.get_all("Content-Encoding", [])).lower().split(",")
    return ",".join(coding for word in codings if (coding := word.strip()) not in ("", "identity"))


class _Tries:
    """Tries in a row, and the waits between them."""

    def __init__(self, client: Client, label: str) -> None:
        self._client, self._label = client, label
        self._n = self._came = 0

    def came(self, n_bytes: int) -> None:
        self._came += n_bytes
        if self._came >= self._client.limits.progress:
            self._n = self._came = 0

    def failed(self, cut: Cut) -> None:
        """Wait for the next try. Errors: MtprefError where there is none"""
        limits = self._client.limits
        self._n += 1
        if cut.is_first or self._n >= limits.tries:
            tries = "" if self._n == 1 else f" ({self._n} tries)"
            raise MtprefError(f"{self._label}: cannot be read: {cut}{tries}; try again later")
        wait = min(limits.pause * 2 ** (self._n - 1), limits.longest)
        if cut.wait is not None:
            if cut.wait > MAX_WAIT:
                raise MtprefError(f"{self._label}: {cut}, and asks to wait {cut.wait:.0f} s; try again later")
            wait = max(wait, cut.wait)
        self._client.meter.n_retries += 1
        self._client.sleep(wait)


def get_small(client: Client, address: Address, label: str, max_bytes: int) -> bytes | None:
    """A whole small file; None where the server has none (404).

    Errors   MtprefError for a larger one, and as `RemoteFile`
    """
    tries = _Tries(client, label)
    while True:
        try:
            answer = client.get(address)
            try:
                if answer.status == 404:
                    answer.allow(0)
                    return None
                check_status(answer, label)
                if answer.status != 200:
                    raise MtprefError(f"{label}: the server answers HTTP {answer.status}, expected 200")
                if packing_of(answer):
                    raise MtprefError(f"{label}: the server packs what it sends, which was not asked for; refused")
                return _whole(answer, label, max_bytes)
            finally:
                answer.close()
        except Cut as cut:
            tries.failed(cut)


def _whole(answer: Answer, label: str, max_bytes: int) -> bytes:
    length = answer.length
    if length is not None and length > max_bytes:
        raise MtprefError(f"{label}: {human_bytes(length)}, expected at most {human_bytes(max_bytes)}; refused")
    answer.allow(max_bytes)
    pieces, left = [], max_bytes
    while data := answer.read(min(PIECE, left + 1)):
        left -= len(data)
        if left < 0:
            raise MtprefError(f"{label}: more than {human_bytes(max_bytes)}, expected a small file; refused")
        pieces.append(data)
    found = b"".join(pieces)
    if length is not None and len(found) != length:
        raise Cut("the connection was cut")
    return found
