"""S25 to S29: sampling. Uniform numbers, the filters, the draw and the two rules that accept a drafted token.

Owns everything between a row of logits and a token at a temperature above 0. Every function is a pure function of
its arguments: a draw is named by seed, stream and position, never by how many draws came before it. It must not know
who drafts or how a loop is driven (mtpref/engine/decode does).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.spec.arith import F32, F64, exp64, log64

I64 = NDArray[np.int64]
Candidates = tuple[I64, F64]  # ids, rising, and their logits

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
WORD = 0xFFFFFFFF
MAX_SEED = (1 << 64) - 1

# Streams: what a uniform number is for.
TARGET, DRAFT, ACCEPT, RESIDUAL = range(4)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """S25. The counter-based generator Philox4x32-10: four words of 32 bits from a counter and a key.

    Formula  ten times: (hi0, lo0) = 0xD2511F53 * c0, (hi1, lo1) = 0xCD9E8D57 * c2 (64-bit products, upper and lower
             word); c = (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0); then k0 += 0x9E3779B9, k1 += 0xBB67AE85 modulo 2**32
    Dtypes   unsigned integers of 32 bits
    Source   Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known answers in Random123
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = PHILOX_MULTIPLIERS[0] * c0, PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & WORD, (product0 >> 32) ^ c3 ^ k1, product0 & WORD
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def uniform(seed: int, stream: int, pos: int, round_pos: int = 0) -> float:
    """S25. The uniform number of one draw, in [0, 1), a multiple of 2**-53.

    Formula  (w0, w1, ..) = philox4x32((pos, round_pos, stream, 0), (seed mod 2**32, seed div 2**32));
             u = ((w0 >> 5) * 2**26 + (w1 >> 6)) * 2**-53
    Units    pos: position of the token that is drawn or judged. stream: 0 target, 1 draft, 2 accept, 3 residual.
             round_pos: 0 where a draw must not depend on drafts (without a draft, and under `match`); in the draws
             of `residual` the position of the token that opened the round, so that a draw that was made after a
             rejection, and thrown away, is never made again
    """
    w0, w1, _, _ = philox4x32((pos, round_pos, stream, 0), (seed & WORD, seed >> 32))
    return ((w0 >> 5) * (1 << 26) + (w1 >> 6)) * 2.0**-53


def without_ids(logits: F32, ids: Collection[int]) -> F32:
    """S26. Logits with those of some ids at -infinity: what --ignore-eos does to every end-of-generation id.

    Rule     before the greedy choice, the candidates and every filter, on the target's rows and the head's alike;
             ids that the rows do not have (a trimmed head) are passed over
    Shapes   logits: (T, V) -> (T, V), a copy
    """
    out = logits.copy()
    out[:, [id for id in ids if id < logits.shape[1]]] = -np.inf
    return out


@dataclass(frozen=True)
class Distribution:
    """What is left of a vocabulary after the filters: ids, rising, and their probabilities, (K,) each."""

    ids: I64
    p: F64

    def prob(self, id: int) -> float:
        """The probability of an id, 0 where it was filtered out."""
        i = int(np.searchsorted(self.ids, id))
        return float(self.p[i]) if i < len(self.ids) and self.ids[i] == id else 0.0

    def best(self) -> int:
        """The most probable id, the lowest among equals."""
        return int(self.ids[np.argmax(self.p)])


def top_k(ids: I64, logits: F64, k: float) -> Candidates:
    """S27. Keep the k greatest logits, ties by lower id; k = 0 keeps all."""
    n = len(ids)
    if k <= 0 or k >= n:
        return ids, logits
    least = np.partition(logits, n - int(k))[n - int(k)]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    keep = np.sort(np.concatenate([above, equal[: int(k) - len(above)]]))
    return ids[keep], logits[keep]


def top_p(ids: I64, logits: F64, p: float) -> Candidates:
    """S27. Keep the fewest most probable ids whose probabilities reach p; p = 1 keeps all.

    Rule     softmax over the ids that are left (weights exp64(l - max), their total added by rising id); ranked by
             logit, ties by lower id; keep up to and with the first whose running sum, in rank order, is >= p
    """
    if p >= 1:
        return ids, logits
    weight = exp64(logits - logits.max())
    total = np.cumsum(weight)[-1]
    n_ranked = RANKED_AT_FIRST
    while True:
        ranked = _ranked(logits, n_ranked)
        reached = np.cumsum(weight[ranked] / total) >= p
        if reached.any() or len(ranked) == len(ids):
            break
        n_ranked = len(ids)
    n_keep = int(np.argmax(reached)) + 1 if reached.any() else len(ids)
    keep = np.sort(ranked[:n_keep])
    return ids[keep], logits[keep]


RANKED_AT_FIRST = 256  # top_p hardly ever needs more; ranking a whole vocabulary is slow


def _ranked(logits: F64, n: int) -> I64:
    """Indices of the n greatest logits in rank order: greatest first, ties by lower index."""
    indices, _ = top_k(np.arange(len(logits), dtype=np.int64), logits, n)
    return np.asarray(indices[np.argsort(-logits[indices], kind="stable")])


def min_p(ids: I64, logits: F64, p: float) -> Candidates:
    """S27. Keep ids at least p times as probable as the best: l >= max + log64(p); p = 0 keeps all.

    Errors   a p below 2**-1022 counts as 2**-1022 (log64 takes normal numbers)
    """
    if p <= 0:
        return ids, logits
    keep = np.flatnonzero(logits >= logits.max() + float(log64(np.array(max(p, 2.0**-1022)))))
    return ids[keep], logits[keep]


def temperature(ids: I64, logits: F64, t: float) -> Candidates:
    """S27. Divide by a temperature t > 0: (l - max) / t. The shift keeps the quotient in range and moves no p."""
    with np.errstate(over="ignore", under="ignore"):
        return ids, np.asarray((logits - logits.max()) / t)


FILTERS: dict[str, Callable[[I64, F64, float], Candidates]] = {
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "temperature": temperature,
}


def filtered(logits: F32, chain: Sequence[tuple[str, float]]) -> Distribution:
    """S27. The distribution that a token is drawn from: filters in the order of `chain`, then a softmax.

    Formula  p_i = exp64(l_i - max l) / sum_j exp64(l_j - max l), the sum by rising id
    Shapes   logits: (V,); chain: pairs of a name of FILTERS and its value
    Dtypes   float64 after the logits
    Errors   NaN counts as -infinity, and -infinity has probability 0. Ids at +infinity share everything. A row of
             nothing else gives id 0 for sure, as `argmax` does
    Source   llama.cpp's samplers of the same names, in float32 there; its default order is top_k, top_p, min_p,
             temperature
    """
    l64 = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    ids = np.flatnonzero(l64 > -np.inf)
    if not len(ids):
        return Distribution(np.zeros(1, np.int64), np.ones(1))
    l64 = l64[ids]
    if l64.max() == np.inf:
        ids = ids[l64 == np.inf]
        l64 = np.zeros(len(ids))
    for name, value in chain:
        ids, l64 = FILTERS[name](ids, l64, value)
    weight = exp64(l64 - l64.max())
    return Distribution(ids, weight / np.cumsum(weight)[-1])


def draw(dist: Distribution, u: float) -> int:
    """S28. The id that a uniform number names: the first by rising id whose running sum of p exceeds u.

    Errors   where rounding leaves the whole sum at or below u: the last id with p > 0. An id with p = 0 is never
             drawn
    Source   rising ids, not ranks: where two logits nearly tie, another engine may rank them the other way round, and
             then only the draws between the two differ, not all after them
    """
    i = int(np.searchsorted(np.cumsum(dist.p), u, side="right"))
    return int(dist.ids[i if i < len(dist.ids) else np.flatnonzero(dist.p)[-1]])


def draw_edge(dist: Distribution, u: float) -> float:
    """S28. How far u is from the nearest other draw: the distance to the next inner boundary of the running sums.

    Errors   infinite where only one id can be drawn
    """
    inner = np.cumsum(dist.p)[:-1]
    return float(np.min(np.abs(inner - u), initial=np.inf))


def accept_residual(p_target: float, p_draft: float, u: float) -> bool:
    """S29. Whether a token drawn from the draft's distribution is accepted: u * p_draft < p_target.

    Rule     true with probability min(1, p_target / p_draft); never for p_target = 0, as u may be 0 and < is strict
    Source   Leviathan et al., arXiv 2211.17192
    """
    return u * p_draft < p_target


def residual(target: Distribution, draft: Distribution) -> Distribution:
    """S29. What a rejected token is drawn from again: max(p_target - p_draft, 0), normalised.

    Rule     the difference for each id of the target, by rising id, divided by its running sum
    Errors   the target itself where the difference is 0 everywhere; a rejection then comes from rounding alone
    """
    rest = np.maximum(target.p - _aligned(target.ids, draft), 0.0)
    total = np.cumsum(rest)[-1]
    if total <= 0:
        return target
    keep = np.flatnonzero(rest)
    return Distribution(target.ids[keep], rest[keep] / total)


def overlap(target: Distribution, draft: Distribution) -> float:
    """S29. The probability that a drafted token is accepted, before its draw: sum of min(p_target, p_draft)."""
    return float(np.cumsum(np.minimum(target.p, _aligned(target.ids, draft)))[-1])


def only(id: int) -> Distribution:
    """S29. The distribution of a drafter that has no choice: one id for sure."""
    return Distribution(np.array([id], np.int64), np.ones(1))


def _aligned(ids: I64, dist: Distribution) -> F64:
    """dist's probabilities of `ids`, 0 where it has none."""
    at = np.minimum(np.searchsorted(dist.ids, ids), len(dist.ids) - 1)
    return np.where(dist.ids[at] == ids, dist.p[at], 0.0)
