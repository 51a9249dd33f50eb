"""How long the draft of a round grows: the rules of mtpref/spec/policy.py, asked in the loop's order.

Owns what the policy remembers between rounds of one run. It must not see a token: probabilities come in, decisions go
out.
"""

from collections.abc import Sequence

from mtpref.spec import policy
from mtpref.spec.policy import AdaptiveState, Chain, FixedAdaptive, FixedPolicy, PolicyState
from mtpref.spec.steps import Steps


class DraftLength:
    """The draft policy of one run. A round: `open`; for each token `wants_step`, `takes`, `grow`; `proposed`; `close`.

    limit  the longest draft of the round that is open
    room   the same before an adaptive rule made it shorter
    chain  the draft as it grows
    """

    def __init__(self, config: FixedPolicy, adaptive: FixedAdaptive | None = None, steps: Steps | None = None) -> None:
        self._config, self._adaptive, self._steps = config, adaptive or FixedAdaptive(), steps or Steps()
        self.state, self.learnt = PolicyState(), AdaptiveState()
        self.room, self.limit, self.chain = 0, 0, Chain()

    @classmethod
    def of(cls, limit: int) -> "DraftLength":
        """A round that is open for `limit` tokens, and no rule beside it: for a draft outside of a run."""
        length = cls(FixedPolicy())
        length.room = length.limit = max(limit, 0)
        return length

    @property
    def n_silent(self) -> int:
        """Rounds of cooldown left, this one included."""
        return self.state.n_cooldown

    def open(self, n_room: int) -> None:
        """Begin a round. n_room: how many drafted tokens could be of use."""
        self.room = self._steps.draft_limit(self._config, self.state, n_room)
        self.limit = policy.adaptive_limit(self._adaptive, self.learnt, self.room)
        self.chain = Chain()

    def wants_step(self) -> bool:
        """Whether the head should run for one more token."""
        is_open = self.chain.n < self.limit
        return is_open and policy.worth_a_step(self._adaptive, self.learnt, self.chain, self._config.n_min)

    def takes(self, p: int, *, is_drawn: bool) -> bool:
        """Whether a candidate of probability p is proposed; is_drawn: whether a token is drawn where it would be."""
        passes = self._steps.takes(self._config, p, self.chain.n if is_drawn else None)
        return passes and policy.worth_a_row(self._adaptive, self.learnt, self.chain, p, self._config.n_min)

    def keeps_drawn(self, p: int) -> bool:
        """Whether a drawn token of probability p is proposed."""
        return self._steps.keeps_drawn(self._config, p)

    def grow(self, p: int) -> None:
        """One more token, to which the head gave probability p."""
        self.chain = policy.longer(self.learnt, self.chain, p)

    def proposed(self, n_drafted: int) -> int:
        """How many of the drafted tokens are proposed."""
        return self._steps.proposed(self._config, n_drafted, self.limit)

    def close(self, n_drafted: int, n_accepted: int, ps: Sequence[int]) -> None:
        """End the round. ps: the probability of each token that was proposed, where the drafter told it."""
        self.state = self._steps.after_round(self._config, self.state, n_drafted, n_accepted)
        self.learnt = policy.after_adaptive_round(self._adaptive, self.learnt, ps, n_accepted, self.room)
