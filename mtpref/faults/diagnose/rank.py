"""Ranking: scores of hypotheses to weights, and classes of hypotheses that the evidence cannot tell apart.

Owns the arithmetic that all entrances share. It must not know what a score was made from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtpref.faults.diagnose.hypotheses import Hypothesis

MAX_TEMPERED = 700.0


@dataclass
class Scored:
    """A hypothesis with its log likelihood (natural logarithm, up to a constant) and what speaks for or against it."""

    hypothesis: Hypothesis
    log_likelihood: float
    words: str = ""
    weight: float = 0.0


@dataclass
class Group:
    """Hypotheses that the evidence cannot tell apart, the most likely one first."""

    members: list[Scored]

    @property
    def best(self) -> Scored:
        return self.members[0]

    @property
    def weight(self) -> float:
        return sum(s.weight for s in self.members)

    @property
    def ids(self) -> list[str]:
        return [s.hypothesis.id for s in self.members]

    @property
    def is_harmless(self) -> bool:
        return any(s.hypothesis.is_harmless for s in self.members)


def weigh(scored: Sequence[Scored]) -> None:
    """Set weights: prior times likelihood, adding up to 1."""
    logs = [s.log_likelihood + math.log(s.hypothesis.prior) for s in scored]
    top = max(logs)
    values = [math.exp(max(x - top, -MAX_TEMPERED)) for x in logs]
    total = sum(values)
    for s, value in zip(scored, values, strict=True):
        s.weight = value / total


def grouped(scored: Sequence[Scored], is_same: Callable[[Scored, Scored], bool]) -> list[Group]:
    """Weigh and group, heaviest group first; a hypothesis joins the first group whose best it cannot be told from."""
    weigh(scored)
    groups: list[Group] = []
    for s in sorted(scored, key=lambda s: -s.log_likelihood - math.log(s.hypothesis.prior)):
        home = next((g for g in groups if is_same(g.best, s)), None)
        if home is None:
            groups.append(Group([s]))
        else:
            home.members.append(s)
    return sorted(groups, key=lambda g: -max(s.log_likelihood + math.log(s.hypothesis.prior) for s in g.members))
