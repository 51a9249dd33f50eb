"""Comparison with tensors of which only a digest is printed: values at both ends of each axis, and a sum.

Owns what such a digest can decide. A printed value stands for all numbers that round to it, so only what is beyond half
a unit of its last digit counts; the sum, added one by one in float32, says something about the values between.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtpref.look.compare.layouts import WITHOUT_TOKENS
from mtpref.look.compare.measures import Measures, normalised
from mtpref.look.llama_cpp.callback import HALF_DIGIT, HALF_SUM_DIGIT, Printed

Found = tuple[Measures, str, str]  # measures, note (why it fails without them), remark


def choose(name: str, shape: tuple[int, ...], printed: Sequence[Printed]) -> tuple[Printed, int] | None:
    """The occurrence that a tensor of `shape` is compared with, and the tensor's row that its first row is.

    A name comes again where llama.cpp prints a warming-up pass first, or gives several tensors one name: the last one
    that has all rows is taken, else the last that has the last rows.
    """
    row, size = math.prod(shape[1:]), math.prod(shape)
    whole = [p for p in printed if math.prod(p.shape) == size and _fits(shape, p.shape)]
    if whole:
        return whole[-1], 0
    if len(shape) < 2 or name.startswith(WITHOUT_TOKENS):
        return None
    for p in reversed(printed):
        n_rows, rest = divmod(math.prod(p.shape), row) if row else (0, 1)
        if not rest and 0 < n_rows < shape[0] and _fits((n_rows, *shape[1:]), p.shape):
            return p, shape[0] - n_rows
    return None


def _fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one is the other with axes split or merged."""
    a, b = (
        {math.prod(kept[i:]) for i in range(1, len(kept))}
        for kept in (tuple(n for n in s if n != 1) for s in (shape, other))
    )
    return a <= b or b <= a


def compare_printed(array: NDArray, first_row: int, printed: Printed, limit: float) -> Found:
    """An array from `first_row` on against what is printed of it."""
    flat = array[first_row:].reshape(-1) if first_row else array.reshape(-1)
    ours = np.asarray(flat[printed.index], np.float64)
    remark = f"{len(ours)} printed values of {flat.size}"
    if first_row:
        remark += f", only the last {len(array) - first_row} of {len(array)} rows"
    if printed.is_cut:
        remark += ", the text ends within it"
    measures = _beyond(ours, printed.values, HALF_DIGIT)
    if printed.sum is None or not measures.is_finite or not np.isfinite(flat).all():
        return measures, "", remark
    total, slack = _sum_and_slack(flat, limit)
    if not abs(total - printed.sum) <= slack:
        note = f"sum {printed.sum:.6f} is printed, {total:.6f} expected (within {slack:.2g}): values between differ"
        return measures, "" if measures.nmse > limit else note, remark
    return measures, "", remark


def compare_both_printed(a: Printed, b: Printed) -> Found:
    """Two digests: the positions that both have, each value within a whole digit."""
    if a.shape != b.shape:
        note = f"shapes {a.shape[::-1]} and {b.shape[::-1]} in GGUF order"
        return Measures(False, math.inf, math.inf, math.nan, math.inf, None, None), note, ""
    n = min(len(a.values), len(b.values))
    measures = _beyond(a.values[:n], b.values[:n], 2 * HALF_DIGIT)
    return measures, "", f"{n} printed values in both"


def _beyond(a: NDArray[np.float64], b: NDArray[np.float64], half: float) -> Measures:
    """Measures of the differences that rounding does not explain."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        is_equal = np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(np.isinf(a), np.isinf(b))
        infinite = math.inf if not is_equal else 0.0
        return Measures(False, infinite, infinite, math.nan, infinite, None, None, False)
    beyond = np.maximum(0.0, np.abs(a - b) - half * (1 + 1e-9))
    error, power, other = float((beyond**2).sum()), float((a * a).sum()), float((b * b).sum())
    nmse = normalised(error, power)
    norm = math.sqrt(power) * math.sqrt(other)
    cosine = min(1.0, max(-1.0, float((a * b).sum()) / norm)) if norm else (1.0 if power == other else 0.0)
    return Measures(False, nmse, math.sqrt(nmse), cosine, float(beyond.max(initial=0.0)), None, None)


def _sum_and_slack(flat: NDArray, limit: float) -> tuple[float, float]:
    """The sum in the printing program's way, and how far another honest engine's may be from it.

    Rule   float32, one by one; |sum(a) - sum(b)| <= sqrt(n * limit * sum(a^2)) where NMSE <= limit (Cauchy-Schwarz),
           and each of the n additions rounds by at most 2^-24 of the greatest partial sum
    """
    partial = np.cumsum(flat, dtype=np.float32)
    values = flat.astype(np.float64)
    rounding = flat.size * 2.0**-24 * float(np.abs(partial).max(initial=0.0))
    slack = math.sqrt(flat.size * limit * float((values * values).sum())) + HALF_SUM_DIGIT + rounding
    return float(partial[-1]) if flat.size else 0.0, slack
