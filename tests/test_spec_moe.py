"""The rules of an experts' network and of projections, S41 to S51, one by one."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import make_recipe
from mtpref.spec.config import MoeConfig
from mtpref.spec.ops import discard, spec_ops
from tests import naive, naive_moe

F32 = np.float32
RNG = np.random.default_rng(41)
SHAPES = [(1, 2, 1), (3, 6, 3), (5, 17, 4), (2, 256, 8)]  # tokens, experts, used


def close(ours, theirs, limit=3e-7):
    assert np.max(np.abs(ours - theirs)) <= limit * max(1.0, np.max(np.abs(theirs)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 80.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_equal_the_oracles(shape, scale):
    logits = (RNG.standard_normal(shape[:2]) * scale).astype(F32)
    close(spec.expert_probs(logits, "sigmoid"), naive.sigmoid(logits))
    ours = spec.expert_probs(logits, "softmax")
    close(ours, np.stack([naive.softmax(row) for row in logits]))
    assert ours.dtype == F32


def test_softmax_does_not_overflow_and_its_sum_does_not_lose_small_terms():
    logits = np.array([[1e30, 1e30, -1e30, 0.0]], F32)
    assert spec.expert_probs(logits, "softmax").tolist() == [[0.5, 0.5, 0.0, 0.0]]
    flat = spec.expert_probs(np.zeros((1, 1 << 12), F32), "softmax")
    assert set(flat[0].tolist()) == {2.0**-12}


def test_experts_are_chosen_by_score_and_then_by_the_lowest_id():
    scores = np.array([[0.5, 0.75, 0.5, 0.75, 0.25], [-0.0, 0.0, np.nan, -1.0, -np.inf]], F32)
    ids = spec.select_experts(scores, 3)
    assert ids.tolist() == [[1, 3, 0], [0, 1, 3]]
    assert spec.select_experts(np.zeros((1, 512), F32), 4).tolist() == [[0, 1, 2, 3]]
    assert spec.router_gap(scores, ids).tolist() == [0.0, np.inf]
    assert spec.router_gap(scores[:1], ids[:1, :2]).tolist() == [0.25]
    assert spec.router_gap(scores[:1], spec.select_experts(scores[:1], 5)).tolist() == [np.inf]


def test_a_bias_moves_scores_alone():
    probs, bias = np.array([[0.25, 0.5]], F32), np.array([0.5, -0.25], F32)
    assert spec.expert_scores(probs, bias).tolist() == [[0.75, 0.25]]
    assert spec.expert_scores(probs, None) is probs


def test_groups_are_scored_by_their_two_best_and_not_by_the_best():
    scores = np.array([[0.9, 0.0, 0.1, 0.5, 0.45, 0.0]], F32)  # two groups of three
    by_group = spec.group_scores(scores, 2)
    close(by_group, np.array([[1.0, 0.95]]))
    scores[0, 5], scores[0, 2] = 0.46, -0.2
    chosen = spec.select_experts(spec.group_scores(scores, 2), 1)
    assert chosen.tolist() == [[1]]
    limited = spec.limit_groups(scores, chosen, 2)
    assert limited[0, :3].tolist() == [-np.inf] * 3
    assert np.array_equal(limited[0, 3:], scores[0, 3:])
    assert np.isfinite(spec.group_scores(np.array([[1.0, np.nan, 2.0, 3.0]], F32), 2)[0, 1])


def test_weights_are_of_probabilities_normalised_in_order_limited_and_scaled():
    probs = np.array([[0.1, 0.2, 0.3], [1e-6, 2e-6, 0.0]], F32)
    ids = np.array([[2, 0], [1, 0]])
    assert np.array_equal(spec.expert_weights(probs, ids, False, 0.0), np.take_along_axis(probs, ids, 1))
    normed = spec.expert_weights(probs, ids, True, 0.0)
    close(normed[0], np.array([0.75, 0.25]))
    close(normed[1], np.array([2e-6, 1e-6]) * 2**14)  # their sum is below 2^-14
    assert np.array_equal(spec.expert_weights(probs, ids, True, 2.5), normed * F32(2.5))
    for nothing in (0.0, 1.0):
        assert np.array_equal(spec.expert_weights(probs, ids, True, nothing), normed)


def test_results_are_added_in_the_order_of_choice():
    y = np.array([[[1.0], [2.0**24], [-(2.0**24)]]], F32)
    assert spec.sum_experts(spec.weigh_experts(y, np.ones((1, 3), F32))).tolist() == [[0.0]]
    assert spec.sum_experts(y[:, [1, 2, 0]]).tolist() == [[1.0]]
    assert spec.weigh_experts(y, np.full((1, 3), 0.5, F32)).ravel().tolist() == [0.5, 2.0**23, -(2.0**23)]


def test_the_shared_experts_gate_is_a_sigmoid_of_one_number_a_token():
    y, logit = RNG.standard_normal((3, 5)).astype(F32), np.array([[0.0], [4.0], [-90.0]], F32)
    close(spec.shared_gate(y, logit), y * naive.sigmoid(logit))


def test_a_bias_is_added_and_heads_are_repeated_in_groups():
    assert spec.add_bias(np.ones((2, 3), F32), np.arange(3, dtype=F32)).tolist() == [[1.0, 2.0, 3.0]] * 2
    heads = np.arange(4, dtype=F32).reshape(1, 2, 2)
    assert spec.repeat_heads(heads, 6)[0, :, 0].tolist() == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_fused_projections_are_laid_out_by_key_head():
    ba = np.arange(12, dtype=F32)[None]  # two key heads, three value heads each
    beta, alpha = spec.split_beta_alpha(ba, 2)
    assert beta.tolist() == [[0, 1, 2, 6, 7, 8]]
    assert alpha.tolist() == [[3, 4, 5, 9, 10, 11]]
    # two key heads of size 2, one value head each: q k v z
    qkv, z = spec.split_qkvz(np.arange(16, dtype=F32)[None], 2, 2)
    assert qkv.tolist() == [[0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13]]
    assert z.tolist() == [[6, 7, 14, 15]]


# THE NETWORK

N_EMBD, N_FF, N_SHARED = 64, 32, 96


def matrix(name, values):
    values = values.astype(F32)
    return spec.Matrix(name, "F32", *values.shape, values.view(np.uint8).reshape(-1))


def stack(name, values):
    values = values.astype(F32)
    return spec.Stack(name, "F32", *values.shape[1:], values.view(np.uint8).reshape(len(values), -1))


def network(n_expert, *, gated, biased):
    """Weights as a run holds them, and as the oracle does."""
    plain = {
        "ffn_gate_inp.weight": RNG.standard_normal((n_expert, N_EMBD)) * 0.2,
        "ffn_gate_exps.weight": RNG.standard_normal((n_expert, N_FF, N_EMBD)) * 0.2,
        "ffn_up_exps.weight": RNG.standard_normal((n_expert, N_FF, N_EMBD)) * 0.2,
        "ffn_down_exps.weight": RNG.standard_normal((n_expert, N_EMBD, N_FF)) * 0.2,
        "ffn_gate_shexp.weight": RNG.standard_normal((N_SHARED, N_EMBD)) * 0.2,
        "ffn_up_shexp.weight": RNG.standard_normal((N_SHARED, N_EMBD)) * 0.2,
        "ffn_down_shexp.weight": RNG.standard_normal((N_EMBD, N_SHARED)) * 0.2,
    }
    if gated:
        plain["ffn_gate_inp_shexp.weight"] = RNG.standard_normal((1, N_EMBD)) * 0.2
    plain = {name: x.astype(F32) for name, x in plain.items()}
    made = {name: (stack if x.ndim == 3 else matrix)(name, x) for name, x in plain.items()}
    if biased:
        plain["exp_probs_b.bias"] = made["exp_probs_b.bias"] = (RNG.standard_normal(n_expert) * 0.3).astype(F32)
    return made, {f"blk.0.{name}": x.astype(np.float64) for name, x in plain.items()}


CASES = {
    "softmax": (SimpleNamespace(gated=True, biased=False), MoeConfig(N_EMBD, 6, 3, "softmax", True, 0.0, 0, 0)),
    "sigmoid": (SimpleNamespace(gated=False, biased=True), MoeConfig(N_EMBD, 20, 3, "sigmoid", True, 2.5, 1, 0)),
    "groups": (SimpleNamespace(gated=False, biased=True), MoeConfig(N_EMBD, 20, 3, "sigmoid", False, 0.0, 4, 2)),
    "one of two": (SimpleNamespace(gated=False, biased=False), MoeConfig(N_EMBD, 2, 1, "sigmoid", True, 1.0, 0, 0)),
}


def oracle_keys(cfg):
    return {
        "arch": "qwen35moe" if cfg.gating == "softmax" else "glm4moe",
        "expert_used_count": cfg.n_used,
        "expert_weights_norm": cfg.normalise,
        "expert_weights_scale": cfg.scale,
        "expert_group_count": cfg.n_group,
        "expert_group_used_count": cfg.n_group_used,
    }


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_equals_the_oracle_in_every_tensor(case, numerics):
    how, cfg = CASES[case]
    made, plain = network(cfg.n_expert, **vars(how))
    x = RNG.standard_normal((33, N_EMBD)).astype(F32)
    taken = {}
    ops = spec_ops(numerics)
    y, routing = ops.moe_ffn(ops, made, cfg, x, lambda name, a: taken.setdefault(name, np.array(a)))
    theirs, tensors = naive_moe.moe(plain, oracle_keys(cfg), 0, x.astype(np.float64))
    assert naive.nmse(theirs, y) < 1e-11
    assert np.array_equal(routing.ids, tensors["ffn_moe_topk"])
    assert np.array_equal(taken["ffn_moe_topk"], routing.ids)
    for name in ("ffn_moe_logits", "ffn_moe_probs", "ffn_moe_weights", "ffn_moe_out"):
        assert naive.nmse(tensors[name], taken[name]) < 1e-11, name
    assert (routing.gap > 0).all()
    assert np.array_equal(taken["ffn_moe_gap"], routing.gap)
    # A token alone, and other tokens beside it, change none of its bits; nor does a tap.
    for rows in ([4], [30, 4, 2], list(range(32, -1, -1))):
        again, routed = ops.moe_ffn(ops, made, cfg, x[rows], discard)
        assert np.array_equal(again, y[rows])
        assert np.array_equal(routed.ids, routing.ids[rows])
        assert np.array_equal(routed.gap, routing.gap[rows])


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.skipif(not kernels.available(), reason="Numba's JIT is off")
def test_kernels_give_the_specifications_bits(numerics):
    how, cfg = CASES["groups"]
    made, _ = network(cfg.n_expert, **vars(how))
    x = RNG.standard_normal((9, N_EMBD)).astype(F32)
    results = [make_recipe(numerics, use_kernels=k).ops for k in (False, True)]
    (a, routed_a), (b, routed_b) = (ops.moe_ffn(ops, made, cfg, x, discard) for ops in results)
    assert np.array_equal(a, b)
    assert np.array_equal(routed_a.ids, routed_b.ids)


def test_rows_of_a_stack_are_views_of_each_matrix():
    values = RNG.standard_normal((3, 4, 32)).astype(F32)
    whole = stack("e", values)
    half = whole.rows(2, 4)
    assert len(half) == 3
    assert np.array_equal(half[1].dequantize(), values[1, 2:])
    assert half.raw.base is not None
    assert [m.name for m in whole] == ["e[0]", "e[1]", "e[2]"]
    assert [m.name for m in whole[1:]] == ["e[1]", "e[2]"]


def test_the_gap_is_the_smaller_of_groups_and_experts():
    how, cfg = CASES["groups"]
    made, _ = network(cfg.n_expert, **vars(how))
    taken = {}
    ops = spec_ops("exact")
    x = RNG.standard_normal((50, N_EMBD)).astype(F32)
    _, routing = ops.moe_ffn(ops, made, cfg, x, lambda name, a: taken.setdefault(name, np.array(a)))
    groups = spec.group_scores(taken["ffn_moe_probs_biased"], 4)
    by_group = spec.router_gap(groups, taken["ffn_moe_group_topk"])
    by_expert = spec.router_gap(taken["ffn_moe_probs_masked"], routing.ids)
    assert np.array_equal(routing.gap, np.minimum(by_group, by_expert))
    assert (by_group < by_expert).any()
    assert (by_group > by_expert).any()
