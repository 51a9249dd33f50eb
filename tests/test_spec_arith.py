"""S1 to S4: the fused multiply-add against rational arithmetic, the summation order, the elementary functions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import spec
from tests import naive
from tests.random_weights import bits, normal

MAX = float(np.finfo(np.float32).max)
TINY = 2.0**-149
N_POINTS = 100_000


def f32(*values):
    return np.array(values, np.float32)


def float32_of(exact):
    """A fraction rounded once to float32, ties to even, by integers alone."""
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** max(exponent - 23, -149)
    rounded = float(round(magnitude / ulp) * ulp) if exponent < 129 else math.inf
    rounded = math.inf if rounded > MAX else rounded
    return rounded if exact > 0 else -rounded


def patterns(name, n):
    """Finite float32 numbers with random bits: every exponent alike."""
    x = (bits(1, name, 2 * n) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)][:n]


def assert_fma(a, b, c):
    ours = spec.fma32(a, b, c)
    assert ours.dtype == np.float32
    for i, got in enumerate(ours.tolist()):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got == float32_of(exact), (a[i], b[i], c[i])


# S1


def test_fma_of_random_bits_equals_rational_arithmetic():
    n = 4000
    assert_fma(patterns("a", n), patterns("b", n), patterns("c", n))


def test_fma_of_numbers_near_each_other_equals_rational_arithmetic():
    """The addend close to minus the product (cancellation), and far below it (double rounding)."""
    n = 1500
    a, b, r = (normal(1, x, n).astype(np.float32) for x in "abr")
    for exponent in (-60, -50, -48, -30, -29, -28, -25, -24, -23, -1, 0, 1, 24, 25, 48):
        shift = np.float32(2.0**exponent)
        assert_fma(a[:100], b[:100], r[:100] * shift)
    product = a * b
    assert_fma(a, b, -product)
    assert_fma(a, b, np.nextafter(-product, np.float32(1)))


def test_fma_breaks_ties_exactly():
    """Products on a half-way point of float32, moved off it by an addend that float64 cannot hold beside it."""
    half_way = np.float32(1 + 2.0**-12)  # its square is 1 + 2**-11 + 2**-24, a tie
    small = f32(0, 2.0**-60, -(2.0**-60), TINY, -TINY, 2.0**-100, 1e-30, -1e-30)
    a = np.full_like(small, half_way)
    assert_fma(a, a, small)
    assert_fma(a, -a, small)
    got = spec.fma32(a[:3], a[:3], small[:3])
    assert got.tolist() == [1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-11]
    # the float64 sum is odd, its error points back at the tie: it must stay where it is
    beside = np.nextafter(f32(2.0**-52), np.float32(0))
    assert_fma(f32(half_way), f32(half_way), beside)
    assert spec.fma32(f32(half_way), f32(half_way), beside)[0] == 1 + 2.0**-11 + 2.0**-23
    naive_sum = (a.astype(np.float64) ** 2 + small.astype(np.float64)).astype(np.float32)
    assert naive_sum[1] != got[1], "the case does not tell one rounding from two"


def test_fma_in_the_denormal_range_rounds_once():
    a = np.ldexp(1 + normal(2, "a", 3000) ** 2, -70).astype(np.float32)
    b = np.ldexp(normal(2, "b", 3000), -71).astype(np.float32)
    c = (TINY * np.rint(20 * normal(2, "c", 3000))).astype(np.float32)
    assert_fma(a, b, c)
    assert_fma(f32(2.0**-75, 2.0**-75, 2.0**-75), f32(2.0**-75, -(2.0**-75), 1.5 * 2.0**-75), f32(TINY, TINY, 0))


def test_fma_overflows_to_infinity_where_the_rounded_sum_does():
    edge = 2.0**103  # half an ulp of the greatest float32
    a, b = f32(MAX, MAX, MAX, MAX, -MAX), f32(1, 1, 1, 1, 1)
    assert_fma(a, b, f32(edge, np.nextafter(np.float32(edge), np.float32(0)), 0, 2 * edge, -edge))
    assert spec.fma32(f32(MAX), f32(2), f32(-MAX))[0] == MAX


def test_fma_of_infinities_and_nan_follows_ieee():
    inf, nan = np.inf, np.nan
    got = spec.fma32(f32(inf, inf, 0, nan, 1, 1, inf), f32(2, -1, inf, 1, nan, 1, 1), f32(1, 5, 1, 1, 1, nan, -inf))
    assert got[:2].tolist() == [inf, -inf]
    assert np.isnan(got[2:]).all()


def test_fma_keeps_the_sign_of_zero():
    got = spec.fma32(f32(0, 0, -0.0, 1), f32(1, -1, 1, 1), f32(0, -0.0, -0.0, -1))
    assert np.signbit(got).tolist() == [False, True, True, False]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3)
def test_fma_equals_rational_arithmetic(a, b, c):
    assert_fma(f32(a), f32(b), f32(c))


# S2


def tree(lanes):
    """The final sum over 32 lanes: l and l + 16, then 8, 4, 2, 1."""
    for half in (16, 8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]


@pytest.mark.parametrize("n", [0, 1, 5, 31, 32, 33, 64, 100, 257])
def test_dots_follow_the_lane_order_and_the_tree(n):
    a, b = normal(3, "a", n).astype(np.float32), normal(3, "b", n).astype(np.float32)
    lanes64, lanes32 = [np.float64(0)] * 32, [np.float32(0)] * 32
    for i in range(n):
        lanes64[i % 32] = lanes64[i % 32] + np.float64(a[i]) * np.float64(b[i])
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(lanes32[i % 32]))
        lanes32[i % 32] = np.float32(float32_of(exact))
    assert spec.lane_sum_products(a, b) == tree(lanes64)
    assert spec.dot64(a, b) == np.float32(tree(lanes64))
    assert spec.dot32(a, b) == tree(lanes32)
    assert spec.dot64(a, b).dtype == spec.dot32(a, b).dtype == np.float32


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 1000), st.integers(-30, 30), st.integers(-30, 30))
def test_dots_equal_float64(n, seed, p, q):
    a = np.ldexp(normal(seed, "a", n), p).astype(np.float32)
    b = np.ldexp(normal(seed, "b", n), q).astype(np.float32)
    truth = math.fsum((a.astype(np.float64) * b).tolist())
    size = float(np.sum(np.abs(a.astype(np.float64) * b)))
    assert abs(float(spec.dot64(a, b)) - truth) <= 2.0**-24 * abs(truth) + 1e-14 * size
    assert abs(float(spec.dot32(a, b)) - truth) <= 2.0**-24 * (n / 32 + 7) * size


@pytest.mark.parametrize("dot", [spec.dot64, spec.dot32])
def test_dot_of_a_row_does_not_depend_on_its_neighbours(dot):
    a, b = (
        normal(4, "a", 700).astype(np.float32).reshape(7, 100),
        normal(4, "b", 500).astype(np.float32).reshape(5, 100),
    )
    table = dot(a[:, None], b[None])
    assert table.shape == (7, 5)
    for i in range(7):
        for j in range(5):
            assert table[i, j] == dot(a[i], b[j])


def test_dot64_keeps_what_float32_would_cancel():
    a = f32(*[1e8] + [0] * 31, *[1] + [0] * 31, *[-1e8] + [0] * 31)
    assert spec.dot64(a, np.ones_like(a)) == 1.0


def test_dots_of_large_and_tiny_products():
    a = f32(1e30, 1e-30, TINY)
    assert spec.dot64(a, a) == np.inf
    assert spec.dot32(a, a) == np.inf
    assert spec.dot64(a[1:], a[1:]) == spec.dot32(a[1:], a[1:]) == 0
    assert spec.dot64(a[:1], f32(1e-30)) == np.float32(float(a[0]) * float(f32(1e-30)[0]))


# S3, S4


def ulps(got, truth):
    """Distance to the correctly rounded value in float32 steps (infinities included)."""
    with np.errstate(over="ignore"):
        right = truth.astype(np.float32)
    assert got.dtype == np.float32
    steps = [np.where((i := x.view(np.int32).astype(np.int64)) < 0, -(i & 0x7FFFFFFF), i) for x in (got, right)]
    return np.abs(steps[0] - steps[1])


def points(low, high):
    """float32 arguments: an even spread, normals by scale, and edges."""
    spread = np.linspace(low, high, N_POINTS)
    scales = np.concatenate([normal(5, f"{s}", 2000) * s for s in (1e-40, 1e-30, 1e-8, 1e-4, 1e-2, 1.0, 10.0)])
    edges = [0.0, -0.0, TINY, -TINY, 20.0, np.nextafter(np.float32(20), np.float32(21)), -80.0, 80.0, 88.72, 88.73,
             -87.33, -103.97, -103.98, 100.0, -100.0, 700.0, -700.0, 1e30, -1e30, MAX, -MAX]  # fmt: skip
    x = np.concatenate([spread, scales, np.array(edges)]).astype(np.float32)
    return x[(x >= low) & (x <= high)] if math.isfinite(low) else x


def true_softplus(x):
    return np.where(x > 20, x, np.maximum(x, 0) + np.log1p(np.exp(-np.abs(np.minimum(x, 20.0)))))


TRUTHS = {
    "exp": lambda x: np.exp(np.clip(x, -745, 709)),
    "sigmoid": naive.sigmoid,
    "silu": naive.silu,
    "softplus": true_softplus,
}


@pytest.mark.parametrize("name", TRUTHS)
def test_activation_functions_are_within_one_ulp(name):
    x = np.concatenate([points(-110.0, 110.0), points(-25.0, 25.0), points(-1e38, 1e38)])
    # x * sigmoid(x) at -103 and below is 0 or denormal: the clamp of exp64 at 700 comes far later
    distance = ulps(getattr(spec, name)(x), TRUTHS[name](x.astype(np.float64)))
    print(f"{name}: {int((distance > 0).sum())} of {x.size} not correctly rounded, worst {int(distance.max())} ulp")
    assert distance.max() <= 1
    assert (distance > 0).mean() < 1e-4


def test_activation_functions_at_their_edges():
    inf = np.inf
    assert spec.exp(f32(0, -0.0, -inf, inf, -200, 200)).tolist() == [1, 1, 0, inf, 0, inf]
    assert spec.sigmoid(f32(0, -inf, inf, 100, -200)).tolist() == [0.5, 0, 1, 1, 0]
    assert spec.silu(f32(0, 100, -200, inf)).tolist() == [0, 100, 0, inf]
    assert spec.softplus(f32(0, 20.000002, 1e30, -200)).tolist() == [
        np.float32(math.log(2)), np.float32(20.000002), np.float32(1e30), 0]  # fmt: skip
    assert spec.softplus(f32(-80))[0] == np.float32(math.exp(-80))
    assert spec.sigmoid(f32(-100))[0] == np.float32(math.exp(-100)) > 0
    for function in (spec.exp, spec.sigmoid, spec.silu, spec.softplus):
        assert np.isnan(function(f32(np.nan)))[0], function.__name__


def test_softplus_is_monotonic_across_its_threshold():
    x = np.float32(20) + np.arange(-2000, 2000).astype(np.float32) * np.float32(2.0**-19)
    assert np.all(np.diff(spec.softplus(x)) >= 0)


def test_exp64_is_within_its_stated_error():
    x = np.concatenate([np.linspace(-700, 700, N_POINTS), normal(6, "x", 20000), normal(6, "y", 5000) * 1e-9])
    relative = np.abs(spec.exp64(x) / np.exp(x) - 1)
    assert relative.max() < 5e-16  # NumPy's own error included
    assert spec.exp64(np.array([-1e9, 1e9])).tolist() == spec.exp64(np.array([-700.0, 700.0])).tolist()


def test_the_degree_of_exp64_shows_where_its_argument_is_largest():
    """The last term moves the last place there; float32 results do not show it."""
    assert float(spec.exp64(np.array([0.34]))[0]).hex() == "0x1.67aaa532108bep+0"  # degree 12 ends in ..bd


def test_log64_is_within_its_stated_error():
    x = np.exp(np.linspace(-300, 300, N_POINTS))
    assert np.max(np.abs(spec.log64(x) - np.log(x)) / np.maximum(np.abs(np.log(x)), 0.1)) < 1e-15
    near = 1 + np.linspace(-0.3, 0.4, 10001)
    assert np.max(np.abs(spec.log64(near) - np.log(near))) < 3e-16
    assert spec.log64(np.array([1.0]))[0] == 0
    assert spec.log64(np.array([1e7]))[0] == pytest.approx(math.log(1e7), rel=2e-16)


def test_log1p64_keeps_small_arguments():
    y = np.exp(np.linspace(-100, 50, N_POINTS))
    assert np.max(np.abs(spec.log1p64(y) / np.log1p(y) - 1)) < 1e-15
    assert spec.log1p64(np.array([0.0, 1e-300])).tolist() == [0.0, 1e-300]


def test_sincos64_is_within_its_stated_error_up_to_2_20():
    angle = np.concatenate(
        [np.linspace(0, 2.0**20, N_POINTS), np.arange(0, 262144, 7.0), np.exp(np.linspace(-30, 13, 9999))]
    )
    multiples = np.arange(1, 4000) * (np.pi / 4)
    for theta in (angle, multiples, np.nextafter(multiples, 0)):
        sin, cos = spec.sincos64(theta)
        assert np.max(np.abs(sin - np.sin(theta))) < 1e-15
        assert np.max(np.abs(cos - np.cos(theta))) < 1e-15
    sin, cos = spec.sincos64(np.array([0.0]))
    assert (sin[0], cos[0]) == (0.0, 1.0)


def test_rsqrt64_is_a_root_and_a_division():
    x = np.exp(np.linspace(-200, 200, 10001))
    assert np.array_equal(spec.rsqrt64(x), [1 / math.sqrt(v) for v in x.tolist()])


def test_taylor_coefficients_are_inverse_factorials():
    from mtpref.spec import arith

    assert [1 / math.factorial(n) for n in range(18)] == list(arith.INV_FACTORIAL)


def test_split_constants_add_up():
    """ln 2 and pi/2 in parts: each leading part has trailing zeros, the sums agree with 60-digit decimals."""
    from decimal import Decimal, getcontext

    from mtpref.spec import arith

    getcontext().prec = 60
    half_pi = Decimal("1.57079632679489661923132169163975144209858469968755291048747")
    total = sum(Decimal(float(p)) for p in (arith.PIO2_1, arith.PIO2_2, arith.PIO2_3))
    assert abs(total - half_pi) < Decimal("1e-36")
    assert abs(Decimal(float(arith.LN2_HI)) + Decimal(float(arith.LN2_LO)) - Decimal(2).ln()) < Decimal("1e-25")
    for part, n_bits in ((arith.PIO2_1, 33), (arith.PIO2_2, 33), (arith.LN2_HI, 33)):
        assert int(np.float64(part).view(np.int64)) % (1 << (53 - n_bits)) == 0
