"""S41 to S45 for a range of tokens: what a router's logits say, who is chosen, with which weights.

Owns the choice in one pass over the scores: the best so far are kept in order, so equal scores keep the order of ids.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import numpy as np

from mtpref.kernels.arithmetic.arith import sigmoid
from mtpref.kernels.arithmetic.floats import N_FLOATS, load16, sigmoid16, store
from mtpref.kernels.arithmetic.lanes import lane_sum_products
from mtpref.kernels.arithmetic.scalars import never_inline
from mtpref.kernels.compiling.compile import helper
from mtpref.kernels.layers.attend_tiles import numerators
from mtpref.spec.moe import LEAST_SUM

_LEAST_SUM = np.float32(LEAST_SUM)
_WORST = np.float32(-np.inf)


@helper
def _softmax(logits, ones, probs):
    """S41. The maximum is NaN where a logit is."""
    never_inline()
    n = len(logits)
    for i in range(n):
        probs[i] = logits[i]
    numerators(probs, n)
    total = np.float32(lane_sum_products(probs, 0, ones, 0, n))
    for i in range(n):
        probs[i] = probs[i] / total


@helper
def _sigmoids(logits, probs):
    never_inline()
    n = len(logits)
    whole = n // N_FLOATS * N_FLOATS
    for i in range(0, whole, N_FLOATS):
        store(probs, i, sigmoid16(load16(logits, i)))
    for i in range(whole, n):
        probs[i] = sigmoid(logits[i])


@helper
def _number(score):
    """-infinity for NaN."""
    return score if score == score else _WORST


@helper
def _choose(scores, n_used, best, ids):
    """S44. ids of the n_used greatest scores, and those scores in `best`; the gap to the greatest of the others."""
    never_inline()
    n, n_found, rest = len(scores), 0, _WORST
    for i in range(n):
        s = _number(scores[i])
        if n_found == n_used:
            if not s > best[n_used - 1]:
                if s > rest:
                    rest = s
                continue
            if best[n_used - 1] > rest:
                rest = best[n_used - 1]
            n_found -= 1
        k = n_found
        while k > 0 and s > best[k - 1]:
            best[k], ids[k] = best[k - 1], ids[k - 1]
            k -= 1
        best[k], ids[k] = s, i
        n_found += 1
    return best[n_used - 1] - rest


@helper
def _limit(scores, n_group, n_group_used, of_groups, best, groups):
    """S43, S44, S43. Scores outside of the chosen groups become -infinity; the gap between groups."""
    never_inline()
    size = len(scores) // n_group
    for g in range(n_group):
        first, second = _WORST, _WORST
        for i in range(g * size, (g + 1) * size):
            s = _number(scores[i])
            if s > first:
                first, second = s, first
            elif s > second:
                second = s
        of_groups[g] = first + second
    gap = _choose(of_groups, n_group_used, best, groups)
    for g in range(n_group):
        is_kept = False
        for k in range(n_group_used):
            is_kept = is_kept or groups[k] == g
        if not is_kept:
            for i in range(g * size, (g + 1) * size):
                scores[i] = _WORST
    return gap


@helper
def _weights(probs, ids, normalise, scale, out):
    """S45."""
    never_inline()
    n = len(ids)
    for k in range(n):
        out[k] = probs[ids[k]]
    if normalise:
        total = np.float64(0)
        for k in range(n):
            total += np.float64(out[k])
        by = np.float32(total)
        if by < _LEAST_SUM:
            by = _LEAST_SUM
        for k in range(n):
            out[k] = out[k] / by
    if scale != 0 and scale != 1:
        for k in range(n):
            out[k] = out[k] * np.float32(scale)


@helper
def route_tokens(router, logits, chosen, first, last):
    """S41 to S45 for tokens first .. last - 1.

    router   how to choose (moe.py)     logits   (T, n_expert)
    chosen   ids, weights and gap to fill
    """
    n, n_used = logits.shape[1], chosen.ids.shape[1]
    n_group = max(router.n_group, 1)
    probs, scores, ones = np.empty(n, np.float32), np.empty(n, np.float32), np.ones(n, np.float32)
    of_groups, groups = np.empty(n_group, np.float32), np.empty(n_group, np.int64)
    best = np.empty(max(n_used, n_group), np.float32)
    for t in range(first, last):
        if router.is_sigmoid:
            _sigmoids(logits[t], probs)
        else:
            _softmax(logits[t], ones, probs)
        for i in range(n):
            scores[i] = probs[i] + router.bias[i] if router.has_bias else probs[i]
        gap = np.float32(np.inf)
        if n_group > 1:
            gap = _limit(scores, n_group, router.n_group_used, of_groups, best, groups)
        nearest = _choose(scores, n_used, best, chosen.ids[t])
        # As np.minimum: a NaN is the answer.
        chosen.gap[t] = nearest if nearest < gap or nearest != nearest else gap
        _weights(probs, chosen.ids[t], router.normalise, router.scale, chosen.weights[t])
