"""Users' files: the one door by which the package opens what it reads, and by which it knows what it must not write.

Two ways to read. A regular file (models, tensors, JSON, golden vectors) is nothing else: no pipe, device, socket or
folder. A text (prompts, texts, logs, traces) may also be a pipe, or "-" and /dev/stdin for standard input. Neither ever
waits for a file that nobody writes to, and neither reads more than a limit.

Within `guarded` (one verb of the command line) every file that is read is remembered by device and inode, and every
output that is named: an output that is an input, under whatever name, is refused before a byte of it is lost. What
writes whole files is mtpref/files/gguf/whole.py; what writes as it goes opens with `open_output`.
"""

import contextlib
import errno
import io
import mmap
import os
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mtpref.base.errors import MtprefError

STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
PIECE = 1 << 20
WRITER_SECONDS = 1.0  # how long a pipe may be without a writer
GZIP = b"\x1f\x8b"
# Opening never waits for the other end of a pipe, makes no terminal ours, and is not inherited.
_QUICK = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


# READING


def open_regular(path: str | Path, label: str, expected: str) -> io.BufferedReader:
    """Open a regular file.

    label     what the file is called in a refusal; expected: "expected ..." and what to try
    Errors    MtprefError for what is missing, unreadable, or no regular file; for an output of the same run
    """
    return io.BufferedReader(_open(path, label, expected, takes_pipes=False))


def read_regular(path: str | Path, label: str, expected: str, max_bytes: int) -> bytes:
    """A whole regular file of at most max_bytes. Errors: MtprefError as `open_regular`, and for a larger file."""
    with open_regular(path, label, expected) as file:
        return read_up_to(file, label, expected, max_bytes)


class Mapping(mmap.mmap):
    """A mapped file. status: of the file when it was mapped"""

    status: os.stat_result


def map_regular(path: str | Path, label: str, expected: str) -> Mapping:
    """A regular file, mapped for reading. Errors: MtprefError as `open_regular`, and for an empty file."""
    with open_regular(path, label, expected) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise MtprefError(f"{label}: the file is empty; {expected}")
        try:
            mapped = Mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise _unreadable(label, expected, error) from None
        mapped.status = status
        return mapped


class TextStream(io.BufferedReader):
    """A text that is open: bytes in order, once. `str()` is the name under which it was given."""

    def __init__(self, name: str, raw: "_Rejoined") -> None:
        super().__init__(raw, 1 << 16)
        self._name, self._rejoined = name, raw

    def __str__(self) -> str:
        return self._name

    def start(self, n_bytes: int) -> bytes:
        """The first bytes (fewer where the text is shorter), which `read` gives again. To be called before it."""
        self._rejoined.fill(n_bytes)
        return bytes(self._rejoined.head[:n_bytes])


class _Rejoined(io.RawIOBase):
    """A file of which a beginning has been read already."""

    def __init__(self, file: BinaryIO, label: str, expected: str, head: bytes = b"", *, is_ours: bool = True) -> None:
        self._file, self.head, self._is_ours = file, head, is_ours
        self._label, self._expected = label, expected

    def readable(self) -> bool:
        return True

    def fill(self, n_bytes: int) -> None:
        while len(self.head) < n_bytes and (piece := self._read(min(n_bytes - len(self.head), PIECE))):
            self.head += piece

    def _read(self, n_bytes: int) -> bytes:
        try:
            return self._file.read(n_bytes) or b""
        except OSError as error:
            raise _unreadable(self._label, self._expected, error) from None

    def readinto(self, buffer: Any) -> int:
        if self.head:
            piece, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        else:
            piece = self._read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if self._is_ours and not self.closed:
            self._file.close()
        super().close()


def open_text(path: str | Path, label: str, expected: str) -> TextStream:
    """Open a text: a regular file, a pipe, or standard input ("-", /dev/stdin), which stays open when this is closed.

    Errors   MtprefError as `open_regular`, but for pipes; for a pipe that nobody writes to
    """
    name = str(path)
    if name in STDIN:
        if sys.stdin is None:
            raise MtprefError(f"{label}: cannot be read (standard input is closed); {expected}")
        with contextlib.suppress(OSError, ValueError):
            _remember(os.fstat(sys.stdin.fileno()), name, label)
        # What is read from a terminal ends where a line does.
        return TextStream(name, _Rejoined(_Available(sys.stdin.buffer), label, expected, is_ours=False))  # type: ignore[arg-type]
    file = _open(path, label, expected, takes_pipes=True)
    try:
        head = _wait_for_writer(file.fileno()) if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) else b""
    except OSError as error:
        file.close()
        raise _unreadable(label, expected, error) from None
    if head is None:
        file.close()
        raise MtprefError(f"{label}: a pipe that nobody writes to; {expected}; start what writes it first")
    return TextStream(name, _Rejoined(file, label, expected, head))


def read_text(path: str | Path, label: str, expected: str, max_bytes: int) -> bytes:
    """A whole text of at most max_bytes. Errors: MtprefError as `open_text`, and for a longer text."""
    with open_text(path, label, expected) as file:
        return read_up_to(file, label, expected, max_bytes)


def read_up_to(file: BinaryIO, label: str, expected: str, max_bytes: int) -> bytes:
    """What an open file still holds, read in pieces. Errors: MtprefError where it is more than max_bytes."""
    pieces, left = [], max_bytes
    try:
        while piece := file.read(min(PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise MtprefError(f"{label}: more than {_size(max_bytes)}; {expected}")
            pieces.append(piece)
    except OSError as error:
        raise _unreadable(label, expected, error) from None
    return b"".join(pieces)


def unpacked(file: TextStream, label: str, expected: str) -> Iterator[bytes]:
    """A text in pieces of at most PIECE bytes; what gzip has packed is unpacked, as far as it is asked for.

    Errors   MtprefError for a damaged archive, and where reading fails
    """
    try:
        is_packed = file.start(len(GZIP)) == GZIP
        unpacker = zlib.decompressobj(wbits=31)
        while piece := file.read(1 << 16 if is_packed else PIECE):
            if not is_packed:
                yield piece
            while is_packed and piece:
                if unpacker.eof:  # archives may follow each other, and zeros may fill the last block of a tape
                    if not (piece := piece.lstrip(b"\0")):
                        break
                    unpacker = zlib.decompressobj(wbits=31)
                yield unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail or unpacker.unused_data
    except (OSError, zlib.error) as error:
        raise _unreadable(label, expected, error) from None
    if is_packed and not unpacker.eof:
        raise MtprefError(f"{label}: cannot be read (the archive ends early); {expected}")


class _Available:
    """Standard input by what is there: a reader of a terminal need not type a whole buffer."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = getattr(file, "read1", file.read)


def _open(path: str | Path, label: str, expected: str, *, takes_pipes: bool) -> io.FileIO:
    try:
        # A device is refused before it is opened: that alone may rewind a tape.
        _refuse_kind(os.stat(path).st_mode, label, expected, takes_pipes)
        fd = os.open(path, os.O_RDONLY | _QUICK)
    except (OSError, ValueError) as error:
        raise _unreadable(label, expected, error) from None
    file = io.FileIO(fd, "rb")
    try:
        status = os.fstat(fd)
        _refuse_kind(status.st_mode, label, expected, takes_pipes)
        _remember(status, str(path), label)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_kind(mode: int, label: str, expected: str, takes_pipes: bool) -> None:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), None)
    if kind is not None and not (takes_pipes and kind == "a pipe"):
        raise MtprefError(f"{label}: cannot be read ({kind}, not a regular file); {expected}")


def _unreadable(label: str, expected: str, error: Exception) -> MtprefError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, ValueError) and "null" in reason:
        reason = "no file can have this name"
    return MtprefError(f"{label}: cannot be read ({reason}); {expected}")


def _wait_for_writer(fd: int) -> bytes | None:
    """The first bytes of a pipe, none where its writer has not begun; None where there is no writer."""
    end = time.monotonic() + WRITER_SECONDS
    try:
        while True:
            if head := os.read(fd, 1 << 16):
                return head
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
    except BlockingIOError:  # a writer is there
        return b""
    finally:
        os.set_blocking(fd, True)


def _size(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB" if n_bytes >= 1 << 20 else f"{n_bytes} bytes"


# INPUTS AND OUTPUTS


class _Guard:
    """What one verb has read, by device and inode, with a name of each; and the outputs that it was told of."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[int, int], str] = {}
        self.outputs: list[str] = []
        self.is_in_place = False


_guard: _Guard | None = None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Remember inputs and outputs in this block. The library itself has no guard: who opens a file may replace it."""
    global _guard
    before, _guard = _guard, _Guard()
    try:
        yield
    finally:
        _guard = before


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """What is read in this block may be replaced later: a file that a verb brings up to date."""
    guard = _guard
    if guard is None:
        yield
        return
    guard.is_in_place = True
    try:
        yield
    finally:
        guard.is_in_place = False


def claim_output(path: str | Path) -> None:
    """Say early that a path will be written: reading it is refused from now on. "-" is no path.

    Errors   MtprefError for a file that has been read, or claimed as another output
    """
    if _guard is None or str(path) == "-":
        return
    check_output(path)
    given = os.path.realpath(path)
    if given in _guard.outputs:
        raise MtprefError(f"{path}: is named for two outputs, expected a name for each")
    _guard.outputs.append(given)


def check_output(path: str | Path) -> None:
    """Refuse to write over a file that this run has read.

    Errors  MtprefError for a file that this run has read, under whatever name.
    """
    status = _status(path)
    if _guard is None or status is None:
        return
    name = _guard.inputs.get((status.st_dev, status.st_ino))
    # The number of a file that is gone may be another's by now.
    if name is not None and _is_same(_status(name), status):
        raise _both(str(path))


def check_output_folder(folder: str | Path) -> None:
    """Refuse to replace a folder in which a file lies that this run has read.

    Errors  MtprefError for a folder, to be replaced as a whole, in which a file lies that this run has read.
    """
    root = os.path.realpath(folder)
    for name in _guard.inputs.values() if _guard is not None else ():
        if os.path.commonpath([root, os.path.realpath(name)]) == root:
            raise MtprefError(f"{folder}: holds {name}, one of the inputs, expected another folder for the output")


def declare_inputs(paths: list[Path]) -> None:
    """Files that will be read later in this run: none of them may be written before."""
    for path in paths:
        if (status := _status(path)) is not None:
            _remember(status, str(path), str(path))


def was_written(path: str | Path) -> None:
    """A claimed output is finished: it may be read now."""
    if _guard is not None and (given := os.path.realpath(path)) in _guard.outputs:
        _guard.outputs.remove(given)


def open_output(path: str | Path, label: str) -> io.FileIO:
    """Open a file to be written as things happen, unbuffered. What it held stays until the first write
    (`StreamOutput`), so that a run that is refused loses nothing. Pipes and terminals are taken too.

    Errors   MtprefError for what cannot be written, an input, a pipe that nobody reads
    """
    try:
        check_output(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | _QUICK, 0o666)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        if getattr(error, "errno", None) == errno.ENXIO:
            reason = "a pipe that nobody reads"
        raise MtprefError(f"{label}: cannot be written ({reason}); choose another file") from None
    file = StreamOutput(fd, "wb")
    try:
        check_output(path)  # the file that was opened, should it be new
    except BaseException:
        file.close()
        raise
    return file


class StreamOutput(io.FileIO):
    """An output that is emptied by the first write to it, not when it is opened."""

    _is_begun = False

    def write(self, data: Any) -> int:
        if not self._is_begun:
            self._is_begun = True
            os.set_blocking(self.fileno(), True)
            if stat.S_ISREG(os.fstat(self.fileno()).st_mode):
                os.ftruncate(self.fileno(), 0)
        return super().write(data)


def _remember(status: os.stat_result, name: str, label: str) -> None:
    if _guard is None or not stat.S_ISREG(status.st_mode):
        return
    if any(_is_same(_status(output), status) for output in _guard.outputs) and not _guard.is_in_place:
        raise _both(label)
    if not _guard.is_in_place:
        _guard.inputs[status.st_dev, status.st_ino] = os.path.abspath(name) if name != "-" else "/dev/stdin"


def _both(name: str) -> MtprefError:
    return MtprefError(f"{name}: is one of the inputs, expected another name for the output")


def _status(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _is_same(a: os.stat_result | None, b: os.stat_result) -> bool:
    return a is not None and (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
