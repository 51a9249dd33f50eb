"""The experts' network in one call against the composition of the specification's functions, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest

from mtpref import kernels, spec
from mtpref.engine.recipe import make_recipe
from mtpref.spec.config import MoeConfig
from mtpref.spec.moe import Routing
from mtpref.spec.ops import Ops, compose_moe, discard, spec_ops
from tests.test_kernels import SCALES, assert_same, values
from tests.test_kernels import matrix as quantised

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")

N_EMBD, N_EXPERT = 256, 6
USUAL = MoeConfig(N_EMBD, N_EXPERT, 3, "softmax", True, 0.0, 0, 0)
GROUPS = MoeConfig(N_EMBD, N_EXPERT, 2, "sigmoid", False, 1.8, 3, 2)
Weights = dict[str, object]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261129)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One thread, and two that share however small a piece of work."""
    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import mul_mats

    if request.param > compile.settings.NUMBA_NUM_THREADS:
        pytest.skip("Numba has one thread here: nothing to split")
    monkeypatch.setattr(mul_mats, "PARALLEL_FROM", 0)
    monkeypatch.setattr(compile, "_n_threads", request.param)
    return int(request.param)


def floats(rng: np.random.Generator, n_out: int, n_in: int, scale: str = "unit") -> spec.Matrix:
    raw = values(rng, (n_out, n_in), scale).view(np.uint8).reshape(-1)
    return spec.Matrix("router", "F32", n_out, n_in, raw)


def stack(rng: np.random.Generator, type_name: str, n: int, n_out: int, n_in: int, scale: str = "unit") -> spec.Stack:
    raw = np.stack([quantised(rng, type_name, n_out, n_in, scale).raw for _ in range(n)])
    return spec.Stack("blk.0.ffn_exps.weight", type_name, n_out, n_in, raw)


def layer(
    rng: np.random.Generator,
    types: tuple[str, str, str],
    shared: tuple[str, str, str] | None = None,
    *,
    n_ff: int = 256,
    n_embd: int = N_EMBD,
    n_expert: int = N_EXPERT,
    scale: str = "unit",
    is_gated: bool = True,
    with_bias: bool = True,
) -> Weights:
    """Stacks of these types for gate, up and down; a shared expert of 512, or none."""
    names = "gate", "up", "down"
    w: Weights = {"ffn_gate_inp.weight": floats(rng, n_expert, n_embd)}
    for name, kind in zip(names, types, strict=True):
        sizes = (n_embd, n_ff) if name == "down" else (n_ff, n_embd)
        w[f"ffn_{name}_exps.weight"] = stack(rng, kind, n_expert, *sizes, scale)
    if shared is not None:
        for name, kind in zip(names, shared, strict=True):
            w[f"ffn_{name}_shexp.weight"] = quantised(rng, kind, *((n_embd, 512) if name == "down" else (512, n_embd)))
        if is_gated:
            w["ffn_gate_inp_shexp.weight"] = floats(rng, 1, n_embd)
    if with_bias:
        w["exp_probs_b.bias"] = values(rng, (n_expert,), "unit")
    return w


def packed(w: Weights) -> Weights:
    """The same, in panels where a type has them."""
    names = [name for name, part in w.items() if not isinstance(part, np.ndarray)]
    return {**w, **dict(zip(names, kernels.pack([w[name] for name in names]), strict=True))}


def fused(numerics: str = "ggml") -> Ops:
    """The kernels' table, whose composition must not run."""
    ops = make_recipe(numerics).ops

    def refuse(*args: object) -> object:
        raise AssertionError("the composition ran")

    return replace(ops, composed={**ops.composed, "moe_ffn": refuse, "clamped_experts": refuse})


def check(w: Weights, cfg: MoeConfig, x: np.ndarray, *, numerics: str = "ggml", also_packed: bool = True) -> spec.Stack:
    """The twin's output, choice and gap are the specification's, in place and in panels."""
    table, ops = spec_ops(numerics), fused(numerics)
    with np.errstate(all="ignore"):
        y, routing = table.moe_ffn(table, w, cfg, x, discard)
    for weights in (w, packed(w)) if also_packed else (w,):
        found, chosen = ops.moe_ffn(ops, weights, cfg, x, discard)
        assert_same(routing.ids, chosen.ids)
        assert_same(routing.gap, chosen.gap)
        assert_same(y, found)
    return routing


# The types of a K-quant mixture, one of each kind of rows in place, floats, types that differ everywhere.
MIXTURES = (
    (("Q8_0",) * 3, ("Q8_0",) * 3),
    (("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q4_K", "Q6_K")),
    (("Q5_K", "Q4_0", "Q8_0"), ("Q8_0", "Q4_K", "F16")),
    (("Q4_1", "Q5_0", "Q2_K"), ("Q3_K", "Q5_1", "Q4_0")),
    (("F16", "F32", "BF16"), ("BF16", "BF16", "F32")),
)


@pytest.mark.parametrize(("types", "shared"), MIXTURES, ids=lambda types: "-".join(types))
def test_every_weight_type_is_the_composition(
    rng: np.random.Generator, threads: int, types: tuple[str, str, str], shared: tuple[str, str, str]
) -> None:
    """Alone, in a verify batch, in a prompt; chosen with a bias, by softmax or by groups of sigmoids."""
    w = layer(rng, types, shared)
    for n_tokens in (1, 3, 11):
        x = values(rng, (n_tokens, N_EMBD), "unit")
        check(w, USUAL, x)
        check(w, GROUPS, x)


@pytest.mark.parametrize(("types", "shared"), MIXTURES, ids=lambda types: "-".join(types))
def test_exact_numerics_are_the_composition(
    rng: np.random.Generator, types: tuple[str, str, str], shared: tuple[str, str, str]
) -> None:
    w = layer(rng, types, shared)
    for n_tokens in (1, 5):
        check(w, USUAL, values(rng, (n_tokens, N_EMBD), "unit"), numerics="exact", also_packed=False)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering
def test_values_of_every_scale(rng: np.random.Generator, threads: int, scale: str) -> None:
    """Subnormal, near the limit, signed zeros, infinite and NaN: logits of a router may be all of these."""
    for types in (("Q8_0",) * 3, ("F32",) * 3):
        w = layer(rng, types, types, scale=scale)
        for cfg in (USUAL, GROUPS):
            check(w, cfg, values(rng, (7, N_EMBD), scale))


def test_odd_widths_and_no_shared_expert(rng: np.random.Generator, threads: int) -> None:
    """Rows that fill no group of 16, columns that fill no vector, experts that are no power of two."""
    for types, n_ff, n_embd in ((("F32",) * 3, 37, 45), (("F16",) * 3, 16, 31), (("Q8_0",) * 3, 96, 160),
                                (("Q5_1",) * 3, 32, 288)):  # fmt: skip
        w = layer(rng, types, n_ff=n_ff, n_embd=n_embd, n_expert=7, with_bias=False)
        cfg = replace(USUAL, n_embd=n_embd, n_expert=7)
        for n_tokens in (1, 2, 9):
            check(w, cfg, values(rng, (n_tokens, n_embd), "unit"))


def test_all_tokens_at_one_expert_and_an_expert_with_none(rng: np.random.Generator, threads: int) -> None:
    w = layer(rng, ("Q8_0",) * 3, ("Q8_0",) * 3)
    w["exp_probs_b.bias"] = np.array([0, 9, 0, -9, 0, 0], np.float32)
    for cfg in (replace(USUAL, n_used=1), USUAL):
        ids = check(w, cfg, values(rng, (13, N_EMBD), "unit")).ids
        assert np.all(ids[:, 0] == 1)
        assert 3 not in ids


def test_every_expert_for_every_token_leaves_no_gap(rng: np.random.Generator, threads: int) -> None:
    w = layer(rng, ("Q4_0",) * 3)
    for n_tokens in (1, 6):
        gap = check(w, replace(USUAL, n_used=N_EXPERT), values(rng, (n_tokens, N_EMBD), "unit")).gap
        assert np.all(gap == np.inf)


def test_equal_scores_go_to_the_lowest_ids(rng: np.random.Generator) -> None:
    """More experts than a vector has lanes, some alike; a router of zeros makes all of them so."""
    for n_expert in (20, 64):
        w = layer(rng, ("F32",) * 3, n_ff=8, n_embd=32, n_expert=n_expert, with_bias=False)
        cfg = MoeConfig(32, n_expert, 8, "softmax", True, 2.5, 0, 0)
        rows = np.array(w["ffn_gate_inp.weight"].raw).view(np.float32).reshape(n_expert, 32)
        rows[3::4] = rows[5]
        w["ffn_gate_inp.weight"] = spec.Matrix("router", "F32", n_expert, 32, rows.view(np.uint8).reshape(-1))
        check(w, cfg, values(rng, (40, 32), "unit"))
        w["ffn_gate_inp.weight"] = spec.Matrix("router", "F32", n_expert, 32, np.zeros(128 * n_expert, np.uint8))
        routing = check(w, cfg, values(rng, (3, 32), "unit"))
        assert routing.ids.tolist() == [list(range(8))] * 3
        assert not np.any(routing.gap)


def test_gate_and_up_in_one_stack_are_read_where_they_lie(rng: np.random.Generator, threads: int) -> None:
    for kind in ("Q8_0", "F16", "Q5_0"):
        w = layer(rng, (kind,) * 3)
        both = stack(rng, kind, N_EXPERT, 2 * 256, N_EMBD)
        w["ffn_gate_exps.weight"], w["ffn_up_exps.weight"] = both.rows(0, 256), both.rows(256, 512)
        check(w, USUAL, values(rng, (5, N_EMBD), "unit"))


def test_a_long_batch_goes_through_the_scratch_in_pieces(
    rng: np.random.Generator, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpref.kernels.fused import moe

    w = layer(rng, ("Q8_0",) * 3, ("Q8_0",) * 3)
    x = values(rng, (40, N_EMBD), "unit")
    monkeypatch.setattr(moe, "SCRATCH", 50_000)
    check(w, USUAL, x)
    ops = fused()
    alone = [ops.moe_ffn(ops, w, USUAL, row[None], discard)[0] for row in x]
    assert_same(np.concatenate(alone), ops.moe_ffn(ops, w, USUAL, x, discard)[0])


def test_types_without_a_row_kernel_take_the_composition(rng: np.random.Generator) -> None:
    calls: list[str] = []

    def noted(*args: object) -> object:
        calls.append("composed")
        return compose_moe.moe_ffn(*args)

    ops = make_recipe("ggml").ops
    watched = replace(ops, composed={**ops.composed, "moe_ffn": noted})
    table, x = spec_ops("ggml"), values(rng, (2, N_EMBD), "unit")
    for types, is_usual in ((("IQ4_NL",) * 3, False), (("Q8_0",) * 3, True)):
        w = layer(rng, types)
        assert_same(table.moe_ffn(table, w, USUAL, x, discard)[0], watched.moe_ffn(watched, w, USUAL, x, discard)[0])
        assert calls == ([] if is_usual else ["composed"])
        calls.clear()


def test_a_tap_sees_every_result(rng: np.random.Generator) -> None:
    ops, w, seen = make_recipe("ggml").ops, layer(rng, ("Q8_0",) * 3, ("Q8_0",) * 3), []
    w, x = packed(w), values(rng, (2, N_EMBD), "unit")
    y = ops.moe_ffn(ops, w, USUAL, x, lambda name, array: seen.append(name))[0]
    assert {"ffn_moe_logits", "ffn_moe_topk", "ffn_moe_swiglu", "ffn_moe_weighted", "ffn_shexp_gated"} <= set(seen)
    assert_same(y, fused().moe_ffn(fused(), w, USUAL, x, discard)[0])


def test_another_part_is_what_runs(rng: np.random.Generator) -> None:
    ops, w, x = make_recipe("ggml").ops, layer(rng, ("Q8_0",) * 3), values(rng, (2, N_EMBD), "unit")
    other = ops.replaced(sum_experts=lambda weighted: np.zeros_like(weighted[:, 0]))
    assert not np.any(other.moe_ffn(other, w, USUAL, x, discard)[0])


def test_a_packed_stack_is_a_stack_of_packed_matrices(rng: np.random.Generator) -> None:
    """Panels of a stack, of its slices and of its rows; raw bytes that are not needed are said one by one."""
    w = stack(rng, "Q8_0", 3, 48, 64)
    done: list[str] = []
    (made,) = kernels.pack([w], done=lambda one: done.append(one.name))
    assert done == [*(f"{w.name}[{e}]" for e in range(3)), w.name]
    x = values(rng, (2, 64), "unit")
    for e in range(3):
        assert made[e].panels is not None
        assert_same(spec.mul_mat_ggml(w[e], x), kernels.mul_mat_ggml(made[e], x))
        part = made.rows(16, 40)
        assert part.panels is not None
        assert_same(spec.mul_mat_ggml(w.rows(16, 40)[e], x), kernels.mul_mat_ggml(part[e], x))
    assert not hasattr(made.rows(8, 24), "panels")  # it begins within a panel
    assert not hasattr(kernels.pack([stack(rng, "Q5_0", 2, 16, 64)])[0], "panels")


# ------------------------------------------------------------------------------------ clamped products


def check_clamped(
    rng: np.random.Generator, w: Weights, n_tokens: int, limits: tuple[float, float], scale: str = "unit"
) -> None:
    """The choice is given: experts in any order, one of them twice, as a table of token ids may have it."""
    cfg = replace(USUAL, gating="sqrt_softplus", clamp=limits[0], clamp_shared=limits[1])
    x, weights = values(rng, (n_tokens, N_EMBD), scale), values(rng, (n_tokens, 3), "unit")
    routing = Routing(rng.integers(0, N_EXPERT, (n_tokens, 3)), np.full(n_tokens, np.inf, np.float32))
    table, ops = spec_ops("ggml"), fused()
    with np.errstate(all="ignore"):
        expected = table.clamped_experts(table, w, cfg, x, routing, weights, discard)
    for given in (w, packed(w)):
        assert_same(expected, ops.clamped_experts(ops, given, cfg, x, routing, weights, discard))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.covering
def test_clamped_products(rng: np.random.Generator, threads: int, scale: str) -> None:
    """With limits that bind, and without one."""
    w = layer(rng, ("Q8_0", "Q8_0", "F32"), ("Q4_0", "Q8_0", "F16"), is_gated=False, scale=scale)
    for n_tokens in (1, 3, 11):
        check_clamped(rng, w, n_tokens, (0.7, 1.2), scale)
        check_clamped(rng, w, n_tokens, (0.0, 3.0), scale)


def test_clamped_products_fall_back_to_the_composition(rng: np.random.Generator) -> None:
    """Types that no kernel reads, and a tap."""
    w = layer(rng, ("IQ4_NL", "Q8_0", "Q8_0"), ("Q8_0",) * 3, is_gated=False)
    cfg, x = replace(USUAL, clamp=1.0, clamp_shared=0.5), values(rng, (2, N_EMBD), "unit")
    routing, weights = Routing(rng.integers(0, N_EXPERT, (2, 3)), np.zeros(2, np.float32)), values(rng, (2, 3), "unit")
    expected = None
    for ops in (spec_ops("ggml"), make_recipe("ggml").ops):
        told: list[str] = []
        for tap in (discard, lambda name, array, to=told: to.append(name)):
            y = ops.clamped_experts(ops, w, cfg, x, routing, weights, tap)
            expected = y if expected is None else expected
            assert_same(expected, y)
        assert told[-1] == "ffn_out"
