"""The fused entries against the compositions of the specification's functions, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import NUMERICS, make_recipe
from mtpref.spec.config import DeltaConfig
from mtpref.spec.ops import compose, discard, spec_ops
from tests.test_kernels import SCALES, assert_same, values
from tests.test_kernels import matrix as quantised

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

N_EMBD = 64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261128)


@pytest.fixture
def all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the product is, it is split; with one thread there is nothing to split."""
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import mul_mats

    if compile.settings.NUMBA_NUM_THREADS == 1:
        pytest.skip("Numba has one thread here: nothing to split")
    monkeypatch.setattr(mul_mats, "PARALLEL_FROM", 0)
    monkeypatch.setattr(compile, "_n_threads", 2)


def matrix(rng: np.random.Generator, n_out: int, n_in: int, scale: str = "unit") -> spec.Matrix:
    weights = values(rng, (n_out, n_in), scale) / np.float32(8 if scale == "unit" else 1)
    return spec.Matrix("w", "F32", n_out, n_in, weights.view(np.uint8).reshape(-1))


def delta_config(n_k: int, n_v: int, size: int, d_conv: int = 4) -> DeltaConfig:
    return DeltaConfig(n_embd=N_EMBD, n_k_head=n_k, n_v_head=n_v, d_state=size, d_conv=d_conv, rms_eps=1e-6)


def delta_weights(rng: np.random.Generator, cfg: DeltaConfig, scale: str) -> dict[str, object]:
    n_v, size = cfg.n_v_head, cfg.d_state
    channels = (2 * cfg.n_k_head + n_v) * size
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


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("scale", SCALES)
def test_a_delta_layer_of_panels_is_the_composition(rng: np.random.Generator, scale: str) -> None:
    """The projections in the same call: one type, two, or three, where the products are calls of their own."""
    from mtpref.kernels.fused import delta_mixer

    table, fused, cfg = spec_ops("ggml"), make_recipe("ggml").ops, delta_config(2, 4, 64)
    channels, inner = 8 * 64, 4 * 64
    sizes = {"attn_qkv": channels, "attn_gate": inner, "ssm_beta": 4, "ssm_alpha": 4, "ssm_out": 48}
    for types, is_whole in ((("Q8_0",) * 5, True), (("Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q5_K"), True),
                            (("Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q8_0"), False)):  # fmt: skip
        w = delta_weights(rng, cfg, scale)
        for (name, n_out), type_name in zip(sizes.items(), types, strict=True):
            w[f"{name}.weight"] = quantised(rng, type_name, n_out, 256, "unit")
        names = [f"{name}.weight" for name in sizes]
        packed = {**w, **dict(zip(names, kernels.pack([w[name] for name in names]), strict=True))}
        assert delta_mixer._is_whole([packed[name] for name in names], np.empty((1, 256))) is is_whole
        for n_tokens, keep in ((1, 1), (2, 2), (5, 3), (70, 2)):
            x, state = values(rng, (n_tokens, 256), "unit"), values(rng, (4, 64, 64), scale)
            args = cfg, x, values(rng, (3, channels), scale), state, keep, discard
            with np.errstate(all="ignore"):
                y, windows, states = table.delta_layer(table, w, *args)
            found_y, found_windows, found_states = fused.delta_layer(fused, packed, *args)
            assert_same(y, found_y)
            for i in range(-keep, keep):
                assert_same(windows[i], found_windows[i])
                assert_same(states[i], found_states[i])


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


# FEED-FORWARD, SEVERAL MATRICES AT ONCE


def ffn_weights(rng: np.random.Generator, types: tuple[str, str, str], n_ff: int, scale: str) -> dict[str, object]:
    sizes = (n_ff, 256), (n_ff, 256), (40, n_ff)
    names = "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"
    return {name: quantised(rng, t, *size, scale) for name, t, size in zip(names, types, sizes, strict=True)}


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("scale", SCALES)
def test_a_feed_forward_network_is_the_composition(rng: np.random.Generator, scale: str) -> None:
    """Types with and without a layout, mixed; rows that do not fill a panel; tokens that one or all threads prepare."""
    table, fused = spec_ops("ggml"), make_recipe("ggml").ops
    for types in (("Q8_0",) * 3, ("Q4_K",) * 3, ("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q6_K", "Q8_0"), ("F16",) * 3):
        for n_ff, n_tokens in ((256, 1), (512, 3), (256, 9)):
            w, x = ffn_weights(rng, types, n_ff, scale), values(rng, (n_tokens, 256), scale)
            with np.errstate(all="ignore"):
                expected = table.ffn(table, w, x, discard)
            packed = dict(zip(w, kernels.pack(list(w.values())), strict=True))
            assert_same(expected, fused.ffn(fused, packed, x, discard))
            assert_same(expected, fused.ffn(fused, w, x, discard))


@pytest.mark.usefixtures("all_threads")
def test_a_tap_sees_every_result_of_a_feed_forward_network(rng: np.random.Generator) -> None:
    ops, seen = make_recipe("ggml").ops, []
    w, x = ffn_weights(rng, ("Q8_0",) * 3, 64, "unit"), values(rng, (2, 256), "unit")
    w = dict(zip(w, kernels.pack(list(w.values())), strict=True))
    y = ops.ffn(ops, w, x, lambda name, array: seen.append(name))
    assert seen == ["ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out"]
    assert_same(y, ops.ffn(ops, w, x, discard))


def test_another_product_or_swiglu_is_what_runs(rng: np.random.Generator) -> None:
    ops = make_recipe("ggml").ops
    w, x = ffn_weights(rng, ("Q8_0",) * 3, 64, "unit"), values(rng, (2, 256), "unit")
    w = dict(zip(w, kernels.pack(list(w.values())), strict=True))
    other = ops.replaced(swiglu=lambda gate, up: np.zeros_like(gate))
    assert not np.any(other.ffn(other, w, x, discard))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_several_matrices_give_each_its_product(
    rng: np.random.Generator, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import mul_mats

    if n_threads > compile.settings.NUMBA_NUM_THREADS:
        pytest.skip("Numba has one thread here: nothing to split")
    monkeypatch.setattr(mul_mats, "PARALLEL_FROM", 0)
    monkeypatch.setattr(compile, "_n_threads", n_threads)
    ops = make_recipe("ggml").ops
    types = "Q6_K", "Q4_K", "Q6_K", "F32", "Q6_K", "Q6_K"
    raw = [quantised(rng, t, n_out, 512, "unit") for t, n_out in zip(types, (33, 16, 1, 20, 48, 7), strict=True)]
    for n_tokens in (1, 9):
        x = values(rng, (2 * n_tokens, 512), "unit")[::2]
        for matrices in (raw, kernels.pack(raw), kernels.pack(raw)[:1]):
            found = mul_mats.mul_mats(ops, matrices, x)
            for w, y in zip(matrices, found, strict=True):
                assert_same(spec.mul_mat_ggml(w, x), y)
