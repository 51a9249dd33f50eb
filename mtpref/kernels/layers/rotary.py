"""S10, S53, S74: rotary position embedding.

Owns the twins of `spec.rope_table`, `spec.rope`, `spec.rope_interleaved` and `spec.rope_last`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import sincos64
from mtpref.kernels.compiling.compile import INT, kernel, source, target

F32 = NDArray[np.float32]

_TABLE, _HEADS = target(types.float32, 2), source(types.float32, 3)


@kernel(source(types.int32, 1), source(types.float64, 1), source(types.boolean, 1), types.float64, _TABLE, _TABLE)
def _rope_table(pos, frequencies, has_position, magnitude, cos, sin):
    for t in range(len(pos)):
        for i in range(len(frequencies)):
            theta = np.float64(pos[t]) * (frequencies[i] if has_position[i] else 0.0)
            sin64, cos64 = sincos64(abs(theta))
            cos[t, i] = np.float32(cos64 * magnitude)
            sin[t, i] = np.float32((-sin64 if theta < 0 else sin64) * magnitude)


@kernel(_HEADS, source(types.float32, 2), source(types.float32, 2), target(types.float32, 3))
def _rope(x, cos, sin, out):
    n_tokens, n_heads, size = x.shape
    half = cos.shape[1]
    for t in range(n_tokens):
        for h in range(n_heads):
            for i in range(half):
                a, b, c, s = x[t, h, i], x[t, h, half + i], cos[t, i], sin[t, i]
                out[t, h, i] = a * c - b * s
                out[t, h, half + i] = a * s + b * c
            for i in range(2 * half, size):
                out[t, h, i] = x[t, h, i]


@kernel(_HEADS, source(types.float32, 2), source(types.float32, 2), INT, target(types.float32, 3))
def _rope_pairs(x, cos, sin, first, out):
    """Neighbours from dimension `first` on; the rest passes."""
    n_tokens, n_heads, size = x.shape
    half = cos.shape[1]
    for t in range(n_tokens):
        for h in range(n_heads):
            for i in range(size):
                out[t, h, i] = x[t, h, i]
            for i in range(half):
                k = first + 2 * i
                a, b, c, s = x[t, h, k], x[t, h, k + 1], cos[t, i], sin[t, i]
                out[t, h, k] = a * c - b * s
                out[t, h, k + 1] = a * s + b * c


def rope_table(
    pos: NDArray[np.int32], frequencies: NDArray[np.float64], has_position: NDArray[np.bool_], magnitude: float = 1.0
) -> tuple[F32, F32]:
    """S10. The bits of `spec.rope_table`: pos (T,), the arrays (n_rot/2,) -> cos, sin (T, n_rot/2)."""
    cos = np.empty((len(pos), len(frequencies)), np.float32)
    sin = np.empty_like(cos)
    _rope_table(np.ascontiguousarray(pos, np.int32), frequencies, has_position, float(magnitude), cos, sin)
    return cos, sin


def rope(x: F32, cos: F32, sin: F32) -> F32:
    """S10. The bits of `spec.rope`: x (T, H, D), cos, sin (T, n_rot/2) -> (T, H, D)."""
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    _rope(x, np.ascontiguousarray(cos), np.ascontiguousarray(sin), out)
    return out


def rope_interleaved(x: F32, cos: F32, sin: F32) -> F32:
    """S53. The bits of `spec.rope_interleaved`: x (T, H, D), cos, sin (T, n_rot/2) -> (T, H, D)."""
    return _paired(x, cos, sin, 0)


def rope_last(x: F32, cos: F32, sin: F32, is_back: bool = False) -> F32:
    """S74. The bits of `spec.rope_last`: x (T, H, D), cos, sin (T, n_rot/2) -> (T, H, D)."""
    return _paired(x, cos, -sin if is_back else sin, x.shape[-1] - 2 * cos.shape[-1])


def _paired(x: F32, cos: F32, sin: F32, first: int) -> F32:
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    _rope_pairs(x, np.ascontiguousarray(cos), np.ascontiguousarray(sin), first, out)
    return out
