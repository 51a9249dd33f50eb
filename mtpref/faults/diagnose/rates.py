"""Rates as evidence: what was measured, the ways to read it, and how likely a cause makes each reading.

Owns the model of rates. A rate depends on model, text and settings more than on most faults, so the model is wide on
purpose. It must not know where the numbers stood.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError

Array = npt.NDArray[np.float64]

# Rates of healthy engines by draft position, about the middle of what is published for dense models, code and prose;
# TAIL is what is left from one position to the next after the fourth (vLLM pull request 48892, eight positions).
USUAL = (0.80, 0.66, 0.54, 0.44)
TAIL = 0.87
SHIFTS = 0.2 * np.arange(-18, 19)  # models and texts differ: logits of all rates together
SHIFT_SPREAD = 0.9
TILTS = 0.125 * np.arange(-8, 9)  # and how fast they fall, in logits a position
TILT_SPREAD = 0.25
OWN_SPREAD = 0.35  # each rate by itself
EFFECT_SPREAD = 0.5  # of a fault's effect, in parts of it: another model feels it more or less
SCALES = 1 + EFFECT_SPREAD * 0.5 * np.arange(-6, 7)
SPLIT_SPREAD = 0.7
MAX_N = 64
MAX_COUNT = 10**15
MAX_ROUNDS = 1e6  # more rounds than this are not counted: what differs between models is much larger by then
MIN_RATE = 0.005
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(21)  # of a normal distribution
WEIGHTS = WEIGHTS / WEIGHTS.sum()
UNKNOWN_N = (1, 2, 3, 4, 5)  # draft lengths that are tried where none is given
SHORT_DRAFTS = 0.9  # fewer drafted tokens a round than this part of n_max: p_min or an adaptive length cut drafts


@dataclass(frozen=True)
class Rates:
    """One measurement.

    source     what printed it
    accepted, drafted  tokens; rounds: drafts that were verified; None: not known
    n_max      draft length that was asked for
    positions  share of all rounds in which draft position 1, 2, ... was accepted, never rising
    aggregate  accepted / drafted, where the counts are not known
    mean       emitted tokens a round, 1 + accepted / rounds
    after_full, after_partial  position 1's rate in rounds after a full acceptance, and in others
    is_cut     drafts may be shorter than n_max (p_min, adaptive length)
    n_parts    requests or intervals that were pooled
    spoiled    why these numbers cannot be trusted, "" where they can
    """

    source: str
    accepted: int | None = None
    drafted: int | None = None
    rounds: float | None = None
    n_max: int | None = None
    positions: tuple[float, ...] = ()
    mean: float | None = None
    aggregate: float | None = None
    after_full: float | None = None
    after_partial: float | None = None
    is_cut: bool = False
    n_parts: int = 1
    spoiled: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Reading:
    """One way to read a measurement: a rate for each position, or one aggregate (accepted / drafted) over n."""

    n: int
    positions: tuple[float, ...] = ()
    aggregate: float | None = None
    rounds: float | None = None

    @property
    def rate(self) -> float:
        """The aggregate: accepted in parts of drafted, all n positions drafted in each round."""
        return sum(self.positions) / self.n if self.aggregate is None else self.aggregate

    @property
    def level(self) -> float:
        """Distance of the aggregate from what is usual at this n, in logits; where rounds are known, of
        (accepted rounds + 1/2) / (rounds + 1)."""
        return logit(self._smooth()) - logit(sum(usual(self.n)) / self.n)

    @property
    def noise(self) -> float:
        """Standard deviation of `level` from counting. A round counts once: its positions stand and fall together."""
        p = self._smooth()
        return 0.0 if self.rounds is None else 1 / math.sqrt((self.rounds + 1) * p * (1 - p))

    def _smooth(self) -> float:
        return self.rate if self.rounds is None else (self.rate * self.rounds + 0.5) / (self.rounds + 1)

    def log_likelihood(self, effects: Sequence[float]) -> float:
        """log p(this | a cause that adds effects (logits, by position) to a healthy engine's rates), up to a constant
        that is the same for every cause. With s a shift of all rates, t a steeper or flatter fall by position:

        positions  sum over s, t of N(s) N(t) product_i p(a_i; usual_i + s + t i + e_i, own and e's spread)
        aggregate  sum over s and scales g of N(s) N(g; 1) p(a; mean_i sigmoid(usual_i + s + g e_i), own spread and t's
                   as they reach the mean)

        p is normal in logits; rounds, where known, add the noise of counting.
        """
        e = np.array([effects[min(i, len(effects) - 1)] for i in range(self.n)])
        at = np.array([logit(a) for a in usual(self.n)])
        return self._of_mean(at, e) if self.aggregate is not None else self._of_positions(at, e)

    def _of_positions(self, at: Array, e: Array) -> float:
        steps = np.arange(self.n)
        prior = -0.5 * ((SHIFTS / SHIFT_SPREAD) ** 2)[:, None] - 0.5 * ((TILTS / TILT_SPREAD) ** 2)[None, :]
        total = prior
        for i, a in enumerate(self.positions):
            center = at[i] + e[i] + SHIFTS[:, None] + TILTS[None, :] * steps[i]
            total = total + self._log_p(a, center, np.hypot(OWN_SPREAD, EFFECT_SPREAD * e[i]))
            if a == 0.0 and self.rounds is not None:
                break  # nothing accepted here: what follows was never reached
        return log_sum(total)

    def _of_mean(self, at: Array, e: Array) -> float:
        a = 1 / (1 + np.exp(-(at + SHIFTS[:, None, None] + SCALES[None, :, None] * e)))
        mean = np.clip(a.mean(-1), MIN_RATE, 1 - MIN_RATE)
        slope, reach = self.n * mean * (1 - mean), a * (1 - a)
        own = OWN_SPREAD * np.sqrt((reach**2).sum(-1)) / slope
        spread = np.hypot(np.maximum(own, 0.1), TILT_SPREAD * (np.arange(self.n) * reach).sum(-1) / slope)
        prior = -0.5 * ((SHIFTS / SHIFT_SPREAD) ** 2)[:, None] - 0.5 * (((SCALES - 1) / EFFECT_SPREAD) ** 2)[None, :]
        return log_sum(prior + self._log_p(self.rate, np.log(mean / (1 - mean)), spread))

    def _log_p(self, a: float, center: Array, spread: Array) -> Array:
        """log p of a rate whose logit is normal about center; where rounds are known, of the counts that it stands for:
        exactly for none or all of the rounds, else with the normal noise of counting."""
        n = None if self.rounds is None else min(self.rounds, MAX_ROUNDS)
        if n is not None and not 0.5 < a * n < n - 0.5:
            x = center + spread * NODES.reshape(-1, *[1] * center.ndim)
            missed = -n * np.logaddexp(0, x if a * n < 1 else -x) + np.log(WEIGHTS).reshape(-1, *[1] * center.ndim)
            return np.asarray(np.logaddexp.reduce(missed, axis=0))
        p = a if n is None else (a * n + 0.5) / (n + 1)
        wide = spread if n is None else np.hypot(spread, 1 / math.sqrt((n + 1) * p * (1 - p)))
        return np.asarray(-0.5 * ((logit(p) - center) / wide) ** 2 - np.log(wide))


def readings(rates: Rates) -> list[Reading]:
    """Every way to read a measurement that cannot be excluded: more than one where n_max is not known, or where drafts
    were cut short (accepted / drafted is then too high, accepted / (rounds * n_max) too low).

    Errors  MtprefError for numbers that cannot be such rates
    """
    check(rates)
    if rates.positions and not rates.is_cut:
        return [Reading(len(rates.positions), rates.positions, None, rates.rounds)]
    lengths = _lengths(rates)
    found = [_aggregate(rates, n) for n in lengths]
    if rates.positions:
        found.append(Reading(len(rates.positions), rates.positions, None, rates.rounds))
    elif rates.is_cut and rates.accepted is not None and rates.rounds and rates.n_max:
        low = min(rates.accepted / (rates.rounds * rates.n_max), 1.0)
        found.append(Reading(rates.n_max, (), low, rates.rounds))
    return found


def _lengths(rates: Rates) -> tuple[int, ...]:
    """The draft lengths that an aggregate may stand for."""
    per_round = rates.drafted / rates.rounds if rates.drafted and rates.rounds else None
    if per_round is not None:
        return (min(max(1, round(per_round)), MAX_N),)
    if rates.n_max is not None:
        return (rates.n_max,)
    low = 1 if rates.mean is None else max(1, math.ceil(rates.mean - 1 - 0.005))
    return tuple(n for n in UNKNOWN_N if n >= low) or (low,)


def _aggregate(rates: Rates, n: int) -> Reading:
    rounds = rates.rounds
    if rates.accepted is not None and rates.drafted:
        return Reading(n, (), rates.accepted / rates.drafted, rounds or rates.drafted / n)
    if rates.aggregate is not None:
        return Reading(n, (), rates.aggregate, rounds)
    mean = 1.0 if rates.mean is None else rates.mean
    return Reading(n, (), min(max(0.0, (mean - 1) / n), 1.0), rounds)


def check(rates: Rates) -> None:
    """MtprefError, one line, for numbers that no run gives."""
    a = rates.positions
    if not 0 <= len(a) <= MAX_N or not all(math.isfinite(x) and 0 <= x <= 1 for x in a):
        raise MtprefError(f"{rates.source}: expected 1 .. {MAX_N} rates of 0 .. 1 such as 0.82,0.66,0.5")
    for i, (x, y) in enumerate(pairwise(a)):
        if y > x + 1e-9:
            raise MtprefError(
                f"{rates.source}: position {i + 2} has {y:g}, more than {x:g} of the position before, "
                "expected rates of all rounds (accepted at that position / rounds), which never rise; "
                "multiply conditional rates up"
            )
    split = (rates.after_full, rates.after_partial)
    if not all(x is None or 0 <= x <= 1 for x in split) or (split[0] is None) != (split[1] is None):
        raise MtprefError("`after_full` and `after_partial`: expected both, 0 .. 1 each")
    counts = (rates.accepted or 0, rates.drafted or 0, rates.rounds or 0)
    if not all(0 <= x <= MAX_COUNT for x in counts) or (rates.drafted is not None and counts[0] > counts[1]):
        raise MtprefError(
            f"{rates.source}: {rates.accepted} accepted of {rates.drafted} drafted, expected counts such as 44/120"
        )
    if rates.rounds is not None and not rates.rounds >= 1:
        raise MtprefError(f"{rates.source}: {rates.rounds:g} rounds, expected 1 or more")
    if rates.n_max is not None and not 1 <= rates.n_max <= MAX_N:
        raise MtprefError(f"{rates.source}: n_max {rates.n_max}, expected 1 .. {MAX_N} draft tokens")
    n = rates.n_max or MAX_N
    if rates.mean is not None and not (math.isfinite(rates.mean) and 1 <= rates.mean <= n + 1.005):
        raise MtprefError(
            f"{rates.source}: a mean length of {rates.mean:g} tokens a round, expected 1 .. {n + 1} (the "
            "accepted ones and the target's own)"
        )
    if not (a or rates.drafted or rates.mean is not None or rates.aggregate is not None):
        raise MtprefError(f"{rates.source}: nothing was drafted, expected rates, counts or a mean length")


def with_n_max(rates: Rates, n_max: int | None) -> Rates:
    """The same measurement, where the caller knows what it does not say.

    Errors  MtprefError where it says something else
    """
    if n_max is None:
        return rates
    if not 1 <= n_max <= MAX_N:
        raise MtprefError(f"`n_max`: {n_max}, expected 1 .. {MAX_N} draft tokens")
    known = max(len(rates.positions), rates.n_max or 0)
    if rates.n_max not in (None, n_max) or len(rates.positions) > n_max:
        raise MtprefError(f"{rates.source}: n_max is {known} there, and `n_max` is {n_max}; expected the same, or none")
    cut = rates.is_cut or is_cut(rates.drafted, rates.rounds, n_max)
    return replace(rates, n_max=n_max, is_cut=cut)


def is_cut(drafted: int | None, rounds: float | None, n_max: int | None) -> bool:
    """Whether drafts were shorter than n_max by more than a budget's end makes them."""
    return bool(drafted and rounds and n_max and drafted < SHORT_DRAFTS * rounds * n_max)


def usual(n: int) -> tuple[float, ...]:
    """What healthy engines accept at positions 1 .. n."""
    tail = (USUAL[-1] * TAIL**i for i in range(1, n - len(USUAL) + 1))
    return (*USUAL[:n], *tail)


@cache
def signatures() -> dict[str, dict[str, Any]]:
    """By fault id, and "healthy": a (4 rates), split (position 1 after a full acceptance and after others), and the
    healthy run's of the same options. Written by tools/write_signatures.py from the catalogue's measurements."""
    text = (files("mtpref") / "faults" / "diagnose" / "signatures.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def effects_of(own: dict[str, Any]) -> list[float]:
    """What the fault does to each rate, in logits."""
    return [logit(a) - logit(b) for a, b in zip(own["a"], own["healthy_a"], strict=True)]


def split_likelihood(rates: Rates, own: dict[str, Any]) -> float:
    """log p of position 1's rates after full and after partial acceptance; 0 where one of them is not known."""
    split, healthy = _split(own["split"]), _split(own["healthy_split"])
    seen = _split((rates.after_full, rates.after_partial))
    if seen is None or split is None or healthy is None:
        return 0.0
    return normal(seen - (split - healthy), SPLIT_SPREAD)


def _split(pair: Sequence[float | None]) -> float | None:
    full, other = pair
    return None if full is None or other is None else logit(full) - logit(other)


def logit(a: float) -> float:
    a = min(max(a, MIN_RATE), 1 - MIN_RATE)
    return math.log(a / (1 - a))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def normal(x: float, spread: float) -> float:
    """Log density, up to a constant."""
    return -0.5 * (x / spread) ** 2 - math.log(spread)


def log_sum(terms: Array) -> float:
    """log sum exp."""
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))
