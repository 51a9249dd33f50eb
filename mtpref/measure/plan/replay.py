"""The loop's decisions made again under a setting, from a record of drafts.

Owns settings and what a run under one would count. The rules are those of spec/policy.py, asked by the loop's own
`DraftLength`; tests hold the counts to those of real runs. It must not know what anything costs.
"""

from collections import Counter
from dataclasses import dataclass, field

from mtpref.engine.decode import AdaptiveConfig, DraftLength, PolicyConfig
from mtpref.measure.plan.record import Continuation
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
    steps      step of a draft, from 0 -> how often the head ran it, steps included whose token was not proposed
    n_silent   rounds of cooldown
    """

    n_tokens: int
    rounds: Counter[tuple[int, int]]
    steps: Counter[int]
    n_silent: int
    uses_head: bool

    @property
    def n_steps(self) -> int:
        return self.steps.total()

    @property
    def n_drafted(self) -> int:
        return sum(drafted * n for (drafted, _), n in self.rounds.items())

    @property
    def n_accepted(self) -> int:
        return sum(accepted * n for (_, accepted), n in self.rounds.items())


def replay(text: Continuation, setting: Setting) -> Tally:
    """Count the rounds that a run under this setting makes of the text.

    Rule   after i generated tokens, a round drafts at most budget - i - 1 tokens, as the loop does; a drafted token
           is accepted where the text has it; the round gives the accepted tokens and one more
    """
    ids, drafts = text.ids, text.drafts[setting.trim]
    length = DraftLength(setting.policy.fixed(), setting.adaptive.fixed())
    rounds: Counter[tuple[int, int]] = Counter()
    steps: Counter[int] = Counter()
    i, n_silent = text.n_before, 0
    while i < len(ids):
        at = i - text.n_before
        length.open(text.budget - i - 1)
        n_run, ps = _grow(length, drafts.p[at])
        n_drafted = length.proposed(len(ps))
        n_accepted = accept_greedy(drafts.ids[at][:n_drafted], [*ids[i : i + n_drafted], -1], text.eog_ids)
        n_silent += length.n_silent > 0
        steps.update(range(n_run))
        rounds[n_drafted, n_accepted] += 1
        length.close(n_drafted, n_accepted, ps[:n_drafted])
        i = min(len(ids), i + n_accepted + 1)
    return Tally(len(ids) - text.n_before, rounds, steps, n_silent, setting.policy.n_max > 0)


def _grow(length: DraftLength, p: list[int]) -> tuple[int, list[int]]:
    """Draft steps that run, and the probabilities of the tokens that pass the gates."""
    n_run, taken = 0, []
    for best in p:
        if not length.wants_step():
            break
        n_run += 1
        if not length.takes(best, is_drawn=False):
            break
        taken.append(best)
        length.grow(best)
    return n_run, taken
