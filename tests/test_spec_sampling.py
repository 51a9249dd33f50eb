"""S25 to S29: the uniform numbers, the filters, the draw and the two rules of acceptance."""

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import spec
from tests import naive_sampling as naive
from tests.random_weights import bits, normal

NAN, INF = math.nan, math.inf
DOC = Path(__file__).parent.parent / "docs" / "spec.md"
NAMES = ("top_k", "top_p", "min_p", "temperature")
words = st.integers(0, 2**32 - 1)


def f32(*values):
    return np.array(values, np.float32)


def dist(**p):
    """dist(i0=0.5, i2=0.5): ids 0 and 2."""
    return spec.Distribution(np.array([int(name[1:]) for name in p]), np.array(list(p.values()), np.float64))


# S25


def test_philox_gives_the_known_answers_of_the_document():
    rows = re.findall(r"^\| ((?:[0-9a-f]{8} ?){4}) \| ((?:[0-9a-f]{8} ?){2}) \| ((?:[0-9a-f]{8} ?){4}) \|$",
                      DOC.read_text(), re.MULTILINE)  # fmt: skip
    assert len(rows) == 3
    for row in rows:
        counter, key, expected = (tuple(int(word, 16) for word in part.split()) for part in row)
        assert spec.philox4x32(counter, key) == expected


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_philox_equals_the_naive_one(counter, key):
    assert list(spec.philox4x32(counter, key)) == naive.philox(counter, key)


def test_uniform_gives_the_vectors_of_the_document():
    text = DOC.read_text()
    for arguments, row in (((0, 0, 1, 0), "| 0, 0, 1, 0 |"), ((1, 0, 7, 0), "| 1, 0, 7, 0 |"),
                           ((spec.MAX_SEED, 3, 4096, 4093), "| 2^64 - 1, 3, 4096, 4093 |")):  # fmt: skip
        assert f"{row} {spec.uniform(*arguments).hex()} |" in text


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 3), words, words)
def test_uniform_is_a_multiple_of_2_to_the_minus_53_below_1(seed, stream, pos, round_pos):
    u = spec.uniform(seed, stream, pos, round_pos)
    assert 0 <= u < 1
    assert (u * 2**53).is_integer()
    word = naive.philox((pos, round_pos, stream, 0), (seed % 2**32, seed // 2**32))
    assert Fraction(u) == Fraction((word[0] // 32) * 2**26 + word[1] // 64, 2**53)


def test_every_part_of_a_draws_name_changes_its_number():
    names = list(itertools.product((0, 1, 2**32, 2**63), range(4), (1, 2, 2**31), (0, 1, 5)))
    assert len({spec.uniform(*name) for name in names}) == len(names)


def test_streams_and_positions_look_uniform_and_unrelated():
    u = np.array([[spec.uniform(7, stream, pos) for pos in range(1, 1001)] for stream in range(4)])
    assert np.all(np.abs(u.mean(axis=1) - 0.5) < 4 * math.sqrt(1 / 12 / 1000))
    correlation = np.corrcoef(np.concatenate([u, np.roll(u, 1, axis=1)]))
    assert np.all(np.abs(correlation - np.eye(8)) < 4 / math.sqrt(1000))


# S26


def test_ignored_ids_are_minus_infinity_in_a_copy():
    logits = f32([1, 2, 3], [4, 5, 6])
    out = spec.without_ids(logits, {1, 9})
    assert out.tolist() == [[1, -INF, 3], [4, -INF, 6]]
    assert logits.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert spec.without_ids(logits, frozenset()).tolist() == logits.tolist()


# S27


def values_of(draw_value):
    return {
        "top_k": draw_value % 7,
        "top_p": (0.0, 0.3, 0.7, 0.95, 1.0)[draw_value % 5],
        "min_p": (0.0, 0.02, 0.3, 1.0)[draw_value % 4],
        "temperature": (0.1, 0.7, 1.0, 3.0)[draw_value % 4],
    }


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.permutations(NAMES), st.integers(0, 4), st.integers(0, 139), st.integers(1, 40), st.integers(0, 10**6))
def test_filters_in_any_order_equal_the_naive_ones(names, n_filters, value, n, seed):
    logits = (normal(seed, "logits", n) * 10.0 ** (seed % 4 - 2)).astype(np.float32)
    chain = [(name, values_of(value)[name]) for name in names[:n_filters]]
    got, expected = spec.filtered(logits, chain), naive.filtered(logits.tolist(), chain)
    assert got.ids.tolist() == sorted(expected)
    assert got.p == pytest.approx([expected[i] for i in sorted(expected)], rel=1e-12, abs=1e-300)
    assert got.p.dtype == np.float64
    assert float(np.sum(got.p)) == pytest.approx(1, abs=1e-14)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 1000), st.integers(0, 8), st.sampled_from([0.2, 0.5, 0.9]))
def test_ties_are_kept_by_lower_id(n, n_levels, seed, k, p):
    logits = (bits(seed, "levels", n) % np.uint64(n_levels)).astype(np.float32)
    for chain in ([("top_k", k)], [("top_p", p)], [("min_p", p)]):
        kept = spec.filtered(logits, chain).ids.tolist()
        for i in kept:
            assert all(j in kept for j in range(i) if logits[j] == logits[i])
            assert all(j in kept for j in range(n) if logits[j] > logits[i])


def test_each_filter_by_hand():
    logits = np.log(f32(0.1, 0.4, 0.2, 0.3))
    assert spec.filtered(logits, []).p == pytest.approx([0.1, 0.4, 0.2, 0.3], rel=1e-6)
    assert spec.filtered(logits, [("top_k", 2)]).ids.tolist() == [1, 3]
    assert spec.filtered(logits, [("top_k", 0)]).ids.tolist() == [0, 1, 2, 3]
    assert spec.filtered(logits, [("top_p", 0.69)]).ids.tolist() == [1, 3]
    assert spec.filtered(logits, [("top_p", 0.71)]).ids.tolist() == [1, 2, 3]
    assert spec.filtered(logits, [("top_p", 0.0)]).ids.tolist() == [1]
    equal = np.zeros(4, np.float32)  # running sums of exactly 1/4, 1/2, 3/4: p is reached, and need not be passed
    assert spec.filtered(equal, [("top_p", 0.5)]).ids.tolist() == [0, 1]
    assert spec.filtered(logits, [("min_p", 0.49)]).ids.tolist() == [1, 2, 3]
    assert spec.filtered(logits, [("min_p", 1.0)]).ids.tolist() == [1]
    assert spec.filtered(logits, [("temperature", 0.5)]).p == pytest.approx(np.array([1, 16, 4, 9]) / 30, rel=1e-6)


def test_the_order_of_the_filters_matters():
    logits = np.log(f32(0.5, 0.3, 0.2))
    hot, cut = ("temperature", 5.0), ("top_p", 0.6)
    assert spec.filtered(logits, [cut, hot]).ids.tolist() == [0, 1]
    assert spec.filtered(logits, [hot, cut, ("min_p", 0.95)]).ids.tolist() == [0]
    assert spec.filtered(logits, [hot, ("top_p", 0.7)]).ids.tolist() == [0, 1, 2]
    assert spec.filtered(logits, [("top_k", 2), ("top_p", 0.62)]).ids.tolist() == [0]
    assert spec.filtered(logits, [("top_p", 0.62), ("top_k", 2)]).ids.tolist() == [0, 1]


@pytest.mark.parametrize("p", [0.2, 0.9, 0.9999999])
def test_top_p_of_a_large_vocabulary_ranks_as_far_as_it_must(p):
    for scale in (0.01, 1.0, 4.0):
        logits = (normal(3, "logits", 3000) * scale).astype(np.float32)
        kept = spec.filtered(logits, [("top_p", p)]).ids
        assert kept.tolist() == sorted(naive.filtered(logits.tolist(), [("top_p", p)]))


def test_nan_and_infinities():
    assert spec.filtered(f32(NAN, 1, -INF, 1), []).ids.tolist() == [1, 3]
    assert spec.filtered(f32(NAN, 1, -INF, 1), [("top_k", 3), ("temperature", 1e-300)]).p.tolist() == [0.5, 0.5]
    for row in (f32(NAN, NAN), f32(-INF, -INF, NAN)):
        only = spec.filtered(row, [("top_p", 0.5)])
        assert (only.ids.tolist(), only.p.tolist()) == ([0], [1.0])
    assert spec.filtered(f32(1, INF, 2, INF), [("temperature", 2.0)]).ids.tolist() == [1, 3]


def test_extreme_temperatures_and_thresholds_stay_in_range():
    logits = f32(3e38, 1, -3e38)
    for t in (1e-300, 1e300):
        got = spec.filtered(logits, [("temperature", t), ("top_p", 0.999)])
        assert np.isfinite(got.p).all()
        assert got.best() == 0
    assert spec.filtered(f32(0, -800), [("min_p", 5e-324)]).ids.tolist() == [0]


def test_probability_of_an_id_is_zero_where_it_was_filtered_out():
    d = dist(i2=0.25, i5=0.75)
    assert [d.prob(i) for i in (0, 2, 3, 5, 6)] == [0, 0.25, 0, 0.75, 0]
    assert d.best() == 5
    assert dist(i1=0.5, i4=0.5).best() == 1


# S28


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_a_draw_names_each_id_for_exactly_its_share_of_the_numbers(weights):
    """Multiples of 1/(16 * total) stand for all numbers: the boundaries are among them, up to rounding."""
    total = sum(weights)
    d = spec.Distribution(np.arange(len(weights)) * 3, np.array(weights) / total)
    n = 16 * total
    drawn = [spec.draw(d, (j + 0.5) / n) for j in range(n)]
    assert [drawn.count(3 * i) for i in range(len(weights))] == [16 * w for w in weights]
    assert drawn == sorted(drawn)


def test_an_impossible_id_is_never_drawn_at_either_end():
    d = dist(i0=0.0, i1=0.5, i2=0.0, i3=0.5, i4=0.0)
    top = math.nextafter(1, 0)
    assert [spec.draw(d, u) for u in (0.0, math.nextafter(0.5, 0), 0.5, top)] == [1, 1, 3, 3]
    short = dist(i0=0.1, i1=0.2, i2=0.0)  # as if rounding had lost most of the mass
    assert spec.draw(short, top) == 1


def test_the_edge_is_the_way_to_the_nearest_other_draw():
    d = dist(i0=0.25, i1=0.5, i2=0.25)
    assert [spec.draw_edge(d, u) for u in (0.0, 0.2, 0.375, 0.75, 0.875)] == pytest.approx(
        [0.25, 0.05, 0.125, 0, 0.125]
    )
    assert spec.draw_edge(spec.only(3), 0.4) == INF


# S29


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.floats(0, 1), st.floats(1e-6, 1), st.floats(0, 1, exclude_max=True))
def test_acceptance_is_u_below_the_quotient(p, q, u):
    assert spec.accept_residual(p, q, u) == (u * q < p)
    assert not spec.accept_residual(0.0, q, u)
    assert spec.accept_residual(q, q, u)


def test_an_impossible_token_is_rejected_at_u_0():
    assert not spec.accept_residual(0.0, 0.5, 0.0)
    assert spec.accept_residual(5e-324, 1.0, 0.0)


weight_lists = st.lists(st.integers(0, 6), min_size=5, max_size=5).filter(any)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(weight_lists, weight_lists)
def test_residual_and_acceptance_together_give_the_target_exactly(a, b):
    """In fractions: q min(1, p/q) + (1 - sum min(p, q)) * residual = p; the functions agree with the fractions."""
    p = {i: Fraction(w, sum(a)) for i, w in enumerate(a) if w}
    q = {i: Fraction(w, sum(b)) for i, w in enumerate(b) if w}
    rest = naive.residual(p, q)
    accepted = {i: min(p.get(i, Fraction(0)), q[i]) for i in q}
    rejected = 1 - sum(accepted.values())
    for i in range(5):
        assert accepted.get(i, 0) + rejected * rest.get(i, 0) == p.get(i, 0)
    target, draft = (spec.Distribution(np.array(sorted(x)), np.array([float(x[i]) for i in sorted(x)])) for x in (p, q))
    got = spec.residual(target, draft)
    assert spec.overlap(target, draft) == pytest.approx(float(1 - rejected), abs=1e-15)
    if rejected:
        expected = [float(rest.get(i, Fraction(0))) for i in range(5)]
        assert [got.prob(i) for i in range(5)] == pytest.approx(expected, abs=1e-13)


def test_a_residual_of_nothing_is_the_target():
    d = dist(i1=0.25, i3=0.75)
    assert spec.residual(d, d) is d
    assert spec.residual(d, dist(i1=0.25, i3=0.75 + 2**-50)) is d


def test_a_drafter_without_a_choice_leaves_the_rest_of_the_target():
    d = dist(i1=0.25, i3=0.25, i4=0.5)
    rest = spec.residual(d, spec.only(3))
    assert (rest.ids.tolist(), rest.p) == ([1, 4], pytest.approx([1 / 3, 2 / 3]))
    assert spec.overlap(d, spec.only(3)) == 0.25
    assert spec.overlap(d, spec.only(9)) == 0.0
