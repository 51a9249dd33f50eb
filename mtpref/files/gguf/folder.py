"""Writing a folder of files whole or not at all: some new, some that are another folder's as they are.

The folder is made beside its name as .NAME.RANDOM.mtpref-tmp, every file of it synced, and renamed when all are there:
what whole.py promises of a file holds of the folder. A killed write leaves the temporary, whose files no verb reads and
which the next write of NAME removes. A folder that is there is never replaced, unless it is empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from mtpref.base.errors import MtprefError
from mtpref.files import doors
from mtpref.files.gguf.values import printable
from mtpref.files.gguf.whole import (
    SUFFIX,
    Part,
    WriteOptions,
    check_space,
    left_over_of,
    lock,
    remove_left_overs,
    sync_folder,
    unwritable,
    write_synced,
)
from mtpref.files.holes import runs

How = Literal["hard", "symbolic", "copy"]
CHUNK = 8 << 20  # bytes
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)


@dataclass(frozen=True)
class Kept:
    """A file of another folder under its name in this one."""

    name: str
    source: Path


def how_kept(kept: Sequence[Kept], out: Path, wanted: How) -> How:
    """How files can come into a folder: hard links do not cross devices, so that there they are copies."""
    there = os.stat(_existing(out.absolute().parent)).st_dev
    is_across = wanted == "hard" and any(os.stat(file.source).st_dev != there for file in kept)
    return "copy" if is_across else wanted


def n_held(path: Path) -> int:
    """Bytes of a file that are no hole."""
    with doors.open_regular(path, printable(str(path), 400), "expected a file to copy") as file:
        return sum(last - first for first, last, is_data in _runs(file.fileno()) if is_data)


def check_folder(out: str | Path) -> None:
    """Refuse early what `write_folder` would refuse.

    Errors   MtprefError for what is there and is no empty folder, and for the name of a temporary
    """
    out = Path(out)
    name = printable(str(out), 400)
    if left_over_of(out):
        raise MtprefError(f"{name}: the name of a temporary, expected another")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MtprefError(f"{name}: is there and is no folder, expected the name of a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise MtprefError(
            f"{name}: is a folder that holds files, expected a new one: files of two models in one folder cannot be "
            "told apart, and several files cannot be replaced in one step; give another name, or remove it first"
        )


def write_folder(
    out: str | Path, parts: Sequence[Part], kept: Sequence[Kept], how: How, options: WriteOptions
) -> list[Path]:
    """Write a folder; gives the paths of its new files, then of those that are kept.

    parts    the new files; of their paths the last part counts
    kept     files that are linked or copied; links lead to what a symbolic link leads to
    Errors   MtprefError as `check_folder`; two files of one name; too little space; where links are refused
    """
    out = Path(out)
    check_folder(out)
    names = [part.path.name for part in parts] + [file.name for file in kept]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MtprefError(f"{printable(str(out), 400)}: {printable(twice)} would be there twice, expected one")
    copies = [Part(Path(file.name), n_held(file.source), partial(_copy, file.source)) for file in kept]
    made = [*parts, *copies] if how == "copy" else list(parts)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        check_space(out, sum(part.n_bytes or 0 for part in made))
        remove_left_overs(out.absolute())
        with _temporary(out.absolute()) as folder:
            if how != "copy":
                for file in kept:
                    _link(file, folder / file.name, how)
            for part in made:
                with open(folder / part.path.name, "xb+") as target:
                    write_synced(target, part.write)
            sync_folder(folder)
            check_folder(out)  # what has come to be meanwhile
            os.rename(folder, out.absolute())
        sync_folder(out.absolute().parent)
    except OSError as error:
        raise unwritable(out, error) from None
    doors.was_written(out)
    return [out / name for name in names]


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, locked until the block ends; it is gone afterwards, unless it was renamed."""
    folder, fd = _made(out)
    try:
        yield folder
    finally:
        if fd is not None:
            os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _made(out: Path) -> tuple[Path, int | None]:
    """The folder, and the descriptor that holds its lock; None where folders cannot be opened."""
    while True:
        folder = out.with_name(f".{out.name}.{secrets.token_hex(8)}{SUFFIX}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            if os.name != "posix":
                return folder, None
            try:
                fd = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another writer took it for a dead one's before it was locked
            with contextlib.suppress(FileNotFoundError):
                if lock(fd) and os.path.samestat(os.fstat(fd), os.lstat(folder)):
                    return folder, fd
            os.close(fd)


def _link(file: Kept, target: Path, how: How) -> None:
    source = os.path.realpath(file.source)
    try:
        if how == "symbolic":
            os.symlink(source, target)
        else:
            os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        other = "`how=copy`" if how == "symbolic" else "`how=symbolic` or `how=copy`"
        raise MtprefError(
            f"{printable(str(file.source), 400)}: a {how} link to it is refused ({error.strerror}), expected a file "
            f"system and an owner that allow it; try {other}"
        ) from None


def _copy(source: Path, target: BinaryIO) -> None:
    """A file's bytes, its holes left as holes; the system copies where it can (and may share blocks)."""
    with doors.open_regular(source, printable(str(source), 400), "expected a file to copy") as file:
        fd = file.fileno()
        for first, last, is_data in _runs(fd):
            if is_data:
                _copy_run(fd, target.fileno(), first, last)
        os.truncate(target.fileno(), os.fstat(fd).st_size)


def _copy_run(source: int, target: int, first: int, last: int) -> None:
    is_by_system = hasattr(os, "copy_file_range")
    while first < last:
        n = 0
        if is_by_system:
            try:
                n = os.copy_file_range(source, target, min(last - first, 1 << 30), first, first)
            except OSError as error:
                if error.errno not in (*_NO_LINKS, errno.EINVAL):
                    raise
            is_by_system = n > 0
        if not n:
            piece = os.pread(source, min(last - first, CHUNK), first)
            if not piece:
                raise OSError(errno.EIO, "the source was cut short")
            n = os.pwrite(target, piece, first)
        first += n


def _runs(fd: int) -> Iterator[tuple[int, int, bool]]:
    return runs(fd, 0, os.fstat(fd).st_size)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
