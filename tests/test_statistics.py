"""The counters of a run: against a plain recount of every round, and against the events of real runs."""

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpref.base.events import Drafted, RolledBack, Token, Verified
from mtpref.engine.decode import NEAR_TIE, Statistics
from tests.models import micro, prompt_of, run_decoder


@st.composite
def rounds(draw):
    n_drafted = draw(st.integers(0, 4))
    return n_drafted, draw(st.integers(0, n_drafted))


@given(st.lists(rounds(), max_size=12))
def test_rates_are_those_of_a_recount(history):
    stats = Statistics()
    for n_drafted, n_accepted in history:
        stats.count_round(n_drafted, n_accepted, is_cooldown=False)
    drafting = [(d, a) for d, a in history if d]
    n_drafted, n_accepted = sum(d for d, _ in history), sum(a for _, a in history)
    assert (stats.n_rounds, stats.n_drafted, stats.n_accepted) == (len(history), n_drafted, n_accepted)
    assert stats.acceptance == (n_accepted / n_drafted if n_drafted else None)
    assert stats.mean_accepted_len == (1 + n_accepted / len(drafting) if drafting else None)
    longest = max((d for d, _ in drafting), default=0)
    for i in range(longest):
        n_right = sum(a > i for _, a in drafting)
        n_reached = sum(d > i and a >= i for d, a in drafting)
        assert stats.acceptance_per_pos(conditional=False)[i] == n_right / len(drafting)
        assert stats.acceptance_per_pos(conditional=True)[i] == (n_right / n_reached if n_reached else 0.0)
    assert len(stats.acceptance_per_pos(conditional=True)) == longest


def test_a_margin_below_the_threshold_is_a_near_tie():
    stats = Statistics()
    assert [stats.count_margin(m) for m in (1.0, NEAR_TIE, NEAR_TIE / 2, 0.0)] == [False, False, True, True]
    assert (stats.n_near_ties, stats.min_margin) == (2, 0.0)


def test_an_empty_run_has_no_rates_and_no_division_by_zero():
    stats = Statistics()
    record = stats.to_json()
    assert record["accept"] is None
    assert record["mean_accepted_len"] is None
    assert record["min_margin"] is None
    assert "accept    = nothing was drafted" in stats.lines()
    json.dumps(record, allow_nan=False)


def test_lines_use_the_words_of_llama_cpp():
    stats = Statistics(n_prompt=7, n_predict=9)
    for n_drafted, n_accepted in ((3, 3), (3, 1), (2, 0)):
        stats.count_round(n_drafted, n_accepted, is_cooldown=False)
    lines = stats.lines()
    for line in ("n_predict = 9", "n_drafted = 8", "n_accept  = 4", "accept    = 50.000%"):
        assert line in lines
    assert "acc per pos = (0.667, 0.333, 0.333)" in lines
    assert "acc per pos (conditional) = (0.667, 0.500, 1.000)" in lines
    assert any("mean len =  2.33" in line for line in lines)


def test_time_is_kept_when_the_timed_phase_fails():
    stats = Statistics()
    with pytest.raises(KeyError), stats.timed("verify"):
        raise KeyError
    assert stats.seconds["verify"] > 0
    assert math.isfinite(stats.to_json()["seconds"]["verify"])


@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_the_counters_of_a_run_are_those_of_its_events(rollback):
    run = run_decoder(micro(60), prompt_of(9), 40, rollback=rollback, n_max=3, cooldown=2)
    stats = run.statistics
    drafted = [e for e in run.events if isinstance(e, Drafted)]
    verified = [e for e in run.events if isinstance(e, Verified)]
    assert len(drafted) == len(verified) == stats["n_rounds"]
    assert stats["n_drafted"] == sum(len(e.ids) for e in drafted)
    assert stats["n_accept"] == sum(e.n_accepted for e in verified) == run.sources.count("draft")
    assert stats["n_cooldown_rounds"] == sum(e.n_cooldown > 0 for e in drafted) > 0
    assert stats["n_near_ties"] == sum(sum(e.near_ties) for e in verified)
    assert stats["n_predict"] == len(run.ids) == 40
    assert stats["passes"]["mtp_draft"] == sum(len(e.steps) for e in drafted)
    assert stats["tokens"]["mtp_prompt"] == stats["tokens"]["prompt"] == 8
    assert stats["tokens"]["mtp_catch_up"] == sum(e.n_accepted + 1 for e in verified)
    back = [e for e in run.events if isinstance(e, RolledBack)]
    assert stats["tokens"].get("replay", 0) == sum(e.n_replayed for e in back)
    widths = Counter(len(e.ids) + 1 for e in drafted)
    if rollback == "two-phase":
        assert stats["passes"]["plain"] == stats["n_rounds"] + stats["n_accept"] == stats["n_trunk_passes"]
        assert not back
    else:
        assert stats["passes"]["plain"] == widths[1]
        assert stats["tokens"]["verify"] == sum(n * width for width, n in widths.items() if width > 1)
        assert len(back) == sum(e.n_accepted < len(e.draft_ids) for e in verified)


def test_margins_stand_for_the_rows_that_decided_and_no_others():
    run = run_decoder(micro(30), prompt_of(9), 30, n_max=4)
    for event in run.events:
        if isinstance(event, Verified):
            assert len(event.margins) == len(event.near_ties) == len(event.target_ids) == event.n_accepted + 1
            assert event.target_ids[: event.n_accepted] == event.draft_ids[: event.n_accepted]
            assert event.verdicts == ["accept"] * event.n_accepted + (
                ["reject"] + ["discard"] * (len(event.draft_ids) - event.n_accepted - 1)
                if event.n_accepted < len(event.draft_ids)
                else []
            )
            assert all(margin >= 0 for margin in event.margins)


def test_positions_of_tokens_are_consecutive():
    prompt = prompt_of(9)
    run = run_decoder(micro(60), prompt, 30, n_max=4)
    positions = [e.pos for e in run.events if isinstance(e, Token)]
    assert positions == list(range(len(prompt), len(prompt) + 30))


def test_a_phase_within_another_is_counted_once():
    clock = iter([0.0, 1.0, 3.0, 7.0])
    stats = Statistics(clock=lambda: next(clock))
    with stats.timed("verify"), stats.timed("rollback"):
        pass
    assert stats.seconds == {"rollback": 2.0, "verify": 5.0}
