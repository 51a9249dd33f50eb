"""Counts times costs: what the rounds of a tally take under each strategy of roll back.

Owns which passes a round of d drafted and a accepted tokens makes. It must not know where costs or counts come from.
"""

from collections import Counter

from mtpref.engine.decode import STRATEGIES
from mtpref.measure.bench import Costs
from mtpref.measure.plan.replay import Tally


def round_cost(costs: Costs, strategy: str, n_drafted: int, n_accepted: int) -> float:
    """Milliseconds of a round's trunk passes and roll back.

    snapshot    a pass over the draft that keeps every state, and the choice of one
    replay      a copy, a pass over the draft; after a rejection the copy is put back and the kept tokens run again
    two-phase   a plain pass for every token that is kept
    """
    if n_drafted == 0:
        return costs.plain
    if strategy == "snapshot":
        return costs.verify_at(n_drafted + 1, keep=True) + costs.choose
    if strategy == "replay":
        again = costs.restore + costs.replay_at(n_accepted + 1) if n_accepted < n_drafted else 0.0
        return costs.checkpoint + costs.verify_at(n_drafted + 1, keep=False) + again
    assert strategy in STRATEGIES, strategy
    return (n_accepted + 1) * costs.plain


def milliseconds(costs: Costs, strategy: str, tally: Tally, n_rows: int) -> float:
    """What a run with these counts takes, the prompt apart. n_rows: of the head's vocabulary.

    Rule   step i of a chain runs over i + 1 rows (S99), and is priced so; a single head's steps all cost the same
    """
    steps = tally.steps.items() if tally.uses_head else ()
    total = sum(n * costs.step_at(step + 1, n_rows) for step, n in steps)
    for (n_drafted, n_accepted), n in tally.rounds.items():
        one = round_cost(costs, strategy, n_drafted, n_accepted) + costs.round + (n_accepted + 1) * costs.token
        if tally.uses_head:
            one += costs.catch_up_at(n_accepted + 1)
        total += n * one
    return total


def all_accepted(n_tokens: int, n_drafted: int, uses_head: bool = True) -> Tally:
    """The counts of a run whose every draft of n_drafted tokens is accepted: at least n_tokens tokens."""
    n_rounds = -(-n_tokens // (n_drafted + 1))
    rounds = Counter({(n_drafted, n_drafted): n_rounds})
    steps = Counter(dict.fromkeys(range(n_drafted), n_rounds))
    return Tally(n_rounds * (n_drafted + 1), rounds, steps, 0, uses_head)
