"""A file beside another of the same model: tensor by tensor, and acceptance at the same positions.

Owns how much a type explains. The other may be a GGUF or a checkpoint folder, whose tensors are brought to GGUF's
convention first; the error of a tensor is the root mean square of the difference over that of the other's values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.files.gguf import GgufFile, TensorInfo, open_gguf, printable, without_leading_ones
from mtpref.heads.check.findings import Finding
from mtpref.heads.hf import gguf_tensors, is_checkpoint, open_checkpoint, text_config
from mtpref.spec.quants import DEQUANTIZABLE

F32 = NDArray[np.float32]
# Relative error that a type may make of bell-shaped weights: about twice what its encoder does.
ALLOWED = {
    "F32": 1e-6, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.015, "Q6_K": 0.04, "Q5_K": 0.08, "Q5_1": 0.08, "Q5_0": 0.1,
    "Q4_K": 0.16, "Q4_1": 0.16, "Q4_0": 0.2, "IQ4_NL": 0.18, "IQ4_XS": 0.18, "MXFP4": 0.25, "NVFP4": 0.25, "Q3_K": 0.3,
    "IQ3_S": 0.3, "IQ3_XXS": 0.35, "Q2_K": 0.5, "IQ2_S": 0.5, "IQ2_XS": 0.5, "IQ2_XXS": 0.55, "TQ1_0": 0.9,
    "TQ2_0": 0.9, "Q2_0": 0.9, "Q1_0": 0.9,
    "IQ1_M": 0.8, "IQ1_S": 0.8,
}  # fmt: skip
NORM_ALLOWED = 1e-2  # of vectors that a converter rounds on the way: BF16 of a zero-centred norm
TABLE = "I32"  # experts by token id: equal or wrong
MAX_NAMED = 8


class Other:
    """The other file: shapes and types by GGUF name, and values in pieces of whole rows.

    unread   why tensors of a folder cannot be read; they are not among the shapes
    """

    def __init__(self, path: str | Path) -> None:
        self.is_folder = is_checkpoint(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self.unread: list[str] = []
        self._pieces: dict[str, Callable[[], Iterator[F32]]] = {}
        if self.is_folder:
            self._checkpoint = open_checkpoint(path)
            found = gguf_tensors(self._checkpoint, text_config(self._checkpoint.config, self._checkpoint.label))
            self.unread = [text for _, text in found.faults] + list(found.shared_faults.values())
            for part in found.parts:
                self.shapes[part.name] = part.shape
                self.types[part.name] = self._checkpoint.dtype(part.source)
                self._pieces[part.name] = partial(part.pieces, self._checkpoint)
        else:
            self._file = open_gguf(path)
            for info in self._file.tensors.values():
                self.shapes[info.name], self.types[info.name] = info.shape, info.type_name
                self._pieces[info.name] = partial(_values, self._file, info)

    def pieces(self, name: str) -> Iterator[F32]:
        return self._pieces[name]()

    def close(self) -> None:
        (self._checkpoint if self.is_folder else self._file).close()


def compare(file: GgufFile, other: Other, stand_ins: Mapping[str, str] | None = None) -> list[Finding]:
    """Inventory and values, every tensor of both.

    stand_ins   tensors that this file lacks -> those of the trunk that a run takes for them; where these have the
                values of the other's, nothing is missing (convert --drop-copies)
    """
    found, absent = [], "absent there"
    if other.unread:
        absent = "absent or unread there"
        more = f" (and {len(other.unread) - 1} more)" if len(other.unread) > 1 else ""
        found.append(Finding("against-unread", "the other", f"{other.unread[0]}{more}"))
    for name in other.shapes:
        if name not in file.tensors and not _is_stood_in_for(file, other, name, (stand_ins or {}).get(name)):
            found.append(
                Finding("against-missing", name, f"{other.types[name]} {other.shapes[name]} there, missing here")
            )
    worst, n_compared, n_off = (0.0, "", ""), 0, 0
    for info in file.tensors.values():
        if info.name not in other.shapes:
            text = f"{info.type_name} {info.shape} here, {absent}"
            found.append(Finding("against-extra", printable(info.name), text))
        elif without_leading_ones(info.shape) != without_leading_ones(other.shapes[info.name]):
            found.append(Finding("against-shape", info.name, f"{info.shape} here, {other.shapes[info.name]} there"))
        elif _are_comparable(info, other.types[info.name]):
            error = relative_error(_values(file, info), other.pieces(info.name))
            allowed = _allowed(info, other.types[info.name])
            n_compared += 1
            worst = max(worst, (error / allowed if allowed else 0.0, info.name, f"{error:.2g} ({info.type_name})"))
            if not error <= allowed:
                n_off += 1
                if n_off <= MAX_NAMED:
                    text = f"relative error {error:.3g}, expected at most {allowed:.2g} of {info.type_name} against "
                    found.append(Finding("against-value", info.name, text + other.types[info.name]))
        else:
            text = f"{info.type_name} here, {other.types[info.name]} there: not compared"
            found.append(Finding("against-skipped", printable(info.name), text))
    if n_off > MAX_NAMED:
        found.append(
            Finding("against-value", f"{n_off - MAX_NAMED} more tensors", "differ by more than their types explain")
        )
    if not n_off:
        text = f"relative errors within what their types explain; the nearest to its limit: {worst[1]} {worst[2]}"
        found.append(Finding("against-values", f"{n_compared} tensors", text))
    return found


def _are_comparable(info: TensorInfo, other_type: str) -> bool:
    if info.type_name == TABLE:
        return other_type in (TABLE, "I64")
    return info.type_name in DEQUANTIZABLE and other_type in {*DEQUANTIZABLE, "F64"}


def _values(file: GgufFile, info: TensorInfo) -> Iterator[F32]:
    """A tensor in pieces; of a table its numbers, which float32 holds (experts' are below 2**24)."""
    if info.type_name != TABLE:
        return file.decoded(info)
    return iter([file.data(info).view("<i4").reshape(info.shape).astype(np.float32)])


def _is_stood_in_for(file: GgufFile, other: Other, name: str, stand_in: str | None) -> bool:
    """Whether a tensor of this file has the values of one that only the other file has."""
    info = file.tensors.get(stand_in) if stand_in is not None else None
    if info is None or info.shape != other.shapes[name]:
        return False
    if info.type_name not in DEQUANTIZABLE or other.types[name] not in {*DEQUANTIZABLE, "F64"}:
        return False
    return relative_error(file.decoded(info), other.pieces(name)) <= _allowed(info, other.types[name])


def _allowed(info: TensorInfo, other_type: str) -> float:
    """The two types' errors together."""
    if info.type_name == TABLE:
        return 0.0
    here, there = (ALLOWED.get(kind, 1.0) for kind in (info.type_name, other_type))
    total = math.hypot(here, there)
    return max(total, NORM_ALLOWED) if len(info.shape) == 1 else total


def relative_error(ours: Iterator[F32], theirs: Iterator[F32]) -> float:
    """sqrt(sum (a - b)^2 / sum b^2), in float64; NaN where either holds one."""
    above = below = 0.0
    for a, b in _aligned(ours, theirs):
        wide = a.astype(np.float64) - b
        above += float(np.dot(wide, wide))
        b64 = b.astype(np.float64)
        below += float(np.dot(b64, b64))
    if below == 0.0:
        return 0.0 if above == 0.0 else math.inf
    return math.sqrt(above / below)


def _aligned(ours: Iterator[F32], theirs: Iterator[F32]) -> Iterator[tuple[F32, F32]]:
    """Pieces of equal length out of two streams of pieces."""
    a = b = np.empty(0, np.float32)
    while True:
        if not len(a):
            a = next(ours, np.empty((0, 0), np.float32)).reshape(-1)
        if not len(b):
            b = next(theirs, np.empty((0, 0), np.float32)).reshape(-1)
        n = min(len(a), len(b))
        if n == 0:
            return
        yield a[:n], b[:n]
        a, b = a[n:], b[n:]
