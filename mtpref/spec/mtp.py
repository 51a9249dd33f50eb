"""S19 to S24: the MTP head's own rules and the decisions of the draft/verify loop.

Owns the head's input, the pairing of tokens with hidden rows, the tie rule, the draft's probability and
acceptance. Everything is stated for one sequence. It must not know how a loop is driven (mtpref/engine/decode does).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, exp64

N_TOP = 10
P_ONE = 1 << 32  # probabilities are compared as integers of this denominator


def mtp_concat(enorm: F32, hnorm: F32) -> F32:
    """S19. The input of nextn.eh_proj: [normalised embedding ; normalised hidden], the embedding first.

    Shapes   enorm, hnorm: (T, n_embd) -> (T, 2 * n_embd)
    Source   DeepSeek-V3 (arXiv 2412.19437) prints the other order; every published checkpoint and engine of
             Qwen3.5 uses this one
    """
    return np.concatenate([enorm, hnorm], axis=-1)


def pair_hidden(hidden: F32, pending: F32) -> F32:
    """S20. The hidden rows that the MTP block sees for a batch of tokens x_p at positions p = p0, p0 + 1, ...

    Rule     position p takes (token x_p, hidden h_{p-1}) and predicts x_{p+1}: the batch's own rows
             shifted down by one, with the pending row (that of position p0 - 1) in front
    Shapes   hidden: (T, n_embd), the trunk's rows of the same batch; pending: (n_embd,) -> (T, n_embd)
    """
    return np.concatenate([pending[None, :], hidden[:-1]], axis=0)


def argmax(logits: F32) -> NDArray[np.int64]:
    """S21. The greedy token: the greatest logit, the lowest id among equals.

    Shapes   logits: (T, V) -> (T,)
    Errors   a NaN never wins against a number; a row of NaN gives id 0
    """
    return np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=-1)


def top_candidates(logits: F32) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """S22. The draft's candidates: the 10 greatest logits, ties by lower id, with their probabilities.

    Formula  p_i = exp64(l_i - l_0) / sum_j exp64(l_j - l_0) over the candidates only, added in rank order
    Shapes   logits: (V,) -> ids, p: (min(10, V),), best first
    Dtypes   float64
    Source   llama.cpp's draft sampler keeps the top 10 and renormalises over them: p is not a full softmax
    """
    clean = np.where(np.isnan(logits), -np.inf, logits)
    n_top = min(N_TOP, clean.size)
    threshold = np.partition(clean, clean.size - n_top)[clean.size - n_top]
    ids = np.flatnonzero(clean >= threshold)
    ids = ids[np.argsort(-clean[ids], kind="stable")][:n_top]
    with np.errstate(invalid="ignore"):
        weight = exp64(clean[ids].astype(np.float64) - np.float64(clean[ids[0]]))
    total = 0.0
    for w in weight:
        total = total + float(w)
    return ids, weight / total


def fixed_probability(p: float) -> int:
    """S22. A probability as an integer, floor(p * 2**32), 0 for NaN: what the draft-length policy compares."""
    return 0 if p != p else int(p * P_ONE)


def accept_greedy(draft: Sequence[int], target: Sequence[int], eog_ids: frozenset[int]) -> int:
    """S23. How many drafted tokens are accepted.

    Rule     the longest prefix with draft[i] = target[i]; an accepted end-of-generation token ends it (the
             rest of the draft would lie after the end of the text)
    Shapes   draft: n ids, target: n + 1 ids, the target's own choice at each verified row
    """
    n_accepted = 0
    while n_accepted < len(draft) and draft[n_accepted] == target[n_accepted]:
        n_accepted += 1
        if draft[n_accepted - 1] in eog_ids:
            break
    return n_accepted


def next_pending(hidden: F32, n_accepted: int) -> F32:
    """S24. The hidden row that the next draft starts from: row n_accepted of the verified batch.

    Rule     row 0 belongs to the token that opened the batch, row a to the a-th accepted draft token
    Shapes   hidden: (n_drafted + 1, n_embd) -> (n_embd,)
    """
    return hidden[n_accepted].copy()
