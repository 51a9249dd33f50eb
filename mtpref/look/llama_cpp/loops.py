"""Which loop made a log: what llama.cpp does with a draft that is accepted in part.

Owns the reading of it from the log's own lines. Models with recurrent planes, and those without any recurrent state,
are rolled back in place; others by a replay that has the correction in it (S52). The text is the same.
"""

from dataclasses import dataclass

from mtpref.look.llama_cpp.rounds import LlamaLog

WITH_CORRECTION = "replay-with-correction"


@dataclass(frozen=True)
class Loop:
    """rollback: the strategy of `Options.rollback`; replay: the contract's field, None: whichever; words: what it does,
    "" where the log does not tell"""

    rollback: str
    replay: str | None
    words: str

    def text(self) -> str:
        """The same with the row that a replay starts from."""
        row = {None: "", "stale": "the rejected batch's last", "right": "the right"}[self.replay]
        return self.words + (f", from {row} hidden row (--contract replay={self.replay})" if row else "")


IN_PLACE = Loop("snapshot", None, "rejected tokens are taken out of the state in place, nothing is run again")
UNKNOWN = Loop("snapshot", None, "")
_AGAIN = "a draft accepted in part is run again with the correction in it (--spec-rollback replay-with-correction)"
STALE = Loop(WITH_CORRECTION, "stale", _AGAIN)
RIGHT = Loop(WITH_CORRECTION, "right", _AGAIN)


def loops_of(log: LlamaLog) -> tuple[Loop, ...]:
    """The loops that could have made it, the likeliest first. No line tells the row that a replay starts from."""
    if log.n_partial:
        return STALE, RIGHT
    return (IN_PLACE if any(r.n_accepted < r.n_draft for r in log.rounds) else UNKNOWN,)
