"""One head over one window: its KV as the loop holds it, and chains of draft steps from any of its positions.

Owns how chains are run in batches. Row i of a batch is a draft of its own: it shares the true cells up to its position
with every other row, and behind them sees only the cells of its own earlier steps. Everything but attention works row
by row, so a batch gives each row the bits of a draft that runs alone (batch invariance); attention is called once a
row. A step at position p costs what the loop pays for it: attention over p cells, and nothing is copied but the chain's
own cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.engine.model.finite import is_finite, not_finite
from mtpref.spec.ops import OpEntries
from mtpref.spec.ops.types import Attention
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Batch, Hidden

F32 = NDArray[np.float32]
LOGIT_BYTES = 32 << 20  # logits that exist at a time


@dataclass
class _Branches:
    """The attention entry of a batch whose row i is behind true cell cells[i] and its own chain.

    is_alone   a row sees no true cell but cells[i] itself: the head's KV was never filled over the text
    keys, values   (R, depth, n_head_kv, D): the chain's cells so far
    """

    base: Attention
    state: ModelState
    cells: NDArray[np.int64]
    is_alone: bool
    keys: NDArray | None = None
    values: NDArray | None = None

    def __call__(self, q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int) -> F32:
        self.keys, self.values = _behind(self.keys, k_cache[first:]), _behind(self.values, v_cache[first:])
        depth = self.keys.shape[1]
        all_keys, all_values = (self.state.heads[0].layer.arrays[name] for name in ("cache_k", "cache_v"))
        out = np.empty_like(q)
        for i, cell in enumerate(self.cells):
            begin, last = (cell if self.is_alone else 0), cell + 1
            end = last + depth
            # The chain's cells lie where the loop has them, right behind the true ones, for the time of one call.
            saved = all_keys[last:end].copy(), all_values[last:end].copy()
            all_keys[last:end], all_values[last:end] = self.keys[i], self.values[i]
            cells = end - begin
            out[i] = self.base(q[i : i + 1], all_keys[begin:end], all_values[begin:end], kv_type, cells - 1)[0]
            all_keys[last:end], all_values[last:end] = saved
        return out

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows alone."""
        self.cells = self.cells[rows]
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


def _behind(chain: NDArray | None, cells: NDArray) -> NDArray:
    new = cells.copy()[:, None]
    return new if chain is None else np.concatenate([chain, new], axis=1)


class HeadWindow:
    """The head of `model` over one window. Only the head's part of the model is used: the trunk's rows are given.

    delay   every pair gets the hidden row of so many positions earlier, zero at the beginning (a control)
    """

    def __init__(self, model: Model, n_ctx: int, *, delay: int = 0, poison: bool = False) -> None:
        if not model.heads:
            raise MtprefError("the model has no MTP head, expected one; try: mtpref inspect FILE, or give a "
                              "stand-alone head with -md")  # fmt: skip
        layer = model.heads[0].layer
        specs = layer.state(model.kv_type_draft)
        if [spec.name for spec in specs if spec.positional] != ["cache_k", "cache_v"] or len(specs) != 2:
            raise MtprefError(f"probe: a head with a {layer.kind.name} block, expected one with attention alone")
        self.model, self.contract = model, model.recipe.contract
        self._delayed = np.zeros((delay, model.config.n_embd), np.float32)
        self.state = ModelState([], [specs], model.config.n_embd, n_ctx, poison=poison)
        steps = model.recipe.steps
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
        if self.is_unprimed:
            n_cells, base = self.state.heads[0].n_cells, model.recipe.ops.attention
            model = _with_ops(model, attention=_own_cell_only(base, n_cells))
        out = model.mtp(self.state, ids[n_skip:].tolist(), rows[n_skip:], pos0 + n_skip, n_logits=0)
        return pos0 + n_skip, out.hidden

    # ------------------------------------------------------------------------------------ drafts

    def chains(self, positions: NDArray[np.int64]) -> "Chains":
        """Drafts that go on from step 1 at these positions, all of which have been run."""
        return Chains(self, positions)

    def logits(self, post: F32) -> Iterator[tuple[int, F32]]:
        """The head's logits of rows, a bounded number at a time: (index of the first row, logits)."""
        return tiles(self.model, self.model.heads[0].weights.shared_head_head, post)


class Chains:
    """Drafts from many positions, one step further at a time."""

    def __init__(self, window: HeadWindow, positions: NDArray[np.int64]) -> None:
        self.window, self.positions, self.depth = window, positions, 0
        base, state = window.model.recipe.ops.attention, window.state
        self._branches = _Branches(base, state, positions - state.heads[0].start, window.is_unprimed)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows alone."""
        self.positions = self.positions[rows]
        self._branches.keep(rows)

    def step(self, ids: NDArray[np.int64], rows: Hidden) -> Hidden:
        """The next step of each: its last drafted id, and the head's rows that drafted it."""
        window, recipe = self.window, self.window.model.recipe
        state, contract = window.state, window.contract
        self.depth += 1
        pos = (self.positions + self.depth + contract.pos_offset).astype(np.int32)
        table = recipe.ops.rope_table
        model = _with_ops(window.model, attention=self._branches, rope_table=lambda _, *rest: table(pos, *rest))
        hidden = recipe.steps.chain_hidden(rows, contract)
        n_true = state.heads[0].pos
        state.heads[0].reserve(len(ids) + self.depth + 1)
        out = model.mtp(state, ids.tolist(), hidden, n_true, n_logits=0)
        state.trim_heads(n_true)
        return out.hidden


def _own_cell_only(base: Attention, n_cells: int) -> Attention:
    """Attention of a batch whose every row sees the cell that it has just written and no other."""

    def attention(q: F32, k_cache: NDArray, v_cache: NDArray, kv_type: str, first: int) -> F32:
        cells = range(n_cells, n_cells + len(q))
        rows = [base(q[i : i + 1], k_cache[c : c + 1], v_cache[c : c + 1], kv_type, 0) for i, c in enumerate(cells)]
        return np.concatenate(rows)

    return attention


def _with_ops(model: Model, **entries: Unpack[OpEntries]) -> Model:
    return replace(model, recipe=model.recipe.with_ops(**entries))


def tiles(model: Model, output: Any, post: F32) -> Iterator[tuple[int, F32]]:
    """Logits of rows behind a final norm, a bounded number of rows at a time."""
    n = max(1, LOGIT_BYTES // (4 * output.n_out))
    for first in range(0, len(post), n):
        logits = model.recipe.ops.head(model.recipe.ops, output, post[first : first + n], None)
        if model.is_checked and not is_finite(logits):
            raise not_finite(model, f"logits of {output.name}", lambda tap: None, iter([(output.name, output)]))
        yield first, logits
