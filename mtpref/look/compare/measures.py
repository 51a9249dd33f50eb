"""How far two arrays are from each other.

Owns the measures. They are sums over blocks of rows in float64, so a large tensor costs little memory.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 20


@dataclass(frozen=True)
class Measures:
    """nmse sum((a - b)^2) / sum(a^2); rel_l2 its square root; cosine a.b / (|a| |b|); max_abs the greatest |a - b|;
    max_ulp the greatest distance in float32 steps (None for integers); worst_row the index along the slowest axis (the
    token) with the greatest error, None where there is none. Where either array is not finite and the bits differ:
    infinite, cosine NaN."""

    is_bit_equal: bool
    nmse: float
    rel_l2: float
    cosine: float
    max_abs: float
    max_ulp: int | None
    worst_row: int | None
    is_finite: bool = True


@np.errstate(invalid="ignore", over="ignore")  # a NaN that signals, values beyond the squares of float64
def measure(a: NDArray, b: NDArray) -> Measures:
    """b against a.

    Shapes   the same
    """
    is_integer = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    rows_a, rows_b = _rows(a), _rows(b)
    n_rows = len(rows_a)
    step = max(1, BLOCK // max(rows_a.shape[1], 1))
    errors = np.zeros(n_rows)
    power_a = power_b = dot = max_abs = 0.0
    max_ulp, is_equal = 0, True
    for start in range(0, n_rows, step):
        x, y = rows_a[start : start + step], rows_b[start : start + step]
        is_equal = is_equal and _same_bits(x, y)
        u, v = x.astype(np.float64), y.astype(np.float64)
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            if _same_bits(a, b):
                return Measures(True, 0.0, 0.0, 1.0, 0.0, 0, None, False)
            return Measures(False, math.inf, math.inf, math.nan, math.inf, None, None, False)
        errors[start : start + step] = ((u - v) ** 2).sum(axis=1)
        power_a, power_b, dot = (
            power_a + float((u * u).sum()),
            power_b + float((v * v).sum()),
            dot + float((u * v).sum()),
        )
        max_abs = max(max_abs, float(np.abs(u - v).max(initial=0.0)))
        max_ulp = max(max_ulp, 0 if is_integer else _max_ulp(x, y))
    error = float(errors.sum())
    nmse = normalised(error, power_a)
    norm = math.sqrt(power_a) * math.sqrt(power_b)
    cosine = min(1.0, max(-1.0, dot / norm)) if norm else (1.0 if power_a == power_b else 0.0)
    worst = int(errors.argmax()) if errors.any() else None
    return Measures(is_equal, nmse, math.sqrt(nmse), cosine, max_abs, None if is_integer else max_ulp, worst)


def nmse(a: NDArray, b: NDArray) -> float:
    """sum((a - b)^2) / sum(a^2), summed exactly; infinite where b is not finite or a is all zero."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    if not np.isfinite(y).all():
        return math.inf
    return normalised(math.fsum((x - y) ** 2), math.fsum(x * x))


def normalised(error: float, power: float) -> float:
    """The NMSE of a sum of squared errors and a sum of squares."""
    return error / power if power else (0.0 if error == 0.0 else math.inf)


def _rows(array: NDArray) -> NDArray:
    if array.ndim < 2:
        return array.reshape(-1, 1)
    return array.reshape(array.shape[0], -1) if array.size else array.reshape(0, 1)


def _same_bits(x: NDArray, y: NDArray) -> bool:
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


def _max_ulp(x: NDArray, y: NDArray) -> int:
    """Distance on the line of all float32 numbers; +0 and -0 are one number."""
    return int(np.abs(_ordered(x) - _ordered(y)).max(initial=0))


def _ordered(x: NDArray) -> NDArray[np.int64]:
    with np.errstate(over="ignore", under="ignore"):
        bits = np.ascontiguousarray(x.astype(np.float32)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
