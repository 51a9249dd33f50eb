"""S76, S94 to S98 on arrays: windows, sinks, gates of heads and limits, against the float64 oracle. Whole models:
test_chain_model.py."""

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.config import MoeConfig, WindowedConfig
from mtpref.spec.ops import discard, spec_ops
from mtpref.spec.ops.compose_windowed import limited_ops
from tests import naive, naive_chain

F32 = np.float32
N_EMBD, N_HEAD, N_KV, N_KEY, N_ROT = 24, 4, 2, 10, 6
POSITIONS = list(range(9))


def window_of(cfg):
    return {
        "arch": "mimo2", "attention.head_count": N_HEAD, "attention.head_count_kv": N_KV, "context_length": 512,
        "attention.key_length": N_KEY, "attention.value_length": cfg.n_value, "rope.dimension_count": N_ROT,
        "attention.sliding_window": max(1, cfg.n_window), "attention.sliding_window_pattern": [bool(cfg.n_window)],
        "rope.freq_base": 1e4, "rope.freq_base_swa": 1e4, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.value_scale": cfg.value_scale or 1.0,
    }  # fmt: skip


def layer(rng, n_value, extras):
    shapes = {"attn_q": (N_HEAD * N_KEY, N_EMBD), "attn_k": (N_KV * N_KEY, N_EMBD), "attn_v": (N_KV * n_value, N_EMBD),
              "attn_output": (N_EMBD, N_HEAD * n_value)}  # fmt: skip
    if "gate" in extras:
        shapes["attn_gate"] = (N_HEAD, N_EMBD)
    made = {f"blk.0.{name}.weight": rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}
    if "norms" in extras:
        made |= {f"blk.0.attn_{x}_norm.weight": (1 + 0.2 * rng.standard_normal(N_KEY)).astype(F32) for x in "qk"}
    if "sinks" in extras:
        made["blk.0.attn_sinks.weight"] = rng.standard_normal(N_HEAD).astype(F32)
    return made


def bound(weights):
    return {
        name.removeprefix("blk.0."): spec.Matrix(name, "F32", *w.shape, w.view(np.uint8).reshape(-1))
        if w.ndim == 2
        else w
        for name, w in weights.items()
    }


CASES = [  # window, width of values, scale, what the file has beside projections
    (0, N_KEY, 0.0, ()),
    (0, N_KEY, 0.0, ("gate", "norms")),
    (4, N_KEY, 0.0, ("gate", "norms")),
    (1, N_KEY, 1.0, ()),
    (3, 6, 0.7, ("sinks",)),
    (0, 6, 0.7, ()),
    (30, 12, 0.5, ("sinks", "gate")),
]


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_the_oracles_whole_and_in_parts(case, numerics):
    n_window, n_value, scale, extras = case
    rng, ops = np.random.default_rng(7), spec_ops(numerics)
    weights = layer(rng, n_value, extras)
    cfg = WindowedConfig(N_EMBD, N_HEAD, N_KV, N_KEY, n_value, n_window, N_ROT, 1e4, 1e-6, scale)
    x = rng.standard_normal((9, N_EMBD)).astype(F32)
    truth, _ = naive_chain.attention(weights, window_of(cfg), 0, naive.f64(x), POSITIONS)

    def run(rows, first, k, v):
        """The rows after the cells that are given; the cells after them."""
        k, v = (np.concatenate([a, np.full((len(rows), *a.shape[1:]), np.nan, F32)]) for a in (k, v))
        pos = np.arange(first, first + len(rows), dtype=np.int32)
        table = spec.rope_table(pos, spec.rope_frequencies(N_ROT, 1e4), np.ones(N_ROT // 2, np.bool_))
        return ops.windowed_attn_layer(ops, bound(weights), cfg, rows, k, v, "F32", first, table, discard), k, v

    empty = np.empty((0, N_KV, N_KEY), F32), np.empty((0, N_KV, n_value), F32)
    whole, _, _ = run(x, 0, *empty)
    assert np.max(np.abs(whole - truth)) <= 1e-5 * np.max(np.abs(truth))
    k, v, parts = *empty, []
    kept = n_window - 1 if n_window else 99
    if n_window:  # the cells that are carried: n_window - 1 of them from the beginning on, whatever they hold
        k, v = (np.full((kept, *a.shape[1:]), np.nan, F32) for a in empty)
    for a, b in ((0, 1), (1, 4), (4, 9)):
        y, k, v = run(x[a:b], a, k, v)
        k, v = (cells[max(0, len(cells) - kept) :] for cells in (k, v))
        parts.append(y)
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_cells", [1, 31, 32, 33, 70])
def test_without_a_sink_the_attention_of_one_token_has_the_bits_of_s16(kv_type, n_cells):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((N_HEAD, 8)).astype(F32)
    k, v = (spec.store_kv(rng.standard_normal((n_cells, N_KV, 8)).astype(F32), kv_type) for _ in "kv")
    for dot in (spec.dot32, spec.dot64):
        one = spec.cell_attention(q, k, v, None, kv_type, dot)
        assert np.array_equal(one, spec.attention(q[None], k, v, kv_type, n_cells - 1, dot)[0])


@pytest.mark.parametrize("sink", [-90.0, -1.0, 0.5, 4.0, 90.0])
def test_a_sink_takes_its_share_and_adds_no_value(sink):
    q, k, v = np.ones((1, 4), F32), np.ones((3, 1, 4), F32), np.arange(6, dtype=F32).reshape(3, 1, 2)
    out = spec.cell_attention(q, k, v, np.array([sink], F32), "F32", spec.dot64)
    share = np.exp(2.0) / (3 * np.exp(2.0) + np.exp(np.float64(sink)))  # scores are 4 / sqrt(4)
    assert out[0] == pytest.approx(share * v.sum(axis=0)[0], rel=1e-6, abs=1e-30)


def test_a_window_holds_the_token_itself():
    assert [spec.window_start(p, 3) for p in range(6)] == [0, 0, 0, 1, 2, 3]
    assert [spec.window_start(p, 1) for p in range(3)] == [0, 1, 2]


def test_frequencies_are_divided_by_the_first_factors():
    found = spec.divided_frequencies(np.array([1.0, 0.5]), np.array([2, 4, 9], F32))
    assert found.tolist() == [0.5, 0.125]


def test_limits_stand_behind_silu_and_bound_up_on_both_sides():
    gate, up = np.array([[-30, 0, 0.5, 30]], F32), np.array([[-5, 5, 0.25, -0.1]], F32)
    assert spec.limited_swiglu(gate, up, 0.0).tolist() == spec.swiglu(gate, up).tolist()
    assert spec.limited_swiglu(gate, up, 1e-6).tolist() == spec.swiglu(gate, up).tolist()
    found = spec.limited_swiglu(gate, up, 2.0)
    silu = spec.silu(gate)
    assert found.tolist() == [[silu[0, 0] * F32(-2), 0.0, silu[0, 2] * F32(0.25), F32(2) * F32(-0.1)]]
    assert silu[0, 0] < 0  # silu is not limited from below


def test_each_head_has_one_gate_and_a_scale_of_0_or_1_is_none():
    o, logit = np.ones((1, 2, 3), F32), np.array([[0.0, 100.0]], F32)
    assert spec.head_gate(o, logit).tolist() == [[[0.5] * 3, [1.0] * 3]]
    y = np.array([[3.0, -1.0]], F32)
    assert spec.scaled_output(y, 0.0) is y
    assert spec.scaled_output(y, 1.0) is y
    assert spec.scaled_output(y, 0.5).tolist() == [[1.5, -0.5]]


def matrix(rng, rows, columns):
    w = rng.standard_normal((rows, columns)).astype(F32)
    return spec.Matrix("w", "F32", rows, columns, w.view(np.uint8).reshape(-1)), w


@pytest.mark.parametrize("limit", [0.0, 0.7])
def test_a_dense_network_takes_its_limit(limit):
    rng, ops = np.random.default_rng(1), spec_ops("exact")
    made = {f"ffn_{name}.weight": matrix(rng, *shape) for name, shape in
            (("gate", (7, 5)), ("up", (7, 5)), ("down", (5, 7)))}  # fmt: skip
    x = rng.standard_normal((3, 5)).astype(F32)
    w = {name: pair[0] for name, pair in made.items()}
    limited = limited_ops(ops, limit)
    found = limited.ffn(limited, w, x, discard)
    truth = naive_chain.network(naive.f64(x), *(made[f"ffn_{n}.weight"][1] for n in ("gate", "up", "down")), limit)
    assert found == pytest.approx(truth, rel=1e-5)
    assert (limited is ops) == (limit == 0.0)


@pytest.mark.parametrize("has_shared", [True, False])
@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4), (0.3, 0.9)])
def test_experts_and_the_shared_expert_have_limits_of_their_own(limits, has_shared):
    rng, ops = np.random.default_rng(2), spec_ops("exact")
    n, n_ff, n_expert = 6, 8, 4
    plain = {"ffn_gate_inp.weight": rng.standard_normal((n_expert, n)).astype(F32)}
    plain |= {f"ffn_{x}_exps.weight": rng.standard_normal((n_expert, n_ff, n)).astype(F32) for x in ("gate", "up")}
    plain["ffn_down_exps.weight"] = rng.standard_normal((n_expert, n, n_ff)).astype(F32)
    if has_shared:
        plain |= {f"ffn_{x}_shexp.weight": rng.standard_normal((n_ff, n)).astype(F32) for x in ("gate", "up")}
        plain["ffn_down_shexp.weight"] = rng.standard_normal((n, n_ff)).astype(F32)
    w = {}
    for name, values in plain.items():
        raw = values.view(np.uint8)
        stack = spec.Stack(name, "F32", *values.shape[1:], raw.reshape(n_expert, -1)) if values.ndim == 3 else None
        w[name] = stack or spec.Matrix(name, "F32", *values.shape, raw.reshape(-1))
    cfg, limited = MoeConfig(n, n_expert, 2, "sigmoid", True, 1.5, 1, 0), limited_ops(ops, *limits)
    x = rng.standard_normal((3, n)).astype(F32)
    found, routing = limited.moe_ffn(limited, w, cfg, x, discard)
    hparams = {"arch": "step35", "expert_used_count": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5,
               "swiglu_clamp_exp": [limits[0]], "swiglu_clamp_shexp": [limits[1]]}  # fmt: skip
    truth, chosen = naive_chain.experts({f"blk.0.{k}": v for k, v in plain.items()}, hparams, 0, naive.f64(x))
    assert np.array_equal(routing.ids, chosen)
    assert found == pytest.approx(truth, rel=1e-4, abs=1e-5)
