"""Trunk, pairing, head: what engines get wrong, in one place.

Owns how a batch of tokens goes through trunk and heads: which hidden row each token is paired with (S20), from which
position on (the contract), and that every head of a chain is given the trunk's rows. What a draft does afterwards is
mtpref/engine/decode's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model.model import Model, Output, Tap
from mtpref.spec.ops import discard
from mtpref.spec.state import ModelState

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """Tokens and the hidden row that each is paired with: ids[i] is at position first + i."""

    ids: list[int]
    rows: F32
    first: int


def pair(model: Model, ids: Sequence[int], hidden: F32, pos0: int, pending: F32) -> Pairs:
    """The pairs of a batch at position pos0, less those that the contract has no cell for.

    Shapes   hidden: (T, n_hidden), the trunk's rows of these tokens; pending: (n_hidden,), the row before them
    """
    rows = model.recipe.steps.pair_hidden(hidden, pending)
    n_skip = min(len(ids), max(0, model.recipe.contract.first_pos - pos0))
    return Pairs(list(ids[n_skip:]), rows[n_skip:], pos0 + n_skip)


def run_heads(
    model: Model, state: ModelState, pairs: Pairs, *, with_logits: bool = False, tap: Tap = discard
) -> list[Output]:
    """Every head over the pairs: the catch-up pass. Each head of a chain takes the trunk's rows, none another head's
    (S99), unless the contract has it so.

    A head that reads the trunk's cells has none to fill, and is passed over.
    """
    if not pairs.ids:
        return []
    n_logits, recipe = len(pairs.ids) if with_logits else 0, model.recipe
    outputs: list[Output] = []
    before = None
    for i, head in enumerate(model.heads):
        if not head.sheet.reads_target:
            rows = recipe.steps.catch_up_rows(pairs.rows, before, recipe.contract)
            rows, state.heads[i].held = recipe.steps.hold_back(rows, state.heads[i].held, i, recipe.contract)
            outputs.append(model.mtp(state, pairs.ids, rows, pairs.first, head=i, n_logits=n_logits, tap=tap))
            before = recipe.steps.chain_hidden(outputs[-1].hidden, recipe.contract)
    return outputs


def first_step(
    model: Model, state: ModelState, id_last: int, row: F32, *, with_logits: bool = False, tap: Tap = discard
) -> Output:
    """The first step of a draft, by a head that reads the trunk's cells: all that a prompt shows of it.

    state    holds the text before id_last, at least a token
    row      (n_hidden,), the trunk's row of the token before id_last
    """
    steps = model.recipe.steps
    read, at = steps.cells_to_read(state, id_last), steps.draft_position(state.n_past, 0, 1, True)
    return model.mtp(read, [id_last], row[None], at, n_logits=int(with_logits), tap=tap)


def run_both(
    model: Model, state: ModelState, ids: Sequence[int], *, with_logits: bool = False, tap: Tap = discard
) -> tuple[Output, Pairs, list[Output]]:
    """A batch through the trunk, then its pairs through every head; the state's pending row is the batch's last.

    with_logits   logits of every row, of trunk and heads
    """
    pos0 = state.n_past
    out = model.trunk(state, ids, n_logits=len(ids) if with_logits else 0, tap=tap)
    hidden = model.recipe.steps.target_hidden(out.hidden, model.recipe.contract)
    pairs = pair(model, ids, hidden, pos0, state.pending_h)
    outputs = run_heads(model, state, pairs, with_logits=with_logits, tap=tap)
    state.pending_h = hidden[-1].copy()
    return out, pairs, outputs
