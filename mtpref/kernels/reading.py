"""Reading memory and doing nothing with it, as fast as the threads can: what `mtpref bench` measures bandwidth with."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba import prange
from numba.core import types

from mtpref.kernels.compiling.compile import INT, helper, kernel, source, start_threads, target


@helper
def _read(values, first, last):
    total = np.int64(0)
    for i in range(first, last):
        total |= values[i]
    return total


@kernel(source(types.int64, 1), target(types.int64, 1), INT, parallel=True)
def _read_parts(values, out, n_parts):
    n = len(values)
    for p in prange(n_parts):
        out[p] = _read(values, p * n // n_parts, (p + 1) * n // n_parts)


def read_all(values: np.ndarray) -> int:
    """The bitwise or of all int64, so that every byte is read: a part of the array for each thread."""
    n_parts = start_threads()
    out = np.zeros(n_parts, np.int64)
    _read_parts(values, out, n_parts)
    return int(np.bitwise_or.reduce(out))
