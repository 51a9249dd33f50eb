"""Policy: how long a draft may be, and when to be silent. Counts, booleans and fixed-point probabilities only.

Owns draft length (n_max, n_min, p_min), the rejection cooldown and the adaptive rules. It has no arrays and no model,
so that it can be tested by enumeration, and integers alone (probabilities and costs in units of 2**-32, `P_ONE`), so
that every decision is the same on every machine. No rule sees a token: under `residual` a decision falls before the
draw that it is about, and what was drawn is judged (docs/adaptive.md). engine/decode/lengths.py asks in the loop's
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from mtpref.base.settings import Bounds, OneOf, SettingError, check_fields
from mtpref.spec import P_ONE

RULES = ("off", "heuristic", "expected")

N_BINS = 8  # of the head's probability, all of one width
PRIOR = 8  # judged tokens that the head's own probability counts for
N_REMEMBERED = 64  # judged tokens of a bin after which its counts are halved
MAX_SILENT = 15  # rounds in a row that `expected` may be silent
STEP_UP, STEP_DOWN = 2, 1  # `heuristic`

# A draft step and a further row of a verify pass, in parts of a plain decode pass.
DRAFT_COST, ROW_COST = P_ONE // 8, P_ONE // 8
MAX_COST = 16  # plain decode passes

POLICY, ADAPTIVE = "PolicyConfig", "AdaptiveConfig"  # what a caller builds, and errors name


Length = Annotated[int, Bounds(0, 1024)]
Streak = Annotated[int, Bounds(1, 1024)]
Rule = Annotated[str, OneOf(RULES)]


@dataclass(frozen=True)
class FixedPolicy:
    """How long drafts may be, and when there are none: the integers of a `PolicyConfig` (engine/decode/options.py).

    n_max, n_min    longest and shortest draft (llama.cpp: --spec-draft-n-max, --spec-draft-n-min)
    p_min           a draft token below this probability is not proposed and ends the draft; in units of 2**-32
    cooldown        rounds of silence (--spec-cooldown), 0: never
    cooldown_after  after so many rounds in a row without an acceptance (--spec-cooldown-after)
    Errors          SettingError for a value out of range
    """

    n_max: Length = 3
    n_min: Length = 0
    p_min: Annotated[int, Bounds(0, P_ONE)] = 0
    cooldown: Length = 0
    cooldown_after: Streak = 1

    def __post_init__(self) -> None:
        check_fields(self, POLICY)
        if self.n_min > self.n_max:
            problem = f"{self.n_min} is more than {{n_max}} {self.n_max}; no draft would ever be proposed"
            raise SettingError(f"{POLICY}.n_min", problem, n_max=f"{POLICY}.n_max")


@dataclass(frozen=True)
class FixedAdaptive:
    """The rule that makes drafts shorter than the policy allows: the integers of an `AdaptiveConfig`.

    rule        off (every round may draft n_max tokens), heuristic or expected
    draft_cost  `expected`: what one step of the head costs, in units of 2**-32 of a pass of the trunk for one token
    row_cost    `expected`: what one more token costs in a verify pass, in the same units
    Errors      SettingError for a value out of range
    """

    rule: Rule = "off"
    draft_cost: Annotated[int, Bounds(0, MAX_COST * P_ONE)] = DRAFT_COST
    row_cost: Annotated[int, Bounds(0, MAX_COST * P_ONE)] = ROW_COST

    def __post_init__(self) -> None:
        check_fields(self, ADAPTIVE)


@dataclass(frozen=True)
class PolicyState:
    """What the cooldown remembers between rounds.

    n_misses    drafting rounds in a row in which nothing was accepted
    n_cooldown  rounds of silence left
    """

    n_misses: int = 0
    n_cooldown: int = 0


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


def draft_limit(cfg: FixedPolicy, state: PolicyState, n_room: int) -> int:
    """S35. The longest draft of this round: n_max, cut to what is useful (n_room), 0 while cooling down."""
    return 0 if state.n_cooldown else max(0, min(cfg.n_max, n_room))


def takes(cfg: FixedPolicy, p: int, n_drawn: int | None = None) -> bool:
    """S35. The gate: whether a candidate of probability p (in units of 2**-32) is proposed.

    n_drawn  `residual`: whether one more token is drawn after so many; p is still that of the best candidate
    Rule     p >= p_min. The gate of `residual` is asked before a draw, and a token once drawn is judged. So p_min may
             keep a draft from beginning and may end it at n_min tokens or later; in between it is not asked, because
             a draft given up for being short would be given up for the tokens that were drawn, and the text would
             lose them
    """
    return p >= cfg.p_min or (n_drawn is not None and 0 < n_drawn < cfg.n_min)


def keeps_drawn(cfg: FixedPolicy, p: int) -> bool:
    """S35. `residual`: whether a token that was drawn is proposed: always; p is its own probability.

    Rule  what was drawn must be judged, or the text loses tokens by their improbability
    """
    return True


def proposed(cfg: FixedPolicy, n_drafted: int, limit: int) -> int:
    """S35. How many drafted tokens are proposed: all, or none where p_min left fewer than n_min of them.

    A limit below n_min (the end of the budget) does not count against the draft.
    """
    return n_drafted if n_drafted >= min(cfg.n_min, limit) else 0


def after_round(cfg: FixedPolicy, state: PolicyState, n_drafted: int, n_accepted: int) -> PolicyState:
    """S36. The cooldown's state for the next round.

    Rule  after `cooldown_after` rounds in a row that proposed something and had nothing accepted, `cooldown` rounds are
          silent, and the count starts again. A round that proposes nothing neither counts nor breaks the row
    """
    if n_drafted == 0:
        return PolicyState(state.n_misses, max(0, state.n_cooldown - 1))
    if n_accepted:
        return PolicyState()
    n_misses = state.n_misses + 1
    if cfg.cooldown and n_misses >= cfg.cooldown_after:
        return PolicyState(0, cfg.cooldown)
    return PolicyState(n_misses, 0)


def adaptive_limit(cfg: FixedAdaptive, state: AdaptiveState, limit: int) -> int:
    """S37. The longest draft of this round, given the policy's own limit: shorter under `heuristic` alone."""
    if cfg.rule != "heuristic" or state.length is None:
        return limit
    return min(limit, state.length)


def calibrated(state: AdaptiveState, p: int) -> int:
    """S37. The probability that a token is accepted which the head gives probability p, both in units of 2**-32.

    Rule  (PRIOR p + accepted) / (PRIOR + judged), counts of p's bin: the head's own word until there is evidence
    """
    at = _bin(p)
    return (PRIOR * p + state.accepted[at] * P_ONE) // (PRIOR + state.judged[at])


def mean_acceptance(state: AdaptiveState) -> int:
    """S37. The same for a token whose probability is not known yet: all bins, and 1 in place of p.

    A doubtful head that is never asked would stay doubtful, so the first rounds draft.
    """
    return (PRIOR + sum(state.accepted)) * P_ONE // (PRIOR + sum(state.judged))


def worth_a_step(cfg: FixedAdaptive, state: AdaptiveState, chain: Chain, n_min: int = 0) -> bool:
    """S37. `expected`: whether the head should run for one more token.

    Rule  survival a / (draft + row) > tokens / (1 + n (draft + row)), with a = `mean_acceptance`: the token's expected
          gain for its cost is above that of the round so far. True for the first token after MAX_SILENT silent rounds,
          and until a draft that has begun is n_min tokens long
    """
    if not _asks(cfg, state, chain, n_min):
        return True
    more = cfg.draft_cost + cfg.row_cost
    return _is_worth(chain, mean_acceptance(state), more, P_ONE + chain.n * more)


def worth_a_row(cfg: FixedAdaptive, state: AdaptiveState, chain: Chain, p: int, n_min: int = 0) -> bool:
    """S37. `expected`: whether a token is drafted after the chain; p: the head's probability of its best candidate.

    Rule  survival a / row > tokens / (1 + n (draft + row) + draft), with a = `calibrated`(p): the step of the head has
          been paid by now, the row in the verify pass has not. True where `worth_a_step` is without asking
    """
    if not _asks(cfg, state, chain, n_min):
        return True
    spent = P_ONE + chain.n * (cfg.draft_cost + cfg.row_cost) + cfg.draft_cost
    return _is_worth(chain, calibrated(state, p), cfg.row_cost, spent)


def _asks(cfg: FixedAdaptive, state: AdaptiveState, chain: Chain, n_min: int) -> bool:
    """Whether the rule has a say about the next token."""
    is_tried = chain.n == 0 and state.n_silent >= MAX_SILENT
    return cfg.rule == "expected" and not is_tried and not 0 < chain.n < n_min


def _is_worth(chain: Chain, acceptance: int, cost: int, spent: int) -> bool:
    """survival acceptance / cost > tokens / spent, in integers: no division, no rounding."""
    return chain.survival * acceptance * spent > chain.tokens * cost * P_ONE


def longer(state: AdaptiveState, chain: Chain, p: int) -> Chain:
    """S37. The chain with one more token, to which the head gave probability p."""
    survival = chain.survival * calibrated(state, p) // P_ONE
    return Chain(chain.n + 1, survival, chain.tokens + survival)


def after_adaptive_round(
    cfg: FixedAdaptive, state: AdaptiveState, ps: Sequence[int], n_accepted: int, limit: int
) -> AdaptiveState:
    """S37. What is remembered after a round.

    ps      the head's probability of each proposed token; the one after n_accepted was judged too, the rest were not
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
