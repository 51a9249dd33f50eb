"""S13 for heads whose size is a multiple of 32: two rows of the state at a time, each read and written once a token.

Owns the inner loops of the delta rule; delta.py and delta_mixer.py say which heads and which tokens. Rows do not read
each other: two at a time share what is loaded of keys and queries, and hide each other's sums over lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic.floats import (
    add_16,
    address,
    fused,
    fused64,
    load16_at,
    load32_at,
    plus,
    set_f32_at,
    store_at,
    times,
    zeros16,
)
from mtpref.kernels.arithmetic.lanes import add_lanes, f32_at, zeros64
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.compiling.compile import helper


@helper
def _two_rows_ggml(
    given, kept, plane, dropped, first, last, size, q, k, step_k, v, step_v, decay, beta, scale, out, step_out
):
    """Two rows, one behind the other, through tokens first .. last - 1.

    given, kept  addresses of the first row before token 0, and in plane 0; planes lie `plane` bytes apart
    q, k, v, decay, beta, out  addresses of what belongs to token `first`; the next token's are step_.. bytes behind.
    Numbers instead of arrays, since this is called for every two rows, and arrays are dear to pass. The 32 lanes of a
    sum are two vectors of 16, so that the sums of both rows stay in 8 registers of 256 bits.
    """
    below, n_bytes = 4 * size, 4 * size
    for t in range(first, last):
        row = kept + max(t - dropped, 0) * plane
        old = given
        if t > 0:
            old = kept + max(t - 1 - dropped, 0) * plane
        g, strength = f32_at(decay), f32_at(beta)
        a_low, a_high, b_low, b_high = zeros16(), zeros16(), zeros16(), zeros16()
        for c in range(0, n_bytes, 128):
            key = load16_at(k + c)
            a, b = times(load16_at(old + c), g), times(load16_at(old + below + c), g)
            a_low, b_low = fused(a, key, a_low), fused(b, key, b_low)
            key = load16_at(k + c + 64)
            a, b = times(load16_at(old + c + 64), g), times(load16_at(old + below + c + 64), g)
            a_high, b_high = fused(a, key, a_high), fused(b, key, b_high)
        delta_a = (f32_at(v) - add_16(plus(a_low, a_high))) * strength
        delta_b = (f32_at(v + 4) - add_16(plus(b_low, b_high))) * strength
        a_low, a_high, b_low, b_high = zeros16(), zeros16(), zeros16(), zeros16()
        for c in range(0, n_bytes, 128):
            key, query = load16_at(k + c), load16_at(q + c)
            a, b = times(load16_at(old + c), g), times(load16_at(old + below + c), g)
            a, b = fused(delta_a, key, a), fused(delta_b, key, b)
            a_low, b_low = fused(a, query, a_low), fused(b, query, b_low)
            store_at(row + c, a)
            store_at(row + below + c, b)
            key, query = load16_at(k + c + 64), load16_at(q + c + 64)
            a, b = times(load16_at(old + c + 64), g), times(load16_at(old + below + c + 64), g)
            a, b = fused(delta_a, key, a), fused(delta_b, key, b)
            a_high, b_high = fused(a, query, a_high), fused(b, query, b_high)
            store_at(row + c + 64, a)
            store_at(row + below + c + 64, b)
        set_f32_at(out, add_16(plus(a_low, a_high)) * scale)
        set_f32_at(out + 4, add_16(plus(b_low, b_high)) * scale)
        q, k, v, out, decay, beta = q + step_k, k + step_k, v + step_v, out + step_out, decay + 4, beta + 4


@helper
def _row_exact(old, row, size, q, k, v, decay, beta, scale, out):
    """One row and one token, with sums in float64: the row at address `old`, stepped, to address `row`."""
    total = zeros64()
    for c in range(0, 4 * size, 128):
        part = times(load32_at(old + c), decay)
        total = fused64(part, load32_at(k + c), total)
        store_at(row + c, part)
    delta = (f32_at(v) - np.float32(add_lanes(total))) * beta
    total = zeros64()
    for c in range(0, 4 * size, 128):
        part = fused(delta, load32_at(k + c), load32_at(row + c))
        total = fused64(part, load32_at(q + c), total)
        store_at(row + c, part)
    set_f32_at(out, np.float32(add_lanes(total)) * scale)


@helper
def delta_tokens(
    state, states, h, first, last, n_tokens, q, k, v, step, at_k, at_v, decay, beta, wide, scale, out, out_at, out_step
):
    """Head h through tokens first .. last - 1 of n_tokens.

    state    (H_v, S, S) before token 0; states: (keep, H_v, S, S) after the last tokens. A matrix that is not kept
             lives in plane 0 until the next token
    q, k, v  float32; token t's key and query of the head are `step[0]` * (t - first) + at_k after the first element,
             its value step[1] * (t - first) + at_v
    decay, beta  of tokens first .. last - 1
    out      token t's values begin at out.flat[out_at + t * out_step]
    """
    never_inline()
    n_kept, n_heads, size = states.shape[0], states.shape[1], states.shape[2]
    matrix = 4 * size * size
    kept = address(states, 0) + h * matrix
    given = address(state, 0) + h * matrix
    dropped = n_tokens - n_kept
    if not wide:
        for j in range(0, size, 2):
            at_row = 4 * j * size
            _two_rows_ggml(given + at_row, kept + at_row, n_heads * matrix, dropped, first, last, size,
                           address(q, at_k), address(k, at_k), 4 * step[0], address(v, at_v + j), 4 * step[1],
                           address(decay, 0), address(beta, 0), scale, address(out, out_at + first * out_step + j),
                           4 * out_step)  # fmt: skip
        return
    for j in range(size):
        at_row = 4 * j * size
        for t in range(first, last):
            n = t - first
            row = kept + max(t - dropped, 0) * n_heads * matrix + at_row
            old = given + at_row
            if t > 0:
                old = kept + max(t - 1 - dropped, 0) * n_heads * matrix + at_row
            key, value = 4 * (n * step[0] + at_k), 4 * (n * step[1] + at_v + j)
            _row_exact(old, row, size, address(q, 0) + key, address(k, 0) + key, address(v, 0) + value, decay[n],
                       beta[n], scale, address(out, out_at + t * out_step + j))  # fmt: skip
