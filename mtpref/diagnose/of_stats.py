"""Entrance (c): acceptance rates alone. What may be behind them, by the catalogue's measured signatures?

Owns the likelihood of rates. It is wide on purpose: a rate depends on model, text and settings more than on most
faults, and signatures were measured on a small model. The model is not needed.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from mtpref.diagnose.hypotheses import Hypothesis, of_faults
from mtpref.diagnose.rank import Scored, grouped
from mtpref.diagnose.report import Report, causes_of
from mtpref.errors import MtprefError

# Rates of healthy engines by draft position, about the middle of what is published: dense models, code and prose.
USUAL = (0.80, 0.66, 0.54, 0.44)
SHIFTS = tuple(0.25 * i for i in range(-12, 13))  # models and texts differ: logits of all rates together
SHIFT_SPREAD = 0.9
OWN_SPREAD = 0.35  # each rate by itself
EFFECT_SPREAD = 0.5  # of a fault's effect, in parts of it: another model feels it more or less
SPLIT_SPREAD = 0.7
SAME = 0.15  # logits: signatures nearer than this are one
MAX_RATES = 64
MIN_RATE = 0.005


def diagnose_stats(
    rates: Sequence[float], after_full: float | None = None, after_partial: float | None = None
) -> Report:
    """rates        accepted at draft position 1, 2, ... in parts of the rounds (not of what was accepted before)
    after_full   the first position's rate in rounds behind a full acceptance, after_partial: in others
    Errors       MtprefError for rates that cannot be such rates
    """
    _check(rates, after_full, after_partial)
    found = signatures()
    hypotheses = [Hypothesis("healthy", "healthy", "nothing is wrong", "Rates that healthy engines have.", lambda m: m)]
    hypotheses += [h for h in of_faults() if h.id in found]
    scored, invisible = [], []
    for h in hypotheses:
        effect = _effects(found[h.id])
        if h.id != "healthy" and max(map(abs, effect)) < SAME:
            invisible.append(h.id)
            continue
        told = ", ".join(f"{a:.2f}" for a in found[h.id]["a"])
        usual = ", ".join(f"{a:.2f}" for a in found[h.id]["healthy_a"])
        words = f"on the tiny model it makes {told} of {usual}" if h.id != "healthy" else ""
        scored.append(Scored(h, _likelihood(rates, after_full, after_partial, found[h.id]), words))
    groups = grouped(scored, lambda a, b: _is_same(found[a.hypothesis.id], found[b.hypothesis.id]))
    groups.sort(key=lambda group: -group.weight)
    verdict = "healthy" if "healthy" in groups[0].ids else "found"
    head = "NOTHING UNUSUAL in these rates" if verdict == "healthy" else f"MOST LIKELY {groups[0].ids[0]}"
    seen = [
        f"{len(rates)} rates; {len(scored)} signatures measured on the tiny model, and usual rates of other engines"
    ]
    return Report(
        "stats", verdict, f"{head}: rates alone are weak evidence, most causes below stay possible", seen,
        causes_of(groups, is_wide=True),
        experiment="a log of one run tells single drafts apart: mtpref diagnose --log FILE -m MODEL; is the head good "
        "on this text at all? mtpref probe -m MODEL",
        invisible=invisible,
    )  # fmt: skip


@cache
def signatures() -> dict[str, dict[str, Any]]:
    """By fault id, and "healthy": a (4 rates), split (position 1 behind a full acceptance and behind others), and the
    healthy run's of the same options. Written by tools/write_signatures.py from the catalogue's measurements."""
    text = (files("mtpref") / "diagnose" / "signatures.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _check(rates: Sequence[float], *split: float | None) -> None:
    if not 1 <= len(rates) <= MAX_RATES or not all(math.isfinite(a) and 0 <= a <= 1 for a in rates):
        raise MtprefError(f"--stats: expected 1 .. {MAX_RATES} rates of 0 .. 1 such as 0.82,0.66,0.5")
    for i, (a, b) in enumerate(pairwise(rates)):
        if b > a + 1e-9:
            raise MtprefError(f"--stats: position {i + 2} has {b:g}, more than {a:g} of the position before, expected "
                              "rates of all rounds (accepted at that position / rounds), which never rise")  # fmt: skip
    if not all(a is None or 0 <= a <= 1 for a in split) or (split[0] is None) != (split[1] is None):
        raise MtprefError("--after-full and --after-partial: expected both, 0 .. 1 each")


def _logit(a: float) -> float:
    a = min(max(a, MIN_RATE), 1 - MIN_RATE)
    return math.log(a / (1 - a))


def _effects(own: dict[str, Any]) -> list[float]:
    """What the fault does to each rate, in logits."""
    return [_logit(a) - _logit(b) for a, b in zip(own["a"], own["healthy_a"], strict=True)]


def _split(pair: Sequence[float | None]) -> float | None:
    full, other = pair
    return None if full is None or other is None else _logit(full) - _logit(other)


def _likelihood(
    rates: Sequence[float], after_full: float | None, after_partial: float | None, own: dict[str, Any]
) -> float:
    """log of the sum over shifts of N(shift) * product of N(logit rate; usual + shift + effect, spread)."""
    effects = _effects(own)
    n = min(len(rates), len(effects))
    terms = []
    for shift in SHIFTS:
        log = -0.5 * (shift / SHIFT_SPREAD) ** 2
        for i in range(n):
            spread = math.hypot(OWN_SPREAD, EFFECT_SPREAD * effects[i])
            log += _normal(_logit(rates[i]) - _logit(USUAL[i]) - shift - effects[i], spread)
        terms.append(log)
    top = max(terms)
    total = top + math.log(sum(math.exp(t - top) for t in terms))
    split, usual = _split(own["split"]), _split(own["healthy_split"])
    if after_full is not None and after_partial is not None and split is not None and usual is not None:
        total += _normal(_logit(after_full) - _logit(after_partial) - (split - usual), SPLIT_SPREAD)
    return total


def _normal(x: float, spread: float) -> float:
    return -0.5 * (x / spread) ** 2 - math.log(spread)


def _is_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(abs(x - y) < SAME for x, y in zip(_effects(a), _effects(b), strict=True))
