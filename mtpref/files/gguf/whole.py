"""Writing files whole or not at all: the one place of the package that writes to a temporary and renames.

A target exists complete, synced to disk and under its own name, or is as it was before. That holds for an error, an
interrupt and a full disk, where the temporary is removed, and for a killed process, where it stays. What stays is
named .NAME.RANDOM.mtpref-tmp, is refused as input (`refuse_left_over`) and is removed by the next write to NAME: a live
writer holds a lock on its temporary, a dead one does not. No name can be foretold and none is opened that exists, so
writers that share a folder and nothing else (threads, or containers in which all have the same process id) never share
a temporary, and a link that is planted leads nowhere.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mtpref.base.errors import MtprefError
from mtpref.base.settings import check_fields
from mtpref.files import doors as files
from mtpref.files.gguf.values import printable

try:
    import fcntl
except ImportError:  # not POSIX: no locks, and left-over temporaries stay
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".mtpref-tmp"
_LEFT_OVER = re.compile(r"\.(.+)\.[0-9a-f]+" + re.escape(SUFFIX), re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | sum(getattr(os, n, 0) for n in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
_OLD = os.O_RDONLY | sum(getattr(os, n, 0) for n in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))

Report = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What a caller says about its targets.

    force      replace a file that exists; False: refuse, and name --force
    inputs     files that the content is read from: never a target, whatever `force` says
    progress   called with (bytes done, bytes in all) as data goes out, and at the end
    """

    force: bool = True
    inputs: Sequence[str | Path] = ()
    progress: Report | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Part:
    """One file to write. n_bytes: its size where that is known before; write: puts the content into the open file."""

    path: Path
    n_bytes: int | None
    write: Callable[[BinaryIO], None]


def check_targets(paths: Iterable[str | Path], options: WriteOptions, n_bytes: int | None = None) -> None:
    """Refuse early what a write would refuse: call it before long work.

    n_bytes   bytes of all files together, where known
    Errors    MtprefError for an existing file without force, an input, a folder or device, too little free space
    """
    targets = [Path(path) for path in paths]
    for path in targets:
        name = printable(str(path), 400)
        if path.exists() and not path.is_file():
            raise MtprefError(f"{name}: exists and is not a regular file, expected a file name")
        files.check_output(path)
        if any(_is_same(path, other) for other in options.inputs):
            raise MtprefError(f"{name}: is one of the inputs, expected another name for the output")
        if os.path.lexists(path) and not options.force:
            raise MtprefError(
                f"{name}: exists, expected a new name; give another `target`, or `WriteOptions.force` to replace it"
            )
        if os.path.lexists(path) and len(targets) > 1:
            raise MtprefError(
                f"{name}: exists, and a model in several files cannot be replaced in one step; remove it first, or "
                "give another name"
            )
    if n_bytes is not None:
        check_space(targets[0], n_bytes)


def write_parts(parts: list[Part], options: WriteOptions) -> None:
    """Write files, all of them or none: they are renamed when the last is on disk.

    Errors   MtprefError as `check_targets`, and for a target that cannot be written; a full disk is one of them
    """
    sizes = [part.n_bytes for part in parts if part.n_bytes is not None]
    check_targets([part.path for part in parts], options, sum(sizes) if sizes else None)
    path = parts[0].path
    temporaries: list[Path] = []  # of `written`, file by file
    written: list[BinaryIO] = []
    placed: list[Path] = []
    with contextlib.ExitStack() as cleaning:
        cleaning.callback(_unlink, temporaries)
        cleaning.callback(_unlink, placed)
        try:
            for part in parts:
                path = part.path
                remove_left_overs(path)
                written.append(cleaning.enter_context(_open_locked(path, temporaries)))
                write_synced(written[-1], part.write)
            for part, file, temporary in reversed(list(zip(parts, written, temporaries, strict=True))):
                path = part.path
                if len(parts) > 1:
                    placed.append(path)  # none was there before; they go again when an interrupt comes between them
                _place(file, temporary, path, options)
                files.was_written(path)
            sync_folder(path.parent)
        except OSError as e:
            raise unwritable(path, e) from None
        placed.clear()


def unwritable(path: Path, error: OSError) -> MtprefError:
    """One line on a target that cannot be written."""
    full = "the disk or quota is full, free some space" if error.errno in _FULL else "expected a writable folder"
    return MtprefError(f"{printable(str(path), 400)}: cannot be written: {error.strerror or error}; {full}")


def write_whole(
    path: str | Path, write: Callable[[BinaryIO], None] | bytes, options: WriteOptions | None = None
) -> None:
    """Write one file of any kind whole or not at all. Its folder is made where it is missing.

    write   the bytes, or a function that writes them to the open file
    Errors  MtprefError as `write_parts`
    """
    path = Path(path)
    content = write
    put = content if callable(content) else lambda file: _put(file, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritable(path, e) from None
    write_parts([Part(path, None if callable(content) else len(content), put)], options or WriteOptions())


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


# LEFT-OVERS


def left_over_of(path: str | Path) -> str | None:
    """The target's name where `path` is named as a temporary of a write, else None."""
    match = _LEFT_OVER.fullmatch(Path(path).name)
    return match[1] if match else None


def refuse_left_over(path: str | Path) -> None:
    """MtprefError for a temporary, or a file in a temporary folder: it may be half of what it is to be."""
    name = left_over_of(path) or left_over_of(Path(path).absolute().parent)
    if name is not None:
        raise MtprefError(
            f"{printable(str(path), 400)}: the temporary of a write of {printable(name, 200)} that was killed or still "
            "runs, expected a finished file; write it again, which removes this one"
        )


def remove_left_overs(target: Path) -> None:
    """Remove temporaries of earlier writes of this target whose process is gone."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if left_over_of(name) == target.name:
                _remove_dead(target.with_name(name))


def _remove_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, _OLD)  # neither a link is followed nor a pipe waited for
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while its writer lives
                if stat.S_ISDIR(mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()
        finally:
            os.close(fd)


# ONE FILE


@contextlib.contextmanager
def _open_locked(path: Path, temporaries: list[Path]) -> Iterator[BinaryIO]:
    """A new temporary of `path`, appended to the list as soon as it is there; its lock is held until the block ends,
    after the rename."""
    while True:
        temporaries.append(path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}"))
        try:
            fd = os.open(temporaries[-1], _NEW, 0o666)
        except FileExistsError:
            temporaries.pop()  # not ours
            continue
        file = open(fd, "r+b")  # noqa: SIM115 (closed below)
        try:
            if lock(fd):
                yield file
                return
        finally:
            with contextlib.suppress(OSError):  # what a full disk has kept in the buffer; what counts has been synced
                file.close()
        _unlink([temporaries.pop()])


def lock(fd: int) -> bool:
    """Whether the file is ours: not where another writer took it for a dead one's, before it was locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: there nothing is taken for dead
    return os.fstat(fd).st_nlink > 0


def write_synced(file: BinaryIO, write: Callable[[BinaryIO], None]) -> None:
    write(file)
    file.flush()
    os.fsync(file.fileno())


def _place(file: BinaryIO, temporary: Path, path: Path, options: WriteOptions) -> None:
    """Rename; without force never over a file that came to be since the check."""
    if not os.path.samestat(os.lstat(temporary), os.fstat(file.fileno())):
        raise FileNotFoundError(errno.ENOENT, "another program has replaced the temporary file")
    if not options.force:
        try:
            os.link(temporary, path)
        except FileExistsError:
            check_targets([path], options)
            raise
        except OSError:  # a file system without hard links
            check_targets([path], options)
        else:
            return  # the temporary's own name is removed with the others
    os.replace(temporary, path)


def check_space(path: Path, n_bytes: int) -> None:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return  # the folder is missing: opening the file says so
    if free < n_bytes:
        raise MtprefError(
            f"{printable(str(path), 400)}: needs {human_bytes(n_bytes)}, its disk has {human_bytes(free)} free; free "
            "some space or choose another folder; nothing was written"
        )


def human_bytes(n: float) -> str:
    """Three digits and a unit: 12.3 GB, 512 B."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= step:
            return f"{n / step:.3g} {unit}" if n < 999.5 * step else f"{n / step:.0f} {unit}"
    return f"{n:.0f} B"


def _is_same(path: Path, other: str | Path) -> bool:
    try:
        return path.absolute() == Path(other).absolute() or os.path.samefile(path, other)
    except OSError:
        return False


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
