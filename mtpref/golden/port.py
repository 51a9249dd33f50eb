"""mtpref as a port of the golden vectors: one function per operation, inputs and parameters in, arrays out.

Owns the mapping from the names of a case to the arguments of the recipe's entries. Whatever recipe is given answers:
the readable specification, the kernels, or a recipe with a fault in it. Whole models are answered by models.py.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import Case, hex_float, param_float
from mtpref.golden.inputs import Answer, Inputs, Outputs, f32, matrix, rope_table_of, weights_of
from mtpref.golden.port_channels import CHANNELS_ANSWERS
from mtpref.golden.port_compressed import COMPRESSED_ANSWERS
from mtpref.golden.port_experts import EXPERTS_ANSWERS
from mtpref.golden.port_indexer import INDEXER_ANSWERS
from mtpref.golden.port_latent import LATENT_ANSWERS
from mtpref.golden.port_parts import PARTS_ANSWERS
from mtpref.golden.port_streams import STREAMS_ANSWERS
from mtpref.golden.port_unscaled import UNSCALED_ANSWERS
from mtpref.golden.port_windowed import WINDOWED_ANSWERS
from mtpref.golden.taps import Tap
from mtpref.spec import quants
from mtpref.spec.config import AttnConfig, DeltaConfig
from mtpref.spec.ops.types import AttnLayer


def answer(recipe: Recipe, op: str, case: Case, inputs: Inputs) -> Outputs | None:
    """What this recipe gives for a case; None for an operation that is not here.

    Errors  KeyError, ValueError or MtprefError for a case that does not fit its operation
    """
    run = ANSWERS.get(op)
    return None if run is None else run(recipe, case.params, inputs)


# --------------------------------------------------------------------------------------- L0, L1: single operations


def _dequantize(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    q = x["q"]
    return {"x": quants.dequantize(q.type_name, q.raw, q.shape).reshape(q.shape)}


def _quantize(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    """Activation quantisers: codes, scales and (Q8_K) sums as arrays; F16 and BF16 as the rounded values."""
    values, type_name = f32(x["x"]), params["type"]
    if type_name == "Q8_0":
        codes, d = spec.quantize_q8_0(values)
        return {"codes": codes.astype(np.int32), "d": d}
    if type_name == "Q8_1":
        codes, d, s = spec.quantize_q8_1(values)
        return {"codes": codes.astype(np.int32), "d": d, "s": s}
    if type_name == "Q8_K":
        codes, d, sums = spec.quantize_q8_k(values)
        return {"codes": codes.astype(np.int32), "d": d, "bsums": sums.astype(np.int32)}
    rounding = {"F16": spec.round_f16, "BF16": spec.round_bf16}[type_name]
    return {"y": rounding(values)}


def _mul_mat(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.mul_mat(matrix("w", x["w"]), f32(x["x"]))}


def _rms_norm(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.rms_norm(f32(x["x"]), f32(x["weight"]), param_float(params, "eps"))}


def _l2_norm(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.l2_norm(f32(x["x"]), param_float(params, "eps"))}


def _rope(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.rope(f32(x["x"]), *rope_table_of(recipe, params, x["pos"].values()))}


def _conv_silu(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.conv_silu(f32(x["window"]), f32(x["weight"]))}


def _delta_gates(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    g, beta = recipe.ops.delta_gates(*(f32(x[name]) for name in ("alpha", "beta", "dt_bias", "ssm_a")))
    return {"g": g, "beta_sigmoid": beta}


def _delta_rule(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    q, k, v, g, beta, state = (f32(x[name]) for name in ("q", "k", "v", "g", "beta", "state"))
    out, states = recipe.ops.delta_rule(q, k, v, g, beta, state, int(params["keep"]))
    return {"o": out, "states": states}


def _gated_norm(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.gated_norm(f32(x["o"]), f32(x["z"]), f32(x["weight"]), param_float(params, "eps"))}


def _split_q_gate(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    q, gate = recipe.ops.split_q_gate(f32(x["q_full"]), int(params["n_head"]))
    return {"q": q, "gate": gate}


def _attention(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    kv_type = params["kv_type"]
    k, v = (recipe.ops.store_kv(f32(x[name]), kv_type) for name in ("k", "v"))
    return {"o": recipe.ops.attention(f32(x["q"]), k, v, kv_type, int(params["first"]))}


def _attn_gate(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.attn_gate(f32(x["o"]), f32(x["gate"]))}


def _swiglu(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.swiglu(f32(x["gate"]), f32(x["up"]))}


def _concat(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"y": recipe.ops.mtp_concat(f32(x["enorm"]), f32(x["hnorm"]))}


def _pair_hidden(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"rows": recipe.steps.pair_hidden(f32(x["hidden"]), f32(x["pending"]))}


def _argmax(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return {"ids": [int(i) for i in recipe.ops.argmax(f32(x["logits"]))]}


def _top_candidates(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    ids, p = recipe.ops.top_candidates(f32(x["logits"]))
    return {"ids": [int(i) for i in ids], "p": p.astype(np.float32)}


def _uniform(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    """The uniform numbers of some draws, each (stream, pos, round_pos), as hex floats."""
    draws = (spec.uniform(int(params["seed"]), *(int(n) for n in draw)) for draw in params["draws"])
    return {"u": [hex_float(u) for u in draws]}


def _filtered(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    chain = [(str(name), float.fromhex(amount)) for name, amount in params["chain"]]
    dist = recipe.steps.target_distribution(f32(x["logits"]), chain)
    return {"ids": [int(i) for i in dist.ids], "p": dist.p.astype(np.float32)}


def _draw(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    """Draws from probabilities that float32 holds exactly."""
    dist = distribution(f32(x["p"]))
    return {"ids": [recipe.steps.draw(dist, float.fromhex(u)) for u in params["u"]]}


def distribution(p: NDArray[np.float32]) -> spec.Distribution:
    """A row of probabilities as the ids that have any."""
    ids = np.flatnonzero(p)
    return spec.Distribution(ids, p[ids].astype(np.float64))


# ----------------------------------------------------------------------------------------------------- L2: layers


def _delta_layer(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    cfg: DeltaConfig = SimpleNamespace(  # type: ignore[assignment]
        n_k_head=params["n_k_heads"], n_v_head=params["n_v_heads"], d_state=params["d_state"],
        rms_eps=param_float(params, "eps"), is_grouped=bool(params.get("grouped", False)),
    )  # fmt: skip
    tap = Tap()
    rows, window, state = (f32(x[name]) for name in ("x", "conv_states", "state_predelta"))
    y, conv, states = recipe.ops.delta_layer(
        recipe.ops, weights_of(x), cfg, rows, window, state, int(params["keep"]), tap
    )
    return tap.kept | {"linear_attn_out": y, "conv": conv, "states": states}


def _attn_layer(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return _attended(recipe, params, x, recipe.ops.attn_layer)


def _plain_attn_layer(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    return _attended(recipe, params, x, recipe.ops.plain_attn_layer)


def _attended(recipe: Recipe, params: Mapping[str, Any], x: Inputs, layer: AttnLayer) -> Outputs:
    """A mixer with attention after the cells that are given."""
    cfg: AttnConfig = SimpleNamespace(  # type: ignore[assignment]
        n_head=params["n_head"],
        n_head_kv=params["n_head_kv"],
        n_embd_head=params["n_embd_head"],
        n_rot=params["n_rot"],
        rms_eps=param_float(params, "eps"),
    )
    rows, kv_type, first = f32(x["x"]), params["kv_type"], int(params["first"])
    caches = []
    for name in ("k_cache", "v_cache"):
        empty = np.zeros((len(rows), cfg.n_head_kv, cfg.n_embd_head), np.float32)
        past = f32(x[name]) if first else empty[:0]
        caches.append(recipe.ops.store_kv(np.concatenate([past, empty]), kv_type))
    table = rope_table_of(recipe, params, np.arange(first, first + len(rows), dtype=np.int32))
    tap = Tap()
    k_cache, v_cache = caches
    y = layer(recipe.ops, weights_of(x), cfg, rows, k_cache, v_cache, kv_type, first, table, tap)
    return tap.kept | {"attn_output": y}


def _ffn(recipe: Recipe, params: Mapping[str, Any], x: Inputs) -> Outputs:
    tap = Tap()
    y = recipe.ops.ffn(recipe.ops, weights_of(x), f32(x["x"]), tap)
    return tap.kept | {"ffn_out": y}


ANSWERS: dict[str, Answer] = {
    "dequantize": _dequantize,
    "quantize": _quantize,
    "mul_mat": _mul_mat,
    "rms_norm": _rms_norm,
    "l2_norm": _l2_norm,
    "rope": _rope,
    "conv_silu": _conv_silu,
    "delta_gates": _delta_gates,
    "delta_rule": _delta_rule,
    "gated_norm": _gated_norm,
    "split_q_gate": _split_q_gate,
    "attention": _attention,
    "attn_gate": _attn_gate,
    "swiglu": _swiglu,
    "concat": _concat,
    "pair_hidden": _pair_hidden,
    "argmax": _argmax,
    "top_candidates": _top_candidates,
    "uniform": _uniform,
    "filtered": _filtered,
    "draw": _draw,
    "delta_layer": _delta_layer,
    "attn_layer": _attn_layer,
    "plain_attn_layer": _plain_attn_layer,
    "ffn": _ffn,
    **EXPERTS_ANSWERS,
    **LATENT_ANSWERS,
    **INDEXER_ANSWERS,
    **STREAMS_ANSWERS,
    **COMPRESSED_ANSWERS,
    **WINDOWED_ANSWERS,
    **UNSCALED_ANSWERS,
    **PARTS_ANSWERS,
    **CHANNELS_ANSWERS,
}
