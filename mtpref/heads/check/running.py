"""The head run beside itself, on a built-in text: what its controls say, and in what order the rest is asked.

Read next: changes.py (which change would make it better?), trunk.py (is the trunk itself sound?). All variants of the
head share one trunk pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtpref.engine.model import Model
from mtpref.heads.check.changes import changes, explain
from mtpref.heads.check.findings import FAIL, Finding
from mtpref.heads.check.trunk import examine
from mtpref.heads.proof import BLOCK, built_in_texts, window_of
from mtpref.measure.probe.controls import MAIN, Control, compare_controls, controls
from mtpref.measure.probe.count import Estimate, Judged, judge
from mtpref.measure.probe.texts import windows_of
from mtpref.measure.probe.walk import Progress, Seen, Variant, walk_all

N_DRAFT = 3
GUESSES = ("shifted-target", "shuffled-drafts", "constant", "random")


@dataclass(frozen=True)
class Ran:
    """What a run gave, for the report."""

    seen: list[Seen]
    a: list[Estimate]  # a_1 .. a_n, unconditional
    controls: list[Control]
    n_positions: int

    def judged(self, name: str = MAIN) -> Judged:
        return judge(self.seen, name, "trunk", BLOCK)


def run(model: Model, n_positions: int, progress: Progress | None = None) -> tuple[Ran, list[Finding]]:
    """Run the head and all its variants.

    n_positions   at most so many of each of the two texts

    Ids that are hashes hold no text, and say nothing of the trunk, nor of what a change gains: a head of such a model
    is only compared with guesses.
    """
    windows = windows_of(built_in_texts(model), window_of(model), 1, n_positions)
    controlled = controls(model)
    tried = changes(model, controlled) if model.vocab.holds_text else []
    main = Variant(MAIN, model, N_DRAFT)
    new = [t.variant for t in tried if t.variant not in controlled]
    seen = walk_all(model, windows, [main, *controlled, *new], progress)
    judged = judge(seen, MAIN, "trunk", BLOCK)
    ran = Ran(seen, judged.unconditional(), compare_controls(seen, controlled, BLOCK), judged.n_reached[0])
    if not model.vocab.holds_text:
        no_text = Finding("no-text", "the tokenizer", f"{model.vocab.model!r}: a text says nothing of the trunk")
        return ran, [_acceptance(ran), no_text, *_constant(seen), *_against_guesses(ran)]
    found = _constant(seen) + (_against_guesses(ran) or _against_another_row(ran))
    found = explain(model, seen, tried, is_lost=bool(found)) + found
    trunk = examine(
        model,
        windows,
        seen,
        is_head_wrong=any(f.severity == FAIL for f in found),
        is_part_idle=any(f.id == "part-idle" for f in found),
        progress=progress,
    )
    if any(f.severity == FAIL for f in trunk):
        text = f"a_1 {ran.a[0].shown()} is against a trunk that is not sound itself"
        found = [Finding("head-not-judged", "the head", text)] if found else []
    elif trunk:  # what is idle may be so for want of a sound trunk
        found = [f for f in found if f.id != "part-idle"]
    return ran, [_acceptance(ran), *trunk, *found]


def _acceptance(ran: Ran) -> Finding:
    rates = ", ".join(f"a_{i + 1} {a.shown()}" for i, a in enumerate(ran.a))
    named = ", ".join(f"{c.name} {c.rate.shown()}" for c in ran.controls)
    return Finding("acceptance", f"{ran.n_positions} positions", f"{rates}; controls: {named}")


# WHAT THE CONTROLS SAY


def _constant(seen: list[Seen]) -> list[Finding]:
    drafts = np.concatenate([s.heads[MAIN].draft[:, 0] for s in seen])
    if len(drafts) > 20 and len(set(drafts.tolist())) == 1:
        return [Finding("constant-draft", f"id {drafts[0]}", f"drafted at all of {len(drafts)} positions")]
    return []


def _against_guesses(ran: Ran) -> list[Finding]:
    by_name = {c.name: c for c in ran.controls}
    if by_name["other-hidden"].is_beaten is None:
        return [Finding("too-little", f"{ran.n_positions} positions", "too few for intervals")]
    lost = [name for name in GUESSES if not by_name[name].is_beaten]
    if lost:
        named = ", ".join(f"{name} {by_name[name].rate.shown()}" for name in lost)
        return [Finding("head-useless", f"a_1 {ran.a[0].shown()}", f"not above {named}")]
    return []


def _against_another_row(ran: Ran) -> list[Finding]:
    other = next(c for c in ran.controls if c.name == "other-hidden")
    if not other.is_beaten:
        text = f"with the hidden row of 64 positions earlier {other.rate.shown()}, expected clearly less"
        return [Finding("head-ignores-trunk", f"a_1 {ran.a[0].shown()}", text)]
    return []
