"""Holes: parts of a file that were never written, which a file system keeps as nothing and gives as zeros.

A copy that knows them reads and writes only what is there, and takes no more space than the original. Where a file
system does not say (or has none), everything is data, and a copy is an ordinary one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtpref.files.doors import Mapping

_SEEK = (getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None))


@dataclass(frozen=True)
class Hole:
    """So many zeros that take no space."""

    n_bytes: int


def runs(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """The bytes start .. end of an open file in order, as (first, one past the last, whether it is data)."""
    seek_data, seek_hole = _SEEK
    while start < end:
        if seek_data is None or seek_hole is None:
            yield start, end, True
            return
        try:
            data = min(os.lseek(fd, start, seek_data), end)
        except OSError as error:
            yield start, end, error.errno != errno.ENXIO  # ENXIO: no data follows
            return
        if data > start:
            yield start, data, False
        if data < end:
            start = min(os.lseek(fd, data, seek_hole), end)
            yield data, start, True
        else:
            start = end


def runs_of(path: Path, mapped: Mapping, start: int, end: int) -> list[tuple[int, int, bool]]:
    """The same of a mapped file; all data where its path leads to another file by now."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return [(start, end, True)]
    try:
        is_same = os.path.samestat(os.fstat(fd), mapped.status)
        return list(runs(fd, start, end)) if is_same else [(start, end, True)]
    finally:
        os.close(fd)
