"""Several measurements as one, and what the readers of rate lines share.

Owns pooling: requests, slots and intervals are weighed by their rounds.
"""

import re
from collections.abc import Sequence

from mtpref.faults.diagnose.rates import MAX_N, Rates

# Numbers in a line, bounded.
N = r"(\d{1,15})"
F = r"(\d{1,6}\.\d{1,9})"
LIST = r"\(([\d., ]{0,1000})\)"


def lines_with(text: str, *words: str) -> str:
    """The lines that hold one of the words: a long log is searched for words, only what is left by an expression."""
    if not any(word in text for word in words):
        return ""
    return "\n".join(line for line in text.split("\n") if any(word in line for word in words))


def pool(source: str, parts: Sequence[Rates]) -> Rates | None:
    """Requests or intervals as one, weighed by their rounds (alike where these are not known)."""
    if not parts:
        return None
    has_rounds = all(part.rounds for part in parts)
    weights = [part.rounds or 0.0 for part in parts] if has_rounds else [1.0] * len(parts)
    counted = all(part.drafted for part in parts)
    lengths = {len(part.positions) for part in parts}
    n_max = {part.n_max for part in parts}
    positions: tuple[float, ...] = ()
    if len(lengths) == 1:
        rows = zip(*(part.positions for part in parts), strict=True)
        positions = tuple(sum(a * w for a, w in zip(row, weights, strict=True)) / sum(weights) for row in rows)
    means = [part.mean for part in parts if part.mean is not None]
    mean = sum(m * w for m, w in zip(means, weights, strict=True)) / sum(weights) if len(means) == len(parts) else None
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return Rates(
        source,
        sum(part.accepted or 0 for part in parts) if counted else None,
        sum(part.drafted or 0 for part in parts) if counted else None,
        sum(weights) if has_rounds else None,
        n_max.pop() if len(n_max) == 1 else None,
        falling(positions),
        mean,
        is_cut=any(part.is_cut for part in parts),
        n_parts=len(parts),
        notes=notes,
    )


def numbers(text: str | None) -> list[float]:
    return [float(part) for part in re.findall(r"\d{1,9}(?:\.\d{1,9})?", text or "")][:MAX_N]


def falling(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Rates as printed may rise by their last digit."""
    found: list[float] = []
    for rate in rates:
        found.append(min(rate, found[-1]) if found and rate <= found[-1] + 0.0021 else rate)
    return tuple(found)
