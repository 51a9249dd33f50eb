"""S19 to S24: the head's input, the pairing, the tie rule, the draft's probabilities, acceptance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import spec
from tests import naive
from tests.random_weights import bits, normal

NAN, INF = math.nan, math.inf


def f32(*values):
    return np.array(values, np.float32)


# S19, S20


def test_embedding_comes_first():
    e, h = f32([1, 2], [3, 4]), f32([5, 6], [7, 8])
    assert spec.mtp_concat(e, h).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_position_p_takes_the_hidden_row_of_position_p_minus_1():
    hidden, pending = f32([1, 1], [2, 2], [3, 3]), f32(9, 9)
    assert spec.pair_hidden(hidden, pending).tolist() == [[9, 9], [1, 1], [2, 2]]
    assert spec.pair_hidden(hidden[:1], pending).tolist() == [[9, 9]]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_pairing_does_not_depend_on_how_the_tokens_are_cut_into_batches(sizes):
    hidden = normal(1, "h", 3 * sum(sizes)).astype(np.float32).reshape(-1, 3)
    pending, at, rows = np.zeros(3, np.float32), 0, []
    for size in sizes:
        batch = hidden[at : at + size]
        rows.append(spec.pair_hidden(batch, pending))
        pending, at = spec.next_pending(batch, size - 1), at + size
    assert np.array_equal(np.concatenate(rows), spec.pair_hidden(hidden, np.zeros(3, np.float32)))


# S21


def test_lowest_id_wins_a_tie():
    logits = f32([1, 3, 3, 2], [0, 0, 0, 0], [-0.0, 0.0, -1, -1], [5, 5, 5, 6])
    assert spec.argmax(logits).tolist() == [1, 0, 0, 3]


def test_nan_never_wins_against_a_number():
    logits = f32([NAN, -5, -7, NAN], [NAN, NAN, NAN, NAN], [1, NAN, 2, NAN], [NAN, -INF, -INF, NAN], [NAN, 1, INF, NAN])
    assert spec.argmax(logits).tolist() == [1, 0, 2, 0, 2]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-INF, -1.0, 0.0, 1.0, 2.0, INF]), min_size=1, max_size=30))
def test_argmax_equals_the_first_greatest(row):
    assert spec.argmax(f32(row))[0] == row.index(max(row))


# S22


def brute_force(logits):
    values = [-INF if math.isnan(x) else x for x in logits.tolist()]
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[: spec.N_TOP]


def test_candidates_equal_a_full_sort_and_a_softmax_over_them():
    for seed in range(30):
        logits = (normal(seed, "logits", 500) * 10.0 ** (seed % 5 - 2)).astype(np.float32)
        ids, p = spec.top_candidates(logits)
        true_ids, true_p = naive.top10(logits)
        assert ids.tolist() == true_ids == brute_force(logits)
        assert p == pytest.approx(true_p, rel=1e-14, abs=1e-300)
        assert p.dtype == np.float64
        assert float(np.sum(p)) == pytest.approx(1, abs=1e-15)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 1000))
def test_candidates_of_tied_logits_are_the_lower_ids(n, n_levels, seed):
    logits = (bits(seed, "levels", n) % np.uint64(n_levels)).astype(np.float32)
    ids, p = spec.top_candidates(logits)
    assert ids.tolist() == brute_force(logits)
    assert len(p) == min(n, spec.N_TOP)
    assert np.all(np.diff(p) <= 0)
    assert ids[0] == spec.argmax(logits[None])[0]


def test_candidates_pass_over_nan_and_keep_minus_infinity_last():
    ids, p = spec.top_candidates(f32(NAN, 1, -INF, 3, NAN))
    assert ids.tolist() == [3, 1, 0, 2, 4]
    assert p[:2] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert np.all(p[2:] < 1e-300)
    ids, p = spec.top_candidates(f32(7))
    assert (ids.tolist(), p.tolist()) == ([0], [1.0])


def test_probability_is_over_the_ten_candidates_not_the_vocabulary():
    ids, p = spec.top_candidates(np.zeros(1000, np.float32))
    assert ids.tolist() == list(range(10))
    assert p == pytest.approx([0.1] * 10)


def test_probabilities_do_not_depend_on_a_shift_that_float32_holds():
    logits = np.rint(16 * normal(1, "l", 50)).astype(np.float32) / np.float32(16)
    assert np.array_equal(spec.top_candidates(logits)[1], spec.top_candidates(logits + np.float32(1024))[1])


def test_fixed_probability_is_the_floor_of_32_bits():
    one = 1 << 32
    assert one == spec.P_ONE
    cases = {
        0.0: 0,
        1.0: one,
        0.5: one // 2,
        0.75: 3 << 30,
        2.0**-33: 0,
        2.0**-32: 1,
        NAN: 0,
        math.nextafter(1, 0): one - 1,
    }
    assert {p: spec.fixed_probability(p) for p in cases if p == p} == {p: n for p, n in cases.items() if p == p}
    assert spec.fixed_probability(NAN) == 0
    assert spec.fixed_probability(0.1) == math.floor(0.1 * 2**32)
    assert isinstance(spec.fixed_probability(np.float64(0.3)), int)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_fixed_probability_keeps_the_order(p, q):
    low, high = sorted((p, q))
    assert 0 <= spec.fixed_probability(low) <= spec.fixed_probability(high) <= spec.P_ONE


# S23, S24


def test_greedy_acceptance_by_exhaustive_enumeration():
    """Every draft of up to 3 of 3 tokens, every choice of the target, every set of end-of-generation tokens."""
    n_cases = 0
    for n in range(4):
        for drafted in itertools.product(range(3), repeat=n):
            for target in itertools.product(range(3), repeat=n + 1):
                for eog in ((), (0,), (1, 2)):
                    # walk as plain greedy decoding would: it emits target tokens, and stops after the end
                    accepted = 0
                    for i in range(n):
                        if target[i] != drafted[i]:
                            break
                        accepted = i + 1
                        if target[i] in eog:
                            break
                    assert spec.accept_greedy(drafted, target, frozenset(eog)) == accepted
                    n_cases += 1
    assert n_cases == 3 * (3 + 27 + 243 + 2187)


def test_acceptance_ends_with_an_accepted_end_of_generation_token():
    assert spec.accept_greedy([4, 5, 6], [4, 5, 6, 7], frozenset()) == 3
    assert spec.accept_greedy([4, 5, 6], [4, 5, 6, 7], frozenset({5})) == 2
    assert spec.accept_greedy([4, 5, 6], [4, 9, 6, 7], frozenset({5})) == 1
    assert spec.accept_greedy([4, 5, 6], [9, 5, 6, 7], frozenset({9})) == 0
    assert spec.accept_greedy([], [3], frozenset({3})) == 0


@pytest.mark.parametrize("n_accepted", [0, 1, 2])
def test_next_pending_is_the_row_of_the_last_accepted_token_and_a_copy(n_accepted):
    hidden = normal(1, "h", 12).astype(np.float32).reshape(3, 4)
    row = spec.next_pending(hidden, n_accepted)
    assert np.array_equal(row, hidden[n_accepted])
    row[:] = 0
    assert np.any(hidden[n_accepted])
