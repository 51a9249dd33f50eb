"""Arithmetic for the oracles that gives the same bits on every machine.

Owns what stands in for NumPy's and libm's functions while golden values are made: functions rounded correctly (mpmath,
integers inside), sums and products added one after the other in index order. IEEE additions, products, quotients and
square roots are the same everywhere; vector libraries, fused products and summation orders are not.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mpmath
import numpy as np

from tests import naive

Array = np.ndarray
PRECISION = 160  # bits; far beyond what could leave a float64 rounding open


def _rounded(function: Callable[..., Any]) -> Callable[[Array], Array]:
    """The function of float64 arrays, each value rounded once."""

    def one(x: float) -> float:
        if not math.isfinite(x):
            return x if x > 0 else 0.0 if x < 0 else math.nan
        with mpmath.workprec(PRECISION):
            return float(function(mpmath.mpf(float(x))))

    return np.vectorize(one, otypes=[np.float64])


def _power(base: float, exponent: float) -> float:
    with mpmath.workprec(PRECISION):
        return float(mpmath.power(mpmath.mpf(base), mpmath.mpf(exponent)))


def dot(a: Array, b: Array) -> Array:
    """a @ b for b (n,) or (n, m): the sum over i = 0, 1, ... of a[..., i] b[i], added in that order."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    out = np.zeros((*a.shape[:-1], *b.shape[1:]))
    for i in range(a.shape[-1]):
        out = out + (a[..., i : i + 1] * b[i] if b.ndim > 1 else a[..., i] * b[i])
    return out


def total(x: Array) -> Array:
    return np.add.accumulate(np.asarray(x, np.float64), axis=-1)[..., -1:]


_exp, _log1p, _log = _rounded(mpmath.exp), _rounded(mpmath.log1p), _rounded(mpmath.log)
_cos, _sin = _rounded(mpmath.cos), _rounded(mpmath.sin)

REPLACED = {
    "exp": _exp,
    "log1p": _log1p,
    "cos": _cos,
    "sin": _sin,
    "power": _power,
    "log": _log,
    "dot": dot,
    "total": total,
}


USUAL = {name: getattr(naive, name) for name in REPLACED}


@contextmanager
def _arithmetic(functions: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(naive, name) for name in functions}
    for name, function in functions.items():
        setattr(naive, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(naive, name, function)


def portable_arithmetic() -> AbstractContextManager[None]:
    """While the block runs, the oracles of tests/naive.py compute with these functions."""
    return _arithmetic(REPLACED)


def usual_arithmetic() -> AbstractContextManager[None]:
    """Inside of the other: NumPy's own functions again, for decisions with margins that no last bit can turn."""
    return _arithmetic(USUAL)
