"""S21, S22: the greedy token and the draft's candidates, in one pass over the logits.

Owns the twins of `spec.argmax` and `spec.top_candidates`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp64
from mtpref.kernels.arithmetic.floats import N_SCANNED, any_above
from mtpref.kernels.compiling.compile import kernel, source, target
from mtpref.spec.mtp import N_TOP

F32 = NDArray[np.float32]


@kernel(source(types.float32, 2), target(types.int64, 1))
def _argmax(logits, ids):
    """The first of the greatest. A NaN is greater than nothing; where nothing exceeds -infinity, id 0 stays."""
    for t in range(logits.shape[0]):
        row = logits[t]
        best, best_id = np.float32(-np.inf), 0
        whole = len(row) // N_SCANNED * N_SCANNED
        for start in range(0, whole, N_SCANNED):
            if any_above(row, start, best):
                for i in range(start, start + N_SCANNED):
                    if row[i] > best:
                        best, best_id = row[i], i
        for i in range(whole, len(row)):
            if row[i] > best:
                best, best_id = row[i], i
        ids[t] = best_id


@kernel(source(types.float32, 1), target(types.int64, 1), target(types.float64, 1))
def _top_candidates(logits, ids, weights):
    """The n greatest by insertion: an equal value with a higher id stays behind. NaN counts as -infinity."""
    n_top, n = len(ids), 0
    best = np.empty(n_top, np.float32)
    for start in range(0, len(logits), N_SCANNED):
        end = min(len(logits), start + N_SCANNED)
        if n == n_top and end - start == N_SCANNED and not any_above(logits, start, best[n_top - 1]):
            continue
        for i in range(start, end):
            value = logits[i]
            if n == n_top and not value > best[n_top - 1]:
                continue
            if value != value:
                value = np.float32(-np.inf)
            place = n if n < n_top else n_top - 1
            while place > 0 and value > best[place - 1]:
                best[place], ids[place] = best[place - 1], ids[place - 1]
                place -= 1
            best[place], ids[place] = value, i
            n = min(n + 1, n_top)
    total = 0.0
    for i in range(n_top):
        weights[i] = exp64(np.float64(best[i]) - np.float64(best[0]))
        total = total + weights[i]
    for i in range(n_top):
        weights[i] = weights[i] / total


def argmax(logits: F32) -> NDArray[np.int64]:
    """S21. `spec.argmax`: (T, V) -> (T,)."""
    ids = np.empty(logits.shape[0], np.int64)
    _argmax(np.ascontiguousarray(logits), ids)
    return ids


def top_candidates(logits: F32) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """S22. The ids and bits of `spec.top_candidates`: (V,) -> ids, p (min(10, V),)."""
    n_top = min(N_TOP, logits.size)
    ids, weights = np.empty(n_top, np.int64), np.empty(n_top, np.float64)
    _top_candidates(np.ascontiguousarray(logits), ids, weights)
    return ids, weights
