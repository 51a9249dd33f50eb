"""The table of steps: what the draft/verify loop does between two runs of the numerics, each entry
replaceable.

Owns the hand-over of hidden rows, the checkpointing of state and acceptance. No entry multiplies anything;
the rules that are numerics in disguise (pairing, acceptance, sampling) are those of mtpref/spec/mtp.py and sampling.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.contract import MtpContract
from mtpref.state import Checkpoint, ModelState

F32 = NDArray[np.float32]
Step = Callable[..., Any]


@dataclass(frozen=True)
class Hidden:
    """The two rows that a final norm stands between, of a trunk or of an MTP block: (T, n_embd) each."""

    pre: F32
    post: F32


def target_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """The trunk's rows that the head is fed with."""
    return rows.post if contract.hidden == "post" else rows.pre


def chain_hidden(rows: Hidden, contract: MtpContract) -> F32:
    """The head's own rows that the next draft step is fed with."""
    return rows.post if contract.chain == "post" else rows.pre


def prime_rows(n_tokens: int, contract: MtpContract) -> int:
    """How many tokens of a prompt batch go through the head: all, or none where the contract does not
    prime."""
    return n_tokens if contract.prime == "prompt" else 0


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
    """Cut the head's cells at and behind a position: draft-time rows never stay."""
    state.trim_mtp(pos)


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
    residual: Step = spec.residual  # S29
    residual_token: Step = spec.draw  # S28
    next_pending: Step = spec.next_pending  # S24
    checkpoint: Step = checkpoint
    restore: Step = restore
    choose_plane: Step = choose_plane
    trim_mtp: Step = trim_mtp
