"""Adaptive draft length: how many tokens a round drafts, decided from earlier rounds and from the head's confidence.

Owns two rules and what they remember. Integers only, probabilities and costs in units of 2**-32 (`P_ONE`), so that
every decision is the same on every machine. No rule sees a token: under `residual` a decision falls before the draw
that it is about, and what was drawn is judged (docs/adaptive.md). Read with mtpref/policy.py, whose gates come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtpref.errors import MtprefError
from mtpref.spec import P_ONE

RULES = ("off", "heuristic", "expected")

N_BINS = 8  # of the head's probability, all of one width
PRIOR = 8  # judged tokens that the head's own probability counts for
N_REMEMBERED = 64  # judged tokens of a bin after which its counts are halved
MAX_SILENT = 15  # rounds in a row that `expected` may be silent
STEP_UP, STEP_DOWN = 2, 1  # `heuristic`

# A draft step and a further row of a verify pass, in parts of a plain decode pass.
DRAFT_COST, ROW_COST = P_ONE // 8, P_ONE // 8


@dataclass(frozen=True)
class AdaptiveConfig:
    """rule        off (every round may draft n_max tokens), heuristic or expected
    draft_cost  `expected`: what one step of the head costs, in units of 2**-32 of a pass of the trunk for one token
    row_cost    `expected`: what one more token costs in a verify pass, in the same units
    """

    rule: str = "off"
    draft_cost: int = DRAFT_COST
    row_cost: int = ROW_COST

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise MtprefError(f"--spec-adaptive: {self.rule!r} is unknown, expected one of {', '.join(RULES)}")
        for what, value in (("draft step", self.draft_cost), ("verify row", self.row_cost)):
            if not 0 <= value <= 16 * P_ONE:
                raise MtprefError(f"--spec-adaptive-costs: {value / P_ONE:g} for a {what} is out of range, "
                                  "expected 0 .. 16 plain decode passes")  # fmt: skip


@dataclass(frozen=True)
class AdaptiveState:
    """What a rule remembers between rounds.

    length    `heuristic`: the longest draft of the next round; None before the first
    judged    `expected`: per bin of the head's probability, drafted tokens that the target judged
    accepted  and how many of these it accepted
    n_silent  rounds in a row in which the rule itself drafted nothing
    """

    length: int | None = None
    judged: tuple[int, ...] = (0,) * N_BINS
    accepted: tuple[int, ...] = (0,) * N_BINS
    n_silent: int = 0


@dataclass(frozen=True)
class Chain:
    """A draft as it grows. n: its tokens; survival: the probability that all of them are accepted; tokens: expected
    tokens of the round, the target's own included. The last two in units of 2**-32."""

    n: int = 0
    survival: int = P_ONE
    tokens: int = P_ONE


def adaptive_limit(cfg: AdaptiveConfig, state: AdaptiveState, limit: int) -> int:
    """The longest draft of this round, given the policy's own limit: shorter under `heuristic` alone."""
    if cfg.rule != "heuristic" or state.length is None:
        return limit
    return min(limit, state.length)


def calibrated(state: AdaptiveState, p: int) -> int:
    """The probability that a token is accepted which the head gives probability p, both in units of 2**-32.

    Rule  (PRIOR p + accepted) / (PRIOR + judged), counts of p's bin: the head's own word until there is evidence
    """
    at = _bin(p)
    return (PRIOR * p + state.accepted[at] * P_ONE) // (PRIOR + state.judged[at])


def mean_acceptance(state: AdaptiveState) -> int:
    """The same for a token whose probability is not known yet: all bins, and 1 in place of p.

    A doubtful head that is never asked would stay doubtful, so the first rounds draft.
    """
    return (PRIOR + sum(state.accepted)) * P_ONE // (PRIOR + sum(state.judged))


def worth_a_step(cfg: AdaptiveConfig, state: AdaptiveState, chain: Chain, n_min: int = 0) -> bool:
    """`expected`: whether the head should run for one more token.

    Rule  survival a / (draft + row) > tokens / (1 + n (draft + row)), with a = `mean_acceptance`: the token's expected
          gain for its cost is above that of the round so far. True for the first token after MAX_SILENT silent rounds,
          and until a draft that has begun is n_min tokens long
    """
    if not _asks(cfg, state, chain, n_min):
        return True
    more = cfg.draft_cost + cfg.row_cost
    return _is_worth(chain, mean_acceptance(state), more, P_ONE + chain.n * more)


def worth_a_row(cfg: AdaptiveConfig, state: AdaptiveState, chain: Chain, p: int, n_min: int = 0) -> bool:
    """`expected`: whether a token is drafted behind the chain; p: the head's probability of its best candidate.

    Rule  survival a / row > tokens / (1 + n (draft + row) + draft), with a = `calibrated`(p): the step of the head has
          been paid by now, the row in the verify pass has not. True where `worth_a_step` is without asking
    """
    if not _asks(cfg, state, chain, n_min):
        return True
    spent = P_ONE + chain.n * (cfg.draft_cost + cfg.row_cost) + cfg.draft_cost
    return _is_worth(chain, calibrated(state, p), cfg.row_cost, spent)


def _asks(cfg: AdaptiveConfig, state: AdaptiveState, chain: Chain, n_min: int) -> bool:
    """Whether the rule has a say about the next token."""
    is_tried = chain.n == 0 and state.n_silent >= MAX_SILENT
    return cfg.rule == "expected" and not is_tried and not 0 < chain.n < n_min


def _is_worth(chain: Chain, acceptance: int, cost: int, spent: int) -> bool:
    """survival acceptance / cost > tokens / spent, in integers: no division, no rounding."""
    return chain.survival * acceptance * spent > chain.tokens * cost * P_ONE


def longer(state: AdaptiveState, chain: Chain, p: int) -> Chain:
    """The chain with one more token, to which the head gave probability p."""
    survival = chain.survival * calibrated(state, p) // P_ONE
    return Chain(chain.n + 1, survival, chain.tokens + survival)


def after_adaptive_round(
    cfg: AdaptiveConfig, state: AdaptiveState, ps: Sequence[int], n_accepted: int, limit: int
) -> AdaptiveState:
    """What is remembered after a round.

    ps      the head's probability of each proposed token; the one behind n_accepted was judged too, the rest were not
    limit   the longest draft that the round could have had before the rule; 0: it could have none, nothing is learnt
    Rule    heuristic: the whole draft accepted: STEP_UP longer; else STEP_DOWN shorter, at least 1
            (the schedule "heuristic" of transformers; the caller's limit bounds it)
    """
    if limit == 0 or cfg.rule == "off":
        return state
    if cfg.rule == "heuristic":
        return _heuristic(state, len(ps), n_accepted, limit)
    judged, accepted = list(state.judged), list(state.accepted)
    for i, p in enumerate(ps[: n_accepted + 1]):
        at = _bin(p)
        judged[at] += 1
        accepted[at] += i < n_accepted
        if judged[at] >= N_REMEMBERED:
            judged[at], accepted[at] = judged[at] // 2, accepted[at] // 2
    n_silent = 0 if ps else state.n_silent + 1
    return replace(state, judged=tuple(judged), accepted=tuple(accepted), n_silent=n_silent)


def _heuristic(state: AdaptiveState, n_drafted: int, n_accepted: int, limit: int) -> AdaptiveState:
    if n_drafted == 0:
        return state
    length = limit if state.length is None else state.length
    if n_accepted < n_drafted:
        return replace(state, length=max(1, length - STEP_DOWN))
    return replace(state, length=min(length + STEP_UP, max(length, limit)))


def _bin(p: int) -> int:
    return min(N_BINS - 1, p * N_BINS // P_ONE)
