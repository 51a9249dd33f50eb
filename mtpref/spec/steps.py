"""The table of steps: what the draft/verify loop does between two runs of the numerics, each entry
replaceable.

Owns the hand-over of hidden rows, the roll back of state and what a round emits. No entry multiplies anything; the
rules that are numerics in disguise (pairing, acceptance, sampling) are those of mtpref/spec/mtp.py and sampling.py, the
length of drafts is mtpref/spec/policy.py's. What a step takes and gives: step_types.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.spec import Distribution, policy, step_types
from mtpref.spec.contract import MtpContract
from mtpref.spec.state import Checkpoint, HeadState, ModelState
from mtpref.spec.step_types import F32, Batch, Hidden, StepEntries

__all__ = ["Batch", "Hidden", "StepEntries", "Steps"]


def residual(id_draft: int, target: Distribution, draft: Distribution) -> Distribution:
    """S29. `residual`: what is drawn from in place of a rejected token: it follows from the two distributions alone."""
    return spec.residual(target, draft)


def mtp_embedding(embd: F32, first_pos: int, contract: MtpContract) -> F32:
    """S31. The embeddings that the head is given: the tokens' own; the first cell's is zero where the contract says so.

    Shapes   embd: (T, n_embd), of the tokens from position first_pos on -> (T, n_embd)
    """
    if contract.first == "zero_embd" and first_pos == contract.first_pos:
        embd[0] = 0.0
    return embd


def mtp_positions(first_pos: int, n_tokens: int, contract: MtpContract) -> NDArray[np.int32]:
    """S31. The RoPE positions of a batch of the head: first_pos, first_pos + 1, ..., each plus `pos_offset`."""
    return np.arange(first_pos, first_pos + n_tokens, dtype=np.int32) + np.int32(contract.pos_offset)


def place_mtp(head: HeadState, first_pos: int) -> None:
    """S31. Before a head's cells grow: the batch must begin where they end.

    Errors  ValueError where positions would leave a hole or overlap
    """
    if head.n_cells == 0:
        head.start = first_pos
    if first_pos != head.pos:
        raise ValueError(f"MTP cells end at position {head.pos}, the batch starts at {first_pos}")


def target_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """S32. The trunk's rows that the head is fed with: after the final norm, or before it."""
    return rows.of(contract.hidden)


def chain_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """S32. The head's own rows that the next draft step is fed with: after the head norm, or before it."""
    return rows.of(contract.chain)


def pending_at_prompt(left_over: F32, contract: MtpContract, saved: F32 | None = None) -> F32:
    """S32. The pending hidden row that a prompt starts from.

    Rule     zero at position 0; `saved`, the row of the last token held, where the prompt goes on from a reused prefix;
             in both cases the row left over from the last run where `new_prompt` is stale
    """
    if contract.new_prompt != "zero":
        return left_over
    return np.zeros_like(left_over) if saved is None else saved


def prompt_pending(hidden: F32, is_last: bool) -> F32:
    """S32. The pending hidden row after a batch of the prompt: its last row. is_last: the batch ends the prompt."""
    return hidden[-1].copy()


def pending_at_replay(pending: F32, rejected_rows: F32, contract: MtpContract) -> F32:
    """S32. The pending hidden row that a replayed batch starts from: that of the round, or stale, the last row of the
    rejected batch."""
    return pending if contract.replay == "right" else rejected_rows[-1].copy()


def head_ids(batch: Batch, contract: MtpContract) -> Sequence[int]:
    """S33. The tokens of a batch that go through the head, from the first on: all of them, drafted or not.

    Rule     none of a prompt's where the contract does not prime the head
    """
    return [] if batch.n_drafted is None and contract.prime != "prompt" else batch.ids


def draft_opening(id_last: int, last_ids: Sequence[int]) -> int:
    """S34. The token that a draft goes on from: the last one of the text.

    last_ids  what each row of the last verified batch gave, rows of rejected tokens included
    """
    return id_last


def draft_position(pos0: int, step: int, n_rows: int, reads_target: bool) -> int:
    """S34. The position of the first row that a draft step runs.

    pos0    that of the token that the draft goes on from
    Rule    the last of n_rows rows of step i is at pos0 + i. A head that reads the target's cells stays at pos0 in
            every step (S109)
    """
    return pos0 if reads_target else pos0 + step + 1 - n_rows


def trim_mtp(state: ModelState, pos: int) -> None:
    """S34. Cut every head's cells from a position on: cells that drafting wrote never stay."""
    state.trim_heads(pos)


def restore(state: ModelState, saved: Checkpoint) -> None:
    """S38. Back to a checkpoint: recurrent matrices, conv windows, cells, pending hidden."""
    state.restore(saved)


def choose_plane(state: ModelState, n_drop: int) -> None:
    """S38. Forget the last n_drop tokens by choosing the planes of the token before them."""
    state.choose_plane(n_drop)


def match_token(id_draft: int, target: Distribution, u: float) -> int:
    """S39. `match`: the token of a row that has a drafted one is the target's own draw, whatever was drafted."""
    return spec.draw(target, u)


def bonus_token(target: Distribution, u: float) -> int:
    """S39. The token of the row after a whole draft: the target's draw, by both rules."""
    return spec.draw(target, u)


def emitted(draft: Sequence[int], n_accepted: int, row_ids: Sequence[int]) -> list[int]:
    """S40. The tokens that a round adds to the text: the accepted ones, then what the row after them gives."""
    return [*draft[:n_accepted], row_ids[n_accepted]]


def ends_text(is_eog: bool, is_last: bool) -> bool:
    """S40. Whether an emitted token ends the text: every end-of-generation token does, wherever in the round it is."""
    return is_eog


def chain_head(step: int, n_heads: int, contract: MtpContract) -> int | None:
    """S99. The head that a draft step runs; None: there is none, and the draft ends.

    Rule     step i runs head i. After the last head the draft ends, or with `chain_end` reuse the last one runs again,
             with wrap the first one follows it.
             A model of one head, and one whose `heads` is first, runs head 0 in every step and is no chain
    """
    if not is_chain(n_heads, contract):
        return 0
    if step < n_heads or contract.chain_end == "wrap":
        return step % n_heads
    return n_heads - 1 if contract.chain_end == "reuse" else None


def is_chain(n_heads: int, contract: MtpContract) -> bool:
    """S99. Whether draft steps run heads of their own: several heads, each of which drafts."""
    return n_heads > 1 and contract.heads == "each"


def chain_row(rows: F32, contract: MtpContract) -> F32:
    """S99. The row that a head hands on to the next draft step: its last one, from which it drafted.

    Rule     with `chain_row` first its first one, of the draft's opening token. A head that is no chain has one row
    Shapes   rows: (n, n_hidden), of the tokens that this step ran over -> (1, n_hidden)
    """
    return rows[-1:] if contract.chain_row == "last" else rows[:1]


def chain_input(ids: Sequence[int], hidden: F32, token: int, row: F32, chained: bool) -> tuple[list[int], F32]:
    """S99. What the next draft step is given: of a chain the whole draft so far and its rows, with the new token and
    the row of the head that drafted it after them; else these two alone (S34).

    Rule     another head has no cells of the draft yet, so it runs over all of it, from the draft's first position on.
             Row 0 is the pending row, row j that of head j - 1
    Shapes   ids: n tokens, hidden: (n, n_hidden), row: (1, n_hidden)
    """
    return ([*ids, token], np.concatenate([hidden, row])) if chained else ([token], row)


def catch_up_rows(paired: F32, before: F32 | None, contract: MtpContract) -> F32:
    """S99. The rows that a head of a chain catches up with, at the positions of the batch.

    paired  the target's rows, paired by S20: what every head takes
    before  what the head before it gave at the same positions, None for the first: only with `catch_up` chain
    """
    return before if before is not None and contract.catch_up == "chain" else paired


def cells_to_read(state: ModelState, id_last: int) -> ModelState:
    """S109. The sequence whose cells a head reads that has none of its own: the text before id_last, as it is.

    id_last  the token that the draft goes on from: no pass has run it yet, so it has no cell
    """
    return state


def hold_back(rows: F32, held: F32 | None, head: int, contract: MtpContract) -> tuple[F32, F32 | None]:
    """S113. The rows that a head of a chain catches up with, some tokens late, and those that it holds for later.

    Rule     with `catch_up` target none are late. With chain head j >= 1 is a token late, with delayed j tokens.
             The first rows of a text are zero
    Shapes   rows: (T, n_hidden), as catch_up_rows chose them; held: (n, n_hidden) of the batch before -> the same two
    """
    n = {"target": 0, "chain": min(head, 1), "delayed": head}[contract.catch_up]
    if n == 0:
        return rows, None
    before = np.zeros((n, rows.shape[1]), np.float32) if held is None else held
    joined = np.concatenate([before, rows])
    return joined[: len(rows)], joined[len(rows) :]


def held_rows(hidden: F32, own: F32, held: F32 | None, pending: F32, contract: MtpContract) -> F32:
    """S113. The rows of a draft step of a chain, as the head's text had them.

    Rule     with `catch_up` target those of S99. With chain the row that the head holds, then all rows of the step
             before; with delayed the rows that it holds, then the pending row. A row that is not there is zero
    Shapes   hidden: (n, n_hidden), of S99; own: the rows of the head before; pending: (n_hidden,) -> (n, n_hidden)
    """
    if contract.catch_up == "target":
        return hidden
    none = np.zeros((len(hidden), hidden.shape[1]), np.float32)
    late = none[:1] if held is None else held
    return np.concatenate([none, late, own if contract.catch_up == "chain" else pending[None]])[-len(hidden) :]


@dataclass(frozen=True)
class Steps:
    """Every step of the loop by name. The defaults are the reference; a fault replaces single entries."""

    pair_hidden: step_types.PairHidden = spec.pair_hidden  # S20
    accept_greedy: step_types.Accept = spec.accept_greedy  # S23: how many, by every rule
    next_pending: step_types.NextPending = spec.next_pending  # S24
    target_distribution: step_types.Filtered = spec.filtered  # S27
    draw: step_types.Draw = spec.draw  # S28: a drafted token, one without a draft, one drawn again
    accept_residual: step_types.AcceptResidual = spec.accept_residual  # S29
    residual: step_types.Residual = residual  # S29
    mtp_embedding: step_types.MtpEmbedding = mtp_embedding  # S31
    mtp_positions: step_types.MtpPositions = mtp_positions  # S31
    place_mtp: step_types.PlaceMtp = place_mtp  # S31
    target_hidden: step_types.ChooseHidden = target_hidden  # S32
    chain_hidden: step_types.ChooseHidden = chain_hidden  # S32
    pending_at_prompt: step_types.PendingAtPrompt = pending_at_prompt  # S32
    prompt_pending: step_types.PromptPending = prompt_pending  # S32
    pending_at_replay: step_types.PendingAtReplay = pending_at_replay  # S32
    head_ids: step_types.HeadIds = head_ids  # S33
    draft_opening: step_types.DraftOpening = draft_opening  # S34
    draft_position: step_types.DraftPosition = draft_position  # S34
    trim_mtp: step_types.TrimMtp = trim_mtp  # S34
    draft_limit: step_types.DraftLimit = policy.draft_limit  # S35
    takes: step_types.Takes = policy.takes  # S35
    keeps_drawn: step_types.KeepsDrawn = policy.keeps_drawn  # S35
    proposed: step_types.Proposed = policy.proposed  # S35
    after_round: step_types.AfterRound = policy.after_round  # S36
    restore: step_types.Restore = restore  # S38
    choose_plane: step_types.ChoosePlane = choose_plane  # S38
    match_token: step_types.MatchToken = match_token  # S39
    bonus_token: step_types.BonusToken = bonus_token  # S39
    emitted: step_types.Emitted = emitted  # S40
    ends_text: step_types.EndsText = ends_text  # S40
    chain_head: step_types.ChainHead = chain_head  # S99
    chain_row: step_types.ChainRow = chain_row  # S99
    chain_input: step_types.ChainInput = chain_input  # S99
    catch_up_rows: step_types.CatchUpRows = catch_up_rows  # S99
    cells_to_read: step_types.CellsToRead = cells_to_read  # S109
    hold_back: step_types.HoldBack = hold_back  # S113
    held_rows: step_types.HeldRows = held_rows  # S113
