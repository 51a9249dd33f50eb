"""Policy: how long a draft may be, and when to be silent. Counts, booleans and fixed-point probabilities only.

Owns draft length, p_min, n_min and the rejection cooldown. It has no arrays and no model, so that it can be tested by
enumeration.
"""

from dataclasses import dataclass

from mtpref.errors import MtprefError
from mtpref.spec import P_ONE


@dataclass(frozen=True)
class PolicyConfig:
    """n_max, n_min   longest and shortest draft (llama.cpp: --spec-draft-n-max, --spec-draft-n-min)
    p_min           a draft token below this probability is not proposed and ends the draft; in units of 2**-32
    cooldown        rounds of silence (--spec-cooldown), 0: never
    cooldown_after  after so many rounds in a row without an acceptance (--spec-cooldown-after)
    """

    n_max: int = 3
    n_min: int = 0
    p_min: int = 0
    cooldown: int = 0
    cooldown_after: int = 1

    def __post_init__(self) -> None:
        limits = (
            ("--spec-draft-n-max", self.n_max, 0),
            ("--spec-draft-n-min", self.n_min, 0),
            ("--spec-cooldown", self.cooldown, 0),
            ("--spec-cooldown-after", self.cooldown_after, 1),
        )
        for name, value, low in limits:
            if not low <= value <= 1024:
                raise MtprefError(f"{name}: {value} is out of range, expected {low} .. 1024")
        if not 0 <= self.p_min <= P_ONE:
            raise MtprefError(f"--spec-draft-p-min: {self.p_min / P_ONE} is out of range, expected 0 .. 1")
        if self.n_min > self.n_max:
            raise MtprefError(f"--spec-draft-n-min: {self.n_min} is more than --spec-draft-n-max {self.n_max}; "
                              "no draft would ever be proposed")  # fmt: skip


@dataclass(frozen=True)
class PolicyState:
    """n_misses    drafting rounds in a row in which nothing was accepted
    n_cooldown  rounds of silence left
    """

    n_misses: int = 0
    n_cooldown: int = 0


def draft_limit(cfg: PolicyConfig, state: PolicyState, n_room: int) -> int:
    """The longest draft of this round: n_max, cut to what is useful (n_room), 0 while cooling down."""
    return 0 if state.n_cooldown else max(0, min(cfg.n_max, n_room))


def takes(cfg: PolicyConfig, p: int) -> bool:
    """Whether a candidate of probability p (in units of 2**-32) is proposed."""
    return p >= cfg.p_min


def draws(cfg: PolicyConfig, p: int, n_drawn: int) -> bool:
    """`residual`: whether one more token is drawn behind n_drawn of them; p: that of the best candidate, as above.

    Rule  the gate is asked before a draw, and a token once drawn is judged. So p_min may keep a draft from beginning
          and may end it at n_min tokens or later; in between it is not asked, because a draft given up for being
          short would be given up for the tokens that were drawn, and the text would lose them
    """
    return p >= cfg.p_min or 0 < n_drawn < cfg.n_min


def keeps_drawn(cfg: PolicyConfig, p: int) -> bool:
    """`residual`: whether a token that was drawn is proposed: always; p is its own probability.

    Rule  what was drawn must be judged, or the text loses tokens by their improbability
    """
    return True


def proposed(cfg: PolicyConfig, n_drafted: int, limit: int) -> int:
    """How many drafted tokens are proposed: all, or none where p_min left fewer than n_min of them.

    A limit below n_min (the end of the budget) does not count against the draft.
    """
    return n_drafted if n_drafted >= min(cfg.n_min, limit) else 0


def after_round(cfg: PolicyConfig, state: PolicyState, n_drafted: int, n_accepted: int) -> PolicyState:
    """The state for the next round. Only rounds that proposed something count as misses."""
    if n_drafted == 0:
        return PolicyState(state.n_misses, max(0, state.n_cooldown - 1))
    if n_accepted:
        return PolicyState()
    n_misses = state.n_misses + 1
    if cfg.cooldown and n_misses >= cfg.cooldown_after:
        return PolicyState(0, cfg.cooldown)
    return PolicyState(n_misses, 0)
