"""Events: what a run tells whoever listens, as it happens.

Owns the event types and their JSON form. The loop yields events and never formats them; mtpref/trace.py writes them
to a file, the command line prints them.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "mtpref-trace-1"


@dataclass(frozen=True)
class RunStarted:
    """First event. settings: every option that can change the output. n_reused: prompt tokens that are not run
    again, because a session's state holds them."""

    model: str
    numerics: str
    contract: dict[str, Any]
    settings: dict[str, Any]
    prompt_ids: list[int]
    schema: str = SCHEMA
    n_reused: int = 0


@dataclass(frozen=True)
class PromptProgress:
    """n_done of n_total prompt tokens have been processed, the n_reused first of them in an earlier run."""

    n_done: int
    n_total: int
    n_reused: int = 0


@dataclass(frozen=True)
class DraftStep:
    """One step of the drafter: the candidates it saw, best first, and whether the best one was taken."""

    pos: int
    candidates: list[int]
    p: list[float]
    margin: float
    is_taken: bool


@dataclass(frozen=True)
class Drafted:
    """A draft for the tokens behind id_last, which is at position pos0. n_cooldown: rounds of silence left."""

    round: int
    pos0: int
    id_last: int
    ids: list[int]
    steps: list[DraftStep]
    n_cooldown: int


@dataclass(frozen=True)
class Verified:
    """The target's choice at each verified row, the margin of each, and the verdict on each drafted token."""

    round: int
    pos0: int
    draft_ids: list[int]
    target_ids: list[int]
    margins: list[float]
    near_ties: list[bool]
    n_accepted: int
    verdicts: list[str]


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
    """One token of the output. source: draft, bonus (after a full acceptance), correction, or plain (no draft)."""

    pos: int
    id: int
    piece: bytes
    source: str
    is_eog: bool


@dataclass(frozen=True)
class RunEnded:
    """Last event. reason: eog, length, context or interrupted."""

    reason: str
    statistics: dict[str, Any] = field(default_factory=dict)


Event = RunStarted | PromptProgress | Drafted | Verified | RolledBack | Token | RunEnded


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON-able values: {"event": type name, ...fields}; bytes become a hex string."""
    record: dict[str, Any] = {"event": type(event).__name__}
    for name, value in asdict(event).items():
        record[name] = value.hex() if isinstance(value, bytes) else value
    return record
