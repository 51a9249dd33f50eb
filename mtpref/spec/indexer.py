"""S60 to S64: the lightning indexer of DeepSeek sparse attention: which cells a token sees.

Owns the steps around its products, each per token; the products are S6. How they are strung together stands in
mtpref/spec/ops/compose_indexer.py. Read next: there.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, lane_sum_products, rsqrt64
from mtpref.spec.moe import IDS
from mtpref.spec.products import Matrix

LEAST_ROTATION = 64  # an indexer's key has that many dimensions, or a multiple of it
NO_CELL = -1


class Selection(NamedTuple):
    """What an indexer chose for each token: cells (T, n), rising, NO_CELL behind the last of a token that sees fewer,
    and gap (T,), how near another choice was.

    gap   see `selection_gap`
    """

    cells: IDS
    gap: F32


def layer_norm(x: F32, weight: F32, bias: F32 | None, eps: float) -> F32:
    """S60. Layer norm over the last axis, with a bias or without one.

    Formula  (d * scale) * weight + bias, d = x - mean, scale = 1 / sqrt(sum(d^2) / n + eps)
    Shapes   x: (..., n), weight, bias: (n,) -> (..., n); bias None: nothing is added
    Dtypes   mean and scale in float64 with the lane order's sums, each rounded once to float32; d, both products and
             the sum float32
    Errors   none; where eps is 0, a row of equal values gives NaN, as it does in llama.cpp
    Source   Ba et al., arXiv 1607.06450
    """
    n = np.float64(x.shape[-1])
    mean = (lane_sum_products(x, np.ones_like(x)) / n).astype(np.float32)
    d = x - mean[..., None]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scale = rsqrt64(lane_sum_products(d, d) / n + np.float64(np.float32(eps))).astype(np.float32)
        y = d * scale[..., None] * weight
    return y if bias is None else y + bias


@lru_cache(maxsize=8)
def hadamard(size: int) -> Matrix:
    """S61. The rotation of an indexer's queries and keys, applied by S6: the Walsh-Hadamard matrix, orthonormal.

    Formula  H[i, j] = (-1)^popcount(i & j) / sqrt(size)
    Shapes   (size, size), size that of S61's `rotation_of`
    Dtypes   float32, the value rounded once
    Source   llama.cpp src/llama-kv-cache.cpp; it changes no score in exact arithmetic, and decides how keys are rounded
             when they are stored in 16 bits
    """
    signs = np.ones((1, 1), np.float32)
    while len(signs) < size:
        signs = np.block([[signs, signs], [signs, -signs]])
    values = signs * rsqrt64(np.asarray(size, np.float64)).astype(np.float32)
    return Matrix("", "F32", size, size, values.view(np.uint8).reshape(-1))


def rotation_of(width: int) -> int:
    """S61. How many neighbouring dimensions are rotated together: the greatest power of two that divides a key's width.
    Models have LEAST_ROTATION or more."""
    return width & -width


def index_scores(products: F32, weights: F32, first: int) -> F32:
    """S62. The score of every cell: products with the heads' queries, negative ones as 0, weighted and added up.

    Formula  score_j = ((w_0 r_0j + w_1 r_1j) + w_2 r_2j) + ..., r_hj = max(q_h . k_j, 0); -infinity for cells after the
             token's own, first + t
    Shapes   products: (T, n_head, n_cells), weights: (T, n_head) -> (T, n_cells)
    Dtypes   float32; each product and each sum rounded on its own, heads in their order
    Source   DeepSeek-V3.2-Exp, arXiv 2512.02556
    """
    total = np.zeros((len(products), products.shape[2]), np.float32)
    for head in range(products.shape[1]):
        total += np.maximum(products[:, head], np.float32(0)) * weights[:, head, None]
    return np.where(_is_seen(total, first), total, np.float32(-np.inf))


def select_cells(scores: F32, first: int, n_top: int) -> IDS:
    """S63. The cells of the greatest scores among those that a token sees, the lowest among equals.

    Rule     token t sees cells 0 .. first + t. By the pair (-score, cell); a NaN loses to any number. llama.cpp sorts
             without a rule for equal scores: its choice among them is arbitrary.
    Shapes   scores: (T, n_cells) -> (T, min(n_top, n_cells)), rising; NO_CELL behind the last of a
             token that sees fewer
    """
    n_cells = scores.shape[1]
    found = np.argsort(-_seen(scores, first), axis=1, kind="stable")[:, : min(n_top, n_cells)]
    is_seen = found <= first + np.arange(len(scores))[:, None]
    rising = np.sort(np.where(is_seen, found, n_cells), axis=1)
    return np.where(rising < n_cells, rising, NO_CELL)


def selection_gap(scores: F32, cells: IDS, first: int) -> F32:
    """S63. How near another choice was, as a share of the greatest score: the least score chosen minus the greatest of
    those not chosen.

    Formula  (min of the chosen - max of the rest) / max |score| over the cells seen; 0 / 0 is 0
    Shapes   scores: (T, n_cells), cells: (T, n) as chosen -> (T,); infinite where every cell is seen, 0 for a tie
    Dtypes   float32. It decides nothing: it tells a comparison with another engine where a last bit may, and where
             equal scores leave the choice open.
    """
    seen = _seen(scores, first)
    gap = np.full(len(scores), np.inf, np.float32)
    for t, row in enumerate(cells):
        own, n_seen = row[row != NO_CELL], first + t + 1
        if len(own) == n_seen:
            continue
        rest = np.delete(seen[t, :n_seen], own).max()
        largest = np.abs(np.where(np.isinf(seen[t, :n_seen]), np.float32(0), seen[t, :n_seen])).max()
        with np.errstate(invalid="ignore"):
            between = seen[t, own].min() - rest
        gap[t] = between / largest if largest > 0 and between > 0 else 0.0
    return gap


def _seen(scores: F32, first: int) -> F32:
    """Scores, with -infinity for NaN and for cells after the token's own."""
    return np.where(_is_seen(scores, first) & ~np.isnan(scores), scores, np.float32(-np.inf))


def _is_seen(scores: F32, first: int) -> NDArray[np.bool_]:
    """Whether a token sees a cell: its own or one before it."""
    return np.arange(scores.shape[1]) <= first + np.arange(len(scores))[:, None]
