"""What a draft vocabulary costs: coverage and acceptance beside the full head and the first rows, on held-out text.

Owns the comparison and its lines. All three heads run on the same trunk pass.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtpref.engine.model import Model
from mtpref.measure.probe.count import Estimate, Judged, difference, judge, total_difference
from mtpref.measure.probe.render import table
from mtpref.measure.probe.report import Settings
from mtpref.measure.probe.tables import Group, group
from mtpref.measure.probe.texts import Text, windows_of
from mtpref.measure.probe.vocabulary import Domain
from mtpref.measure.probe.walk import Progress, Seen, Variant, walk_all

SCHEMA = "mtpref-draft-vocab-1"
FULL, FIRST, LIST = "full head", "first rows", "list"


@dataclass(frozen=True)
class HeadLine:
    """A head on one domain.

    text_coverage    share of all held-out tokens that it can name
    target_coverage  share of the trunk's argmaxes, at the probed positions: the most that a_1 can be
    a1_lost, length_lost   full head less this one, paired
    """

    head: str
    n_ids: int
    text_coverage: float | None
    target_coverage: float | None
    group: Group
    a1_lost: Estimate
    length_lost: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "n_ids": self.n_ids,
            "text_coverage": self.text_coverage,
            "target_coverage": self.target_coverage,
            **self.group.to_json(),
            "a1_lost": self.a1_lost.to_json(),
            "mean_length_lost": self.length_lost.to_json(),
        }


@dataclass(frozen=True)
class VocabularyReport:
    """By domain, and over all: the three heads. n_counted, n_held: tokens."""

    n_ids: int
    n_counted: int
    n_held: int
    settings: Settings
    domains: list[tuple[str, list[HeadLine]]]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "n_ids": self.n_ids,
            "n_counted": self.n_counted,
            "n_held_out": self.n_held,
            "settings": asdict(self.settings),
            "domains": [{"name": name, "heads": [line.to_json() for line in lines]} for name, lines in self.domains],
        }


def measure(
    model: Model, ids: Sequence[int], domains: Sequence[Domain], settings: Settings, progress: Progress | None = None
) -> VocabularyReport:
    """Probe the held-out blocks, each a context of its own, with three heads.

    settings   n_positions: at most so many a domain
    """
    named = np.arange(model.n_vocab) if model.d2t is None else model.d2t
    lists = {FULL: named, FIRST: named[: len(ids)], LIST: np.array(sorted(ids), np.int64)}
    heads = {name: model if name == FULL else model.with_draft_ids(own.tolist()) for name, own in lists.items()}
    variants = [Variant(name, head, settings.n_draft) for name, head in heads.items()]
    n_ctx = settings.n_ctx or model.config.n_ctx_train
    windows = []
    for domain in domains:
        texts = [Text(domain.label, tuple(block.tolist())) for block in domain.held]
        n_tokens = sum(len(text.ids) for text in texts)
        stride = max(settings.stride, -(-n_tokens // settings.n_positions) if settings.n_positions else 1)
        windows += windows_of(texts, n_ctx, stride)
    seen = walk_all(model, windows, variants, progress, settings.n_batch)
    found = [(d.label, _lines([s for s in seen if s.window.label == d.label], lists, [d], settings)) for d in domains]
    if len(domains) > 1:
        found.append(("all", _lines(seen, lists, domains, settings)))
    counted = sum(int(d.counts.sum()) for d in domains)
    return VocabularyReport(len(ids), counted, sum(int(d.held_counts.sum()) for d in domains), settings,
                            [(name, lines) for name, lines in found if lines])  # fmt: skip


def _lines(
    seen: Sequence[Seen], lists: dict[str, Any], domains: Sequence[Domain], settings: Settings
) -> list[HeadLine]:
    if not seen:
        return []
    held = np.sum([d.held_counts for d in domains], axis=0)
    target = np.concatenate([s.trunk.target[list(s.window.positions)] for s in seen])
    full: Judged = judge(seen, FULL, "trunk", settings.block)
    lines = []
    for name, own in lists.items():
        judged = judge(seen, name, "trunk", settings.block)
        covered = float(held[own].sum() / held.sum()) if held.sum() else None
        hit = float(np.isin(target, own).mean())
        lost = difference(full, judged), total_difference(full, judged)
        lines.append(HeadLine(name, len(own), covered, hit, group(name, judged), *lost))
    return lines


def lines(report: VocabularyReport) -> list[str]:
    """The report for people."""
    n = report.settings.n_draft
    titles = ["domain", "head", "ids", "text covered", "targets covered", *(f"a_{k + 1}" for k in range(n)),
              "tokens per round", "a_1 lost", "tokens lost"]  # fmt: skip
    rows = []
    for name, heads in report.domains:
        for line in heads:
            is_full = line.head == FULL
            lost = ["", ""] if is_full else [line.a1_lost.shown(), line.length_lost.shown(2)]
            rates = [_share(e.value) for e in line.group.unconditional]
            covered = [_share(line.text_coverage), _share(line.target_coverage)]
            length = line.group.mean_length.shown(2)
            rows.append([name, line.head, str(line.n_ids), *covered, *rates, length, *lost])
    return [
        f"{report.n_ids} ids from {report.n_counted} counted tokens; {report.n_held} others are held out to measure on",
        *table(titles, rows),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
