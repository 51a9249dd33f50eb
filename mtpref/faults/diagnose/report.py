"""The report: a verdict, ranked causes with their evidence, and what to do next; as text and as JSON.

Owns the form alone. What stands in it was found by the entrances.
"""

from dataclasses import dataclass, field
from typing import Any

from mtpref.faults.diagnose.hypotheses import HARMLESS
from mtpref.faults.diagnose.rank import Group

SCHEMA = "mtpref-diagnosis-1"
MAX_CAUSES = 5
MIN_WEIGHT = 1e-4
MAX_NAMED = 12


@dataclass(frozen=True)
class Cause:
    """One line of the ranking: hypotheses that this evidence cannot tell apart."""

    ids: list[str]
    kinds: list[str]
    weight: float
    title: str
    mechanism: str
    evidence: str
    links: list[str]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Report:
    """What diagnosis found.

    verdict     healthy, found, unknown or undecided    headline: the same in a sentence
    evidence    what was looked at    causes: best first
    divergence  the first tensor or round that the healthy run does not reproduce
    experiment  what would separate the first causes    invisible: faults that this kind of evidence cannot show
    """

    entrance: str
    verdict: str
    headline: str
    evidence: list[str]
    causes: list[Cause]
    divergence: str | None = None
    experiment: str | None = None
    invisible: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "entrance": self.entrance, "verdict": self.verdict, "headline": self.headline,
            "evidence": self.evidence, "causes": [cause.to_json() for cause in self.causes],
            "first_divergence": self.divergence, "experiment": self.experiment, "not_visible": self.invisible,
            "notes": self.notes,
        }  # fmt: skip


def causes_of(groups: list[Group], is_wide: bool = False) -> list[Cause]:
    """The groups worth showing: the first, and others of some weight; at most MAX_CAUSES (wide: twice as many)."""
    shown = [g for i, g in enumerate(groups) if i == 0 or g.weight >= MIN_WEIGHT or i < 3]
    return [_cause(group) for group in shown[: MAX_CAUSES * (2 if is_wide else 1)]]


def _cause(group: Group) -> Cause:
    best = group.best
    hypotheses = [s.hypothesis for s in group.members]
    named = next((h for h in hypotheses if h.kind == "fault"), best.hypothesis)
    if best.hypothesis.is_harmless:
        named = best.hypothesis
        hypotheses = [h for h in hypotheses if h.is_harmless]
    links = [named.link] if named.is_harmless else list(dict.fromkeys(h.link for h in hypotheses))
    links = [link for link in links if link]
    return Cause(
        [h.id for h in hypotheses], [h.kind for h in hypotheses], group.weight, named.title, named.mechanism,
        best.words, links,
    )  # fmt: skip


def name_of(ids: list[str], kinds: list[str] | None = None) -> str:
    """A group in words; legal variants of a healthy run go by the first of them."""
    if kinds is not None and kinds[0] in HARMLESS:
        return ids[0]
    return ids[0] if len(ids) == 1 else f"one of {listed(ids)}"


def listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f", ... ({len(names)} in all)" if len(names) > MAX_NAMED else "")


def render(report: Report) -> str:
    """The report for people."""
    lines = [report.headline, ""]
    lines += [f"  {'looked at' if i == 0 else '':12s} {line}" for i, line in enumerate(report.evidence)]
    if report.divergence:
        lines.append(f"  {'divergence':12s} {report.divergence}")
    lines.append("")
    for rank, cause in enumerate(report.causes, 1):
        lines.append(f"{rank}. {name_of(cause.ids, cause.kinds)}  (weight {_percent(cause.weight)})")
        lines.append(f"     {cause.title}: {cause.mechanism}")
        if cause.evidence:
            lines.append(f"     evidence: {cause.evidence}")
        if cause.links:
            lines.append(f"     see: {listed(cause.links)}")
    if report.experiment:
        lines += ["", f"next: {report.experiment}"]
    if report.invisible:
        lines += ["", f"not visible here: {listed(report.invisible)}"]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _percent(weight: float) -> str:
    return f"{100 * weight:.1f} %" if weight >= 0.001 else "< 0.1 %"
