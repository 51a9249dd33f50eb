"""The types of the steps: what each takes and gives, by the names of its reference function in steps.py.

Owns the records that steps pass to each other. A step of another shape is refused by a type checker. Arguments are
passed by position, so a replacement may name them as it likes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from mtpref.spec import Distribution
from mtpref.spec.contract import MtpContract
from mtpref.spec.policy import FixedPolicy, PolicyState
from mtpref.spec.state import Checkpoint, HeadState, ModelState

F32 = NDArray[np.float32]
Filters = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Hidden:
    """The rows that a final norm stands between, of a trunk or of an MTP block.

    Shapes   post: (T, n_embd); pre: (T, n_embd), or as wide as the architecture's residual stream
    """

    pre: F32
    post: F32

    def of(self, which: str) -> F32:
        """`pre` or `post`, as a resolved contract says."""
        return {"pre": self.pre, "post": self.post}[which]


@dataclass(frozen=True)
class Batch:
    """Tokens that the trunk has run and that stay in the text: what the head has to catch up with.

    pos0       the position of the first, pending: the hidden row of the token before it
    n_drafted  how many drafted tokens the round verified; None: the tokens are a batch of the prompt
    """

    ids: Sequence[int]
    pos0: int
    pending: F32
    n_drafted: int | None = None


class ChooseHidden(Protocol):
    def __call__(self, rows: Hidden, contract: MtpContract, /) -> F32: ...


class PairHidden(Protocol):
    def __call__(self, hidden: F32, pending: F32, /) -> F32: ...


class HeadIds(Protocol):
    def __call__(self, batch: Batch, contract: MtpContract, /) -> Sequence[int]: ...


class PromptPending(Protocol):
    def __call__(self, hidden: F32, is_last: bool, /) -> F32: ...


class MtpEmbedding(Protocol):
    def __call__(self, embd: F32, first_pos: int, contract: MtpContract, /) -> F32: ...


class MtpPositions(Protocol):
    def __call__(self, first_pos: int, n_tokens: int, contract: MtpContract, /) -> NDArray[np.int32]: ...


class PlaceMtp(Protocol):
    def __call__(self, head: HeadState, first_pos: int, /) -> None: ...


class DraftOpening(Protocol):
    def __call__(self, id_last: int, last_ids: Sequence[int], /) -> int: ...


class DraftPosition(Protocol):
    def __call__(self, pos0: int, step: int, n_rows: int, reads_target: bool, /) -> int: ...


class CellsToRead(Protocol):
    def __call__(self, state: ModelState, id_last: int, /) -> ModelState: ...


class DraftLimit(Protocol):
    def __call__(self, cfg: FixedPolicy, state: PolicyState, n_room: int, /) -> int: ...


class Takes(Protocol):
    def __call__(self, cfg: FixedPolicy, p: int, n_drawn: int | None = None, /) -> bool: ...


class KeepsDrawn(Protocol):
    def __call__(self, cfg: FixedPolicy, p: int, /) -> bool: ...


class Proposed(Protocol):
    def __call__(self, cfg: FixedPolicy, n_drafted: int, limit: int, /) -> int: ...


class AfterRound(Protocol):
    def __call__(self, cfg: FixedPolicy, state: PolicyState, n_drafted: int, n_accepted: int, /) -> PolicyState: ...


class PendingAtPrompt(Protocol):
    def __call__(self, left_over: F32, contract: MtpContract, saved: F32 | None = None, /) -> F32: ...


class PendingAtReplay(Protocol):
    def __call__(self, pending: F32, rejected_rows: F32, contract: MtpContract, /) -> F32: ...


class Accept(Protocol):
    def __call__(self, draft: Sequence[int], target: Sequence[int], eog_ids: frozenset[int], /) -> int: ...


class Filtered(Protocol):
    def __call__(self, logits: F32, chain: Filters, /) -> Distribution: ...


class Draw(Protocol):
    def __call__(self, dist: Distribution, u: float, /) -> int: ...


class MatchToken(Protocol):
    def __call__(self, id_draft: int, target: Distribution, u: float, /) -> int: ...


class BonusToken(Protocol):
    def __call__(self, target: Distribution, u: float, /) -> int: ...


class AcceptResidual(Protocol):
    def __call__(self, p_target: float, p_draft: float, u: float, /) -> bool: ...


class Residual(Protocol):
    def __call__(self, id_draft: int, target: Distribution, draft: Distribution, /) -> Distribution: ...


class Emitted(Protocol):
    def __call__(self, draft: Sequence[int], n_accepted: int, row_ids: Sequence[int], /) -> list[int]: ...


class EndsText(Protocol):
    def __call__(self, is_eog: bool, is_last: bool, /) -> bool: ...


class NextPending(Protocol):
    def __call__(self, hidden: F32, n_accepted: int, /) -> F32: ...


class Restore(Protocol):
    def __call__(self, state: ModelState, saved: Checkpoint, /) -> None: ...


class ChoosePlane(Protocol):
    def __call__(self, state: ModelState, n_drop: int, /) -> None: ...


class TrimMtp(Protocol):
    def __call__(self, state: ModelState, pos: int, /) -> None: ...


class ChainHead(Protocol):
    def __call__(self, step: int, n_heads: int, contract: MtpContract, /) -> int | None: ...


class ChainRow(Protocol):
    def __call__(self, rows: F32, contract: MtpContract, /) -> F32: ...


class ChainInput(Protocol):
    def __call__(
        self, ids: Sequence[int], hidden: F32, token: int, row: F32, chained: bool, /
    ) -> tuple[list[int], F32]: ...


class CatchUpRows(Protocol):
    def __call__(self, paired: F32, before: F32 | None, contract: MtpContract, /) -> F32: ...


class HoldBack(Protocol):
    def __call__(self, rows: F32, held: F32 | None, head: int, contract: MtpContract, /) -> tuple[F32, F32 | None]: ...


class HeldRows(Protocol):
    def __call__(self, hidden: F32, own: F32, held: F32 | None, pending: F32, contract: MtpContract, /) -> F32: ...


class StepEntries(TypedDict, total=False):
    """Some steps, as keywords or as a record: what stands in for the table's own."""

    target_hidden: ChooseHidden
    chain_hidden: ChooseHidden
    pair_hidden: PairHidden
    head_ids: HeadIds
    prompt_pending: PromptPending
    mtp_embedding: MtpEmbedding
    mtp_positions: MtpPositions
    place_mtp: PlaceMtp
    draft_opening: DraftOpening
    draft_position: DraftPosition
    cells_to_read: CellsToRead
    draft_limit: DraftLimit
    takes: Takes
    keeps_drawn: KeepsDrawn
    proposed: Proposed
    after_round: AfterRound
    pending_at_prompt: PendingAtPrompt
    pending_at_replay: PendingAtReplay
    accept_greedy: Accept
    target_distribution: Filtered
    draw: Draw
    match_token: MatchToken
    bonus_token: BonusToken
    accept_residual: AcceptResidual
    residual: Residual
    emitted: Emitted
    ends_text: EndsText
    next_pending: NextPending
    restore: Restore
    choose_plane: ChoosePlane
    trim_mtp: TrimMtp
    chain_head: ChainHead
    chain_row: ChainRow
    chain_input: ChainInput
    catch_up_rows: CatchUpRows
    hold_back: HoldBack
    held_rows: HeldRows
