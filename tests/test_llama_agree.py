"""Agreement of decisions: what is a difference, what a near tie, and where comparing ends."""

import pytest

from mtpref.base.events import Drafted, DraftStep, Verified
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.log import Candidate, Round, Step


def ours(i, ids, target, p=(0.6, 0.3, 0.1), margins=None, candidates=None):
    n_accepted = len(target) - 1
    steps = [DraftStep(0, candidates or [id, 90, 91], list(p), 1.0, True) for id in ids]
    verdicts = ["accept"] * n_accepted + ["reject"] * (len(ids) - n_accepted)
    margins = margins or [1.0] * len(target)
    return [
        Drafted(i, 0, 0, ids, steps, 0),
        Verified(i, 0, ids, target, margins, [False] * len(target), n_accepted, verdicts),
    ]


def theirs(ids, n_accepted, id_last, p=(0.6, 0.3, 0.1), candidates=None):
    steps = [
        Step(k, [Candidate(c, x, "") for c, x in zip(candidates or [id, 90, 91], p, strict=True)])
        for k, id in enumerate(ids)
    ]
    return Round(steps, n_accepted, len(ids), id_last)


def compared(their_rounds, events, n_predict=100, p_min=0.0):
    agreement = Agreement(p_tolerance=0.01, near_margin=0.05)
    compare_rounds(agreement, their_rounds, events, n_predict, 3, p_min)
    return agreement


def test_equal_rounds_agree():
    found = compared([theirs([5, 6], 1, 7)] * 2, ours(0, [5, 6], [5, 7]) + ours(1, [5, 6], [5, 7]))
    assert (found.n_rounds, found.n_candidates, found.n_near_ties, found.mismatches) == (2, 12, 0, [])


@pytest.mark.parametrize(
    "their_round",
    [theirs([5, 6], 1, 8), theirs([5, 6], 2, 7), theirs([5], 1, 7), theirs([5, 8], 1, 7), theirs([5, 6], 0, 7)],
    ids=["last id", "more accepted", "shorter draft", "another draft", "less accepted"],
)
def test_other_decisions_are_differences(their_round):
    found = compared([their_round, theirs([5, 6], 1, 7)], ours(0, [5, 6], [5, 7]) + ours(1, [5, 6], [5, 7]))
    assert found.mismatches
    assert found.n_rounds <= 1


def test_a_probability_beyond_the_tolerance_is_a_difference():
    assert compared([theirs([5], 1, 7, p=(0.62, 0.29, 0.09))], ours(0, [5], [5, 7])).mismatches
    assert not compared([theirs([5], 1, 7, p=(0.605, 0.3, 0.095))], ours(0, [5], [5, 7])).mismatches


def test_close_candidates_may_change_places():
    close = (0.402, 0.4, 0.198)
    found = compared([theirs([90], 0, 7, close, [90, 5, 91])], ours(0, [5], [7], close))
    assert found.mismatches == []
    assert found.n_near_ties >= 1
    assert found.n_rounds == 0  # the drafts part here
    far = compared([theirs([90], 0, 7, (0.6, 0.3, 0.1), [90, 5, 91])], ours(0, [5], [7]))
    assert far.mismatches


def test_a_target_near_a_tie_ends_the_comparison_without_a_difference():
    events = ours(0, [5, 6], [5, 7], margins=[1.0, 0.01]) + ours(1, [5], [9])
    found = compared([theirs([5, 6], 1, 8), theirs([1], 0, 2)], events)
    assert (found.mismatches, found.n_near_ties, found.n_rounds) == ([], 1, 0)


def test_a_draft_that_p_min_ends_elsewhere_by_a_hair_is_a_near_tie():
    events = ours(0, [5, 6], [5, 7], p=(0.505, 0.3, 0.1))
    short = Round(theirs([5, 6], 1, 7, p=(0.505, 0.3, 0.1)).steps, 1, 1, 7)
    assert compared([short], events, p_min=0.5).mismatches == []
    assert compared([short], events, p_min=0.3).mismatches


def test_rounds_that_the_budget_cuts_are_not_compared():
    found = compared([theirs([5, 6], 1, 7)] * 9, ours(0, [5, 6], [5, 7]) * 9, n_predict=8)
    assert found.n_rounds == 3
