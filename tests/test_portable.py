"""The oracles give the same values with portable arithmetic, up to the last bits of float64."""

import math

import numpy as np
import pytest

from tests import naive, portable

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 700.0])
@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "softmax"])
def test_functions_agree_with_numpy(name, scale):
    x = RNG.standard_normal((3, 40)) * scale
    usual = getattr(naive, name)(x)
    with portable.portable_arithmetic():
        ours = getattr(naive, name)(x)
    np.testing.assert_allclose(ours, usual, rtol=4e-16 * 40, atol=1e-300)


def test_sums_and_products_agree_with_numpy():
    a, b, v = RNG.standard_normal((5, 70)), RNG.standard_normal((70, 4)), RNG.standard_normal(70)
    np.testing.assert_allclose(portable.dot(a, b), a @ b, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(portable.dot(a, v), a @ v, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(portable.total(a)[:, 0], a.sum(axis=1), rtol=1e-12, atol=1e-13)


def test_rope_agrees_with_numpy():
    x = RNG.standard_normal((3, 2, 16))
    usual = naive.rope_imrope_text(x, [0, 7, 900], 8, 1e6, [2, 1, 1, 0])
    with portable.portable_arithmetic():
        np.testing.assert_allclose(naive.rope_imrope_text(x, [0, 7, 900], 8, 1e6, [2, 1, 1, 0]), usual, rtol=1e-13)


def test_functions_are_rounded_correctly_and_known_values_hold():
    assert float(portable._exp(1.0)) == math.e
    assert float(portable._cos(0.0)) == 1.0
    assert float(portable._exp(-math.inf)) == 0.0
    assert math.isnan(float(portable._exp(math.nan)))


def test_arithmetic_is_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), portable.portable_arithmetic():
        raise ZeroDivisionError
    assert naive.exp is np.exp
    assert naive.dot is np.matmul
