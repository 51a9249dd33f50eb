"""Events: what a run tells whoever listens, as it happens.

Owns the event types and their JSON form. The loop yields events and never formats them; mtpref/look/trace writes them
to a file, the command line prints them.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from mtpref.base.typed import NotFinite

SCHEMA = "mtpref-trace-1"
Margin = Annotated[float, NotFinite()]  # infinite where a head has one row


@dataclass(frozen=True)
class RunStarted:
    """First event. settings: every option that can change the output. n_reused: prompt tokens that are not run
    again, because a session's state holds them. changes: ids of what was changed in the model on purpose (faults).
    notes: what of the settings this model cannot follow."""

    model: str
    numerics: str
    contract: dict[str, Any]
    settings: dict[str, Any]
    prompt_ids: list[int]
    schema: str = SCHEMA
    n_reused: int = 0
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PromptProgress:
    """n_done of n_total prompt tokens have been processed, the n_reused first of them in an earlier run.

    router_gap  the least gap of routers (S44) and indexers (S63) for the tokens that this pass ran; None for a model
                without either
    """

    n_done: int
    n_total: int
    n_reused: int = 0
    router_gap: Margin | None = None


@dataclass(frozen=True)
class DraftStep:
    """One step of the drafter: the candidates it saw, best first, and whether a token was taken.

    u  the uniform number that drew the token, q: the token's probability in the draft's own filtered distribution
       (None: the token is the best candidate)
    router_gap  the least router gap (S44) of the head's networks at this row; None without experts
    head  which head of a chain (S99); None where there is no chain
    """

    pos: int
    candidates: list[int]
    p: list[float]
    margin: Margin
    is_taken: bool
    u: float | None = None
    q: float | None = None
    router_gap: Margin | None = None
    head: int | None = None


@dataclass(frozen=True)
class Drafted:
    """A draft for the tokens after id_last, which is at position pos0. n_cooldown: rounds of silence left."""

    round: int
    pos0: int
    id_last: int
    ids: list[int]
    steps: list[DraftStep]
    n_cooldown: int


@dataclass(frozen=True)
class Draw:
    """How the token of one row was sampled.

    pos         position of the token
    id, p       the drafted token and its probability in the target's filtered distribution (None: none was drafted)
    q           its probability in the draft's distribution, p_accept: the probability, before any draw, that it is
                accepted (None: none was drafted)
    u_target, u_accept, u_residual   the uniform numbers that were looked at (None: that one was not)
    edge        distance of the last of them from a number that gives another token; None where none does
    """

    pos: int
    id: int | None = None
    p: float | None = None
    q: float | None = None
    p_accept: float | None = None
    u_target: float | None = None
    u_accept: float | None = None
    u_residual: float | None = None
    edge: float | None = None


@dataclass(frozen=True)
class Verified:
    """The target's choice at each verified row, the margin of each, and the verdict on each drafted token.

    draws  how each row's token was sampled; empty for greedy decoding
    router_gaps  the least gap of routers (S44) and indexers (S63) of each row over the trunk's layers; empty for a
                 model without either
    """

    round: int
    pos0: int
    draft_ids: list[int]
    target_ids: list[int]
    margins: list[Margin]
    near_ties: list[bool]
    n_accepted: int
    verdicts: list[str]
    draws: list[Draw] = field(default_factory=list)
    router_gaps: list[Margin] = field(default_factory=list)


@dataclass(frozen=True)
class RolledBack:
    """The model state went back from position from_pos to to_pos; n_replayed tokens were run again."""

    round: int
    strategy: str
    from_pos: int
    to_pos: int
    n_replayed: int


@dataclass(frozen=True)
class Token:
    """One token of the output. source: draft, bonus (after a full acceptance), correction, or plain (no draft).

    text  the bytes that may be shown now: of this piece and of earlier ones that were held back, as they might have
          been the beginning of a stop string
    u     the uniform number that drew the token (None: greedy, or told in the round's `draws` and `steps`)
    """

    pos: int
    id: int
    piece: bytes
    source: str
    is_eog: bool
    text: bytes = b""
    u: float | None = None


@dataclass(frozen=True)
class RunEnded:
    """Last event. reason: eog, stop (a stop string), length, context or interrupted. text: what was still held back."""

    reason: str
    statistics: dict[str, Any] = field(default_factory=dict)
    text: bytes = b""


Event = RunStarted | PromptProgress | Drafted | Verified | RolledBack | Token | RunEnded


# Left out where there is nothing to say: what only models with experts or with a chain of heads have, and changes of
# the model.
_MAY_BE_ABSENT = ("router_gap", "router_gaps", "changes", "head", "notes")


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON-able values: {"event": type name, ...fields}; bytes become a hex string. What only models with
    experts have is left out for others, and changes where there are none."""
    record: dict[str, Any] = {"event": type(event).__name__}
    for name, value in asdict(event, dict_factory=_without_absent).items():
        record[name] = value.hex() if isinstance(value, bytes) else value
    return record


def _without_absent(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in _MAY_BE_ABSENT or value not in (None, [])}
