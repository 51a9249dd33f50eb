"""The events of a trace as rounds: what was drafted, what came of it, and the tokens it gave.

Owns the grouping. It holds one round at a time, whatever the file says.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mtpref.base.events import Drafted, Event, PromptProgress, RolledBack, RunEnded, RunStarted, Token, Verified

# A round gives at most n_max + 1 tokens, and n_max is at most 1024.
MAX_TOKENS = 2048


@dataclass
class Round:
    """One round. A run that was killed leaves `verified` None; tokens in front of the first round (the one after a
    prompt that was processed whole) make a round without `drafted`.
    """

    drafted: Drafted | None = None
    verified: Verified | None = None
    rolled_back: RolledBack | None = None
    tokens: list[Token] = field(default_factory=list)

    @property
    def number(self) -> int | None:
        return None if self.drafted is None else self.drafted.round


def rounds_of(events: Iterable[Event]) -> Iterator[RunStarted | PromptProgress | Round | RunEnded]:
    """Group events: Drafted, Verified, RolledBack and their Tokens become a Round; the others are passed on."""
    current: Round | None = None
    for event in events:
        if isinstance(event, RunStarted | PromptProgress | RunEnded):
            if current is not None:
                yield current
                current = None
            yield event
        elif isinstance(event, Token):
            current = current or Round()
            current.tokens.append(event)
            if len(current.tokens) >= MAX_TOKENS:
                yield current
                current = None
        elif isinstance(event, Drafted):
            if current is not None:
                yield current
            current = Round(event)
        elif isinstance(event, Verified):
            current = current or Round()
            current.verified = event
        else:
            current = current or Round()
            current.rolled_back = event
    if current is not None:
        yield current
