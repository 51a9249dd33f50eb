"""S75: the row that a block of tokens leaves.

Owns the twin of `spec.compress_rows`. A block is gone through row by row, all dimensions beside each other.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp
from mtpref.kernels.arithmetic.floats import N_FLOATS, exp16, load16, plus, store
from mtpref.kernels.compiling.compile import kernel, source, target

F32 = NDArray[np.float32]

_CUBE = source(types.float32, 3)


@kernel(_CUBE, _CUBE, target(types.float32, 2))
def _compress_rows(values, scores, out):
    """A NaN in a dimension makes its sum NaN, as it does for np.max."""
    n_blocks, n_rows, n = values.shape
    greatest, e = np.empty(n, np.float32), np.empty((n_rows, n), np.float32)
    totals, whole = np.empty(n, np.float64), n // N_FLOATS * N_FLOATS
    for b in range(n_blocks):
        for i in range(n):
            greatest[i] = scores[b, 0, i]
        for j in range(1, n_rows):
            for i in range(n):
                s = scores[b, j, i]
                greatest[i] = s if s > greatest[i] or s != s else greatest[i]
        for i in range(n):
            greatest[i] = -greatest[i]
        totals[:] = 0.0
        for j in range(n_rows):
            at = (b * n_rows + j) * n
            for i in range(0, whole, N_FLOATS):
                store(e, j * n + i, exp16(plus(load16(scores, at + i), load16(greatest, i))))
            for i in range(whole, n):
                e[j, i] = exp(scores[b, j, i] + greatest[i])
            for i in range(n):
                totals[i] = totals[i] + np.float64(e[j, i])
        for i in range(n):
            greatest[i] = np.float32(totals[i])
        totals[:] = 0.0
        for j in range(n_rows):
            for i in range(n):
                totals[i] = totals[i] + np.float64(values[b, j, i] * (e[j, i] / greatest[i]))
        for i in range(n):
            out[b, i] = np.float32(totals[i])


def compress_rows(values: F32, scores: F32) -> F32:
    """S75. The bits of `spec.compress_rows`: values, scores (n_blocks, n_rows, D) -> (n_blocks, D)."""
    out = np.empty((len(values), values.shape[2]), np.float32)
    _compress_rows(np.ascontiguousarray(values), np.ascontiguousarray(scores), out)
    return out
