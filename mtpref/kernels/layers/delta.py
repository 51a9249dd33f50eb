"""S11, S13: the causal convolution and the gated delta rule.

Owns the twins of `spec.conv_silu` and `spec.delta_rule`. Rows of the recurrent state do not read each other, so a row
runs through all tokens while it is in the cache; heads are split over threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp, one_over_root, silu
from mtpref.kernels.arithmetic.lanes import dot
from mtpref.kernels.arithmetic.scalars import fma32
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import FLAG, INT, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.delta_rows import delta_tokens

F32 = NDArray[np.float32]

# Multiplications and additions of all tokens below which one thread does all heads.
PARALLEL_FROM = 1 << 17
# Tokens that go through all rows of a head before the next do: their keys and queries stay in the first-level cache.
TOKENS_IN_CACHE = 16

_MATRIX, _HEADS = source(types.float32, 2), source(types.float32, 3)


@kernel(_MATRIX, _MATRIX, FLAG, target(types.float32, 2))
def _conv_silu(window, weight, wide, out):
    n_channels, d_conv = weight.shape
    n_tokens = window.shape[0] - (d_conv - 1)
    taps = np.empty(d_conv, np.float32)
    for t in range(n_tokens):
        if d_conv == 4 and wide:
            # Lanes 0 to 3 hold one product each. Adding 0 is not idle: it turns -0 into the +0 of the tree.
            for c in range(n_channels):
                p0 = np.float64(window[t, c]) * np.float64(weight[c, 0]) + 0.0
                p1 = np.float64(window[t + 1, c]) * np.float64(weight[c, 1]) + 0.0
                p2 = np.float64(window[t + 2, c]) * np.float64(weight[c, 2]) + 0.0
                p3 = np.float64(window[t + 3, c]) * np.float64(weight[c, 3]) + 0.0
                out[t, c] = silu(np.float32((p0 + p2) + (p1 + p3)))
        elif d_conv == 4:
            zero = np.float32(0)
            for c in range(n_channels):
                p0 = fma32(window[t, c], weight[c, 0], zero) + zero
                p1 = fma32(window[t + 1, c], weight[c, 1], zero) + zero
                p2 = fma32(window[t + 2, c], weight[c, 2], zero) + zero
                p3 = fma32(window[t + 3, c], weight[c, 3], zero) + zero
                out[t, c] = silu((p0 + p2) + (p1 + p3))
        else:
            for c in range(n_channels):
                for i in range(d_conv):
                    taps[i] = window[t + i, c]
                out[t, c] = silu(dot(taps, 0, weight, c * d_conv, d_conv, wide))


class Tokens(NamedTuple):
    """What each token brings: (T, H_k, S) twice, (T, H_v, S), and (T, H_v) twice."""

    q: F32
    k: F32
    v: F32
    g: F32
    beta: F32


_TOKENS = record(Tokens, q=_HEADS, k=_HEADS, v=_HEADS, g=_MATRIX, beta=_MATRIX)
_DELTA_ARGS = (_TOKENS, _HEADS, FLAG, types.float32, target(types.float32, 3), target(types.float32, 4))


@kernel(*_DELTA_ARGS, INT, INT)
def _delta_heads(tokens, state, wide, scale, out, states, first, last):
    """Value heads first .. last - 1, all tokens. `states` holds the matrices after the last tokens."""
    q, k, v, g, beta = tokens.q, tokens.k, tokens.v, tokens.g, tokens.beta
    n_tokens, size = v.shape[0], v.shape[2]
    n_k_head, n_kept, n_heads = q.shape[1], states.shape[0], v.shape[1]
    row, decay, strength = np.empty(size, np.float32), np.empty(n_tokens, np.float32), np.empty(n_tokens, np.float32)
    step = (n_k_head * size, n_heads * size)
    for h in range(first, last):
        for t in range(n_tokens):
            decay[t], strength[t] = exp(g[t, h]), beta[t, h]
        if size % 32 == 0:
            flat = out.reshape(-1)
            for start in range(0, n_tokens, TOKENS_IN_CACHE):
                end = min(n_tokens, start + TOKENS_IN_CACHE)
                at_k, at_v = start * step[0] + h % n_k_head * size, start * step[1] + h * size
                delta_tokens(state, states, h, start, end, n_tokens, q, k, v, step, at_k, at_v, decay[start:end],
                             strength[start:end], wide, scale, flat, h * size, step[1])  # fmt: skip
            continue
        for j in range(size):
            for i in range(size):
                row[i] = state[h, j, i]
            for t in range(n_tokens):
                at_head = (t * n_k_head + h % n_k_head) * size
                key = k[t, h % n_k_head]
                for i in range(size):
                    row[i] = row[i] * decay[t]
                delta = (v[t, h, j] - dot(row, 0, k, at_head, size, wide)) * beta[t, h]
                for i in range(size):
                    row[i] = fma32(delta, key[i], row[i])
                out[t, h, j] = dot(row, 0, q, at_head, size, wide) * scale
                slot = t - (n_tokens - n_kept)
                if slot >= 0:
                    kept = states[slot, h, j]
                    for i in range(size):
                        kept[i] = row[i]


_call_heads = caller(*_DELTA_ARGS, INT, INT)


@kernel(INT, *_DELTA_ARGS, INT, parallel=True)
def _all_delta_heads(heads, tokens, state, wide, scale, out, states, n_parts):
    """All value heads, with the kernel at this address."""
    n = tokens.v.shape[1]
    for p in prange(n_parts):
        first, last = p * n // n_parts, (p + 1) * n // n_parts
        _call_heads(heads, (tokens, state, wide, scale, out, states, first, last))


def conv_silu(window: F32, weight: F32, wide: bool) -> F32:
    """S11. The bits of `spec.conv_silu` with dot64 (wide) or dot32: (d_conv - 1 + T, C), (C, d_conv) -> (T, C)."""
    n_channels, d_conv = weight.shape
    out = np.empty((window.shape[0] - (d_conv - 1), n_channels), np.float32)
    _conv_silu(np.ascontiguousarray(window), weight, wide, out)
    return out


def delta_rule(q: F32, k: F32, v: F32, g: F32, beta: F32, state: F32, keep: int, wide: bool) -> tuple[F32, F32]:
    """S13. The bits of `spec.delta_rule` with dot64 (wide) or dot32: -> o (T, H_v, S), states (keep, H_v, S, S).

    Errors   ValueError if H_v is no multiple of H_k, or keep is not in 1 .. T
    """
    n_tokens, n_v_head, size = v.shape
    if n_v_head % q.shape[1] or not 1 <= keep <= n_tokens:
        raise ValueError(f"delta_rule: H_v {n_v_head}, H_k {q.shape[1]}, keep {keep} of {n_tokens} tokens")
    scale = one_over_root(size)
    out, states = np.empty(v.shape, np.float32), np.empty((keep, *state.shape), np.float32)
    tokens = Tokens(*(np.ascontiguousarray(a) for a in (q, k, v, g, beta)))
    args = tokens, np.ascontiguousarray(state), wide, scale, out, states
    if compile.n_threads() == 1 or n_tokens * n_v_head * size * size < PARALLEL_FROM:
        _delta_heads(*args, 0, n_v_head)
    else:
        _all_delta_heads(_delta_heads.address(), *args, compile.start_threads())
    return out, states
