"""The fused entries against the compositions of the specification's functions, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.config import DeltaConfig
from mtpref.ops import compose, discard, spec_ops
from mtpref.recipe import NUMERICS, make_recipe
from tests.test_kernels import SCALES, assert_same, values

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

N_EMBD = 64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261128)


def matrix(rng: np.random.Generator, n_out: int, n_in: int, scale: str = "unit") -> spec.Matrix:
    weights = values(rng, (n_out, n_in), scale) / np.float32(8 if scale == "unit" else 1)
    return spec.Matrix("w", "F32", n_out, n_in, weights.view(np.uint8).reshape(-1))


def delta_config(n_k: int, n_v: int, size: int, d_conv: int = 4) -> DeltaConfig:
    return DeltaConfig(n_embd=N_EMBD, n_k_heads=n_k, n_v_heads=n_v, d_state=size, d_conv=d_conv, rms_eps=1e-6)


def delta_weights(rng: np.random.Generator, cfg: DeltaConfig, scale: str) -> dict[str, object]:
    n_v, size = cfg.n_v_heads, cfg.d_state
    channels = (2 * cfg.n_k_heads + n_v) * size
    return {
        "attn_qkv.weight": matrix(rng, channels, N_EMBD, scale),
        "attn_gate.weight": matrix(rng, n_v * size, N_EMBD),
        "ssm_beta.weight": matrix(rng, n_v, N_EMBD),
        "ssm_alpha.weight": matrix(rng, n_v, N_EMBD),
        "ssm_out.weight": matrix(rng, N_EMBD, n_v * size),
        "ssm_conv1d.weight": values(rng, (channels, cfg.d_conv), "tiny" if scale == "tiny" else "unit"),
        "ssm_dt.bias": values(rng, (n_v,), "unit"),
        "ssm_a": -np.abs(values(rng, (n_v,), "unit")),
        "ssm_norm.weight": values(rng, (size,), "unit"),
    }


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_delta_layer_is_the_composition(rng: np.random.Generator, scale: str, numerics: str) -> None:
    """Batches shorter and longer than the window and than a block of tokens; one, some and all states kept."""
    table, fused = spec_ops(numerics), make_recipe(numerics).ops
    assert fused.delta_layer is not compose.delta_layer
    for (n_k, n_v, size), n_tokens, keep in (
        ((2, 2, 32), 1, 1),
        ((1, 3, 32), 2, 2),
        ((2, 4, 64), 5, 3),
        ((1, 2, 32), 18, 1),
        ((1, 1, 32), 70, 2),
        ((2, 2, 24), 2, 1),
    ):
        cfg = delta_config(n_k, n_v, size)
        w = delta_weights(rng, cfg, scale)
        x, state = values(rng, (n_tokens, N_EMBD), "unit"), values(rng, (n_v, size, size), scale)
        conv = values(rng, (3, (2 * n_k + n_v) * size), scale)
        args = (w, cfg, x, conv, state, keep, discard)
        with np.errstate(all="ignore"):
            y, windows, states = table.delta_layer(table, *args)
        found_y, found_windows, found_states = fused.delta_layer(fused, *args)
        assert_same(y, found_y)
        for i in range(-keep, keep):
            assert_same(windows[i], found_windows[i])
            assert_same(states[i], found_states[i])
        assert found_windows.shape == windows.shape
        assert found_states.shape == states.shape


def test_planes_made_late_are_those_of_the_composition_and_hold_two_states(rng: np.random.Generator) -> None:
    ops, cfg = make_recipe("ggml").ops, delta_config(2, 4, 32)
    w, x = delta_weights(rng, cfg, "unit"), values(rng, (6, N_EMBD), "unit")
    conv, state = values(rng, (3, 256), "unit"), values(rng, (4, 32, 32), "unit")
    _, windows, states = ops.delta_layer(ops, w, cfg, x, conv, state, 6, discard)
    _, all_windows, all_states = ops.composed["delta_layer"](ops, w, cfg, x, conv, state, 6, discard)
    projections = 4 * 6 * (256 + 128 + 4 + 4)
    assert (states.nbytes, windows.nbytes) == (2 * state.nbytes + projections, 2 * conv.nbytes)
    assert_same(all_states, np.asarray(states))
    assert_same(all_windows, np.asarray(windows))
    for planes in (states, windows):
        for i in (-7, 6):
            with pytest.raises(IndexError, match=f"plane {i} of 6"):
                planes[i]


def test_a_tap_sees_every_result_of_the_composition(rng: np.random.Generator) -> None:
    ops, cfg, seen = make_recipe("ggml").ops, delta_config(1, 2, 32), []
    w, x = delta_weights(rng, cfg, "unit"), values(rng, (2, N_EMBD), "unit")
    conv, state = values(rng, (3, 128), "unit"), values(rng, (2, 32, 32), "unit")
    y = ops.delta_layer(ops, w, cfg, x, conv, state, 1, lambda name, array: seen.append(name))[0]
    assert {"conv_output_silu", "q_conv_predelta", "final_output", "new_state"} <= set(seen)
    assert_same(y, ops.delta_layer(ops, w, cfg, x, conv, state, 1, discard)[0])


def test_other_sizes_take_the_composition(rng: np.random.Generator) -> None:
    ops, calls = make_recipe("ggml").ops, []

    def noted(*args: object) -> object:
        calls.append("composed")
        return compose.delta_layer(*args)

    watched = replace(ops, composed={**ops.composed, "delta_layer": noted})
    for cfg, is_usual in ((delta_config(1, 1, 32), True), (delta_config(1, 1, 40), False),
                          (delta_config(1, 1, 32, d_conv=3), False)):  # fmt: skip
        w, size = delta_weights(rng, cfg, "unit"), cfg.d_state
        x, conv = values(rng, (1, N_EMBD), "unit"), values(rng, (cfg.d_conv - 1, 3 * size), "unit")
        watched.delta_layer(watched, w, cfg, x, conv, values(rng, (1, size, size), "unit"), 1, discard)
        assert calls == ([] if is_usual else ["composed"])
        calls.clear()
