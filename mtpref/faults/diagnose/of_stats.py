"""Entrance (c): acceptance rates alone. What may be behind them, by the catalogue's measured signatures?

Owns the verdict on rates and its words. No model is run; one only tells which faults can be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtpref.engine.model import Model
from mtpref.faults.diagnose.hypotheses import Hypothesis, of_faults
from mtpref.faults.diagnose.rank import Group, Scored, grouped
from mtpref.faults.diagnose.rates import (
    UNKNOWN_N,
    Rates,
    Reading,
    effects_of,
    log_sum,
    logit,
    readings,
    sigmoid,
    signatures,
    split_likelihood,
    usual,
)
from mtpref.faults.diagnose.report import Report, causes_of, listed

SAME = 0.15  # logits: signatures nearer than this are one
ODDS = 1.0  # nats by which a fault must be likelier than every harmless cause, priors included
ONE_SIDED = 1.64  # standard deviations: 95 %
# Levels (Reading.level) of what is published, docs/diagnosis.md: no healthy engine lies below LOWEST; from LOW to HIGH
# is ordinary text.
LOWEST, LOW, HIGH = -1.9, -0.5, 1.6
FEW = 0.3  # a rate known no better than this says little
PROBE = (
    "a log of single drafts (llama.cpp: -lv 5 --temp 0) tells them apart: mtpref diagnose --log FILE -m MODEL -p TEXT; "
    "is the head good on this text at all? mtpref probe -m MODEL -f TEXT"
)


def diagnose_stats(
    rates: Rates | Sequence[float],
    after_full: float | None = None,
    after_partial: float | None = None,
    model: Model | None = None,
) -> Report:
    """Judge acceptance rates by the catalogue's signatures.

    rates        a measurement, or what was accepted at draft position 1, 2, ... in parts of the rounds (not of what
                 was accepted before)
    after_full   the first position's rate in rounds after a full acceptance, after_partial: in others
    model        faults that it can have are looked at; None: those of a dense model such as the embedded one
    Errors       MtprefError for rates that cannot be such rates
    """
    if not isinstance(rates, Rates):
        rates = Rates("--stats", positions=tuple(rates))
    if after_full is not None or after_partial is not None:
        rates = replace(rates, after_full=after_full, after_partial=after_partial)
    ways = readings(rates)
    if rates.spoiled:
        return _report(rates, ways, "undecided", f"CANNOT TELL: {rates.spoiled}", [], [])
    found = signatures()
    hypotheses = [Hypothesis("healthy", "healthy", "nothing is wrong", "Rates that healthy engines have.", lambda m: m)]
    hypotheses += [h for h in of_faults(model) if h.id in found and (model or not found[h.id].get("stand_in"))]
    invisible = [h.id for h in hypotheses[1:] if max(map(abs, effects_of(found[h.id]))) < SAME]
    hypotheses = [h for h in hypotheses if h.id not in invisible]
    tables = [_table(way, hypotheses, rates) for way in ways]
    gains = [_gain(hypotheses, table) for table in tables]
    verdicts = [_verdict(way, gain) for way, gain in zip(ways, gains, strict=True)]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "undecided"
    scored = [Scored(h, log_sum(np.array([t[i] for t in tables])), _words(h)) for i, h in enumerate(hypotheses)]
    groups = grouped(scored, _is_same)
    groups.sort(key=lambda group: -group.weight)
    head = f"CANNOT TELL: {_why(rates, ways, gains, verdicts)}"
    if verdict == "healthy":
        head = "NOTHING UNUSUAL in these rates; this clears no fault that leaves as much (causes below)"
    elif verdict == "found":
        suspects = listed([id for group in groups[:3] for id in group.ids])
        head = (
            "SOMETHING IS WRONG: healthy engines are not known to accept so little. Which fault it is, rates cannot "
            f"say; first suspects: {suspects}"
        )
    return _report(rates, ways, verdict, head, groups, invisible, len(scored))


def _report(
    rates: Rates,
    ways: Sequence[Reading],
    verdict: str,
    head: str,
    groups: list[Group],
    invisible: list[str],
    n: int = 0,
) -> Report:
    seen = _looked_at(rates, ways)
    if n:
        seen.append(f"{n} signatures measured on the tiny model, and usual rates of other engines")
    return Report(
        "stats",
        verdict,
        head,
        seen,
        causes_of(groups, is_wide=True) if groups else [],
        experiment=PROBE,
        invisible=invisible,
        notes=[*rates.notes],
    )


def _table(way: Reading, hypotheses: Sequence[Hypothesis], rates: Rates) -> list[float]:
    """The log likelihood of each hypothesis."""
    found = signatures()
    return [way.log_likelihood(effects_of(found[h.id])) + split_likelihood(rates, found[h.id]) for h in hypotheses]


def _words(h: Hypothesis) -> str:
    own = signatures()[h.id]
    told, healthy = (", ".join(f"{a:.2f}" for a in own[key]) for key in ("a", "healthy_a"))
    where = "a small model with such layers" if own.get("stand_in") else "the tiny model"
    return f"on {where} it makes {told} of {healthy}" if h.id != "healthy" else ""


def _is_same(a: Scored, b: Scored) -> bool:
    x, y = (effects_of(signatures()[s.hypothesis.id]) for s in (a, b))
    return all(abs(p - q) < SAME for p, q in zip(x, y, strict=True))


# ------------------------------------------------------------------------------------------------ verdict


@dataclass(frozen=True)
class _Gain:
    """Nats by which the likeliest fault beats the likeliest harmless cause, and a healthy engine; priors included."""

    harmless: float
    healthy: float


def _gain(hypotheses: Sequence[Hypothesis], table: Sequence[float]) -> _Gain:
    logs = [(log + math.log(h.prior), h) for log, h in zip(table, hypotheses, strict=True)]
    fault = max(log for log, h in logs if not h.is_harmless)
    healthy = next(log for log, h in logs if h.kind == "healthy")
    return _Gain(fault - max(log for log, h in logs if h.is_harmless), fault - healthy)


def _verdict(way: Reading, gain: _Gain) -> str:
    """found      a fault is clearly likelier, and no healthy engine is known to accept so little, counting included
    healthy    as on ordinary text, counting included, and no fault is likelier
    undecided  all else
    """
    if gain.harmless >= ODDS and way.level + ONE_SIDED * way.noise < LOWEST:
        return "found"
    is_usual = way.level - ONE_SIDED * way.noise >= LOW and way.level <= HIGH
    return "healthy" if gain.healthy < 0 and is_usual else "undecided"


def _why(rates: Rates, ways: Sequence[Reading], gains: Sequence[_Gain], verdicts: Sequence[str]) -> str:
    """What an undecided verdict hangs on."""
    few = max(ways, key=lambda way: way.noise)
    low, high = _rate_at(few, -ONE_SIDED), _rate_at(few, ONE_SIDED)
    levels = [way.level for way in ways]
    if high - low > FEW:
        return f"too few rounds, {few.rounds or 0:.0f}: the rate may be anything from {low:.2f} to {high:.2f}"
    if len(set(verdicts)) > 1 and rates.is_cut:
        return "p_min or an adaptive length cut drafts short, and it matters here; measure with --spec-draft-p-min 0"
    if len(set(verdicts)) > 1:
        return f"n_max is not known (1 .. {UNKNOWN_N[-1]} were tried) and it matters here; give --n-max N"
    if max(levels) < LOW:
        known = "not lower than healthy engines go"
        if max(levels) < LOWEST:
            known = "lower than healthy engines are known to go, yet no fault stands out"
        return f"lower than on ordinary text, {known}: prose, a temperature, thinking or a long context cost as much"
    if min(levels) > HIGH:
        return (
            "higher than on ordinary text: easy or repetitive text gives it, and so does a verifier that accepts too "
            "much (docs/faults.md#v1-lax-accept)"
        )
    if max(gain.healthy for gain in gains) >= 0:
        return (
            "the level is usual, the fall from one position to the next is not: faults of the chain look like this, "
            "and so do heads that were not trained to be chained"
        )
    return f"at the edge of what is usual; {few.rounds or 0:.0f} rounds put the rate at {low:.2f} to {high:.2f}"


def _rate_at(way: Reading, n_sigma: float) -> float:
    return sigmoid(logit(sum(usual(way.n)) / way.n) + way.level + n_sigma * way.noise)


def _looked_at(rates: Rates, ways: Sequence[Reading]) -> list[str]:
    parts = [f"{rates.accepted} of {rates.drafted} drafted tokens accepted"] if rates.drafted else []
    parts += [f"{rates.aggregate:.3f} accepted"] if rates.aggregate is not None else []
    parts += [f"by position {', '.join(f'{a:.3f}' for a in rates.positions)}"] if rates.positions else []
    parts += [f"mean length {rates.mean:.2f}"] if rates.mean is not None else []
    parts += [f"{rates.rounds:.0f} rounds"] if rates.rounds else []
    parts += [f"n_max {rates.n_max}"] if rates.n_max else []
    parts += [f"{rates.n_parts} pooled"] if rates.n_parts > 1 else []
    lines = [f"{rates.source}: {', '.join(parts)}"]
    if rates.after_full is not None:
        lines.append(f"position 1 after full acceptance {rates.after_full:.2f}, else {rates.after_partial:.2f}")
    if rates.aggregate is not None and rates.n_max is None:
        lines.append(f"one rate may be position 1's or accepted / drafted: read as each n_max of 1 .. {UNKNOWN_N[-1]}")
    elif rates.is_cut:
        lines.append(
            "drafts were cut short: accepted / drafted is too high, accepted / (rounds x n_max) too low; both read"
        )
    for n in sorted({way.n for way in ways})[:2]:
        low, high, lowest = (_usual_at(n, level) for level in (LOW, HIGH, LOWEST))
        lines.append(
            f"n_max {n}: healthy engines accept {low:.2f} to {high:.2f} on ordinary text, {lowest:.2f} or more on any"
        )
    if rates.rounds is None and not rates.drafted:
        lines.append("how many rounds these are from is not known: taken as many (--rounds N)")
    return lines


def _usual_at(n: int, level: float) -> float:
    return sigmoid(logit(sum(usual(n)) / n) + level)
