"""S74 to S80: attention over a window and compressed rows, and the parts of DeepSeek-V4's experts.

Owns what is arithmetic on arrays; the order is mtpref/spec/ops/compose_compressed.py's. Read next: mtp.py.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, Dot, exp, lane_sum_products, silu
from mtpref.spec.indexer import index_scores
from mtpref.spec.latent import rope_interleaved
from mtpref.spec.windowed import LEAST_LIMIT, cell_attention

ROWS = NDArray[np.int64]


def rope_last(x: F32, cos: F32, sin: F32, is_back: bool = False) -> F32:
    """S74. Rotary position embedding of the last n_rot dimensions, neighbours paired (S53); the rest passes.

    Rule     back: by the same angles the other way, as if sin had the other sign: what a value was turned by is taken
             out of what attention gathers, at the position of the query
    Shapes   x: (T, H, D), cos, sin: (T, n_rot/2) -> (T, H, D)
    Source   llama.cpp src/models/deepseek4.cpp
    """
    out, first = x.copy(), x.shape[-1] - 2 * cos.shape[-1]
    out[..., first:] = rope_interleaved(x[..., first:], cos, -sin if is_back else sin)
    return out


def compress_rows(values: F32, scores: F32) -> F32:
    """S75. The row that a block of tokens leaves: its values weighed by a softmax over the block, dimension by
    dimension.

    Formula  c_d = sum_j w_jd v_jd, w_jd = e_jd / sum_i e_id, e_jd = exp(s_jd - max_i s_id)
    Rule     a row before the first position has the value 0 and the score -infinity
    Shapes   values, scores: (n_blocks, n_rows, D) -> (n_blocks, D)
    Dtypes   float32; both sums in float64 in the order of rows, each rounded once to float32
    Source   llama.cpp src/models/deepseek4.cpp (compressed key and value states)
    """
    e = exp(scores - scores.max(axis=1, keepdims=True))
    weights = e / _wide_sum(e)[:, None]
    return _wide_sum(values * weights)


def _wide_sum(x: F32) -> F32:
    total = np.zeros((x.shape[0], x.shape[2]), np.float64)
    for j in range(x.shape[1]):
        total += x[:, j]
    return total.astype(np.float32)


def window_start(pos: int, n_window: int) -> int:
    """S76. The first position that a query sees of those before it: its window holds itself and n_window - 1 others."""
    return max(0, pos - n_window + 1)


def n_compressed(n_tokens: int, ratio: int) -> int:
    """S76. The compressed rows of so many tokens: those of whole blocks. A query sees that of a block which it ends."""
    return n_tokens // ratio


def row_scores(q: F32, rows: F32, weights: F32) -> F32:
    """S77. What the indexer says of each row: the sum of its heads' positive products, each times its weight.

    Formula  s_r = sum_h relu(q_h . k_r) w_h
    Shapes   q: (n_head, D), rows: (R, D), weights: (n_head,) -> (R,)
    Dtypes   products in float64 in the lane order (S2), rounded to float32; then each product and each sum rounded on
             its own, heads in their order (S62, of a token that sees every row)
    Source   DeepSeek-V3.2's lightning indexer
    """
    products = lane_sum_products(rows[:, None, :], q[None]).astype(np.float32)
    return index_scores(products.T[None], weights[None], len(rows) - 1)[0]


def best_rows(scores: F32, n_best: int) -> ROWS:
    """S77. The rows of the greatest scores, in their own order; among equals the lower row. All where they are few.

    Shapes   scores: (R,) -> (min(R, n_best),)
    """
    return np.sort(np.argsort(-scores, kind="stable")[:n_best])


def sink_attention(q: F32, cells: NDArray, sinks: F32, kv_type: str, dot: Dot) -> F32:
    """S78. Attention of one token's heads over the same rows, which are keys and values, beside a sink: S95 of one
    kv-head.

    Formula  s_j = dot(q', k_j) * (1 / sqrt(D)), m = max(max s, sink), e_j = exp(s_j - m);
             o_d = dot(e, k_d) / (dot(e, 1) + exp(sink - m)), q' = q rounded to the type of the cells
    Shapes   q: (n_head, D), cells: (R, D) as S15 stores them, sinks: (n_head,) -> (n_head, D)
    Dtypes   float32; dot as said by the numerics, over rows in the lane order
    Source   Xiao et al., arXiv 2309.17453; llama.cpp's soft_max with sinks
    """
    rows = cells[:, None]
    return cell_attention(q, rows, rows, sinks, kv_type, dot)


def clamped_swiglu(gate: F32, up: F32, limit: float) -> F32:
    """S79. The gated activation of clamped products: silu(min(gate, limit)) * clamp(up, -limit, limit).

    Rule     a limit of 1e-6 or less clamps nothing
    Shapes   gate, up: (T, n_ff) -> (T, n_ff)
    Source   llama.cpp build_moe_ffn, which clamps before silu for DeepSeek-V4 alone
    """
    if limit > LEAST_LIMIT:
        most = np.float32(limit)
        gate, up = np.minimum(gate, most), np.clip(up, -most, most)
    return silu(gate) * up


def hashed_experts(table: NDArray[np.int32], tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """S80. The experts of a layer that is routed by token id: a row of its table, whatever the router says.

    Shapes   table: (n_vocab, n_used), tokens: (T,) -> (T, n_used)
    Source   Roller et al., arXiv 2106.04426
    """
    return np.asarray(table[tokens], np.int64)
