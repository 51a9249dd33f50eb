"""S6 in `ggml` numerics for panels and for floats: an activation times up to four matrices.

Owns how the work is split over threads, and what runs inside one kernel. A call from Python and the waking of a thread
cost as much as a small product, so matrices that read the same activation share both, and its preparation.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, kernel
from mtpref.kernels.products import float_rows, panel_products
from mtpref.kernels.products.packed import PackedMatrix
from mtpref.kernels.products.product import HOW, OUT, WEIGHTS, How, X, call_prepare, call_rows, room
from mtpref.spec.products import Matrix

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

MOST = 4  # matrices of a call
# Multiplications and additions below which one thread does all: some tens of microseconds.
PARALLEL_FROM = 1 << 20
# Tokens from which on all threads prepare them.
PARALLEL_TOKENS = 8

PRODUCTS = panel_products.PRODUCTS | float_rows.PRODUCTS

_ARGS = (HOW, INT, types.UniTuple(WEIGHTS, MOST), X, types.UniTuple(OUT, MOST))


@kernel(*_ARGS)
def _products(how, n, weights, x, ys):
    """ys[i] = x times the matrix of weights[i], i < n <= MOST, all of a type; in the calling thread."""
    words, scales, sums = room(how, *x.shape)
    call_prepare(how.prepare, (x, how.is_unsigned, words, scales, sums, 0, len(x)))
    for i in range(n):
        call_rows(how.rows, (weights[i], words, scales, sums, ys[i], 0, -(-ys[i].shape[1] // ROWS)))


@kernel(*_ARGS, INT, parallel=True)
def all_products(how, n, weights, x, ys, n_parts):
    """As `_products`, in all threads."""
    n_tokens = len(x)
    words, scales, sums = room(how, *x.shape)
    if n_tokens < PARALLEL_TOKENS:
        call_prepare(how.prepare, (x, how.is_unsigned, words, scales, sums, 0, n_tokens))
    else:
        for p in prange(n_parts):
            first, last = p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
            call_prepare(how.prepare, (x, how.is_unsigned, words, scales, sums, first, last))
    for p in prange(n_parts):
        for i in range(n):
            n_groups = -(-ys[i].shape[1] // ROWS)
            first, last = p * n_groups // n_parts, (p + 1) * n_groups // n_parts
            call_rows(how.rows, (weights[i], words, scales, sums, ys[i], first, last))


call_products = caller(*_ARGS, INT)


@cache
def how(type_name: str) -> How:
    """How products of this type run; its kernels are compiled."""
    return PRODUCTS[type_name].how()


def weights_of(w: Matrix) -> U8 | None:
    """What the kernels of this module read of a matrix: its panels, or the rows of floats in place; None: nothing."""
    if isinstance(w, PackedMatrix) and w.panels is not None:
        return w.panels
    if w.type_name not in float_rows.PRODUCTS:
        return None
    return np.ascontiguousarray(w.raw[: w.n_out * w.row_bytes])


def mul_mat(w: Matrix, x: F32) -> F32 | None:
    """S6. y = W x, (T, n_in) -> (T, n_out), in `ggml` numerics; None where `weights_of` gives nothing."""
    found = _of_a_type([w], x)
    return None if found is None else found[0]


def mul_mats(ops: Any, matrices: Sequence[Matrix], x: F32) -> list[F32]:
    """`ops.mul_mat(w, x)` in `ggml` numerics for each of the matrices; those of a type in one call, where it can be."""
    found: dict[int, F32] = {}
    x = np.ascontiguousarray(x)
    for type_name in dict.fromkeys(w.type_name for w in matrices):
        places = [i for i, w in enumerate(matrices) if w.type_name == type_name]
        alike = [matrices[i] for i in places]
        products = _of_a_type(alike, x) or [ops.mul_mat(w, x) for w in alike]
        found.update(zip(places, products, strict=True))
    return [found[i] for i in range(len(matrices))]


def _of_a_type(matrices: Sequence[Matrix], x: F32) -> list[F32] | None:
    """Matrices of one type, at most MOST of them; None where `weights_of` gives nothing for one."""
    weights = [weights_of(w) for w in matrices]
    if any(w is None for w in weights):
        return None
    n, n_tokens = len(matrices), len(x)
    ys = [np.empty((n_tokens, w.n_out), np.float32) for w in matrices]
    spare = MOST - n
    args = how(matrices[0].type_name), n, (*weights, *weights[:1] * spare), x, (*ys, *ys[:1] * spare)
    if compile.n_threads() == 1 or sum(w.n_out for w in matrices) * x.size < PARALLEL_FROM:
        _products(*args)
    else:
        all_products(*args, compile.start_threads())
    return ys
