"""L1: single operations. Expected values are the float64 oracle's, rounded once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden import l0_dequantize
from golden.streams import bell, quantised, stream, uniform
from mtpref.engine.recipe import Recipe
from mtpref.golden.build import SuiteBuilder, close, exact, value
from mtpref.golden.format import Case, Tensor, hex_float
from mtpref.golden.port import answer
from mtpref.spec import quants
from mtpref.spec.ops import spec_ops
from mtpref.spec.quants import TYPE_IDS, TYPES
from tests import naive

F32 = NDArray[np.float32]
EPS = hex_float(float(np.float32(1e-6)))
EPSILON = float.fromhex(EPS)
EXACT = Recipe("exact", spec_ops("exact"))
GGML = Recipe("ggml", spec_ops("ggml"))


def ours(op: str, params: Mapping[str, Any], inputs: Mapping[str, Any], recipe: Recipe = EXACT) -> dict[str, Any]:
    """What the specification gives: the noise beside the oracle's values, or the expected bits themselves."""
    tensors = {name: x if isinstance(x, Tensor) else Tensor.of(x) for name, x in inputs.items()}
    given = answer(recipe, op, Case("", "", recipe.numerics, params, {}, ()), tensors)
    if given is None:
        raise ValueError(f"no operation {op}")
    return given


def add(
    suite: SuiteBuilder, id: str, comment: str, inputs: Mapping[str, NDArray], oracle: Mapping[str, NDArray],
    params: Mapping[str, Any] | None = None, flags: Sequence[str] = ("basic",),
) -> None:  # fmt: skip
    """One case whose outputs are the oracle's, with the specification's noise."""
    given = ours(suite.op, params or {}, inputs)
    out = {name: close("op_f32", wanted, given[name]) for name, wanted in oracle.items()}
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags)


# ------------------------------------------------------------------------------------------------- norms


def rms_norm() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "rms_norm", "rms_norm", ("S8",), "RMS norm over the last axis. Weights have their +1.")
    for id, comment, shape, scale, (low, high), flags in (
        ("basic", "ordinary rows", (3, 64), 1.0, (0.8, 1.2), ("basic",)),
        ("row_of_one", "rows of one element", (2, 1), 1.0, (0.5, 1.5), ("edge.short",)),
        ("odd_length", "a length that no vector width divides", (3, 37), 1.0, (0.8, 1.2), ("edge.length",)),
        ("small_rows", "mean(x^2) is about eps", (3, 96), 1e-3, (0.8, 1.2), ("edge.eps",)),
        ("weights_of_mean_half", "0.1 .. 0.9: their size does not say whether +1 is in them", (3, 64), 1.0, (0.1, 0.9),
         ("edge.weight",)),
        ("large_rows", "the sum of squares overflows float16 and comes near float32's end", (2, 64), 1e17, (0.8, 1.2),
         ("edge.large",)),
    ):  # fmt: skip
        x, w = bell(f"rms_norm/{id}/x", shape, scale), uniform(f"rms_norm/{id}/w", shape[-1:], low, high)
        add(suite, id, comment, {"x": x, "weight": w}, {"y": naive.rms_norm(x, w, EPSILON)}, {"eps": EPS}, flags)
    x, w = np.zeros((1, 64), np.float32), np.ones(64, np.float32)
    add(suite, "zero_row", "zeros stay zeros", {"x": x, "weight": w}, {"y": x}, {"eps": EPS}, ("edge.zero",))
    return suite


def l2_norm() -> SuiteBuilder:
    about = "L2 norm over the last axis, eps inside the sum: x / sqrt(sum(x^2) + eps)."
    suite = SuiteBuilder("L1", "l2_norm", "l2_norm", ("S9",), about)
    for id, comment, scale, flags in (
        ("basic", "ordinary heads", 1.0, ("basic",)),
        ("small_heads", "sum(x^2) is about eps: max(norm, eps), or eps times n, gives other values", 2e-4,
         ("G12-l2-eps",)),
        ("tiny_heads", "sum(x^2) far below eps", 1e-8, ("G12-l2-eps",)),
        ("large_heads", "large values", 1e15, ("edge.large",)),
    ):  # fmt: skip
        x = bell(f"l2_norm/{id}/x", (3, 2, 32), scale)
        add(suite, id, comment, {"x": x}, {"y": naive.l2_norm(x, EPSILON)}, {"eps": EPS}, flags)
    return suite


def gated_norm() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "gated_norm", "gated_norm", ("S14",), "rms_norm(o) * silu(z), head by head.")
    for id, comment, scale, flags in (
        ("basic", "ordinary values", 1.0, ("basic",)),
        ("wide_gates", "gates from -30 to 30: silu, not sigmoid", 12.0, ("edge.gate",)),
    ):
        o, z = bell(f"gated_norm/{id}/o", (3, 4, 16)), bell(f"gated_norm/{id}/z", (3, 4, 16), scale)
        w = uniform(f"gated_norm/{id}/w", (16,), 0.3, 1.6)
        inputs = {"o": o, "z": z, "weight": w}
        add(suite, id, comment, inputs, {"y": naive.gated_norm(o, z, w, EPSILON)}, {"eps": EPS}, flags)
    return suite


# ------------------------------------------------------------------------------------------ RoPE, attention


def rope() -> SuiteBuilder:
    about = "Rotation of the first n_rot dimensions, halves paired; interleaved multi-axis sections, text positions."
    suite = SuiteBuilder("L1", "rope", "rope", ("S10",), about)
    for id, comment, pos, n_rot, base, sections, flags in (
        ("basic", "partial rotation, every pair turns", [1, 2, 3], 16, 1e4, [3, 3, 2, 0], ("basic",)),
        ("position_zero", "position 0 changes nothing", [0, 0, 0], 16, 1e4, [3, 3, 2, 0], ("edge.zero",)),
        ("position_seven", "pairs (i, i + n_rot/2), not (2i, 2i + 1)", [7, 8, 11], 16, 1e4, [3, 3, 2, 0],
         ("G6-rope-interleaved", "G5b-no-rope")),
        ("partial", "dimensions after n_rot pass through", [5, 6, 9], 8, 1e4, [2, 1, 1, 0], ("G6b-rope-all-dims",)),
        ("uncovered_pairs", "sections leave pairs to the fourth axis, which is 0 in text", [3, 100, 101], 16, 1e4,
         [2, 2, 1, 3], ("edge.sections",)),
        ("far_positions", "large angles, base 1e7", [131071, 262143, 1000003], 32, 1e7, [6, 5, 5, 0], ("edge.large",)),
    ):  # fmt: skip
        x = bell(f"rope/{id}/x", (3, 2, 32))
        inputs = {"x": x, "pos": np.array(pos, np.int32)}
        params = {"n_rot": n_rot, "freq_base": hex_float(base), "sections": sections}
        add(suite, id, comment, inputs, {"y": naive.rope_imrope_text(x, pos, n_rot, base, sections)}, params, flags)
    return suite


def split_q_gate() -> SuiteBuilder:
    about = "attn_q's rows are [query | gate] head by head, not all queries and then all gates."
    suite = SuiteBuilder("L1", "split_q_gate", "split_q_gate", ("S15",), about)
    q_full = bell("split_q_gate/basic/q", (2, 3 * 2 * 8))
    q, gate = naive.split_q_gate(q_full, 3)
    out = {"q": exact(q.astype(np.float32)), "gate": exact(gate.astype(np.float32).reshape(q.shape))}
    suite.case("basic", "three heads of eight", inputs={"q_full": q_full}, out=out, params={"n_head": 3},
               flags=("basic", "G9-q-gate-halves"))  # fmt: skip
    return suite


def attention() -> SuiteBuilder:
    about = "Causal grouped-query attention over cells that hold the rows' own keys and values already."
    suite = SuiteBuilder("L1", "attention", "attention", ("S15", "S16"), about)
    for id, comment, first, n_tokens, scale, flags in (
        ("basic", "three tokens after five cells", 5, 3, 1.0, ("basic",)),
        ("first_token", "one token, one cell: the value itself", 0, 1, 1.0, ("edge.short",)),
        ("sharp", "scores of hundreds: the greatest must be subtracted first", 7, 2, 12.0, ("edge.large",)),
        ("many_cells", "more cells than any vector", 70, 2, 1.0, ("edge.length",)),
    ):
        n_cells = first + n_tokens
        q = bell(f"attention/{id}/q", (n_tokens, 4, 16), scale)
        k, v = bell(f"attention/{id}/k", (n_cells, 2, 16), scale), bell(f"attention/{id}/v", (n_cells, 2, 16))
        wanted = naive.attention(q, k, v, first).reshape(q.shape)
        params = {"kv_type": "F32", "first": first}
        add(suite, id, comment, {"q": q, "k": k, "v": v}, {"o": wanted}, params, flags)
    return suite


def attn_gate() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "attn_gate", "attn_gate", ("S17",), "o * sigmoid(gate), before the output projection.")
    o, gate = bell("attn_gate/o", (3, 2, 16)), uniform("attn_gate/gate", (3, 2, 16), -40.0, 40.0)
    wanted = naive.f64(o) * naive.sigmoid(gate)
    flags = ("basic", "G4-gate-silu", "G14-gate-skipped")
    add(suite, "basic", "gates from -40 to 40", {"o": o, "gate": gate}, {"y": wanted}, flags=flags)
    return suite


def swiglu() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "swiglu", "swiglu", ("S18",), "silu(gate) * up.")
    gate, up = uniform("swiglu/gate", (3, 48), -40.0, 40.0), bell("swiglu/up", (3, 48))
    add(suite, "basic", "gates from -40 to 40", {"gate": gate, "up": up}, {"y": naive.silu(gate) * naive.f64(up)})
    zeros = np.array([[0.0, -0.0, -100.0, 100.0, -1e30, 88.0, -88.0, 1e-30]], np.float32)
    ones = np.ones_like(zeros)
    add(suite, "edges", "zeros, infinities of exp, subnormals", {"gate": zeros, "up": ones},
        {"y": naive.silu(zeros)}, flags=("edge.large",))  # fmt: skip
    return suite


# -------------------------------------------------------------------------------------------- DeltaNet


def conv_silu() -> SuiteBuilder:
    about = "Causal depthwise convolution over the last d_conv raw rows, oldest first, then silu."
    suite = SuiteBuilder("L1", "conv_silu", "conv_silu", ("S11",), about)
    for id, comment, n_tokens, scale, flags in (
        ("basic", "five tokens after a window of three", 5, 1.0, ("basic",)),
        ("one_token", "a single step: the window decides", 1, 1.0, ("carry",)),
        ("wide", "silu far out on both sides", 3, 20.0, ("edge.large",)),
    ):
        window, weight = bell(f"conv/{id}/x", (3 + n_tokens, 24), scale), bell(f"conv/{id}/w", (24, 4))
        wanted = naive.conv_window(window[3:], window[:3].T, weight)[1]
        add(suite, id, comment, {"window": window, "weight": weight}, {"y": wanted}, flags=flags)
    return suite


def delta_gates() -> SuiteBuilder:
    about = "g = softplus(alpha + dt_bias) * ssm_a, the log of the decay; beta' = sigmoid(beta)."
    suite = SuiteBuilder("L1", "delta_gates", "delta_gates", ("S12",), about)
    for id, comment, scale, flags in (
        ("basic", "ordinary values", 1.0, ("basic",)),
        ("wide", "softplus far out on both sides, around its cut at 20", 15.0, ("edge.large",)),
    ):
        alpha, beta = bell(f"gates/{id}/alpha", (6, 4), scale), bell(f"gates/{id}/beta", (6, 4), scale)
        dt, a = bell(f"gates/{id}/dt", (4,)), -uniform(f"gates/{id}/a", (4,), 0.05, 8.0)
        beta_out, g = naive.delta_gates(beta, alpha, dt, a)
        inputs = {"alpha": alpha, "beta": beta, "dt_bias": dt, "ssm_a": a}
        add(suite, id, comment, inputs, {"g": g, "beta_sigmoid": beta_out}, flags=flags)
    return suite


def delta_rule() -> SuiteBuilder:
    about = "The gated delta rule token by token. The state is [value j, key i]; v-head h reads q- and k-head h % H_k."
    suite = SuiteBuilder("L1", "delta_rule", "delta_rule", ("S13",), about)
    for id, comment, n_tokens, n_k, n_v, keep, flags in (
        ("one_step", "one token on a full state: decay, read, update, then output", 1, 2, 2, 1,
         ("basic",)),
        ("tiled_heads", "H_v = 2 H_k with orthogonal keys: heads are tiled, not grouped", 3, 2, 4, 1,
         ("G13-v-heads-grouped",)),
        ("three_states", "the states after each of the last three of five tokens", 5, 2, 4, 3,
         ("carry",)),
        ("forty_tokens", "a long run: errors must not grow", 40, 2, 2, 1, ("drift",)),
    ):  # fmt: skip
        size = 8
        q = naive.l2_norm(bell(f"delta/{id}/q", (n_tokens, n_k, size)), EPSILON).astype(np.float32)
        k = naive.l2_norm(bell(f"delta/{id}/k", (n_tokens, n_k, size)), EPSILON).astype(np.float32)
        if id == "tiled_heads":
            k = np.tile(np.eye(size, dtype=np.float32)[:n_k], (n_tokens, 1, 1))
        v, state = bell(f"delta/{id}/v", (n_tokens, n_v, size)), bell(f"delta/{id}/s", (n_v, size, size))
        g = -uniform(f"delta/{id}/g", (n_tokens, n_v), 0.0, 1.5)
        beta = uniform(f"delta/{id}/beta", (n_tokens, n_v), 0.0, 1.0)
        inputs = {"q": q, "k": k, "v": v, "g": g, "beta": beta, "state": state}
        out = naive.gated_delta_rule(q, k, v, g, beta, state)[0]
        ends = range(n_tokens - keep + 1, n_tokens + 1)
        states = [naive.gated_delta_rule(q[:n], k[:n], v[:n], g[:n], beta[:n], state)[1] for n in ends]
        add(suite, id, comment, inputs, {"o": out, "states": np.stack(states)}, {"keep": keep}, flags)
    edge_cases(suite)
    return suite


def edge_cases(suite: SuiteBuilder) -> None:
    """beta of 0 leaves the decayed state, beta of 1 overwrites what the key reads; a decay to nothing."""
    size = 4
    q, k = (np.eye(size, dtype=np.float32)[None, i : i + 1] for i in (0, 0))
    v, state = bell("delta/edge/v", (1, 1, size)), bell("delta/edge/s", (1, size, size))
    for id, comment, g, beta in (
        ("beta_zero", "nothing is written", -0.5, 0.0),
        ("beta_one", "the value under the key is replaced whole", -0.5, 1.0),
        ("no_decay", "g = 0 keeps the state", 0.0, 0.5),
        ("full_decay", "exp(g) underflows: the state is forgotten", -200.0, 0.5),
    ):
        gate, strength = np.full((1, 1), g, np.float32), np.full((1, 1), beta, np.float32)
        inputs = {"q": q, "k": k, "v": v, "g": gate, "beta": strength, "state": state}
        out, last = naive.gated_delta_rule(q, k, v, gate, strength, state)
        add(suite, id, comment, inputs, {"o": out, "states": last[None]}, {"keep": 1}, ("edge.gate",))


# --------------------------------------------------------------------------- products, quantisers, the head


def mul_mat() -> SuiteBuilder:
    about = "Weights times activations. `exact`: dequantised weights, the oracle's sums. `ggml`: activations quantised."
    suite = SuiteBuilder("L1", "mul_mat", "mul_mat", ("S6",), about)
    for type_name in ("F32", *l0_dequantize.MADE):
        w = weight_of(type_name)
        x = bell(f"mul_mat/{type_name}/x", (3, w.shape[1]))
        inputs: dict[str, NDArray | Tensor] = {"w": w, "x": x}
        wanted = naive.matmul(w.values(), x)
        need = [] if type_name == "F32" else [type_name.lower()]
        suite.case(f"{type_name.lower()}_exact", "float32 activations", inputs=inputs, requires=need, flags=["basic"],
                   out={"y": close("op_f32", wanted, ours("mul_mat", {}, inputs)["y"])})  # fmt: skip
        bits = ours("mul_mat", {}, inputs, GGML)["y"]
        suite.case(f"{type_name.lower()}_ggml", "activations as ggml rounds them; the specification's own bits",
                   inputs=inputs, out={"y": close("op_ggml", bits)}, numerics="ggml", requires=["ggml", *need],
                   flags=["basic"])  # fmt: skip
    return suite


def weight_of(type_name: str) -> Tensor:
    """A few rows of a type: encoded values where the type has an encoder of one rounding, else random blocks."""
    if type_name in quants.QUANTIZABLE:
        return quantised(type_name, bell(f"mul_mat/{type_name}/w", (5, 64), 0.3))
    n_in = TYPES[TYPE_IDS[type_name]].block_elements
    raw = l0_dequantize.random_blocks(type_name, "mul_mat").reshape(-1)
    return Tensor(type_name, (l0_dequantize.N_BLOCKS // 2, 2 * n_in), raw)


def quantise() -> SuiteBuilder:
    about = "ggml's scalar reference quantisers of activations: codes, scales, sums."
    suite = SuiteBuilder("L1", "quantize", "quantize", ("S5",), about)
    for type_name, n in (("Q8_0", 32), ("Q8_1", 32), ("Q8_K", 256), ("F16", 32), ("BF16", 32)):
        edge = np.zeros((2, n), np.float32)
        edge[1, :4] = (-1.0, 1.0, 0.5, -0.49999997)  # a tie of magnitudes, and halves of a code
        for id, x in (("basic", bell(f"quantize/{type_name}", (3, n))), ("edges", edge),
                      ("small", bell(f"quantize/{type_name}/small", (2, n), 1e-6))):  # fmt: skip
            given = ours("quantize", {"type": type_name}, {"x": x})
            suite.case(f"{type_name.lower()}_{id}", "equal bits", inputs={"x": x}, requires=["ggml"],
                       params={"type": type_name}, numerics="ggml", flags=["basic" if id == "basic" else "edge.scale"],
                       out={name: exact(array) for name, array in given.items()})  # fmt: skip
    return suite


def concat() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "concat", "concat", ("S19",), "eh_proj's input: [embedding ; hidden], embedding first.")
    e, h = bell("concat/e", (2, 16), 0.02), bell("concat/h", (2, 16), 3.0)
    suite.case("basic", "halves of different size", inputs={"enorm": e, "hnorm": h}, requires=["mtp"],
               out={"y": exact(np.concatenate([e, h], axis=-1))}, flags=["basic", "G1-concat-swapped"])  # fmt: skip
    return suite


def pair_hidden() -> SuiteBuilder:
    about = "The rows that the head sees: position p takes the trunk's row p - 1; the pending row comes first."
    suite = SuiteBuilder("L1", "pair_hidden", "pair_hidden", ("S20",), about)
    hidden, pending = bell("pair/h", (4, 8)), bell("pair/p", (8,))
    for id, n in (("one_token", 1), ("four_tokens", 4)):
        rows = np.concatenate([pending[None], hidden[: n - 1]])
        suite.case(id, "distinct rows", inputs={"hidden": hidden[:n].copy(), "pending": pending}, requires=["mtp"],
                   out={"rows": exact(rows)}, flags=["basic", "C4-same-token-pairing"])  # fmt: skip
    return suite


def argmax() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "argmax", "argmax", ("S21",), "The greatest logit, the lowest id among equals.")
    logits = bell("argmax/x", (4, 40), 3.0)
    suite.case("basic", "no ties", inputs={"logits": logits}, flags=["basic"],
               out={"ids": value([naive.argmax(row) for row in logits])})  # fmt: skip
    ties = np.array([[1, 3, 3, 2], [0, 0, 0, 0], [-5, -2, -9, -2], [-0.0, 0.0, -1, -2]], np.float32)
    suite.case("ties", "equal logits, and -0 = 0", inputs={"logits": ties}, flags=["edge.tie"],
               out={"ids": value([1, 0, 1, 0])})  # fmt: skip
    return suite


def top_candidates() -> SuiteBuilder:
    about = "The ten greatest logits, best first, ties by lower id, and their softmax over these ten alone."
    suite = SuiteBuilder("L1", "top_candidates", "top_candidates", ("S22",), about)
    ids_drawn = (stream("top/ties", 40) % np.uint64(7)).astype(np.float32)
    for id, comment, logits, flags in (
        ("basic", "forty ids", bell("top/basic", (40,), 3.0), ("basic",)),
        ("ties", "many equal logits", ids_drawn, ("edge.tie",)),
        ("few_ids", "fewer ids than ten", bell("top/few", (4,), 3.0), ("edge.short",)),
        ("peak", "one candidate takes all", np.array([0.0, 120.0, -3.0, 5.0], np.float32), ("edge.large",)),
    ):
        ids, p = naive.top10(logits)
        given = ours("top_candidates", {}, {"logits": logits})
        out = {"ids": value(ids), "p": close("op_f32", np.array(p), given["p"])}
        suite.case(id, comment, inputs={"logits": logits}, out=out, flags=flags, requires=["mtp"])
    return suite


def suites() -> Iterator[SuiteBuilder]:
    for make in (
        rms_norm, l2_norm, gated_norm, rope, split_q_gate, attention, attn_gate, swiglu, conv_silu, delta_gates,
        delta_rule, mul_mat, quantise, concat, pair_hidden, argmax, top_candidates,
    ):  # fmt: skip
        yield make()
