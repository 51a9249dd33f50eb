"""An assistant over one window: drafts from any of its positions, each over the target's cells of the tokens before it.

Owns how such drafts are run in batches. An assistant keeps nothing, so there is nothing to catch up with: a draft at a
position is its steps there and no more, and a text of one token has none. Row i of a batch is a draft of its own; its
attention is called by itself, with the cells and the position that the loop gives it, and all else works row by row in
any case (batch invariance). See head.py for a head with cells of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, TextCells
from mtpref.engine.model.model import Head, Layer
from mtpref.measure.probe.head import tiles
from mtpref.spec.kinds import Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, ModelState
from mtpref.spec.steps import Hidden, Steps

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]


class AssistantWindow:
    """The assistant of `model` over one window. Only its own part of the model is used: the target's rows and cells are
    given.

    cells   the target's, noted after each chunk
    delay   every pair gets the hidden row of so many positions earlier, zero at the beginning (a control)
    """

    def __init__(self, model: Model, cells: TextCells, *, delay: int = 0) -> None:
        steps = model.recipe.steps
        if steps.cells_to_read is not Steps().cells_to_read:
            raise MtprefError(
                "probe: a fault shows the assistant other cells than the text's (steps.cells_to_read), expected these: "
                "a text without rounds has no others; a run has them"
            )
        self.model, self.cells = model, cells
        n_hidden = model.heads[0].n_hidden
        self._delayed = np.zeros((delay, n_hidden), np.float32)
        self.pending: F32 = steps.pending_at_prompt(np.zeros(n_hidden, np.float32), model.recipe.contract)

    def advance(self, ids: NDArray[np.int32], hidden: Hidden, pos0: int) -> tuple[int, Hidden]:
        """Step 1 of the drafts of a chunk of the text: pairs (x_p, h_{p-1}), from position 1 on.

        Returns   the first position that has a draft, and the assistant's rows
        """
        steps, contract = self.model.recipe.steps, self.model.recipe.contract
        own = steps.target_hidden(hidden, contract)
        rows = np.concatenate([self.pending[None], own[:-1]])
        self.pending = own[-1].copy()
        if len(self._delayed):
            rows = np.concatenate([self._delayed, rows])
            rows, self._delayed = rows[: len(own)], rows[len(own) :]
        first = max(pos0, 1)
        positions = np.arange(first, pos0 + len(ids))
        if not len(positions):
            return first, Hidden(rows[:0], rows[:0])
        return first, self.run(ids[first - pos0 :], rows[first - pos0 :], positions, 0)

    def chains(self, positions: Ints) -> "AssistantChains":
        """Drafts that go on from step 1 at these positions."""
        return AssistantChains(self, positions)

    def logits(self, rows: Hidden, step: int = 0) -> Iterator[tuple[int, F32]]:
        """The logits of the assistant's rows, a bounded number at a time: (index of the first row, logits)."""
        return tiles(self.model, self.model.heads[0].weights.shared_head_head, rows.pre)

    def run(self, ids: Ints | NDArray[np.int32], rows: F32, positions: Ints, step: int) -> Hidden:
        """A step of a draft at each of these positions.

        Returns   pre: the normed rows, which the output is multiplied with; post: the rows for the next step
        """
        steps, contract = self.model.recipe.steps, self.model.recipe.contract
        read = [self.cells.at(int(p)) for p in positions]
        at = [steps.draft_position(int(p), step, 1, True) for p in positions]
        pos = np.concatenate([steps.mtp_positions(p, 1, contract) for p in at])
        model, normed = _by_row(self.model, read, pos), list[F32]()

        def tap(name: str, array: NDArray) -> None:
            if name == "mtp_shared_head_norm":
                normed.append(np.array(array, np.float32))

        out = model.mtp(read[0], ids.tolist(), rows, int(positions[0]), n_logits=0, tap=tap)
        return Hidden(normed[0], out.hidden.post)


class AssistantChains:
    """Drafts from many positions, one step further at a time."""

    def __init__(self, window: AssistantWindow, positions: Ints) -> None:
        self.window, self.positions, self.depth = window, positions, 0

    def keep(self, rows: Ints) -> None:
        """Go on with these drafts alone."""
        self.positions = self.positions[rows]

    def step(self, ids: Ints, rows: Hidden) -> Hidden:
        """The next step of each: its last drafted id, and the assistant's rows that drafted it."""
        recipe = self.window.model.recipe
        self.depth += 1
        return self.window.run(ids, recipe.steps.chain_hidden(rows, recipe.contract), self.positions, self.depth)


def _by_row(model: Model, read: list[ModelState], pos: NDArray[np.int32]) -> Model:
    """The model whose assistant's attention is called row by row: row i at pos[i], over the cells of read[i]."""

    def changed(head: Head) -> Head:
        *before, last = (_attending(layer, read, pos) for layer in (*head.before, head.layer))
        return replace(head, before=tuple(before), layer=last)

    return replace(model, heads=tuple(map(changed, model.heads)))


def _attending(layer: Layer, read: list[ModelState], pos: NDArray[np.int32]) -> Layer:
    own = layer.kind.forward

    def forward(w: LayerWeights, cfg: Any, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
        out = []
        for i, one in enumerate(read):
            here = Span(span.ops, pos[i : i + 1], one.n_past, 1, target=one.layers, roots=span.roots)
            out.append(own(w, cfg, x[i : i + 1], state, here, tap))
        return np.concatenate(out)

    return layer.with_forward("mixer", forward)
