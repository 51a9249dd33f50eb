"""S8 to S18 against the naive float64 oracle: shapes by hypothesis, inputs by scale and edge."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref import spec
from tests import naive
from tests.random_weights import bits, normal, uniform

SCALES = [1e-30, 1e-10, 1e-3, 1.0, 1e3, 1e10]
DOTS = {"exact": spec.dot64, "ggml": spec.dot32}
# NMSE limits: a few roundings of float32 give 1e-15 to 1e-14; dot32 over a few dozen terms 1e-14
OP, REDUCED = 3e-14, 1e-12
examples = partial(settings, derandomize=True, deadline=None)


def f32(name, *shape, scale=1.0, seed=1):
    return (scale * normal(seed, name, int(np.prod(shape)))).astype(np.float32).reshape(shape)


def check(truth, got, limit):
    assert got.dtype == np.float32
    assert np.shape(truth) == got.shape
    error = naive.nmse(truth, got)
    assert error <= limit, error


# S8, S9, S14


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.0])
def test_norms_equal_the_oracle_at_every_scale(scale, eps):
    x, w, z = f32("x", 3, 2, 40, scale=scale), 1 + f32("w", 40, scale=0.2), f32("z", 3, 2, 40, scale=3.0)
    check(naive.rms_norm(x, w, np.float32(eps)), spec.rms_norm(x, w, eps), OP)
    check(naive.l2_norm(x, np.float32(eps)), spec.l2_norm(x, eps), OP)
    check(naive.gated_norm(x, z, w, np.float32(eps)), spec.gated_norm(x, z, w, eps), OP)


@examples(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 130), st.integers(0, 99), st.sampled_from(SCALES))
def test_norms_equal_the_oracle_for_every_width(n_tokens, n, seed, scale):
    x, w = f32("x", n_tokens, n, scale=scale, seed=seed), f32("w", n, seed=seed)
    check(naive.rms_norm(x, w, np.float32(1e-6)), spec.rms_norm(x, w, 1e-6), OP)
    check(naive.l2_norm(x, np.float32(1e-6)), spec.l2_norm(x, 1e-6), OP)


def test_norm_of_zero_is_zero():
    zero, one = np.zeros((2, 8), np.float32), np.ones(8, np.float32)
    assert not np.any(spec.rms_norm(zero, one, 1e-6))
    assert not np.any(spec.l2_norm(zero, 1e-6))


def test_epsilon_is_the_float32_that_a_file_holds():
    """1e-6 is no float32. Rows of one value near its root: the two differ in about one result of fifty."""
    x = f32("x", 4000, 1, scale=1e-3)
    own, other = (1 / np.sqrt(x.astype(np.float64) ** 2 + e) for e in (np.float64(np.float32(1e-6)), np.float64(1e-6)))
    expected = x * own.astype(np.float32)
    assert not np.array_equal(expected, x * other.astype(np.float32))
    np.testing.assert_array_equal(spec.l2_norm(x, 1e-6), expected)
    np.testing.assert_array_equal(spec.rms_norm(x, np.ones(1, np.float32), 1e-6), expected)


def test_norm_of_large_values_does_not_overflow():
    x = np.full((1, 64), 1e30, np.float32)
    assert np.allclose(spec.rms_norm(x, np.ones(64, np.float32), 1e-6), 1, rtol=1e-6)
    assert np.allclose(spec.l2_norm(x, 1e-6), 0.125, rtol=1e-6)


def test_l2_norm_puts_epsilon_inside_the_sum():
    x = f32("x", 4, 32, scale=1e-3)
    got = spec.l2_norm(x, 1e-6)
    x64 = x.astype(np.float64)
    square = np.sum(x64**2, axis=-1, keepdims=True)
    check(x64 / np.sqrt(square + 1e-6), got, OP)
    for other in (
        x64 / np.maximum(np.sqrt(square), 1e-6),
        x64 / np.sqrt(square + 32e-6),
        x64 / (np.sqrt(square) + 1e-6),
    ):
        assert naive.nmse(other, got) > 1e-6


def test_gated_norm_norms_before_it_gates():
    o, z, w = f32("o", 1, 2, 8), f32("z", 1, 2, 8), 1 + f32("w", 8, scale=0.2)
    other = naive.rms_norm(o * naive.silu(z), w, 1e-6)
    assert naive.nmse(other, spec.gated_norm(o, z, w, 1e-6)) > 1e-3


# S10


def sections_of(n_rot):
    half = n_rot // 2
    return [(half, 0, 0, 0), (half - 2 * (half // 3), half // 3, half // 3, 0), (1, 1, 1, 1), (0, 0, 0, 0)]


@pytest.mark.parametrize("n_rot", [2, 8, 16, 64])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("freq_base", [1e4, 1e7])
@pytest.mark.covering(2)
def test_rope_equals_the_oracle_at_near_and_far_positions(n_rot, which, freq_base):
    sections = sections_of(n_rot)[which]
    if not sum(sections):
        assert not np.any(spec.imrope_has_position(n_rot, sections))
        return
    pos = np.array([0, 1, 2, 77, 4095, 131072, 262143], np.int32)
    x = f32("x", len(pos), 3, 72)
    frequencies = spec.rope_frequencies(n_rot, freq_base)
    cos, sin = spec.rope_table(pos, frequencies, spec.imrope_has_position(n_rot, sections))
    truth = naive.rope_imrope_text(x, pos.tolist(), n_rot, np.float32(freq_base), list(sections))
    check(truth, spec.rope(x, cos, sin), OP)
    # the rule itself is better than float32: an angle of 262143 radians is right to 1e-10
    for i, p in enumerate(pos.tolist()):
        angle = p * float(np.float32(freq_base)) ** (-2.0 * np.arange(n_rot // 2) / n_rot)
        turned = spec.imrope_has_position(n_rot, sections)
        assert np.max(np.abs(cos[i] - np.where(turned, np.cos(angle), 1.0))) < 6e-8 + 1e-9
        assert np.max(np.abs(sin[i] - np.where(turned, np.sin(angle), 0.0))) < 6e-8 + 1e-9


def test_rope_frequencies_are_powers_within_1e_15():
    for base in (1e4, 1e6, 1e7):
        truth = base ** (-2.0 * np.arange(32) / 64)
        assert np.max(np.abs(spec.rope_frequencies(64, base) / truth - 1)) < 3e-15


@pytest.mark.parametrize(
    "sections",
    [(11, 11, 10, 0), (6, 5, 5, 0), (2, 1, 1, 0), (1, 1, 1, 1), (2, 2, 2, 2), (4, 0, 0, 0), (2, 1, 4, 0), (1, 4, 2, 1)],
)
def test_imrope_pairs_equal_the_oracle(sections):
    n_half = max(sum(sections), 8)
    truth = [naive.imrope_axis(i, list(sections)) != "e" for i in range(n_half)]
    assert spec.imrope_has_position(2 * n_half, sections).tolist() == truth


def test_uncovered_pairs_and_dimensions_behind_n_rot_pass_bit_by_bit():
    x = f32("x", 2, 1, 20)
    has = spec.imrope_has_position(16, (2, 2, 2, 2))
    assert has.tolist() == [True] * 6 + [False] * 2
    y = spec.rope(x, *spec.rope_table(np.array([3, 9], np.int32), spec.rope_frequencies(16, 1e4), has))
    for same in (6, 7, 14, 15, 16, 17, 18, 19):
        assert np.array_equal(y[..., same], x[..., same])
    assert np.all(y[..., [0, 1, 8, 9]] != x[..., [0, 1, 8, 9]])


def test_negative_position_turns_back():
    frequencies, has = spec.rope_frequencies(8, 1e4), np.ones(4, bool)
    cos, sin = spec.rope_table(np.array([-1, 1], np.int32), frequencies, has)
    assert np.array_equal(cos[0], cos[1])
    assert np.array_equal(sin[0], -sin[1])


# S11


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("n_tokens", "n_channels", "d_conv"), [(1, 5, 4), (9, 7, 4), (4, 3, 2)])
@pytest.mark.covering(2)
def test_conv_equals_the_oracle(numerics, scale, n_tokens, n_channels, d_conv):
    x, history = f32("x", n_tokens, n_channels, scale=scale), f32("h", d_conv - 1, n_channels, scale=scale)
    w = f32("w", n_channels, d_conv)
    window = np.concatenate([history, x])
    check(naive.conv_window(x, history.T, w)[1], spec.conv_silu(window, w, DOTS[numerics]), REDUCED)


def test_conv_meets_the_oldest_row_with_the_first_weight():
    window, w = np.array([[1], [10], [100]], np.float32), np.array([[0.25, 0.5]], np.float32)
    raw = [0.25 * 1 + 0.5 * 10, 0.25 * 10 + 0.5 * 100]
    assert spec.conv_silu(window, w, spec.dot64)[:, 0].tolist() == spec.silu(np.array(raw, np.float32)).tolist()


# S12


@pytest.mark.parametrize("around", [-80.0, -20.0, 0.0, 19.999, 20.0, 20.001, 100.0])
def test_gates_equal_the_oracle_around_every_edge(around):
    alpha, beta = around + f32("a", 5, 4), around + f32("b", 5, 4)
    alpha, beta, dt = alpha.astype(np.float32), beta.astype(np.float32), f32("dt", 4)
    ssm_a = -np.exp(f32("A", 4))
    g, strength = spec.delta_gates(alpha, beta, dt, ssm_a)
    true_strength, true_g = naive.delta_gates(beta, alpha, dt, ssm_a)
    check(true_strength, strength, OP)
    # alpha + dt is rounded to float32 first: at -80 this moves exp by 4e-6 of itself
    check(true_g, g, 1e-10 if around < -10 else OP)
    assert np.all(g <= 0)
    assert np.all((strength >= 0) & (strength <= 1))


# S13


def delta_inputs(n_tokens, n_k, n_v, size, scale=1.0, seed=1):
    q, k = (spec.l2_norm(f32(x, n_tokens, n_k, size, seed=seed), 1e-6) for x in "qk")
    v, state = f32("v", n_tokens, n_v, size, scale=scale, seed=seed), f32("s", n_v, size, size, scale=scale, seed=seed)
    g = -(4 * uniform(seed, "g", n_tokens * n_v)).astype(np.float32).reshape(n_tokens, n_v)
    beta = uniform(seed, "beta", n_tokens * n_v).astype(np.float32).reshape(n_tokens, n_v)
    return q, k, v, g, beta, state


@pytest.mark.parametrize("numerics", DOTS)
@examples(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 8, 33]), st.integers(0, 99))
def test_delta_rule_equals_the_oracle_for_every_shape(numerics, n_tokens, n_k, repeat, size, seed):
    inputs = delta_inputs(n_tokens, n_k, n_k * repeat, size, seed=seed)
    out, states = spec.delta_rule(*inputs, n_tokens, DOTS[numerics])
    true_out, true_state = naive.gated_delta_rule(*inputs)
    check(true_out, out, REDUCED)
    check(true_state, states[-1], REDUCED)


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_delta_rule_equals_the_oracle_at_every_scale(numerics, scale):
    inputs = delta_inputs(6, 2, 6, 16, scale)
    out, states = spec.delta_rule(*inputs, 1, DOTS[numerics])
    true_out, true_state = naive.gated_delta_rule(*inputs)
    check(true_out, out, REDUCED)
    check(true_state, states[0], REDUCED)


@pytest.mark.parametrize("dot", DOTS.values())
def test_delta_rule_keeps_the_states_of_the_last_tokens(dot):
    """Plane by plane the bits of a run that ended there; keep changes nothing else."""
    inputs = delta_inputs(5, 2, 4, 8)
    whole, planes = spec.delta_rule(*inputs, 5, dot)
    assert planes.shape == (5, 4, 8, 8)
    for keep in (1, 2, 4):
        out, states = spec.delta_rule(*inputs, keep, dot)
        assert np.array_equal(out, whole)
        assert np.array_equal(states, planes[5 - keep :])
    for n in range(1, 5):
        part = [x[:n] for x in inputs[:5]]
        out, states = spec.delta_rule(*part, inputs[5], 1, dot)
        assert np.array_equal(out, whole[:n])
        assert np.array_equal(states[0], planes[n - 1])
        rest = [x[n:] for x in inputs[:5]]
        out, _ = spec.delta_rule(*rest, states[0], 1, dot)
        assert np.array_equal(out, whole[n:])


def test_delta_rule_does_not_touch_its_state():
    inputs = delta_inputs(2, 1, 2, 4)
    before = inputs[5].copy()
    spec.delta_rule(*inputs, 1, spec.dot64)
    assert np.array_equal(inputs[5], before)


def test_delta_rule_gives_v_head_h_the_k_head_h_modulo_n_k_heads():
    k = np.eye(2, dtype=np.float32)[None]
    v, one = np.ones((1, 6, 2), np.float32), np.ones((1, 6), np.float32)
    _, states = spec.delta_rule(k, k, v, 0 * one, one, np.zeros((6, 2, 2), np.float32), 1, spec.dot64)
    assert np.argmax(states[0, :, 0], axis=-1).tolist() == [0, 1, 0, 1, 0, 1]


def test_strong_decay_forgets_and_zero_strength_writes_nothing():
    q, k, v, g, beta, state = delta_inputs(1, 1, 2, 8)
    _, states = spec.delta_rule(q, k, v, np.full_like(g, -160), np.zeros_like(beta), state, 1, spec.dot64)
    assert not np.any(states)
    _, states = spec.delta_rule(q, k, v, np.zeros_like(g), np.zeros_like(beta), state, 1, spec.dot64)
    assert np.array_equal(states[0], state)


@pytest.mark.parametrize(("n_v", "keep"), [(3, 1), (4, 0), (4, 3)])
def test_delta_rule_refuses_uneven_heads_and_bad_keep(n_v, keep):
    with pytest.raises(ValueError, match="delta_rule: H_v"):
        spec.delta_rule(*delta_inputs(2, 2, n_v, 4), keep, spec.dot64)


# S15, S16, S17


def test_query_and_gate_alternate_head_by_head():
    q_full = f32("q", 3, 4 * 2 * 5)
    q, gate = spec.split_q_gate(q_full, 4)
    true_q, true_gate = naive.split_q_gate(q_full, 4)
    assert np.array_equal(q, true_q)
    assert np.array_equal(gate.reshape(3, -1), true_gate)


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
def test_cache_holds_the_rounded_value_exactly(kv_type):
    x = np.concatenate([f32(f"{s}", 50, scale=s) for s in (1e-30, 1e-7, 1.0, 1e4, 1e30)])
    cell = spec.store_kv(x, kv_type)
    assert cell.dtype == (np.float32 if kv_type == "F32" else np.uint16)
    rounding = {"F32": np.asarray, "F16": spec.round_f16, "BF16": spec.round_bf16}[kv_type]
    assert np.array_equal(spec.load_kv(cell, kv_type), rounding(x))
    assert np.array_equal(spec.store_kv(spec.load_kv(cell, kv_type), kv_type), cell)


def attention_inputs(n_tokens, n_past, n_head, n_kv, size, scale=1.0, seed=1):
    shape = (n_past + n_tokens, n_kv, size)
    return (
        f32("q", n_tokens, n_head, size, scale=scale, seed=seed),
        f32("k", *shape, seed=seed),
        f32("v", *shape, seed=seed),
    )


@pytest.mark.parametrize("numerics", DOTS)
@examples(max_examples=25)
@given(st.integers(1, 5), st.integers(0, 70), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 8, 33]))
def test_attention_equals_the_oracle_for_every_shape(numerics, n_tokens, n_past, n_kv, group, size):
    q, k, v = attention_inputs(n_tokens, n_past, n_kv * group, n_kv, size)
    out = spec.attention(q, k, v, "F32", n_past, DOTS[numerics])
    check(naive.attention(q, k, v, n_past), out.reshape(n_tokens, -1), REDUCED)


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize("kv_type", ["F16", "BF16"])
def test_attention_on_16_bit_cells_rounds_query_keys_and_values(numerics, kv_type):
    q, k, v = attention_inputs(3, 40, 4, 2, 16)
    rounding = spec.round_f16 if kv_type == "F16" else spec.round_bf16
    cells = (spec.store_kv(k, kv_type), spec.store_kv(v, kv_type))
    out = spec.attention(q, *cells, kv_type, 40, DOTS[numerics]).reshape(3, -1)
    check(naive.attention(rounding(q), rounding(k), rounding(v), 40), out, REDUCED)
    assert naive.nmse(naive.attention(q, k, v, 40), out) > 1e-9


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 30.0, 300.0])
def test_attention_equals_the_oracle_for_flat_and_sharp_scores(scale):
    q, k, v = attention_inputs(2, 90, 4, 2, 32, scale)
    # a score of 3000 in float32 is off by 1e-4, and so is the weight next to the greatest
    limit = 1e-7 if scale > 100 else 1e-9 if scale > 10 else REDUCED
    check(naive.attention(q, k, v, 90), spec.attention(q, k, v, "F32", 90, spec.dot64).reshape(2, -1), limit)


def test_attention_of_large_scores_does_not_overflow():
    q, k, v = attention_inputs(1, 3, 1, 1, 4, 1e18)
    assert np.all(np.isfinite(spec.attention(q, k, v, "F32", 3, spec.dot64)))


@pytest.mark.parametrize("dot", DOTS.values())
def test_attention_of_a_token_does_not_depend_on_its_batch_nor_see_later_cells(dot):
    q, k, v = attention_inputs(6, 33, 4, 2, 8)
    whole = spec.attention(q, k, v, "F32", 33, dot)
    for t in range(6):
        n = 34 + t
        k_cut, v_cut = k[:n].copy(), v[:n].copy()
        assert np.array_equal(spec.attention(q[t : t + 1], k_cut, v_cut, "F32", n - 1, dot)[0], whole[t])
    k[38], v[38] = np.nan, np.nan
    poisoned = spec.attention(q, k, v, "F32", 33, dot)
    assert np.array_equal(poisoned[:5], whole[:5])
    assert np.isnan(poisoned[5]).all()


def test_attention_of_one_cell_is_its_value():
    q, k, v = attention_inputs(1, 0, 4, 2, 8)
    assert np.array_equal(spec.attention(q, k, v, "F32", 0, spec.dot32)[0], v[0, [0, 0, 1, 1]])


@pytest.mark.parametrize("around", [-80.0, 0.0, 100.0])
def test_attention_gate_is_a_sigmoid(around):
    o, gate = f32("o", 3, 2, 8), (around + f32("g", 3, 2, 8)).astype(np.float32)
    check(o * naive.sigmoid(gate), spec.attn_gate(o, gate), OP)


# S18


@pytest.mark.parametrize("scale", SCALES)
def test_swiglu_equals_the_oracle(scale):
    gate, up = f32("gate", 3, 40, scale=scale), f32("up", 3, 40)
    check(naive.silu(gate) * up, spec.swiglu(gate, up), OP)
    assert np.array_equal(spec.swiglu(np.float32([[0, -200]]), np.float32([[5, 5]])), [[0, 0]])


def test_denormal_inputs_stay_finite_and_are_not_flushed():
    x = (bits(3, "denormal", 64) % np.uint64(1 << 22)).astype(np.uint32).view(np.float32).reshape(2, 32)
    one = np.ones(32, np.float32)
    assert np.all(np.isfinite(spec.rms_norm(x, one, 1e-6)))
    check(naive.l2_norm(x, 0.0), spec.l2_norm(x, 0.0), 1e-6)
    assert np.any(spec.swiglu(x, 2 * one) > 0)


# THE STATED ROUNDINGS, BIT BY BIT


def test_delta_rule_rounds_where_its_formula_says():
    """S = 1, so that every dot is one product: decay, error, one fused write, output, scale."""
    n = 400
    q, k, v = (f32(x, 1, n, 1) for x in "qkv")
    g, beta, state = -np.abs(f32("g", 1, n)), np.abs(f32("beta", 1, n)), f32("s", n, 1, 1)
    out, states = spec.delta_rule(q, k, v, g, beta, state, 1, spec.dot32)
    m = state[:, 0, 0] * spec.exp(g[0])
    delta = (v[0, :, 0] - m * k[0, :, 0]) * beta[0]
    written = spec.fma32(delta, k[0, :, 0], m)
    assert np.array_equal(states[0, :, 0, 0], written)
    assert np.array_equal(out[0, :, 0], written * q[0, :, 0])
    assert np.any(written != delta * k[0, :, 0] + m), "the case does not tell one rounding from two"


def test_rms_norm_multiplies_by_the_scale_before_the_weight():
    x, w = f32("x", 50, 32), f32("w", 32)
    mean = spec.lane_sum_products(x, x) / 32
    scale = (1 / np.sqrt(mean + float(np.float32(1e-6)))).astype(np.float32)[:, None]
    got = spec.rms_norm(x, w, 1e-6)
    assert np.array_equal(got, (x * scale) * w)
    assert np.any(got != x * (scale * w))


def test_rope_rounds_each_product():
    x, cos, sin = f32("x", 50, 1, 4), f32("c", 50, 2), f32("s", 50, 2)
    a, b = x[:, 0, :2], x[:, 0, 2:]
    got = spec.rope(x, cos, sin)[:, 0]
    assert np.array_equal(got[:, :2], a * cos - b * sin)
    assert np.array_equal(got[:, 2:], a * sin + b * cos)
    assert np.any(got[:, :2] != spec.fma32(a, cos, -(b * sin)))


@pytest.mark.parametrize("dot", DOTS.values())
def test_attention_divides_last(dot):
    q, k, v = attention_inputs(1, 99, 1, 1, 16)
    score = dot(q[0], k[:, 0]) * np.float32(0.25)
    e = spec.exp(score - score.max())
    want = np.array([dot(e, v[:, 0, d]) for d in range(16)]) / dot(e, np.ones_like(e))
    assert np.array_equal(spec.attention(q, k, v, "F32", 99, dot)[0, 0], want)
