"""S41 to S47: the operations of an experts' network: what the router says, who is chosen, how results are added up.

Owns the steps around the experts' products, each per token; the products are S6. It must not know how they are strung
together (mtpref/spec/ops/compose_moe.py does). Read next: mtp.py.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, exp, lane_sum_products, sigmoid, softplus

IDS = NDArray[np.int64]

GATINGS = ("softmax", "sigmoid", "sqrt_softplus")
# The least sum that weights are divided by: the smallest normal number of float16.
LEAST_SUM = np.float32(2.0**-14)


class Routing(NamedTuple):
    """What a router chose for each token: ids (T, n_used), the best first, and gap (T,), how near another choice was.

    gap   see `router_gap`
    """

    ids: IDS
    gap: F32


def expert_probs(logits: F32, gating: str) -> F32:
    """S41. The router's probabilities, of all experts.

    Formula  softmax: e_i / sum(e), e_i = exp(l_i - max l); sigmoid: each expert's own (S4); sqrt_softplus:
             sqrt(softplus(l_i)) (S4)
    Shapes   logits: (T, n_expert) -> (T, n_expert)
    Dtypes   float32; the sum in float64 in the lane order (S2), rounded to float32, then one division
    Errors   none; gating is one of GATINGS
    Source   Shazeer et al., arXiv 1701.06538; DeepSeek-V3, arXiv 2412.19437 (sigmoid); DeepSeek-V4 (sqrt_softplus)
    """
    if gating == "sigmoid":
        return sigmoid(logits)
    if gating == "sqrt_softplus":
        return np.sqrt(softplus(logits))
    with np.errstate(invalid="ignore"):
        e = exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(e / lane_sum_products(e, np.ones_like(e)).astype(np.float32)[..., None])


def expert_scores(probs: F32, bias: F32 | None) -> F32:
    """S42. What experts are chosen by: the probability, plus the expert's bias where the model has one.

    Rule     the bias serves the choice alone: weights are made of probabilities (S45)
    Shapes   probs: (T, n_expert), bias: (n_expert,) -> (T, n_expert)
    Source   Wang et al., arXiv 2408.15664
    """
    return probs if bias is None else probs + bias


def group_scores(scores: F32, n_group: int) -> F32:
    """S43. The score of each group of neighbours: the sum of its two best.

    Shapes   scores: (T, n_expert), n_expert / n_group experts a group, at least 2 -> (T, n_group)
    Dtypes   float32, the best plus the second
    Source   DeepSeek-V3, arXiv 2412.19437; llama.cpp build_moe_ffn
    """
    best = -np.sort(-_numbers(scores).reshape(len(scores), n_group, -1), axis=-1)
    return np.asarray(best[..., 0] + best[..., 1])


def limit_groups(scores: F32, groups: IDS, n_group: int) -> F32:
    """S43. Scores with those of every group that was not chosen at -infinity.

    Shapes   scores: (T, n_expert), groups: (T, n_group_used), chosen by S44 -> (T, n_expert)
    """
    kept = np.zeros((len(scores), n_group), np.bool_)
    np.put_along_axis(kept, groups, True, axis=1)
    return np.where(np.repeat(kept, scores.shape[1] // n_group, axis=1), scores, np.float32(-np.inf))


def select_experts(scores: F32, n_used: int) -> IDS:
    """S44. The experts (or groups) of the greatest scores, the best first, the lowest id among equals.

    Rule     by the pair (-score, id); a NaN loses to any number. llama.cpp sorts without a rule for equal scores: above
             16 experts its choice among them is arbitrary.
    Shapes   scores: (T, n) -> (T, n_used)
    """
    return np.argsort(-_numbers(scores), axis=1, kind="stable")[:, :n_used]


def router_gap(scores: F32, ids: IDS) -> F32:
    """S44. How near another choice was: the score of the last chosen minus the greatest of those not chosen.

    Shapes   scores: (T, n), ids: (T, n_used) as chosen -> (T,); infinite where nobody is left to choose
    Dtypes   float32. It decides nothing: it tells a comparison with another engine where a last bit may.
    """
    rest = _numbers(scores).copy()
    last = np.take_along_axis(rest, ids[:, -1:], axis=1)[:, 0]
    np.put_along_axis(rest, ids, np.float32(-np.inf), axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(last - rest.max(axis=1), np.float32)


def expert_weights(probs: F32, ids: IDS, normalise: bool, scale: float) -> F32:
    """S45. What each chosen expert's result is multiplied with.

    Formula  w_i = p[id_i]; normalised: w_i / max(sum w, 2^-14); scaled: times `scale` where that is neither 0 nor 1
    Shapes   probs: (T, n_expert), ids: (T, n_used) -> (T, n_used)
    Dtypes   float32; the sum in float64 in the order of ids, rounded to float32
    Source   llama.cpp build_moe_ffn; transformers adds 1e-20 in place of the limit
    """
    w = np.take_along_axis(probs, ids, axis=1)
    if normalise:
        total = np.zeros(len(w), np.float64)
        for i in range(w.shape[1]):
            total += w[:, i]
        w = np.asarray(w / np.maximum(total.astype(np.float32), LEAST_SUM)[:, None])
    return w if scale in (0.0, 1.0) else w * np.float32(scale)


def weigh_experts(y: F32, weights: F32) -> F32:
    """S46. Each chosen expert's result times its weight: a product rounded on its own.

    Shapes   y: (T, n_used, n), weights: (T, n_used) -> (T, n_used, n)
    """
    return y * weights[..., None]


def sum_experts(weighted: F32) -> F32:
    """S46. The sum over chosen experts, in the order of their choice: ((y_0 + y_1) + y_2) + ...

    Rule     never expert by expert into a token's row: that is the order of ids, other bits
    Shapes   weighted: (T, n_used, n) -> (T, n)
    Dtypes   float32
    """
    total = weighted[:, 0].copy()
    for i in range(1, weighted.shape[1]):
        total = total + weighted[:, i]
    return total


def shared_gate(y: F32, logit: F32) -> F32:
    """S47. The shared expert's result times sigmoid of its gate, one number a token.

    Shapes   y: (T, n), logit: (T, 1) -> (T, n)
    Source   Qwen2-MoE
    """
    return y * sigmoid(logit)


def _numbers(scores: F32) -> F32:
    """Scores with -infinity for NaN."""
    return np.where(np.isnan(scores), np.float32(-np.inf), scores)
