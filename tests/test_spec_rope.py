"""S10's scaling: frequencies, shares and magnitude of linear scaling and YaRN, against the float64 oracle, and that
against transformers. Keys, flags and whole models: test_rope_scaling.py.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

from mtpref import spec
from tests import naive
from tests.hf_cases import shape

# n_rot, freq_base, factor, n_ctx_orig, betas: Qwen's, DeepSeek's, and ones whose ramp is steep, flat or out of range.
YARN = [
    (64, 1e7, 4.0, 262144, (32.0, 1.0)),
    (64, 1e4, 40.0, 4096, (32.0, 1.0)),
    (8, 1e4, 4.0, 64, (32.0, 1.0)),
    (16, 50.0, 4.0, 16, (32.0, 1.0)),
    (64, 5e3, 3.0, 48, (3.0, 0.5)),
    (64, 1e4, 2.5, 4096, (1.0, 1.0)),
    (2, 1e4, 4.0, 1 << 24, (32.0, 1.0)),
]
REVERSED = (64, 1e4, 8.0, 16, (32.0, 16.0))  # no pair turns 16 times over 16 positions: the ramp would end below pair 0


@pytest.mark.parametrize(("n_rot", "base", "factor", "n_ctx_orig", "betas"), [*YARN, REVERSED])
@pytest.mark.parametrize("ext", [1.0, 0.5])
def test_yarn_frequencies_equal_the_oracle(n_rot, base, factor, n_ctx_orig, betas, ext):
    freq_scale = float(np.float32(1) / np.float32(factor))
    theirs, magnitude = naive.rope_scaled(n_rot, base, 1 / freq_scale, n_ctx_orig, True, betas, ext)
    share = ext * spec.yarn_share(n_rot, base, n_ctx_orig, *betas)
    ours = spec.scaled_frequencies(spec.rope_frequencies(n_rot, base), freq_scale, share)
    assert np.max(np.abs(ours / theirs - 1)) < 1e-14
    assert spec.yarn_magnitude(freq_scale, 0.0) == pytest.approx(magnitude, rel=1e-15)


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0, 40.0, 0.5])
def test_linear_frequencies_are_divided_by_the_factor(factor):
    freq_scale = float(np.float32(1) / np.float32(factor))
    frequencies = spec.rope_frequencies(64, 1e7)
    theirs, _ = naive.rope_scaled(64, 1e7, factor)
    assert np.max(np.abs(spec.scaled_frequencies(frequencies, freq_scale, np.zeros(32)) / theirs - 1)) < 6e-8


def test_yarn_keeps_fast_pairs_scales_slow_ones_and_mixes_between():
    share = spec.yarn_share(64, 1e7, 262144, 32.0, 1.0)
    frequencies = spec.rope_frequencies(64, 1e7)
    ours = spec.scaled_frequencies(frequencies, 0.25, share)
    rotations = 262144 * frequencies / (2 * math.pi)
    assert np.array_equal(ours[rotations > 64], frequencies[rotations > 64])
    assert np.array_equal(ours[rotations < 0.5], frequencies[rotations < 0.5] * 0.25)
    assert all(a >= b for a, b in pairwise(share))
    assert 0 < sum(0 < x < 1 for x in share) < 16


def test_a_ramp_without_width_is_a_step():
    share = spec.yarn_share(64, 1e4, 4096, 1.0, 1e6)
    assert set(share.tolist()) == {0.0, 1.0}
    assert np.all(np.diff(share) <= 0)


@pytest.mark.parametrize("log_multiplier", [0.0, 0.75, 1.0])
def test_the_magnitude_equals_the_oracle_and_is_1_where_nothing_is_stretched(log_multiplier):
    for factor in (1.5, 4.0, 40.0, 1e4):
        freq_scale = float(np.float32(1) / np.float32(factor))
        truth = naive.rope_scaled(8, 1e4, 1 / freq_scale, 64, True, mscale_all_dim=log_multiplier)[1]
        assert spec.yarn_magnitude(freq_scale, log_multiplier) == pytest.approx(truth, rel=1e-15)
    assert spec.yarn_magnitude(1.0, log_multiplier) == spec.yarn_magnitude(2.0, log_multiplier) == 1.0


def test_no_scaling_gives_the_bits_of_the_plain_rule():
    frequencies, pos = spec.rope_frequencies(64, 1e7), np.arange(-2, 300, dtype=np.int32)
    same = spec.scaled_frequencies(frequencies, 1.0, np.zeros(32))
    assert np.array_equal(same.view(np.int64), frequencies.view(np.int64))
    has = spec.imrope_has_position(64, (11, 11, 10, 0))
    sin, cos = spec.sincos64(np.abs(pos[:, None] * frequencies))
    plain = np.where(has, cos, 1.0).astype(np.float32), np.where(has, np.where(pos[:, None] < 0, -sin, sin), 0.0)
    table = spec.rope_table(pos, frequencies, has, 1.0)
    assert np.array_equal(table[0], plain[0])
    assert np.array_equal(table[1], plain[1].astype(np.float32))


def test_the_magnitude_also_stretches_pairs_without_a_position():
    has = spec.imrope_has_position(16, (2, 2, 2, 2))
    x = np.ones((1, 1, 20), np.float32)
    y = spec.rope(x, *spec.rope_table(np.array([7], np.int32), spec.rope_frequencies(16, 1e4), has, 1.5))
    assert not has[7]
    assert y[0, 0, 7] == y[0, 0, 15] == 1.5
    assert np.all(y[0, 0, 16:] == 1.0)


# TRANSFORMERS, LIVE


@pytest.fixture(scope="module")
def oracle_hf():
    pytest.importorskip("torch", reason="torch is not installed (extra: oracle)")
    reason = "transformers with Qwen3.5 is not installed (extra: oracle)"
    pytest.importorskip("transformers.models.qwen3_5", reason=reason)
    from tests import oracle_hf

    return oracle_hf


def hf_frequencies(oracle_hf, kind, n_rot, base, factor, n_ctx_orig, betas):
    config = oracle_hf.text_config(shape(), [False], 97, True)
    config.rope_parameters |= {
        "rope_type": kind, "rope_theta": base, "factor": factor, "original_max_position_embeddings": n_ctx_orig,
        "beta_fast": betas[0], "beta_slow": betas[1], "partial_rotary_factor": 1.0,
    }  # fmt: skip
    config.head_dim = n_rot
    with oracle_hf.precision(oracle_hf.torch.float64):
        frequencies, magnitude = oracle_hf.inverse_frequencies(config)
    return frequencies.numpy(), magnitude


@pytest.mark.oracle
def test_transformers_turns_a_reversed_ramp_over_where_ggml_does_not(oracle_hf):
    """The trap that docs/spec.md names: transformers leaves all pairs as they are, ggml scales all but the first."""
    frequencies, _ = hf_frequencies(oracle_hf, "yarn", *REVERSED)
    n_rot, base, factor, n_ctx_orig, betas = REVERSED
    plain, _ = naive.rope_scaled(n_rot, base, 1.0)
    ours, _ = naive.rope_scaled(n_rot, base, factor, n_ctx_orig, True, betas)
    assert np.max(np.abs(frequencies / np.array(plain) - 1)) < 1e-14
    assert np.max(np.abs(np.array(ours[1:]) * factor / np.array(plain[1:]) - 1)) < 1e-14


@pytest.mark.oracle
@pytest.mark.parametrize(("n_rot", "base", "factor", "n_ctx_orig", "betas"), YARN)
def test_the_oracle_equals_transformers_frequencies(oracle_hf, n_rot, base, factor, n_ctx_orig, betas):
    for kind in ("yarn", "linear"):
        frequencies, magnitude = hf_frequencies(oracle_hf, kind, n_rot, base, factor, n_ctx_orig, betas)
        ours, our_magnitude = naive.rope_scaled(n_rot, base, factor, n_ctx_orig, kind == "yarn", betas)
        assert np.max(np.abs(frequencies / np.array(ours) - 1)) < 1e-14
        assert our_magnitude == pytest.approx(magnitude, rel=1e-15)
