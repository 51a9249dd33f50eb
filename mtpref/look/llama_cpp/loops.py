"""Which loop made a log: what llama.cpp does with a draft that is accepted in part.

Owns the reading of it from the log's own lines. Models with recurrent planes, and those without any recurrent state,
are rolled back in place; others by a replay that has the correction in it (S52). The text is the same.
"""

from dataclasses import dataclass

from mtpref.look.llama_cpp.rounds import LlamaLog

WITH_CORRECTION = "replay-with-correction"


@dataclass(frozen=True)
class Loop:
    """rollback: the strategy of `Options.rollback`; replay: the contract's field, None: whichever; words: for a report"""

    rollback: str
    replay: str | None
    words: str


IN_PLACE = Loop("snapshot", None, "rejected tokens are taken out of the state in place, nothing is run again")
UNKNOWN = Loop("snapshot", None, "")
_AGAIN = "a draft accepted in part is run again with the correction in it (--spec-rollback replay-with-correction)"
STALE = Loop(WITH_CORRECTION, "stale", f"{_AGAIN}, from the rejected batch's last hidden row (--contract replay=stale)")
RIGHT = Loop(WITH_CORRECTION, "right", f"{_AGAIN}, from the right hidden row (--contract replay=right)")


def loops_of(log: LlamaLog) -> tuple[Loop, ...]:
    """The loops that could have made it, the likeliest first. No line tells the row that a replay starts from."""
    if log.n_partial:
        return STALE, RIGHT
    return (IN_PLACE if any(r.n_accepted < r.n_draft for r in log.rounds) else UNKNOWN,)
