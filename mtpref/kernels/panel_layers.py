"""Products of one activation with up to four matrices that have panels, and a feed-forward network of them: one call.

Owns how the work is split over threads, and what runs inside one kernel. A call from Python and the waking of a thread
cost as much as a small product, so matrices that read the same activation share both, and its quantisation.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeGuard

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels import compile
from mtpref.kernels.calls import caller
from mtpref.kernels.compile import INT, helper, kernel, source, target
from mtpref.kernels.norms import call_swiglu, swiglu_part
from mtpref.kernels.packed import PackedMatrix
from mtpref.kernels.panel_products import PRODUCTS, call_prepare, call_rows
from mtpref.kernels.vectors import GROUP, ROWS
from mtpref.ops.compose import discard

F32 = NDArray[np.float32]

MOST = 4  # matrices of a call
# Multiplications and additions below which one thread does all: some tens of microseconds.
PARALLEL_FROM = 1 << 20
# Tokens from which on all threads prepare them.
PARALLEL_TOKENS = 8

# Addresses of the kernels that prepare and multiply; is_unsigned, n_block and n_sum of a Product.
HOW = types.UniTuple(types.int64, 5)
PANELS, _X, _OUT = source(types.uint8, 1), source(types.float32, 2), target(types.float32, 2)
_ARGS = (HOW, INT, types.UniTuple(PANELS, MOST), _X, types.UniTuple(_OUT, MOST))


@helper
def _room(how, n_tokens, n_in):
    """Memory for the words, scales and sums of an activation."""
    words, sums = np.empty((n_tokens, n_in // GROUP), np.int32), np.empty((n_tokens, n_in // how[4]), np.int32)
    return words, np.empty((n_tokens, n_in // how[3]), np.float32), sums


@kernel(*_ARGS)
def _products(how, n, panels, x, ys):
    """ys[i] = x times the matrix of panels[i], i < n <= MOST, all of a type; in the calling thread."""
    words, scales, sums = _room(how, *x.shape)
    call_prepare(how[0], (x, how[2], words, scales, sums, 0, len(x)))
    for i in range(n):
        call_rows(how[1], (panels[i], words, scales, sums, ys[i], 0, -(-ys[i].shape[1] // ROWS)))


@kernel(*_ARGS, INT, parallel=True)
def all_products(how, n, panels, x, ys, n_parts):
    """As `_products`, in all threads."""
    n_tokens = len(x)
    words, scales, sums = _room(how, *x.shape)
    if n_tokens < PARALLEL_TOKENS:
        call_prepare(how[0], (x, how[2], words, scales, sums, 0, n_tokens))
    else:
        for p in prange(n_parts):
            first, last = p * n_tokens // n_parts, (p + 1) * n_tokens // n_parts
            call_prepare(how[0], (x, how[2], words, scales, sums, first, last))
    for p in prange(n_parts):
        for i in range(n):
            n_panels = -(-ys[i].shape[1] // ROWS)
            first, last = p * n_panels // n_parts, (p + 1) * n_panels // n_parts
            call_rows(how[1], (panels[i], words, scales, sums, ys[i], first, last))


call_products = caller(*_ARGS, INT)


@kernel(INT, INT, HOW, HOW, PANELS, PANELS, PANELS, _X, _OUT, _OUT, _OUT, INT, parallel=True)
def _all_ffn(products, swiglu, how_in, how_out, gate, up, down, x, gated, upped, y, n_parts):
    """S6, S18, S6: y = down(swiglu(gate(x), up(x))), in all threads; gated and upped are room for what is between."""
    call_products(products, (how_in, 2, (gate, up, up, up), x, (gated, upped, upped, upped), n_parts))
    n, flat, other = gated.size, gated.reshape(-1), upped.reshape(-1)
    for p in prange(n_parts):
        call_swiglu(swiglu, (flat, other, flat, p * n // n_parts, (p + 1) * n // n_parts))
    call_products(products, (how_out, 1, (down, down, down, down), gated, (y, y, y, y), n_parts))


@cache
def how(type_name: str) -> tuple[int, ...]:
    product = PRODUCTS[type_name]
    return product.prepare.address(), product.rows.address(), product.is_unsigned, product.n_block, product.n_sum


def has_panels(w: Any) -> TypeGuard[PackedMatrix]:
    return isinstance(w, PackedMatrix) and w.panels is not None


def mul_mat(w: PackedMatrix, x: F32) -> F32:
    """S6. y = W x, (T, n_in) -> (T, n_out), in `ggml` numerics, for a matrix that has panels."""
    return _of_a_type((w,), x)[0]


def mul_mats(ops: Any, matrices: Sequence[Any], x: F32) -> list[F32]:
    """`ops.mul_mat(w, x)` for each of the matrices; those of a type that have panels in one call."""
    found: dict[int, F32] = {}
    x = np.ascontiguousarray(x)
    for type_name in dict.fromkeys(w.type_name for w in matrices):
        alike = [i for i, w in enumerate(matrices) if w.type_name == type_name]
        if all(has_panels(matrices[i]) for i in alike):
            products = _of_a_type(tuple(matrices[i] for i in alike), x)
        else:
            products = [ops.mul_mat(matrices[i], x) for i in alike]
        found.update(zip(alike, products, strict=True))
    return [found[i] for i in range(len(matrices))]


def _of_a_type(matrices: tuple[PackedMatrix, ...], x: F32) -> list[F32]:
    n, n_tokens = len(matrices), len(x)
    ys = [np.empty((n_tokens, w.n_out), np.float32) for w in matrices]
    spare = MOST - n
    panels = tuple(w.panels for w in matrices) + (matrices[0].panels,) * spare
    args = how(matrices[0].type_name), n, panels, x, (*ys, *ys[:1] * spare)
    if compile.n_threads() == 1 or sum(w.n_out for w in matrices) * x.size < PARALLEL_FROM:
        _products(*args)
    else:
        all_products(*args, compile.start_threads())
    return ys


def ffn(ops: Any, w: Any, x: F32, tap: Any) -> F32:
    """The bits of `compose.ffn`. Where a tap looks on, or matrices have no panels, the composition runs."""
    gate, up, down = w["ffn_gate.weight"], w["ffn_up.weight"], w["ffn_down.weight"]
    n_tokens, n_ff = len(x), gate.n_out
    is_usual = gate.type_name == up.type_name and all(has_panels(m) for m in (gate, up, down))
    is_small = compile.n_threads() == 1 or n_ff * x.size < PARALLEL_FROM
    if tap is not discard or not is_usual or is_small:
        result: F32 = ops.composed["ffn"](ops, w, x, tap)
        return result
    room, y = np.empty((2, n_tokens, n_ff), np.float32), np.empty((n_tokens, down.n_out), np.float32)
    kernels_at = all_products.address(), swiglu_part.address()
    hows, panels = (how(gate.type_name), how(down.type_name)), (gate.panels, up.panels, down.panels)
    _all_ffn(*kernels_at, *hows, *panels, np.ascontiguousarray(x), room[0], room[1], y, compile.start_threads())
    return y
