"""One head over one window: its cells as the loop holds them, and chains of draft steps from any of its positions.

Owns how chains are run in batches. Row i of a batch is a draft of its own: it shares the true cells up to its position
with every other row, and after them sees only the cells of its own earlier steps. What keeps no state works row by row
in any case, so a batch gives each row the bits of a draft that runs alone (batch invariance); a part with cells,
whatever they hold, is called once a row. A step at position p costs what the loop pays for it: p cells, and nothing is
copied but the chain's own.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, Pairs, run_heads
from mtpref.engine.model.finite import is_finite, not_finite
from mtpref.measure.probe.chain import HeadChains
from mtpref.spec.kinds import LayerKind, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.ops.compose import scaled_head
from mtpref.spec.state import LayerState, ModelState
from mtpref.spec.steps import Batch, Hidden, is_chain

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]
LOGIT_BYTES = 32 << 20  # logits that exist at a time


@dataclass
class _Branches:
    """A batch whose row i, at RoPE position pos[i], sees cells begin[i] .. at[i] and writes the last of them.

    chains  by array, (R, depth, ...): cells of each row alone, right before the one that it writes. The true cells in
            their place are there again afterwards, and the new cell joins the chain. None: rows have no such cells, and
            what they write stays
    """

    pos: NDArray[np.int32]
    begin: Ints
    at: Ints
    chains: dict[str, NDArray] | None = None

    def run_by(self, model: Model) -> Model:
        """The model with every part of its head that keeps state called row by row."""
        layer = model.heads[0].layer
        mixer, ffn = self._by_row(layer.block.mixer, layer.cfg), self._by_row(layer.block.ffn, layer.ffn_cfg)
        return model.with_head(layer=replace(layer, block=replace(layer.block, mixer=mixer, ffn=ffn)))

    def _by_row(self, kind: LayerKind, own: Any) -> LayerKind:
        names = [spec.name for spec in kind.state(own, "F32")]

        def forward(w: LayerWeights, cfg: Any, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
            out, new = [], []
            for i, (begin, at) in enumerate(zip(self.begin, self.at, strict=True)):
                saved = self._enter(i, names, state)
                here = copy(state)
                here.arrays = {**state.arrays, **{name: state.arrays[name][begin:] for name in names}}
                one = Span(span.ops, self.pos[i : i + 1], int(at - begin), 1, span.target)
                out.append(kind.forward(w, cfg, x[i : i + 1], here, one, tap))
                new.append([state.arrays[name][at].copy() for name in names])
                for name, cells in saved.items():
                    state.arrays[name][at + 1 - len(cells) : at + 1] = cells
            if self.chains is not None:
                for name, cells in zip(names, map(np.stack, zip(*new, strict=True)), strict=True):
                    own = self.chains.get(name)
                    self.chains[name] = cells[:, None] if own is None else np.append(own, cells[:, None], axis=1)
            return np.concatenate(out)

        return replace(kind, forward=forward) if names else kind

    def _enter(self, i: int, names: list[str], state: LayerState) -> dict[str, NDArray]:
        """Put the row's chain where the loop has it; what stood there, and where the new cell will stand."""
        if self.chains is None:
            return {}
        at, saved = self.at[i], {}
        for name in names:
            own = self.chains[name][i] if name in self.chains else state.arrays[name][:0]
            saved[name] = state.arrays[name][at - len(own) : at + 1].copy()
            state.arrays[name][at - len(own) : at] = own
        return saved


class HeadWindow:
    """The head of `model` over one window. Only the head's part of the model is used: the trunk's rows are given.

    delay   every pair gets the hidden row of so many positions earlier, zero at the beginning (a control)
    """

    def __init__(self, model: Model, n_ctx: int, *, delay: int = 0, poison: bool = False) -> None:
        if not model.heads:
            raise MtprefError(
                "the model has no MTP head, expected one; try: mtpref inspect FILE, or give a "
                "stand-alone head with `model_draft`"
            )
        head = model.heads[0]
        every = [one.layer.state(model.kv_type_draft) for one in model.heads]
        specs = [spec for own in every for spec in own]
        if head.sheet.reads_target or not all(spec.positional for spec in specs):
            what = "reads the trunk's cells" if head.sheet.reads_target else "keeps a recurrent state"
            raise MtprefError(f"probe: the head's {head.layer.kind.name} block {what}, expected cells of its own alone")
        if is_chain(len(model.heads), model.recipe.contract) and model.recipe.contract.catch_up != "target":
            raise MtprefError(
                f"probe: catch_up is {model.recipe.contract.catch_up}, expected target: drafts from every position "
                "need the rows that heads held back there; use `contract` catch_up=target"
            )
        self.model, self.contract = model, model.recipe.contract
        self._delayed = np.zeros((delay, head.n_hidden), np.float32)
        self.state = ModelState([], every, head.n_hidden, n_ctx, poison=poison)
        steps = model.recipe.steps
        self.is_chain = is_chain(len(model.heads), self.contract)
        self._paired: tuple[int, Ints, F32] = (0, np.empty(0, np.int64), np.empty((0, head.n_hidden), np.float32))
        self.pending: F32 = steps.pending_at_prompt(self.state.pending_h, self.contract)
        self.is_unprimed = not steps.head_ids(Batch([0], 0, self.pending), self.contract)

    # ------------------------------------------------------------------------------------- text

    def advance(self, ids: NDArray[np.int32], hidden: Hidden, pos0: int) -> tuple[int, Hidden]:
        """Run a chunk of the text: pairs (x_p, h_{p-1}) from pos0 on. Every row is also step 1 of a draft there.

        Returns   the first position that has a row (the contract may leave out position 0), and the rows
        """
        steps = self.model.recipe.steps
        own = steps.target_hidden(hidden, self.contract)
        rows = steps.pair_hidden(own, self.pending)
        self.pending = own[-1].copy()
        if len(self._delayed):
            rows = np.concatenate([self._delayed, rows])
            rows, self._delayed = rows[: len(own)], rows[len(own) :]
        n_skip = max(0, self.contract.first_pos - pos0)
        if n_skip >= len(ids):
            return pos0 + n_skip, Hidden(rows[:0], rows[:0])
        model = self.model
        if self.is_unprimed:  # every row sees the cell that it writes and no other
            at = self.state.heads[0].n_cells + np.arange(len(ids) - n_skip)
            pos = model.recipe.steps.mtp_positions(pos0 + n_skip, len(at), self.contract)
            model = _Branches(pos, at, at).run_by(model)
        first, tokens, rows = pos0 + n_skip, ids[n_skip:], rows[n_skip:]
        if not self.is_chain:
            return first, model.mtp(self.state, tokens.tolist(), rows, first, n_logits=0).hidden
        self._paired = first, tokens.astype(np.int64), rows
        outputs = run_heads(model, self.state, Pairs(tokens.tolist(), rows, first))
        return first, outputs[0].hidden

    # ------------------------------------------------------------------------------------ drafts

    def chains(self, positions: NDArray[np.int64]) -> "Chains | HeadChains":
        """Drafts that go on from step 1 at these positions, all of which have been run; those of a chain of heads, in
        the last chunk."""
        if not self.is_chain:
            return Chains(self, positions)
        first, ids, rows = self._paired
        at = positions - first
        return HeadChains(self.model, self.state, positions, ids[at], rows[at], is_unprimed=self.is_unprimed)

    def logits(self, rows: Hidden, step: int = 0) -> Iterator[tuple[int, F32]]:
        """The logits of rows of the head that drafts in this step, a bounded number at a time: (index of the first row,
        logits)."""
        head = self.model.recipe.steps.chain_head(step, len(self.model.heads), self.contract)
        return tiles(self.model, self.model.heads[head or 0].weights.shared_head_head, rows.post)


class Chains:
    """Drafts from many positions, one step further at a time."""

    def __init__(self, window: HeadWindow, positions: NDArray[np.int64]) -> None:
        self.window, self.positions, self.depth = window, positions, 0
        self._cells: dict[str, NDArray] = {}

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows alone."""
        self.positions = self.positions[rows]
        self._cells = {name: cells[rows] for name, cells in self._cells.items()}

    def step(self, ids: NDArray[np.int64], rows: Hidden) -> Hidden:
        """The next step of each: its last drafted id, and the head's rows that drafted it."""
        window, recipe = self.window, self.window.model.recipe
        own, contract = window.state.heads[0], window.contract
        self.depth += 1
        pos = np.concatenate([recipe.steps.mtp_positions(int(p) + self.depth, 1, contract) for p in self.positions])
        last = self.positions - own.start
        branches = _Branches(pos, last if window.is_unprimed else 0 * last, last + self.depth, self._cells)
        hidden = recipe.steps.chain_hidden(rows, contract)
        n_true = own.pos
        own.reserve(len(ids) + self.depth + 1)
        out = branches.run_by(window.model).mtp(window.state, ids.tolist(), hidden, n_true, n_logits=0)
        window.state.trim_heads(n_true)
        return out.hidden


def tiles(model: Model, output: Any, post: F32) -> Iterator[tuple[int, F32]]:
    """Logits of rows after a norm, a bounded number of rows at a time. output: a head's; None: the trunk's"""
    ops, own = model.recipe.ops, output
    output = model.weights.output if own is None else own
    n = max(1, LOGIT_BYTES // (4 * output.n_out))
    for first in range(0, len(post), n):
        rows = post[first : first + n]
        logits = (
            model.trunk_logits(rows) if own is None else scaled_head(ops, output, rows, None, model.config.logit_scale)
        )
        if model.is_checked and not is_finite(logits):
            raise not_finite(model, f"logits of {output.name}", lambda tap: None, iter([(output.name, output)]))
        yield first, logits
