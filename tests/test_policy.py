"""The policy, enumerated: every small configuration and history against a model that is nothing but the rules."""

from itertools import product

import pytest

from mtpref.base.errors import MtprefError
from mtpref.spec import P_ONE
from mtpref.spec.policy import FixedPolicy, PolicyState, after_round, draft_limit, proposed, takes


@pytest.mark.parametrize("n_max", range(5))
def test_draft_limit_is_the_least_of_the_longest_draft_and_the_room_left(n_max):
    for n_room, n_misses in product(range(-2, 7), range(3)):
        expected = 0
        while expected < n_max and expected < n_room:
            expected += 1
        assert draft_limit(FixedPolicy(n_max=n_max), PolicyState(n_misses, 0), n_room) == expected


def test_draft_limit_is_0_while_cooling_down():
    for n_max, n_room, n_cooldown in product(range(5), range(-1, 6), range(1, 4)):
        assert draft_limit(FixedPolicy(n_max=n_max, cooldown=3), PolicyState(0, n_cooldown), n_room) == 0


def test_a_draft_shorter_than_n_min_is_dropped_unless_the_limit_was_shorter_still():
    for n_max in range(5):
        for n_min, limit in product(range(n_max + 1), range(n_max + 1)):
            for n_drafted in range(limit + 1):
                is_too_short = n_drafted < n_min and n_drafted < limit
                got = proposed(FixedPolicy(n_max=n_max, n_min=n_min), n_drafted, limit)
                assert got == (0 if is_too_short else n_drafted)


def test_p_min_is_inclusive():
    cfg = FixedPolicy(p_min=P_ONE // 2)
    assert takes(cfg, P_ONE // 2)
    assert takes(cfg, P_ONE)
    assert not takes(cfg, P_ONE // 2 - 1)
    assert takes(FixedPolicy(), 0)


def test_a_drawn_draft_is_empty_or_reaches_n_min_whatever_the_probabilities():
    """Every sequence of gates open and shut; at p_min and beyond n_min the gate is that of `takes`."""
    for n_min, gates in product(range(5), product((False, True), repeat=5)):
        cfg = FixedPolicy(n_max=5, n_min=n_min, p_min=P_ONE // 2)
        n = 0
        while n < 5 and takes(cfg, P_ONE // 2 - (not gates[n]), n):
            n += 1
        expected = 0
        if gates[0]:
            shut = [i for i in range(max(1, n_min), 5) if not gates[i]]
            expected = shut[0] if shut else 5
        assert n == expected
        assert n == 0 or n >= n_min


def naive_silence(cooldown, after, history):
    """Which rounds of a history must be silent. history: what a round accepts if it may draft (None: drafts nothing).

    The rule in words: count drafting rounds in a row without an acceptance; when there are `after` of them, the next
    `cooldown` rounds are silent and the count starts again. Rounds without a draft neither count nor break the row.
    """
    silent, row, left = [], 0, 0
    for outcome in history:
        silent.append(left > 0)
        if left > 0:
            left -= 1
        elif outcome is None:
            pass
        elif outcome > 0:
            row = 0
        else:
            row += 1
            if row >= after and cooldown > 0:
                row, left = 0, cooldown
    return silent


@pytest.mark.parametrize("cooldown", range(4))
@pytest.mark.parametrize("after", range(1, 4))
def test_cooldown_follows_the_rule_for_every_history_of_six_rounds(cooldown, after):
    cfg = FixedPolicy(n_max=2, cooldown=cooldown, cooldown_after=after)
    for length in range(7):
        for history in product((None, 0, 1, 2), repeat=length):
            state, silent = PolicyState(), []
            for outcome in history:
                limit = draft_limit(cfg, state, 5)
                silent.append(limit == 0)
                drafts = limit > 0 and outcome is not None
                state = after_round(cfg, state, limit if drafts else 0, outcome if drafts else 0)
            assert silent == naive_silence(cooldown, after, history), history


def test_without_cooldown_no_round_is_ever_silent():
    cfg = FixedPolicy(n_max=1)
    for history in product((0, 1), repeat=6):
        state = PolicyState()
        for n_accepted in history:
            assert draft_limit(cfg, state, 1) == 1
            state = after_round(cfg, state, 1, n_accepted)


def test_a_lone_silent_round_ends_a_cooldown_of_one():
    cfg = FixedPolicy(n_max=3, cooldown=1)
    state = after_round(cfg, PolicyState(), 3, 0)
    assert state == PolicyState(0, 1)
    assert after_round(cfg, state, 0, 0) == PolicyState(0, 0)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"n_max": -1}, "PolicyConfig.n_max"),
        ({"n_max": 1025}, "PolicyConfig.n_max"),
        ({"n_min": -1}, "PolicyConfig.n_min"),
        ({"n_max": 2, "n_min": 3}, "PolicyConfig.n_min"),
        ({"cooldown": -1}, "PolicyConfig.cooldown"),
        ({"cooldown": 2000}, "PolicyConfig.cooldown"),
        ({"cooldown_after": 0}, "PolicyConfig.cooldown_after"),
        ({"p_min": -1}, "PolicyConfig.p_min"),
        ({"p_min": P_ONE + 1}, "PolicyConfig.p_min"),
    ],
)
def test_an_impossible_policy_is_refused_by_its_name(values, named):
    with pytest.raises(MtprefError, match=f"^{named}: ") as refusal:
        FixedPolicy(**values)
    assert "\n" not in str(refusal.value)
