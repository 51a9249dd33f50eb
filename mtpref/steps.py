"""The table of steps: what the draft/verify loop does between two runs of the numerics, each entry
replaceable.

Owns the hand-over of hidden rows, the checkpointing of state and acceptance. No entry multiplies anything;
the rules that are numerics in disguise (pairing, acceptance, sampling) are those of mtpref/spec/mtp.py and sampling.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import policy, spec
from mtpref.contract import MtpContract
from mtpref.state import Checkpoint, HeadState, ModelState

F32 = NDArray[np.float32]
Step = Callable[..., Any]


@dataclass(frozen=True)
class Hidden:
    """The two rows that a final norm stands between, of a trunk or of an MTP block: (T, n_embd) each."""

    pre: F32
    post: F32


def target_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """The trunk's rows that the head is fed with."""
    return getattr(rows, contract.hidden)


def chain_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """The head's own rows that the next draft step is fed with."""
    return getattr(rows, contract.chain)


def prime_rows(n_tokens: int, contract: MtpContract) -> int:
    """How many tokens of a prompt batch go through the head: all, or none where the contract does not
    prime."""
    return n_tokens if contract.prime == "prompt" else 0


def prime_ids(ids: Sequence[int], pos0: int, pending: F32) -> Sequence[int]:
    """The tokens of a prompt batch at position pos0 that the head is given: the prompt's own."""
    return ids


def prompt_pending(hidden: F32, is_last: bool) -> F32:
    """The pending hidden row behind a prompt batch: its last row. is_last: the batch ends the prompt."""
    return hidden[-1].copy()


def kept_rows(n_kept: int, n_drafted: int) -> int:
    """How many of a round's kept tokens go through the head in the catch-up pass: all, drafted or not."""
    return n_kept


def mtp_embedding(embd: F32, first_pos: int, contract: MtpContract) -> F32:
    """The embeddings that the head is given: the tokens' own; the first cell's is zero where the contract says so."""
    if contract.first == "zero_embd" and first_pos == contract.first_pos:
        embd[0] = 0.0
    return embd


def mtp_positions(first_pos: int, n_tokens: int, contract: MtpContract) -> NDArray[np.int32]:
    """The RoPE positions of a batch of the head."""
    return np.arange(first_pos, first_pos + n_tokens, dtype=np.int32) + np.int32(contract.pos_offset)


def place_mtp(head: HeadState, first_pos: int) -> None:
    """Before a head's cells grow: the batch must begin where they end.

    Errors  ValueError where positions would leave a hole or overlap
    """
    if head.n_cells == 0:
        head.start = first_pos
    if first_pos != head.pos:
        raise ValueError(f"MTP cells end at position {head.pos}, the batch starts at {first_pos}")


def pending_at_prompt(left_over: F32, contract: MtpContract) -> F32:
    """The pending hidden row that a new prompt starts from."""
    return np.zeros_like(left_over) if contract.new_prompt == "zero" else left_over


def pending_at_reuse(saved: F32, left_over: F32, contract: MtpContract) -> F32:
    """The pending hidden row that a prompt starts from behind a reused prefix: the saved one, that of the prefix's
    last token; or, as where `new_prompt` is stale, whatever the last run left."""
    return saved if contract.new_prompt == "zero" else left_over


def pending_at_replay(pending: F32, rejected_rows: F32, contract: MtpContract) -> F32:
    """The pending hidden row that a replayed batch starts from."""
    return pending if contract.replay == "right" else rejected_rows[-1].copy()


def checkpoint(state: ModelState) -> Checkpoint:
    """Before a batch whose tokens may be rejected."""
    return state.checkpoint()


def restore(state: ModelState, saved: Checkpoint) -> None:
    """Back to a checkpoint: recurrent matrices, conv windows, cells, pending hidden."""
    state.restore(saved)


def choose_plane(state: ModelState, n_drop: int) -> None:
    """Forget the last n_drop tokens by choosing the planes of the token before them."""
    state.choose_plane(n_drop)


def trim_mtp(state: ModelState, pos: int) -> None:
    """Cut every head's cells at a position and after it: draft-time rows never stay."""
    state.trim_heads(pos)


def draft_opening(id_last: int, last_targets: Sequence[int]) -> int:
    """The token that a draft continues: the last one of the text.

    last_targets  what the target chose at each row of the last verified batch, rows of rejected tokens included
    """
    return id_last


def emitted(draft: Sequence[int], n_accepted: int, target: Sequence[int]) -> list[int]:
    """The tokens that a round adds to the text: the accepted ones, then the target's own behind them."""
    return [*draft[:n_accepted], target[n_accepted]]


def ends_text(is_eog: bool, is_last: bool) -> bool:
    """Whether an emitted token ends the text: every end-of-generation token does, wherever in the round it is."""
    return is_eog


def residual(id_draft: int, target: spec.Distribution, draft: spec.Distribution) -> spec.Distribution:
    """`residual`: what is drawn from in place of a rejected token: it follows from the two distributions alone."""
    return spec.residual(target, draft)


def match_token(id_draft: int, target: spec.Distribution, u: float) -> int:
    """`match`: the token of a row that has a drafted one is the target's own draw, whatever was drafted."""
    return spec.draw(target, u)


def plain_token(target: spec.Distribution, u: float) -> int:
    """The token of a row without a draft: the target's draw."""
    return spec.draw(target, u)


def bonus_token(target: spec.Distribution, u: float) -> int:
    """The token of the row behind a whole draft: the target's draw, by both rules."""
    return spec.draw(target, u)


def draft_token(draft: spec.Distribution, u: float) -> int:
    """`residual`: the drafted token is a draw from the draft's distribution."""
    return spec.draw(draft, u)


@dataclass(frozen=True)
class Steps:
    """Every step of the loop by name. The defaults are the reference; a fault replaces single entries."""

    target_hidden: Step = target_hidden
    chain_hidden: Step = chain_hidden
    pair_hidden: Step = spec.pair_hidden  # S20
    prime_rows: Step = prime_rows
    prime_ids: Step = prime_ids
    prompt_pending: Step = prompt_pending
    kept_rows: Step = kept_rows
    mtp_embedding: Step = mtp_embedding
    mtp_positions: Step = mtp_positions
    place_mtp: Step = place_mtp
    draft_opening: Step = draft_opening
    draft_limit: Step = policy.draft_limit
    takes: Step = policy.takes
    draws: Step = policy.draws
    keeps_drawn: Step = policy.keeps_drawn
    proposed: Step = policy.proposed
    after_round: Step = policy.after_round
    pending_at_prompt: Step = pending_at_prompt
    pending_at_reuse: Step = pending_at_reuse
    pending_at_replay: Step = pending_at_replay
    accept_greedy: Step = spec.accept_greedy  # S23: how many, by every rule
    target_distribution: Step = spec.filtered  # S27
    draft_distribution: Step = spec.filtered  # S27
    draft_token: Step = draft_token
    match_token: Step = match_token
    plain_token: Step = plain_token
    bonus_token: Step = bonus_token
    accept_residual: Step = spec.accept_residual  # S29
    residual: Step = residual  # S29
    residual_token: Step = spec.draw  # S28
    emitted: Step = emitted
    ends_text: Step = ends_text
    next_pending: Step = spec.next_pending  # S24
    checkpoint: Step = checkpoint
    restore: Step = restore
    choose_plane: Step = choose_plane
    trim_mtp: Step = trim_mtp
