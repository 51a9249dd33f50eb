"""S13 for heads whose size is a multiple of 32: two rows of the state at a time, each read and written once a token.

Owns the inner loops of the delta rule; delta.py and layers.py say which heads and which tokens. Rows do not read each
other: two at a time share what is loaded of keys and queries, and hide each other's sums over lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.compile import helper
from mtpref.kernels.floats import address, fused, fused64, load32_at, set_f32_at, store_at, times
from mtpref.kernels.lanes import add_lanes, f32_at, zeros32, zeros64
from mtpref.kernels.scalars import never_inline


@helper
def _row_ggml(old, row, size, q, k, v, decay, beta, scale, out):
    """One token: the row at address `old`, stepped, to address `row`, which may be the same.

    All but size, decay, beta and scale are addresses: this is called once for each row, and arrays are dear to pass.
    """
    total = zeros32()
    for c in range(0, 4 * size, 128):
        part = times(load32_at(old + c), decay)
        total = fused(part, load32_at(k + c), total)
        store_at(row + c, part)
    delta = (f32_at(v) - add_lanes(total)) * beta
    total = zeros32()
    for c in range(0, 4 * size, 128):
        part = fused(delta, load32_at(k + c), load32_at(row + c))
        total = fused(part, load32_at(q + c), total)
        store_at(row + c, part)
    set_f32_at(out, add_lanes(total) * scale)


@helper
def _row_exact(old, row, size, q, k, v, decay, beta, scale, out):
    """`_row_ggml` with sums in float64."""
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
def delta_tokens(state, states, h, first, last, n_tokens, q, k, v, step, at_k, at_v, decay, beta, wide, scale, out,
                 out_at, out_step):  # fmt: skip
    """Head h through tokens first .. last - 1 of n_tokens.

    state    (H_v, S, S) before token 0; states: (keep, H_v, S, S) after the last tokens. A matrix that is not kept
             lives in plane 0 until the next token
    q, k, v  float32; token t's key and query of the head are `step[0]` * (t - first) + at_k behind the first element,
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
    for j in range(size):
        at_row = 4 * j * size
        for t in range(first, last):
            n = t - first
            row = kept + max(t - dropped, 0) * n_heads * matrix + at_row
            old = given + at_row
            if t > 0:
                old = kept + max(t - 1 - dropped, 0) * n_heads * matrix + at_row
            key, value = 4 * (n * step[0] + at_k), 4 * (n * step[1] + at_v + j)
            to = address(out, 0) + 4 * (out_at + t * out_step + j)
            if wide:
                _row_exact(old, row, size, address(q, 0) + key, address(k, 0) + key, address(v, 0) + value, decay[n],
                                beta[n], scale, to)  # fmt: skip
            else:
                _row_ggml(old, row, size, address(q, 0) + key, address(k, 0) + key, address(v, 0) + value, decay[n],
                               beta[n], scale, to)  # fmt: skip
