"""S117, S118, S121 to S127: Mamba-2, networks without a gate and layer norms, against plain float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.kinds.unturned import turned_width
from mtpref.spec.ops import spec_ops
from mtpref.spec.ops.compose import layer_normed_ops, scaled_head
from mtpref.spec.ops.compose_ssm import head_normed_ops
from tests import naive
from tests.random_weights import normal

DOTS = {"exact": spec.dot64, "ggml": spec.dot32}


def rows(name, *shape, scale=1.0):
    return (normal(11, name, math.prod(shape)).reshape(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_relu_squared_is_exact_where_float32_holds_it(scale):
    x = rows("x", 3, 17, scale=scale)
    assert np.array_equal(spec.relu_squared(x), (np.where(x > 0, x, 0) * np.where(x > 0, x, 0)).astype(np.float32))
    assert spec.relu_squared(np.array([[-0.0, 0.0, -3.0]], np.float32)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize("d_conv", [2, 4])
def test_convolution_with_a_bias(numerics, d_conv):
    window, weight, bias = rows("w", d_conv + 4, 9), rows("k", 9, d_conv), rows("b", 9, scale=3)
    out = spec.conv_bias_silu(window, weight, bias, DOTS[numerics])
    for t in range(5):
        wanted = naive.silu((window[t : t + d_conv].astype(np.float64) * weight.T).sum(axis=0) + bias)
        assert naive.nmse(wanted, out[t]) < 1e-12
    plain = spec.conv_silu(window, weight, DOTS[numerics])
    assert np.array_equal(spec.conv_bias_silu(window, weight, np.zeros(9, np.float32), DOTS[numerics]), plain)


def scanned(x, b, c, dt, a, state):
    state, out, kept = state.astype(np.float64).copy(), np.zeros(x.shape), []
    for t in range(len(x)):
        for h in range(x.shape[1]):
            g = h // (x.shape[1] // b.shape[1])
            step = float(naive.softplus(dt[t, h]))
            state[h] = math.exp(step * float(a[h])) * state[h] + step * np.outer(x[t, h], b[t, g])
            out[t, h] = state[h] @ c[t, g].astype(np.float64)
        kept.append(state.copy())
    return out, np.stack(kept)


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize(("n_head", "n_group", "size", "n_state"), [(4, 2, 3, 16), (6, 3, 4, 12), (2, 1, 5, 40)])
def test_scan_equals_the_recurrence_and_keeps_the_last_states(numerics, n_head, n_group, size, n_state):
    x, b, c = rows("x", 6, n_head, size), rows("b", 6, n_group, n_state), rows("c", 6, n_group, n_state)
    dt, a, state = rows("dt", 6, n_head, scale=8), -np.abs(rows("a", n_head)), rows("s", n_head, size, n_state)
    wanted, states = scanned(x, b, c, dt, a, state)
    out, kept = spec.ssm_scan(x, b, c, dt, a, state, 4, DOTS[numerics])
    assert naive.nmse(wanted, out) < 1e-12
    assert naive.nmse(states[2:], kept) < 1e-12
    first, between = spec.ssm_scan(x[:4], b[:4], c[:4], dt[:4], a, state, 1, DOTS[numerics])
    second, last = spec.ssm_scan(x[4:], b[4:], c[4:], dt[4:], a, between[-1], 2, DOTS[numerics])
    assert np.array_equal(np.concatenate([first, second]), out)
    assert np.array_equal(last, kept[-2:])


@pytest.mark.parametrize("keep", [0, 3])
def test_scan_refuses_what_it_cannot_keep(keep):
    x, b = rows("x", 2, 4, 3), rows("b", 2, 2, 8)
    given = (x, b, b, rows("dt", 2, 4), -np.ones(4, np.float32), rows("s", 4, 3, 8))
    with pytest.raises(ValueError, match=f"keep {keep} of 2 tokens"):
        spec.ssm_scan(*given, keep, spec.dot64)
    with pytest.raises(ValueError, match="H 4, G 3"):
        spec.ssm_scan(x, rows("b", 2, 3, 8), b, *given[3:], 1, spec.dot64)


def test_gated_norm_of_groups():
    y, x, z, d = rows("y", 5, 4, 6), rows("x", 5, 4, 6), rows("z", 5, 24), rows("d", 4)
    weight = rows("w", 2, 12)
    gated = (y + x * d[:, None]).astype(np.float64).reshape(5, 24) * naive.silu(z)
    groups = gated.reshape(5, 2, 12)
    wanted = groups / np.sqrt((groups**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    found = spec.gated_group_norm(y, x, d, z, weight, 1e-5)
    assert naive.nmse(wanted.reshape(5, 24), found) < 1e-12
    assert not np.allclose(found, spec.gated_group_norm(y, x, d, z, weight.reshape(1, 24), 1e-5), rtol=1e-3)


def test_layer_norms_stand_in_where_a_model_has_them():
    x, weight = rows("x", 3, 33) + np.float32(2), rows("w", 33)
    table = spec_ops("exact")
    centred = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    wanted = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert naive.nmse(wanted, table.layer_norm(x, weight, None, 1e-5)) < 1e-12
    everywhere, behind = layer_normed_ops(table), head_normed_ops(table, 1e-5)
    assert np.array_equal(everywhere.rms_norm(x, weight, 1e-5), table.layer_norm(x, weight, None, 1e-5))
    assert np.array_equal(everywhere.mtp_norm(everywhere, x, weight, 1e-5), everywhere.rms_norm(x, weight, 1e-5))
    assert np.array_equal(behind.mtp_norm(behind, x, weight, 0.5), everywhere.rms_norm(x, weight, 1e-5))
    assert np.array_equal(behind.rms_norm(x, weight, 1e-5), table.rms_norm(x, weight, 1e-5))


def test_scaled_logits_and_turned_widths():
    output = SimpleNamespace(n_out=4)
    ops = spec_ops("exact").replaced(head=lambda table, w, h, n: h[:, :4])
    h = rows("h", 2, 6)
    assert np.array_equal(scaled_head(ops, output, h, None, 0.25), h[:, :4] * np.float32(0.25))
    assert all(np.array_equal(scaled_head(ops, output, h, None, scale), h[:, :4]) for scale in (0.0, 1.0))
    assert [turned_width(16, n, turns) for n, turns in ((5, False), (0, False), (0, True), (5, True))] == [
        16,
        0,
        16,
        16,
    ]
