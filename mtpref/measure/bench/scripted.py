"""MTP at an acceptance that is chosen: the head really drafts, and a script says which of its tokens count as right.

Owns the drafter and its script. With it the gain of a head can be measured on a model with random weights, whose own
drafts are never right.
"""

from collections.abc import Sequence

from mtpref import spec
from mtpref.engine.decode import DraftLength, MtpDrafter, ScriptedDrafter
from mtpref.engine.decode.drafters import Draft, Drafter
from mtpref.spec.state import ModelState


class WorkingDrafter(Drafter):
    """A scripted draft that costs what a draft of the head costs."""

    reads_head = True

    def __init__(self, head: MtpDrafter, script: ScriptedDrafter) -> None:
        self._head, self._script = head, script

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        self._head.draft(state, id_last, DraftLength.of(length.limit))
        return self._script.draft(state, id_last, length)


def script(acceptance: float, n_draft: int, n_rounds: int, seed: int = 0) -> list[Sequence[bool]]:
    """Which drafted tokens of each round are right: each one with the same probability, whatever came before."""
    return [
        [spec.uniform(seed, spec.ACCEPT, round * n_draft + k) < acceptance for k in range(n_draft)]
        for round in range(n_rounds)
    ]
