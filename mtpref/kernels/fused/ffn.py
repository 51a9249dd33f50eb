"""S6, S18: a feed-forward network in `ggml` numerics, for panels and for floats, in one call.

Owns the fused twin of compose.py's `ffn`. Its products are those of mul_mats.py.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.compile import INT, kernel
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.norms import call_swiglu, swiglu_part
from mtpref.kernels.products import mul_mats
from mtpref.kernels.products.mul_mats import all_products, call_products, how, weights_of
from mtpref.kernels.products.product import HOW, OUT, WEIGHTS, X
from mtpref.spec.ops.compose import discard

F32 = NDArray[np.float32]


class Parts(NamedTuple):
    """Addresses of the kernels that it is made of."""

    products: int
    swiglu: int


class Matrices(NamedTuple):
    """What `weights_of` gives for each; gate and up are of one type."""

    gate: Any
    up: Any
    down: Any


class Room(NamedTuple):
    """Room for what is between, (T, n_ff) each."""

    gated: F32
    upped: F32


_PARTS, _ROOM = record(Parts, products=INT, swiglu=INT), record(Room, gated=OUT, upped=OUT)
_MATRICES = record(Matrices, gate=WEIGHTS, up=WEIGHTS, down=WEIGHTS)


@kernel(_PARTS, HOW, HOW, _MATRICES, X, _ROOM, OUT, INT, parallel=True)
def _all_ffn(parts, how_in, how_out, matrices, x, room, y, n_parts):
    """S6, S18, S6: y = down(swiglu(gate(x), up(x))), in all threads."""
    gate, up, down, gated, upped = matrices.gate, matrices.up, matrices.down, room.gated, room.upped
    call_products(parts.products, (how_in, 2, (gate, up, up, up), x, (gated, upped, upped, upped), n_parts))
    swiglu, n, flat, other = parts.swiglu, gated.size, gated.reshape(-1), upped.reshape(-1)
    for p in prange(n_parts):
        call_swiglu(swiglu, (flat, other, flat, p * n // n_parts, (p + 1) * n // n_parts))
    call_products(parts.products, (how_out, 1, (down, down, down, down), gated, (y, y, y, y), n_parts))


def ffn(ops: Any, w: Any, x: F32, tap: Any, *, wide: bool) -> F32:
    """The bits of `compose.ffn`. Where a tap looks on, or a product needs another kernel, the composition runs."""
    gate, up, down = w["ffn_gate.weight"], w["ffn_up.weight"], w["ffn_down.weight"]
    n_tokens, n_ff = len(x), gate.n_out
    is_small = compile.n_threads() == 1 or n_ff * x.size < mul_mats.PARALLEL_FROM
    weights = [weights_of(m) for m in (gate, up, down)]
    is_usual = gate.type_name == up.type_name and all(m is not None for m in weights)
    if wide or tap is not discard or is_small or not is_usual:
        result: F32 = ops.composed["ffn"](ops, w, x, tap)
        return result
    room, y = Room(*np.empty((2, n_tokens, n_ff), np.float32)), np.empty((n_tokens, down.n_out), np.float32)
    parts, matrices = Parts(all_products.address(), swiglu_part.address()), Matrices(*weights)
    hows = how(gate.type_name), how(down.type_name)
    _all_ffn(parts, *hows, matrices, np.ascontiguousarray(x), room, y, compile.start_threads())
    return y
