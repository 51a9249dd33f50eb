"""The loop's decisions made again under a setting, from a record of drafts.

Owns settings and what a run under one would count. The rules are those of mtpref/policy.py and mtpref/adaptive.py,
called in the loop's order; tests hold the counts to those of real runs. It must not know what anything costs.
"""

from collections import Counter
from dataclasses import dataclass, field

from mtpref import adaptive, policy
from mtpref.adaptive import AdaptiveConfig, AdaptiveState, Chain
from mtpref.plan.record import Continuation
from mtpref.policy import PolicyConfig, PolicyState
from mtpref.spec import accept_greedy


@dataclass(frozen=True)
class Setting:
    """What decides the length of drafts. trim: a `Trim`'s name. With policy.n_max = 0 the head is not run at all."""

    trim: str
    policy: PolicyConfig
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)


@dataclass(frozen=True)
class Tally:
    """What a run counts.

    n_tokens   tokens of its rounds
    rounds     (drafted, accepted) -> rounds
    n_steps    draft steps that the head ran, those included whose token was not proposed
    n_silent   rounds of cooldown
    """

    n_tokens: int
    rounds: Counter[tuple[int, int]]
    n_steps: int
    n_silent: int
    uses_head: bool

    @property
    def n_drafted(self) -> int:
        return sum(drafted * n for (drafted, _), n in self.rounds.items())

    @property
    def n_accepted(self) -> int:
        return sum(accepted * n for (_, accepted), n in self.rounds.items())


def replay(text: Continuation, setting: Setting) -> Tally:
    """Count the rounds that a run under this setting makes of the text.

    Rule   behind i generated tokens, a round drafts at most budget - i - 1 tokens, as the loop does; a drafted token
           is accepted where the text has it; the round gives the accepted tokens and one more
    """
    ids, drafts = text.ids, text.drafts[setting.trim]
    cfg, rule = setting.policy, setting.adaptive
    state, remembered = PolicyState(), AdaptiveState()
    rounds: Counter[tuple[int, int]] = Counter()
    i, n_steps, n_silent = text.n_before, 0, 0
    while i < len(ids):
        at = i - text.n_before
        room = policy.draft_limit(cfg, state, text.budget - i - 1)
        limit = adaptive.adaptive_limit(rule, remembered, room)
        n_run, ps = _grow(setting, remembered, drafts.p[at], limit)
        n_drafted = policy.proposed(cfg, len(ps), limit)
        n_accepted = accept_greedy(drafts.ids[at][:n_drafted], [*ids[i : i + n_drafted], -1], text.eog_ids)
        n_silent += state.n_cooldown > 0
        n_steps += n_run
        rounds[n_drafted, n_accepted] += 1
        state = policy.after_round(cfg, state, n_drafted, n_accepted)
        remembered = adaptive.after_adaptive_round(rule, remembered, ps[:n_drafted], n_accepted, room)
        i = min(len(ids), i + n_accepted + 1)
    return Tally(len(ids) - text.n_before, rounds, n_steps, n_silent, cfg.n_max > 0)


def _grow(setting: Setting, remembered: AdaptiveState, p: list[int], limit: int) -> tuple[int, list[int]]:
    """Draft steps that run, and the probabilities of the tokens that pass the gates."""
    cfg, rule, chain = setting.policy, setting.adaptive, Chain()
    n_run, taken = 0, []
    for k in range(min(limit, len(p))):
        if not adaptive.worth_a_step(rule, remembered, chain, cfg.n_min):
            break
        n_run += 1
        if not policy.takes(cfg, p[k]) or not adaptive.worth_a_row(rule, remembered, chain, p[k], cfg.n_min):
            break
        taken.append(p[k])
        chain = adaptive.longer(remembered, chain, p[k])
    return n_run, taken
