"""Bytes that came, kept until the head is written: a run that was stopped goes on with them. `fetch --resume`.

A folder beside the target holds, for each file on the server, what it is (.json: size and version), bytes at their own
places (.bytes, sparse) and a journal of the ranges that are whole (.ranges: first, end, CRC-32). A range is entered
after its bytes are on disk, so that nothing that a crash leaves is taken for more than it is; ranges whose bytes do not
have their sum, and files of another version, are forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import listed, printable
from mtpref.files.gguf.whole import lock, refuse_left_over

SUFFIX = ".mtpref-parts"
PIECE = 1 << 20
SYNC = 8 << 20  # bytes between two entries: what a kill loses at most
MAX_JOURNAL = 16 << 20
_OURS = re.compile(r"[0-9a-f]{32}\.(json|bytes|ranges)")
_FLAGS = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC"))


class Spool:
    """The folder of a target. A context manager; `done` removes it."""

    def __init__(self, target: str | Path) -> None:
        self.folder = Path(f"{target}{SUFFIX}")
        self._kept: list[Kept] = []
        label = printable(str(self.folder), 400)
        refuse_left_over(self.folder)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()
            self._fd = os.open(self.folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            why = error.strerror or error
            raise MtprefError(f"{label}: cannot be written: {why}; expected a folder of ours") from None
        if not stat.S_ISDIR(os.fstat(self._fd).st_mode) or not lock(self._fd):
            os.close(self._fd)
            raise MtprefError(f"{label}: another run writes there, or it is no folder; wait, or name another output")
        if others := [name for name in os.listdir(self.folder) if not _OURS.fullmatch(name)]:
            os.close(self._fd)
            raise MtprefError(
                f"{label}: holds {listed(sorted(others))}, expected nothing but what a stopped run has left; move it "
                "away, or name another output"
            )

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, name: str, size: int, version: str) -> Kept:
        """What is kept of a file on the server. Errors: MtprefError for a disk that fails"""
        kept = Kept(self.folder / hashlib.sha256(name.encode()).hexdigest()[:32], size, version)
        self._kept.append(kept)
        return kept

    def n_bytes_to_come(self, n_bytes: int) -> int:
        """How much of so many bytes is still to be kept here, beside the target that is made of them."""
        kept = sum(end - first for one in self._kept for first, end in one.ranges)
        return max(0, n_bytes - kept)

    def close(self) -> None:
        """Enter what came; a folder in which nothing is kept goes."""
        for kept in self._kept:
            kept.close()
        if self._fd >= 0:
            if not any(kept.ranges for kept in self._kept):
                self._remove()
            os.close(self._fd)
            self._fd = -1

    def done(self) -> None:
        """The target is written: what was kept goes."""
        self._remove()
        self.close()

    def _remove(self) -> None:
        """The folder goes, and of what is in it only files of ours."""
        with contextlib.suppress(OSError):
            for name in filter(_OURS.fullmatch, os.listdir(self.folder)):
                (self.folder / name).unlink()
            self.folder.rmdir()


class Kept:
    """Ranges of one file. `ranges`: (first, end), sorted, apart"""

    def __init__(self, path: Path, size: int, version: str) -> None:
        self._label = printable(str(path), 400)
        self._about = json.dumps({"size": size, "version": version}, sort_keys=True).encode()
        self._size = size
        self._fds: list[int] = []
        self._pending: tuple[int, int, int] | None = None  # first, end, sum: written, not yet entered
        self.ranges: list[tuple[int, int]] = []
        with self._told():
            about, self._bytes, self._journal = (self._open(f"{path}.{kind}") for kind in ("json", "bytes", "ranges"))
            if os.pread(about, len(self._about) + 1, 0) != self._about:
                for fd in self._fds:
                    os.ftruncate(fd, 0)
                os.pwrite(about, self._about, 0)
            self._load()

    def _open(self, name: str) -> int:
        fd = os.open(name, _FLAGS, 0o666)
        self._fds.append(fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise MtprefError(f"{printable(name, 400)}: no regular file, expected one of ours")
        return fd

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MtprefError(f"{self._label}: cannot be kept: {error.strerror or error}; leave `spool` out") from None

    def _load(self) -> None:
        for line in os.pread(self._journal, MAX_JOURNAL, 0).split(b"\n")[:-1]:
            words = line.split()
            if len(words) == 3 and all(word.isdigit() and len(word) < 17 for word in words):
                first, end, check = map(int, words)
                if first < end <= self._size and self._sum(first, end) == check:
                    self._add(first, end)

    def _sum(self, first: int, end: int) -> int:
        check = 0
        for at in range(first, end, PIECE):
            check = zlib.crc32(os.pread(self._bytes, min(PIECE, end - at), at), check)
        return check

    def _add(self, first: int, end: int) -> None:
        apart = [one for one in self.ranges if one[1] < first or one[0] > end]
        near = [one for one in self.ranges if one not in apart]
        first, end = min([first, *(one[0] for one in near)]), max([end, *(one[1] for one in near)])
        self.ranges = sorted([*apart, (first, end)])

    def here(self, at: int, end: int) -> tuple[bool, int]:
        """(whether the byte `at` is kept, up to where that is so)."""
        for first, stop in self.ranges:
            if first <= at < stop:
                return True, min(stop, end)
            if first > at:
                return False, min(first, end)
        return False, end

    def gaps(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a range is not kept."""
        while first < end:
            is_here, stop = self.here(first, end)
            if not is_here:
                yield first, stop
            first = stop

    def read(self, at: int, n_bytes: int) -> bytes:
        """Bytes that are kept."""
        with self._told():
            return os.pread(self._bytes, n_bytes, at)

    def write(self, at: int, data: bytes) -> None:
        """Keep bytes."""
        with self._told():
            if self._pending is None or self._pending[1] != at:
                self._enter()
                self._pending = (at, at, 0)
            first, _, check = self._pending
            view = memoryview(data)
            while view:
                view = view[os.pwrite(self._bytes, view, at + len(data) - len(view)) :]
            self._pending = (first, at + len(data), zlib.crc32(data, check))
            if self._pending[1] - first >= SYNC:
                self._enter()

    def _enter(self) -> None:
        """The pending range into the journal, its bytes first."""
        pending, self._pending = self._pending, None
        if pending is None or pending[0] == pending[1]:
            return
        os.fsync(self._bytes)
        os.lseek(self._journal, 0, os.SEEK_END)
        os.write(self._journal, b"%d %d %d\n" % pending)
        self._add(pending[0], pending[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._enter()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
