"""Compiled kernels on disk: one file for each kernel, and folders to look for it in.

Owns the files and the folders. Numba's own cache is not used: its files are named after the place of the sources, so a
clone and an installed package of the same sources compile twice; its index is shared by processes that write it at the
same time; and what is damaged ends the run with a traceback. Here a file is written under a name of its own and
renamed, it carries a digest of its content, and what cannot be read or written costs a compilation and one line.

    bytes 0..15    MAGIC
    bytes 16..47   SHA-256 of the rest
    bytes 48..     pickle of what Numba makes of a compiled function (`CompileResult._reduce`)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

from mtpref import kernels

MAGIC = b"mtpref kernel 1\n"
SUFFIX = ".kernel"
MAX_BYTES = 1 << 26  # of a file; the largest kernel has less than 1 MB
_DIGEST = 32

_log = logging.getLogger("mtpref")  # without a handler of the user's, warnings go to stderr, a line each
_said: set[str] = set()
_full: set[Path] = set()  # folders in which a write has failed


def _say(kind: str, text: str) -> None:
    """One line for each kind of trouble in a process."""
    if kind not in _said:
        _said.add(kind)
        _log.warning("kernel cache: %s", text)


class KernelCache(NullCache):
    """What a dispatcher asks for a compiled function, and gives it to. One signature each.

    when_missing   called where the file is not there or no good, so that the caller waits for a compilation
    """

    def __init__(self, name: str, when_missing: Callable[[], None]) -> None:
        self.name, self.when_missing = name, when_missing

    @property
    def cache_path(self) -> str:
        return str(kernels.cache_folder())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        for folder in kernels.cache_folders():
            found = _load(folder / (self.name + SUFFIX), target_context)
            if found is not None:
                return found
        self.when_missing()
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        if cres.library.has_dynamic_globals or not all(lifted.can_cache for lifted in cres.lifted):
            return
        content = serialize.dumps(cres._reduce())
        content = MAGIC + hashlib.sha256(content).digest() + content
        for folder in kernels.cache_folders():
            if folder not in _full and _save(folder, self.name + SUFFIX, content):
                return
        _say("none", "compiled kernels are not kept: no folder can be written; set NUMBA_CACHE_DIR to one that can")


def _load(path: Path, target_context: Any) -> Any:
    """The compiled function in a file; None where there is none, or no good one."""
    try:
        content = _read(path)
        if content is None:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(content))
    except Exception as error:  # a pickle of another version may raise anything
        why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        _say("damaged", f"{path}: {why}; it is compiled again, and so is whatever else there is no good")
        return None


def _read(path: Path) -> bytes | None:
    """The content of a file, checked; None where there is no file. ValueError for any damage."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(file, "rb", buffering=0) as f:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{status.st_size} bytes, expected at most {MAX_BYTES}")
        raw = f.read()
    start = len(MAGIC) + _DIGEST
    if len(raw) <= start or raw[: len(MAGIC)] != MAGIC:
        raise ValueError("cut short, or no compiled kernel")
    content = raw[start:]
    if hashlib.sha256(content).digest() != raw[len(MAGIC) : start]:
        raise ValueError("damaged")
    return content


def _save(folder: Path, name: str, content: bytes) -> bool:
    """Write a file whole or not at all; whether it could be."""
    temporary = folder / f".{name}.{os.urandom(8).hex()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, 0o666), "wb") as f:
            f.write(content)
        os.replace(temporary, folder / name)
        return True
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _full.add(folder)
        others = [other for other in kernels.cache_folders() if other not in _full]
        then = f"{others[0]} is used" if others else "there is no other"
        _say(f"full {folder}", f"{folder} cannot be written ({error.strerror or error}); {then}")
        return False
