"""The passes of a run: the trunk over tokens, the head over what stays of them. Each is counted.

Owns the calls that the loop makes of the model, but for the drafter's own. Who runs the trunk can be given, so that a
run can be played along rows that were recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.decode.statistics import Statistics
from mtpref.engine.model import Model, pair, run_heads
from mtpref.engine.model.model import Output
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Batch

F32 = NDArray[np.float32]


class Trunk(Protocol):
    """Who runs tokens through the trunk: `Model.trunk`, or what stands in for it."""

    def __call__(self, state: ModelState, ids: Sequence[int], *, n_logits: int, keep: int = 1) -> Output: ...


@dataclass
class Passes:
    """The passes of a run, timed and counted.

    keeps_head  whether the head's KV follows the text
    router_gaps  position -> the least gap of routers (S44) and indexers (S63) over the trunk's layers, of tokens run
                 since it was cleared
    """

    model: Model
    state: ModelState
    statistics: Statistics
    run_trunk: Trunk
    keeps_head: bool
    router_gaps: dict[int, float] = field(default_factory=dict)

    def trunk(self, ids: Sequence[int], kind: str, *, n_logits: int, keep: int = 1) -> tuple[F32, F32]:
        """Run tokens: the logits asked for, and all hidden rows as the contract wants them."""
        pos0 = self.state.n_past
        out = self.run_trunk(self.state, ids, n_logits=n_logits, keep=keep)
        self.router_gaps |= {pos0 + i: gap for i, gap in enumerate(out.gaps)}
        self.statistics.count_pass(kind, len(ids))
        recipe = self.model.recipe
        return out.logits, recipe.steps.target_hidden(out.hidden, recipe.contract)

    def catch_up(self, batch: Batch, hidden: F32, kind: str) -> None:
        """S33. Run tokens that stay through every head with the trunk's hidden rows, so that no KV keeps a guess.

        Rule     the tokens that `head_ids` names, paired by S20 with the rows of the same batch; positions below the
                 first that has a cell are left out
        Shapes   hidden: (T or more, n_embd), the trunk's rows of the batch's T tokens
        """
        recipe = self.model.recipe
        ids = recipe.steps.head_ids(batch, recipe.contract) if self.keeps_head else []
        if not ids:
            return
        pairs = pair(self.model, ids, hidden[: len(ids)], batch.pos0, batch.pending)
        for _ in run_heads(self.model, self.state, pairs):
            self.statistics.count_pass(kind, len(pairs.ids))
