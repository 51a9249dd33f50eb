"""Importance matrices: for each weight matrix the mean square of its inputs, column by column.

Owns llama.cpp's two formats. Facts: llama.cpp tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp and
tools/quantize/quantize.cpp.

GGUF   NAME.in_sum2 (n_in) F32 sums of squares, NAME.counts (1) F32 rows; imatrix.datasets, chunk_count, chunk_size.
       Of a stack of n matrices (experts), in GGUF order: in_sum2 (n_in, n) and counts (1, n), the rows of each.
.dat   i32 n, then n times: i32 length, name, i32 calls, i32 values, float32 sums; then i32 chunks, i32 length, data
       set. Of a stack the matrices one after the other; whoever wrote it has put 1 for a matrix that saw nothing.

A matrix that saw nothing has a mean square of 1 in every column, as in llama-quantize.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.doors import open_regular
from mtpref.files.gguf import GgufArray, WriteOptions, open_gguf, printable, write_gguf

F32 = NDArray[np.float32]
SUFFIX_SUMS, SUFFIX_COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES, MAX_NAME, MAX_COLUMNS = 1 << 16, 1 << 12, 1 << 26
MAX_ROWS = 1 << 53
MAX_VALUES = 1 << 29  # columns of all matrices; 60 layers of 512 experts have half


@dataclass(frozen=True)
class Importance:
    """columns: tensor name -> float32, finite and not negative: n_in, for each matrix of a stack one after the other;
    what the file says of its making; unseen: tensor name -> how many of its matrices saw nothing, where some did"""

    columns: dict[str, F32]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    unseen: dict[str, int] = field(default_factory=dict)

    def of(self, name: str, shape: tuple[int, ...]) -> F32 | None:
        """The columns of a tensor, (matrices, n_in), or None; MtprefError where it has others.

        shape   of the tensor, in NumPy order
        """
        found = self.columns.get(name)
        if found is None:
            return None
        n_in, n = shape[-1], shape[-3] if len(shape) > 2 else 1
        if len(found) != n * n_in:
            each = f" for each of {n} matrices" if n > 1 else ""
            raise MtprefError(
                f"importance matrix: {printable(name)} has {len(found)} columns, expected {n_in}{each}; "
                "is it of this model?"
            )
        return found.reshape(n, n_in)


def read_importance(path: str | Path) -> Importance:
    """Read either format.

    Errors   MtprefError for a file that is neither, is cut short, or holds NaN, infinite or negative values
    """
    path = Path(path)
    label = printable(str(path), 400)
    with open_regular(path, label, "expected an importance matrix") as file:
        is_gguf = file.read(4) == b"GGUF"
        file.seek(0)
        found = _read_gguf(path) if is_gguf else _read_dat(file, label)
    if not found.columns:
        raise MtprefError(f"{label}: no entries, expected an importance matrix made by llama-imatrix or mtpref imatrix")
    for name, x in found.columns.items():
        if not np.all(np.isfinite(x)) or np.any(x < 0):
            raise MtprefError(
                f"{label}: {printable(name)} holds NaN, infinite or negative values, expected means of squares"
            )
    return found


def _counted(n_values: int, label: str) -> int:
    if n_values > MAX_VALUES:
        raise MtprefError(f"{label}: more than {MAX_VALUES} columns in all, expected those of one model")
    return n_values


def _read_gguf(path: Path) -> Importance:
    columns: dict[str, F32] = {}
    unseen: dict[str, int] = {}
    n_values = 0
    with open_gguf(path) as file:
        for info in file.tensors.values():
            if not info.name.endswith(SUFFIX_SUMS):
                continue
            name = info.name.removesuffix(SUFFIX_SUMS)
            counts = file.tensors.get(name + SUFFIX_COUNTS)
            if info.type_name != "F32" or counts is None or counts.type_name != "F32":
                raise MtprefError(
                    f"{file.label}: {printable(info.name)} has no {SUFFIX_COUNTS} or is not F32, expected both"
                )
            n, sums = file.data(counts).view("<f4"), file.data(info).view("<f4")
            if not len(n) or not len(sums) or len(sums) % len(n):
                raise MtprefError(
                    f"{file.label}: {printable(info.name)} has {len(sums)} values for {len(n)} counts, "
                    "expected as many for each"
                )
            if not np.all((n >= 0) & (n <= MAX_ROWS)):
                raise MtprefError(
                    f"{file.label}: {printable(counts.name)} holds a number that is no count, expected 0 to {MAX_ROWS}"
                )
            n_values = _counted(n_values + sums.size, file.label)
            n = np.floor(n + np.float32(0.5))
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
                means = np.ones((len(n), len(sums) // len(n)), np.float32)
                np.divide(sums.reshape(means.shape), n[:, None], out=means, where=n[:, None] > 0)
            columns[name] = means.reshape(-1)
            if np.any(n == 0):
                unseen[name] = int(np.count_nonzero(n == 0))
        given = file.get("imatrix.datasets")
        datasets = tuple(given.to_strings()) if isinstance(given, GgufArray) and given.element_type == "str" else ()
        n_chunks = file.get("imatrix.chunk_count")
    return Importance(columns, datasets, n_chunks if isinstance(n_chunks, int) else 0, unseen)


def _read_dat(file: io.BufferedReader, label: str) -> Importance:
    """Entry by entry: a file costs what its matrices hold, not what it is long."""

    def take(n: int) -> bytes:
        raw = file.read(n) if n > 0 else b""
        if len(raw) != n:
            raise MtprefError(f"{label}: cut short or no importance matrix, expected GGUF or the .dat of llama-imatrix")
        return raw

    def integer(most: int) -> int:
        (value,) = struct.unpack("<i", take(4))
        if not 0 <= value <= most:
            raise MtprefError(f"{label}: a count of {value}, expected 0 to {most}; is this an importance matrix?")
        return int(value)

    columns: dict[str, F32] = {}
    n_values = 0
    for _ in range(integer(MAX_ENTRIES)):
        name = take(integer(MAX_NAME)).decode("utf-8", "replace")
        calls, n = integer(1 << 30), integer(MAX_COLUMNS)
        sums = np.frombuffer(take(4 * n), "<f4")
        n_values = _counted(n_values + n, label)
        with np.errstate(over="ignore", invalid="ignore"):
            columns[name] = (sums / np.float32(calls or 1)).astype(np.float32, copy=False)
    n_chunks = integer(1 << 30) if file.peek(1) else 0
    datasets = (take(integer(MAX_NAME)).decode("utf-8", "replace"),) if file.peek(1) else ()
    return Importance(columns, datasets, n_chunks)


def write_importance(
    path: str | Path,
    sums: Mapping[str, tuple[NDArray[np.float64], int | NDArray[np.int64]]],
    datasets: list[str],
    n_chunks: int,
    chunk_size: int,
    options: WriteOptions | None = None,
) -> None:
    """Write the GGUF format, by name.

    sums   name -> (sums of squares, rows); of a stack (matrices, n_in) and the rows of each
    """
    keys = [
        ("general.type", "imatrix", "str"),
        ("imatrix.datasets", datasets, "arr:str"),
        ("imatrix.chunk_count", n_chunks, "u32"),
        ("imatrix.chunk_size", chunk_size, "u32"),
    ]
    tensors = []
    for name in sorted(sums):
        total, rows = sums[name]
        counts = np.atleast_1d(np.asarray(rows, np.float32))
        of_stack = len(counts) > 1
        shape = (len(counts), total.size // len(counts)) if of_stack else (total.size,)
        tensors.append((name + SUFFIX_SUMS, "F32", shape, total.astype(np.float32).reshape(shape)))
        shape = (len(counts), 1) if of_stack else (1,)
        tensors.append((name + SUFFIX_COUNTS, "F32", shape, counts.reshape(shape)))
    write_gguf(path, keys, tensors, options=options)
