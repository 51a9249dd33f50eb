"""Drafters: who proposes the next tokens.

Owns the MTP draft chain, the scripted drafter and the drafter that is silent; inline.py has one more. A drafter leaves
the model state as it found it (the head's draft-time cells are cut). It must not judge its own tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.base.events import DraftStep
from mtpref.engine.decode.lengths import DraftLength
from mtpref.engine.decode.sampling import Sampler, SamplingConfig
from mtpref.engine.decode.statistics import Statistics, margin
from mtpref.engine.model import Model
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Hidden, is_chain

F32 = NDArray[np.float32]


@dataclass
class Draft:
    """What a drafter proposes.

    ids    the drafted tokens, steps: what led to them
    dists  what each was drawn from; empty where the drafter has no choice (one id for sure)
    """

    ids: list[int] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)
    dists: list[spec.Distribution] = field(default_factory=list)


class Drafter(Protocol):
    """Whoever proposes tokens. Derive from it: most drafters need `draft` alone.

    draft       ids for the positions after id_last, which is at position state.n_past: at most `length.limit`, and as
                many as `length` wants where the drafter knows how sure it is
    saw         called after every round: the token that each row gave, the trunk's hidden rows of the last batches, and
                how many of them were kept; rows from n_kept on belong to rejected tokens
    reads_head  whether the MTP head's KV must hold every kept token
    """

    reads_head: ClassVar[bool] = False

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft: ...

    def saw(self, row_ids: Sequence[int], hidden: NDArray[np.float32], n_kept: int) -> None:
        return None


class NoDrafter(Drafter):
    """Plain decoding."""

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        return Draft()


@dataclass
class HeadDrafter(Drafter):
    """A drafter that reads the head of its model.

    n_draft_vocab   FastMTP: only the first so many ids can be drafted (None: all)
    sampler         what draws the tokens under `residual` (None: greedy; the best candidates)
    """

    reads_head = True
    model: Model
    statistics: Statistics
    n_draft_vocab: int | None = None
    sampler: Sampler | None = None

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        """A draft of none where the length allows none, or the position has no cell yet."""
        least = int(self.reads_target)  # cells to read
        has_cell = state.n_past >= max(least, self.model.recipe.contract.first_pos)
        return self.propose(state, id_last, length) if has_cell and length.wants_step() else Draft()

    @property
    def reads_target(self) -> bool:
        """Whether the head has no cells of its own."""
        return any(head.sheet.reads_target for head in self.model.heads)

    def cells(self, state: ModelState, id_last: int) -> ModelState:
        """The sequence whose cells the head reads: for one without cells of its own what S109 says."""
        return self.model.recipe.steps.cells_to_read(state, id_last) if self.reads_target else state

    def propose(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        """At least one step of the head. Cells that it writes are cut again."""
        raise NotImplementedError


class MtpDrafter(HeadDrafter):
    """The MTP chain: step 0 takes (id_last, pending hidden), step i takes the head's own token and hidden row; with
    several heads step i runs head i."""

    def propose(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        """S34. The chain of the head: one token a step.

        Rule     step 0 pairs the last token of the text with the pending hidden row; step i pairs the token that step
                 i - 1 drafted with the head's own row of that step; step i is at position state.n_past + i. The policy
                 (S35, S37) says when to stop. Cells from state.n_past on are cut at the end
        Rule     several heads: S99. A head that reads the trunk's cells stays at position state.n_past (S109)
        """
        pos0, heads, recipe, drafted = state.n_past, self.model.heads, self.model.recipe, Draft()
        steps, contract = recipe.steps, recipe.contract
        chained, reads = is_chain(len(heads), contract), self.reads_target
        ids, hidden, read = [id_last], state.pending_h[None], self.cells(state, id_last)
        while length.wants_step():
            step = len(drafted.ids)
            head = steps.chain_head(step, len(heads), contract)
            if head is None:
                break
            if chained:
                steps.trim_mtp(state, pos0)
            at = pos0 + step + 1
            run = HeadRun(head, ids, hidden, steps.draft_position(pos0, step, len(ids), reads), at, chained)
            out = read_head(self, state, run, length, drafted, read)
            self.statistics.count_pass("mtp_draft", len(ids))
            if chained:
                self.statistics.count_head(step, head)
            if not drafted.steps[-1].is_taken:
                break
            own = steps.chain_hidden(out, contract)
            row = steps.chain_row(own, contract)
            ids, hidden = steps.chain_input(ids, hidden, drafted.ids[-1], row, chained)
            if chained:
                hidden = late_rows(self.model, state, step + 1, hidden, own)
        steps.trim_mtp(state, pos0)
        return drafted


def late_rows(model: Model, state: ModelState, step: int, hidden: F32, own: F32) -> F32:
    """The rows of the next draft step of a chain, those that its head holds among them (S113).

    own   the rows of the step before
    """
    steps, contract = model.recipe.steps, model.recipe.contract
    head = steps.chain_head(step, len(model.heads), contract)
    held = None if head is None else state.heads[head].held
    return steps.held_rows(hidden, own, held, state.pending_h, contract)


def most_drafted(model: Model, n_max: int) -> int:
    """The longest draft that the model's heads can make of so many tokens that are asked for (S99)."""
    recipe, n_heads = model.recipe, len(model.heads)
    return next((i for i in range(n_max) if recipe.steps.chain_head(i, n_heads, recipe.contract) is None), n_max)


def n_in_chain(model: Model) -> int:
    """Heads of a chain, each of which drafts a token of its own (S99); 0: every step is the one head's."""
    n = len(model.heads)
    return n if is_chain(n, model.recipe.contract) else 0


def notes_of(model: Model, n_max: int) -> list[str]:
    """What is said of a draft length that the model's heads cannot follow."""
    n = most_drafted(model, n_max)
    if n == n_max:
        return []
    return [f"n_max {n_max}: the chain has {len(model.heads)} heads, each drafts one token; drafts have at most {n}"]


@dataclass(frozen=True)
class HeadRun:
    """What a head is run over.

    pos: of the first id; at: of the token that the last row proposes; chained: whether it is one of a chain
    """

    head: int
    ids: list[int]
    hidden: F32
    pos: int
    at: int
    chained: bool = False


def read_head(
    drafter: HeadDrafter,
    state: ModelState,
    run: HeadRun,
    length: DraftLength,
    drafted: Draft,
    read: ModelState | None = None,
) -> Hidden:
    """Run pairs (id, hidden row) through a head; what its last row proposes joins `drafted`, unless the gate ends the
    draft. Returns the head's rows.

    read  the sequence whose cells the head sees, None for `state`
    Rule  the gate sees the distribution, never the token
    """
    model = drafter.model
    sampler = drafter.sampler or Sampler(model, SamplingConfig())
    cells, n = state if read is None else read, drafter.n_draft_vocab
    out = model.mtp(cells, run.ids, run.hidden, run.pos, head=run.head, n_logits=1, n_draft_vocab=n)
    d2t = None if model.d2t is None else model.d2t[: out.logits.shape[1]]
    logits = sampler.biased(_by_id(out.logits, d2t, model.n_vocab))[0]
    compact = logits if d2t is None else logits[d2t]
    named = run.head if run.chained else None
    if np.all(compact == -np.inf):  # every id that the head can name is ignored
        drafted.steps.append(DraftStep(run.at, [], [], 0.0, False, head=named))
        return out.hidden
    rows, p = model.recipe.ops.top_candidates(compact)
    candidates = rows if d2t is None else d2t[rows]
    p_best, is_drawn = spec.fixed_probability(float(p[0])), sampler.config.draws_drafts
    is_taken = length.takes(p_best, is_drawn=is_drawn)
    token, u, q = int(candidates[0]), None, None
    if is_taken and is_drawn:
        token, dist, u = sampler.draft(logits, run.at, state.n_past)
        q = dist.prob(token)
        is_taken = length.keeps_drawn(spec.fixed_probability(q))
        drafted.dists += [dist] * is_taken
    ids, ps = [int(id) for id in candidates], [float(x) for x in p]
    gap = out.gaps[-1] if out.gaps else None
    drafted.steps.append(DraftStep(run.at, ids, ps, margin(compact[rows]), is_taken, u, q, gap, named))
    drafted.ids += [token] * is_taken
    if is_taken:
        length.grow(p_best)
    return out.hidden


def _by_id(logits: F32, d2t: NDArray[np.int64] | None, n_vocab: int) -> F32:
    """A trimmed head's logits (T, R) as (T, n_vocab): -inf for an id that it cannot name."""
    if d2t is None:
        return logits
    full = np.full((len(logits), n_vocab), -np.inf, np.float32)
    full[:, d2t] = logits
    return full


class ScriptedDrafter(Drafter):
    """A drafter whose tokens are accepted as a script says, for tests and for timing.

    continuation  what plain decoding will give after the prompt: continuation[0] is the first generated token
    pattern       per round, which of its tokens to draft right; the last entry repeats. A wrong token is the right
                  one + 1 modulo n_vocab.
    first_pos     the position of continuation[0]
    """

    def __init__(
        self, continuation: Sequence[int], pattern: Sequence[Sequence[bool]], first_pos: int, n_vocab: int
    ) -> None:
        self.continuation = continuation
        self.n_vocab = n_vocab
        self.first_pos = first_pos
        self._rounds = self._repeat(pattern)

    @staticmethod
    def _repeat(pattern: Sequence[Sequence[bool]]) -> Iterator[Sequence[bool]]:
        yield from pattern
        while pattern:
            yield pattern[-1]

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        if length.limit <= 0:
            return Draft()
        at = state.n_past + 1 - self.first_pos
        known = self.continuation[at : at + length.limit]
        script = next(self._rounds, ())
        ids = [
            right if is_right else (right + 1) % self.n_vocab for right, is_right in zip(known, script, strict=False)
        ]
        steps = [DraftStep(state.n_past + 1 + i, [x], [1.0], 0.0, True) for i, x in enumerate(ids)]
        return Draft(ids, steps)
