"""Goodness of fit with the real uniform numbers: the first drafted token, the residual and the bonus token, apart.

Fixed seeds, expected counts of 5 and more, one level for the whole family of tests (Holm). The exact proof is
tests/test_sampling_exact.py; this one also holds the generator and the keys of the draws to account.
"""

from collections import Counter, defaultdict
from functools import cache

import pytest

from mtpref import spec
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import Decoder, Options, PolicyConfig, SamplingConfig
from tests import chi_square
from tests.toy import ToyModel, ToyState

N_RUNS = 1200
LEVEL = 0.001
PROMPT = [3, 1]
N_VOCAB = 6
FILTERS = {"temp": 0.9, "top_k": 5, "top_p": 0.97, "min_p": 0.02}


def test_the_chi_square_tail_has_the_quantiles_of_the_tables():
    for x, n, p in ((3.841, 1, 0.05), (18.307, 10, 0.05), (6.635, 1, 0.01), (29.588, 10, 0.001), (1.239, 7, 0.99)):
        assert chi_square.tail(x, n) == pytest.approx(p, rel=2e-3)
    assert chi_square.holm([0.04, 0.01, 0.03], 0.05) == [False, True, False]
    assert chi_square.holm([0.01, 0.012, 0.04], 0.05) == [True, True, True]


def tally(accept: str, **faults) -> tuple[dict, dict]:
    """Kind of token -> (text it stands after -> counts of ids); and the first tokens of all runs. A run has two."""
    model = ToyModel(N_VOCAB, 1.2, **faults)
    kinds: dict = {kind: defaultdict(Counter) for kind in ("draft", "correction", "bonus")}
    first: Counter = Counter()
    for seed in range(N_RUNS):
        sampling = SamplingConfig(**FILTERS, seed=seed, accept=accept)
        options = Options(n_predict=2, policy=PolicyConfig(n_max=1), sampling=sampling)
        tokens = []
        for event in Decoder(model, ToyState(), options).run(PROMPT):
            if isinstance(event, Drafted) and event.round == 0:
                kinds["draft"][()][event.ids[0]] += 1
                drafted = event.ids[0]
            elif isinstance(event, Verified) and event.round == 0:
                n_accepted = event.n_accepted
            elif isinstance(event, Token):
                tokens.append(event)
        first[tokens[0].id] += 1
        if n_accepted:
            kinds["bonus"][drafted,][tokens[1].id] += 1
        else:
            kinds["correction"][()][tokens[0].id] += 1
    return kinds, first


def as_dict(dist):
    return {int(id): float(p) for id, p in zip(dist.ids, dist.p, strict=True)}


def law(kind: str, text: tuple[int, ...]):
    model, chain = ToyModel(N_VOCAB, 1.2), SamplingConfig(**FILTERS).chain
    return spec.filtered(getattr(model, kind)((*PROMPT, *text)), chain)


def p_values(kinds: dict, first: Counter) -> dict[str, float]:
    p, q = law("target", ()), law("draft", ())
    found = {
        "draft": chi_square.p_value(kinds["draft"][()], as_dict(q)),
        "residual": chi_square.p_value(kinds["correction"][()], as_dict(spec.residual(p, q))),
        "text": chi_square.p_value(first, as_dict(p)),
    }
    behind, counts = max(kinds["bonus"].items(), key=lambda item: item[1].total())
    assert counts.total() > 200
    found["bonus"] = chi_square.p_value(counts, as_dict(law("target", behind)))
    return found


def rejected(found: dict[str, float]) -> set[str]:
    verdicts = chi_square.holm(list(found.values()), LEVEL)
    return {name for name, is_rejected in zip(found, verdicts, strict=True) if is_rejected}


@cache
def clean() -> tuple[dict, dict]:
    return tally("residual")


def test_first_draft_residual_and_bonus_token_fit_their_laws():
    kinds, first = clean()
    assert kinds["correction"][()].total() > 100
    assert not rejected(p_values(kinds, first))


def test_the_share_of_accepted_tokens_fits_the_overlap_of_the_two_distributions():
    kinds, _ = clean()
    expected = spec.overlap(law("target", ()), law("draft", ()))
    n_bonus = sum(counts.total() for counts in kinds["bonus"].values())
    counts = {1: n_bonus, 0: N_RUNS - n_bonus}
    assert chi_square.p_value(counts, {1: expected, 0: 1 - expected}) > LEVEL


@pytest.mark.parametrize(
    ("fault", "shown_by"),
    [
        ({"residual": lambda id, target, draft: target}, {"residual", "text"}),
        ({"bonus_token": lambda target, u: target.best()}, {"bonus"}),
        ({"draw": lambda dist, u: dist.best()}, {"draft", "residual"}),
        ({"accept_residual": lambda p, q, u: u * q < 2 * p}, {"text"}),
    ],
    ids=["no-residual", "greedy-bonus", "greedy-draft", "lax"],
)
def test_each_fault_shows_where_it_acts(fault, shown_by):
    assert shown_by <= rejected(p_values(*tally("residual", **fault)))


def test_the_text_of_match_fits_the_target():
    _, first = tally("match")
    assert chi_square.p_value(first, as_dict(law("target", ()))) > LEVEL
