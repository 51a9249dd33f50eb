"""Writing a folder whole or not at all: its files go to a folder under a temporary name beside it, which is renamed.

The same promises as whole.py's, by the same names and locks: what a killed process leaves is refused as input and
removed by the next write of that name. A folder that exists is never replaced: that takes more than one step.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.files import doors as files
from mtpref.files.gguf.values import printable
from mtpref.files.gguf.whole import (
    FULL,
    SUFFIX,
    Part,
    WriteOptions,
    check_space,
    create_new,
    is_locked,
    remove_left_overs,
    sync_folder,
    write_synced,
)


def check_folder(path: str | Path, options: WriteOptions, n_bytes: int | None = None) -> None:
    """Refuse early what `write_folder` would refuse.

    n_bytes   of all files together, where known
    Errors    MtprefError for a name that is taken, too little free space
    """
    path = Path(path)
    name = printable(str(path), 400)
    files.check_output(path)
    if os.path.lexists(path):
        raise MtprefError(
            f"{name}: exists, and a folder cannot be replaced in one step; remove it first, or give another name"
        )
    if n_bytes is not None:
        check_space(path, n_bytes)


def write_folder(path: str | Path, parts: list[Part], options: WriteOptions) -> None:
    """Write a folder of files. Its own folder is made where that is missing.

    parts    path: the file's name in the folder
    Errors   MtprefError as `check_folder`, and for what cannot be written; a full disk is one of them
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_folder(path, options, sum(part.n_bytes or 0 for part in parts))
        remove_left_overs(path)
        with _open_locked(path) as temporary:
            for part in parts:
                with create_new(temporary / part.path.name) as file:
                    write_synced(file, part.write)
            sync_folder(temporary)
            check_folder(path, options)
            os.rename(temporary, path)
        sync_folder(path.parent)
        files.was_written(path)
    except OSError as e:
        full = "the disk or quota is full, free some space" if e.errno in FULL else "expected a writable folder"
        raise MtprefError(f"{printable(str(path), 400)}: cannot be written: {e.strerror or e}; {full}") from None


@contextlib.contextmanager
def _open_locked(path: Path) -> Iterator[Path]:
    """A new folder of a temporary name; locked until the block ends, and removed where it still has that name."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")
        with contextlib.ExitStack() as cleaning:
            cleaning.callback(shutil.rmtree, temporary, ignore_errors=True)
            try:
                os.mkdir(temporary)
            except FileExistsError:
                cleaning.pop_all()  # not ours
                continue
            fd = os.open(temporary, os.O_RDONLY)
            cleaning.callback(os.close, fd)
            if is_locked(fd):
                yield temporary
                return
