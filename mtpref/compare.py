"""Comparison of two files of tensors: which differ, by how much, and which is the first to differ.

Owns the measures and the report. Either file may come from any engine; only names and shapes must agree.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import quants
from mtpref.dump import KEY
from mtpref.errors import MtprefError
from mtpref.gguf import GgufFile, open_gguf, without_leading_ones

SCHEMA = "mtpref-compare-1"
DEFAULT_LIMIT = 1e-6
FLOAT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K")
INTEGER_TYPES = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


@dataclass(frozen=True)
class Difference:
    """One tensor of both files.

    nmse       sum((a - b)^2) / sum(a^2), a from the first file; infinite where either is not finite
    max_abs    the greatest |a - b|
    worst_row  the index along the slowest axis (the token) with the greatest error
    note       why the tensors could not be compared, or ""
    """

    name: str
    is_bit_equal: bool
    nmse: float
    max_abs: float
    worst_row: int | None
    note: str = ""

    def exceeds(self, limit: float) -> bool:
        return bool(self.note) or not self.nmse <= limit

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "is_bit_equal": self.is_bit_equal,
            "nmse": _finite(self.nmse),
            "max_abs": _finite(self.max_abs),
            "worst_row": self.worst_row,
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """All tensors in the execution order of the first file; names that only one file has."""

    differences: list[Difference]
    only_a: list[str]
    only_b: list[str]
    limit: float

    @property
    def first_divergence(self) -> Difference | None:
        return next((d for d in self.differences if d.exceeds(self.limit)), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first_divergence
        return {
            "schema": SCHEMA,
            "limit": self.limit,
            "first_divergence": first.name if first else None,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "tensors": [d.to_json() for d in self.differences],
        }


def compare_files(path_a: str | Path, path_b: str | Path, limit: float = DEFAULT_LIMIT) -> Comparison:
    """Compare the tensors that two GGUF files have in common; `limit` is the NMSE above which tensors diverge.

    Errors  MtprefError for a damaged file, or two files without a common name
    """
    with open_gguf(path_a) as a, open_gguf(path_b) as b:
        order = _execution_order(a)
        common = [name for name in order if name in b.tensors]
        if not common:
            raise MtprefError(f"compare: {a.label} and {b.label} have no tensor name in common; "
                              "expected cb() names such as l_out-3; try: mtpref inspect FILE")  # fmt: skip
        differences = [_difference(a, b, name) for name in common]
        only_a = [name for name in order if name not in b.tensors]
        only_b = [name for name in b.tensors if name not in a.tensors]
    return Comparison(differences, only_a, only_b, limit)


def render(comparison: Comparison) -> str:
    """A table for people."""
    width = max(len(d.name) for d in comparison.differences)
    lines = [f"{'tensor':{width}s}  {'nmse':>10s}  {'max abs':>10s}  worst row"]
    for d in comparison.differences:
        mark = "  <-- differs" if d.exceeds(comparison.limit) else ""
        row = "-" if d.worst_row is None else str(d.worst_row)
        bits = "  (bit-equal)" if d.is_bit_equal else ""
        lines.append(f"{d.name:{width}s}  {d.nmse:10.3e}  {d.max_abs:10.3e}  {row:>9s}{bits}{mark} {d.note}".rstrip())
    for label, names in (("first", comparison.only_a), ("second", comparison.only_b)):
        if names:
            lines.append(f"only in the {label} file: {len(names)} ({', '.join(names[:6])}{', ...' * (len(names) > 6)})")
    first = comparison.first_divergence
    if first is None:
        lines.append(f"no tensor differs by more than NMSE {comparison.limit:g}")
    else:
        lines.append(f"first divergence (NMSE > {comparison.limit:g}), in execution order: {first.name}")
    return "\n".join(lines)


def _execution_order(file: GgufFile) -> list[str]:
    """The order that a dump recorded, else the order of the file."""
    recorded = [name for name in file.get(f"{KEY}.order", []) if name in file.tensors]
    return [name for name in file.tensors if name not in set(recorded)] + recorded


def _difference(file_a: GgufFile, file_b: GgufFile, name: str) -> Difference:
    shape_a, shape_b = file_a.tensors[name].shape, file_b.tensors[name].shape
    if without_leading_ones(shape_a) != without_leading_ones(shape_b):
        note = f"shapes {file_a.tensors[name].ne} and {file_b.tensors[name].ne} in GGUF order"
        return Difference(name, False, float("inf"), float("inf"), None, note)
    a, b = _values(file_a, name), _values(file_b, name).reshape(shape_a)
    is_bit_equal = a.dtype == b.dtype and a.tobytes() == b.tobytes()
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        note = "" if is_bit_equal else "not finite"
        return Difference(name, is_bit_equal, 0.0 if is_bit_equal else float("inf"), float("inf"), None, note)
    error = (x - y) ** 2
    power = float((x**2).sum())
    nmse = float(error.sum()) / power if power else (0.0 if not error.any() else float("inf"))
    rows = error.reshape(error.shape[0], -1).sum(axis=1) if error.ndim > 1 else error
    worst = int(rows.argmax()) if rows.any() else None
    return Difference(name, is_bit_equal, nmse, float(np.abs(x - y).max(initial=0.0)), worst)


def _values(file: GgufFile, name: str) -> NDArray:
    info = file.tensors[name]
    if info.type_name in INTEGER_TYPES:
        return file.data(info).view(INTEGER_TYPES[info.type_name]).reshape(info.shape)
    if info.type_name not in FLOAT_TYPES:
        raise MtprefError(f"{file.label}: tensor {name} has type {info.type_name}, expected one of "
                          f"{', '.join((*FLOAT_TYPES, *INTEGER_TYPES))}")  # fmt: skip
    return quants.dequantize(info.type_name, file.data(info), info.shape).reshape(info.shape)


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None
