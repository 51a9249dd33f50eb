"""Drafts of a chain of heads from many positions of a window: head i in step i, over the whole draft so far (S99).

Owns the drafts' own cells: a step writes those of one head from the draft's first position on, over the text's, which
are there again afterwards. One draft is run at a time. See head.py for a head that drafts every token.
"""

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.spec.state import HeadState, ModelState
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]


class HeadChains:
    """Drafts that go on from step 1 at these positions.

    ids, rows   of each position its token and the hidden row that it is paired with
    is_unprimed whether a draft sees no cell of the text
    """

    def __init__(
        self, model: Model, state: ModelState, positions: Ints, ids: Ints, rows: F32, *, is_unprimed: bool
    ) -> None:
        self.model, self.state, self.is_unprimed = model, state, is_unprimed
        self.positions, self.depth = positions, 0
        self._ids, self._rows = ids[:, None], rows[:, None]
        self._handed: F32 | None = None  # what the step before hands on

    def keep(self, rows: Ints) -> None:
        """Go on with these drafts alone."""
        self.positions, self._ids, self._rows = self.positions[rows], self._ids[rows], self._rows[rows]
        self._handed = None if self._handed is None else self._handed[rows]

    def step(self, ids: Ints, rows: Hidden) -> Hidden:
        """The next step of each: its last drafted id, and the rows of the head that drafted it."""
        recipe = self.model.recipe
        steps, contract = recipe.steps, recipe.contract
        self.depth += 1
        own = steps.chain_hidden(rows, contract) if self._handed is None else self._handed
        self._ids = np.concatenate([self._ids, ids[:, None]], axis=1)
        self._rows = np.concatenate([self._rows, own[:, None]], axis=1)
        head = steps.chain_head(self.depth, len(self.model.heads), contract)
        if head is None:
            raise ValueError(f"a draft of {self.depth + 1} tokens, {len(self.model.heads)} heads")
        found = [self._run(i, head) for i in range(len(self.positions))]
        self._handed = np.concatenate([steps.chain_row(steps.chain_hidden(one, contract), contract) for one in found])
        return Hidden(np.concatenate([one.pre[-1:] for one in found]), np.concatenate([one.post[-1:] for one in found]))

    def _run(self, i: int, head: int) -> Hidden:
        """One draft through one head, whose cells of the text stay as they are."""
        own, first, n = self.state.heads[head], int(self.positions[i]), self.depth + 1
        one = HeadState(own.layer, own.poison, 0, first)
        if not self.is_unprimed:
            one = HeadState(own.layer, own.poison, first - own.start, own.start)
        one.reserve(n)
        saved = {name: cells[one.n_cells : one.n_cells + n].copy() for name, cells in own.layer.arrays.items()}
        at = one.n_cells
        self.state.heads[head] = one
        try:
            ids = self._ids[i].tolist()
            return self.model.mtp(self.state, ids, self._rows[i], first, head=head, n_logits=0).hidden
        finally:
            self.state.heads[head] = own
            for name, cells in saved.items():
                own.layer.arrays[name][at : at + n] = cells
