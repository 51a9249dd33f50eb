"""L2 of experts: router, experts' network, attention without a gate, DeltaNet with grouped key heads."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import EPS
from golden.l2_layers import N_EMBD, add, delta_weights
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder
from mtpref.golden.format import hex_float
from tests import naive, naive_model, naive_moe

F32 = NDArray[np.float32]
N_EXPERT, N_FF, N_SHARED = 5, 32, 64
SOFTMAX = {"gating": "softmax", "n_used": 2, "normalise": True, "scale": hex_float(0.0)}
SIGMOID = {"gating": "sigmoid", "n_used": 3, "normalise": True, "scale": hex_float(2.5)}
GROUPED = {**SIGMOID, "n_used": 2, "n_group": 3, "n_group_used": 2}
PLAIN = {**SIGMOID, "normalise": False, "scale": hex_float(0.0)}


def hparams(params: Mapping[str, Any]) -> dict[str, Any]:
    """A case's parameters as the keys of a file."""
    return {
        "arch": "naive",
        "expert_gating_func": 1 if params["gating"] == "softmax" else 2,
        "expert_used_count": params["n_used"],
        "expert_weights_norm": params["normalise"],
        "expert_weights_scale": float.fromhex(params["scale"]),
        "expert_group_count": params.get("n_group", 1),
        "expert_group_used_count": params.get("n_group_used", 1),
    }


# ---------------------------------------------------------------------------------------------------------- experts


def router_weights(name: str, n_expert: int, *, is_biased: bool) -> dict[str, F32]:
    w = {"ffn_gate_inp.weight": bell(f"{name}/router", (n_expert, N_EMBD), 0.3)}
    return w | ({"exp_probs_b.bias": bell(f"{name}/bias", (n_expert,), 0.25)} if is_biased else {})


def routed(
    w: Mapping[str, F32], params: Mapping[str, Any], x: F32
) -> list[tuple[list[int], list[float], dict[str, Any]]]:
    """The oracle's choice for each token."""
    block = {f"blk.0.{name}": array for name, array in w.items()}
    return [naive_moe.route(block, hparams(params), 0, row) for row in x]


def route() -> SuiteBuilder:
    about = "Which experts each token goes to, and with which weights: logits, probabilities, choice, weights."
    suite = SuiteBuilder("L2", "route", "route", ("S6", "S41", "S42", "S43", "S44", "S45", "S48"), about)
    norm, biased = ("E3-weights-unnormed",), ("E1-bias-in-weights", "E2-selection-unbiased", "E7b-softmax-router")
    for id, comment, params, n_expert, is_biased, flags in (
        ("softmax", "softmax of all, renormalised", SOFTMAX, 7, False, ("basic", "E7-sigmoid-router", *norm)),
        ("sigmoid", "sigmoid, a selection bias, renormalised, scaled", SIGMOID, 7, True,
         ("basic", "E1b-norm-with-bias", "E5-scale-forgotten", *norm, *biased)),
        ("groups", "two of three groups first", GROUPED, 12, True,
         ("E1b-norm-with-bias", "E8-groups-by-best", *biased)),
        ("plain", "a sigmoid's weights as they are", PLAIN, 7, True, ("E4b-renormed-unasked", *biased)),
        ("softmax_plain", "a softmax's weights as they are", {**SOFTMAX, "normalise": False}, 7, False,
         ("E4-softmax-after-selection",)),
    ):  # fmt: skip
        w, x = router_weights(f"route/{id}", n_expert, is_biased=is_biased), bell(f"route/{id}/x", (8, N_EMBD))
        found = routed(w, params, x)
        oracle: dict[str, Any] = {
            "ids": [e for ids, _, _ in found for e in ids],
            "w": np.array([weights for _, weights, _ in found]),
            "ffn_moe_logits": np.stack([taps["ffn_moe_logits"] for _, _, taps in found]),
            "ffn_moe_probs": np.stack([taps["ffn_moe_probs"] for _, _, taps in found]),
        }
        add(suite, id, comment, w, {"x": x}, params, oracle, flags, ("moe",), ("exact",))
    return suite


def moe_weights(name: str, *, is_gated: bool, is_biased: bool, is_fused: bool = False) -> dict[str, F32]:
    """Experts and shared expert are the same in all cases, so the file holds them once."""
    w = router_weights(f"{name}/{is_gated}", N_EXPERT, is_biased=is_biased)
    gate, up = (bell(f"{name}/{part}", (N_EXPERT, N_FF, N_EMBD), 0.3) for part in ("gate", "up"))
    if is_fused:
        w["ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    else:
        w |= {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    w["ffn_down_exps.weight"] = bell(f"{name}/down", (N_EXPERT, N_EMBD, N_FF), 0.3)
    w |= {f"ffn_{part}_shexp.weight": bell(f"{name}/shared/{part}", (N_SHARED, N_EMBD), 0.3) for part in ("gate", "up")}
    w["ffn_down_shexp.weight"] = bell(f"{name}/shared/down", (N_EMBD, N_SHARED), 0.3)
    return w | ({"ffn_gate_inp_shexp.weight": bell(f"{name}/shared/inp", (1, N_EMBD), 0.3)} if is_gated else {})


def moe_ffn() -> SuiteBuilder:
    about = "An experts' network: route, the chosen experts' networks, their weighted sum, the shared expert last."
    rules = ("S6", "S18", "S41", "S42", "S44", "S45", "S46", "S47", "S48")
    suite = SuiteBuilder("L2", "moe_ffn", "moe_ffn", rules, about)
    x = bell("moe_ffn/x", (4, N_EMBD))
    mixed = ("E6-weights-by-id", "E9-shared-forgotten", "E10-gate-up-swapped")
    gated = ("E9b-shared-ungated", "E9c-shared-gated-twice")
    for id, comment, params, kind, flags, numerics in (
        ("gated", "softmax, a gate over the shared expert", SOFTMAX, {"is_gated": True, "is_biased": False},
         ("basic", *mixed, *gated), ("exact", "ggml")),
        ("ungated", "sigmoid, selection bias, scale, no gate", SIGMOID, {"is_gated": False, "is_biased": True},
         ("basic", "E5b-scale-on-shared", *mixed), ("exact", "ggml")),
        ("fused", "gate and up in one stack, the gate's rows first", SOFTMAX,
         {"is_gated": True, "is_biased": False, "is_fused": True}, mixed, ("ggml",)),
    ):  # fmt: skip
        w = moe_weights("moe_ffn", **kind)
        found = routed(w, params, x)
        block = {f"blk.0.{name}": array for name, array in w.items()}
        y, taps = naive_moe.moe(block, hparams(params), 0, x)
        oracle = {"ids": [e for ids, _, _ in found for e in ids], "ffn_moe_out": taps["ffn_moe_out"], "ffn_out": y}
        add(suite, id, comment, w, {"x": x}, params, oracle, flags, ("moe",), numerics)
    return suite


# ----------------------------------------------------------------------------------------------------------- mixers

N_HEAD, N_HEAD_KV, SIZE, N_ROT = 4, 2, 16, 8


def plain_weights(name: str, *, has_biases: bool, has_norms: bool) -> dict[str, F32]:
    rows = {"q": N_HEAD * SIZE, "k": N_HEAD_KV * SIZE, "v": N_HEAD_KV * SIZE}
    w = {f"attn_{part}.weight": bell(f"{name}/{part}", (n, N_EMBD), 0.3) for part, n in rows.items()}
    w["attn_output.weight"] = bell(f"{name}/o", (N_EMBD, N_HEAD * SIZE), 0.3)
    if has_biases:
        w |= {f"attn_{part}.bias": bell(f"{name}/{part}/bias", (n,)) for part, n in rows.items()}
    if has_norms:
        w |= {f"attn_{part}_norm.weight": uniform(f"{name}/{part}/norm", (SIZE,), 0.3, 1.6) for part in "qk"}
    return w


def plain_oracle(w: Mapping[str, F32], x: F32, k_past: F32, v_past: F32, n_rot: int) -> dict[str, NDArray]:
    """Attention without a gate after given cells: biases, norms, RoPE of the first n_rot dimensions."""
    n, first, eps = len(x), len(k_past), float.fromhex(EPS)
    positions = list(range(first, first + n))
    q, k, v = (
        (naive.matmul(w[f"attn_{part}.weight"], x) + w.get(f"attn_{part}.bias", np.float32(0))).reshape(n, -1, SIZE)
        for part in "qkv"
    )
    if "attn_q_norm.weight" in w:
        q, k = naive.rms_norm(q, w["attn_q_norm.weight"], eps), naive.rms_norm(k, w["attn_k_norm.weight"], eps)
    qr, kr = naive_moe.turned(q, positions, n_rot, 1e4), naive_moe.turned(k, positions, n_rot, 1e4)
    o = naive.attention(qr, np.concatenate([k_past, kr]), np.concatenate([v_past, v]), first).reshape(n, -1)
    return {"Vcur": v, "Qcur_normed": q, "Kcur_normed": k, "Qcur": qr, "Kcur": kr, "kqv_out": o,
            "attn_output": naive.matmul(w["attn_output.weight"], o)}  # fmt: skip


def plain_attn_layer() -> SuiteBuilder:
    about = "An attention mixer without a gate: biases and norms of q and k where they are given, RoPE, attention."
    rules = ("S6", "S8", "S10", "S15", "S16", "S30", "S49")
    suite = SuiteBuilder("L2", "plain_attn_layer", "plain_attn_layer", rules, about)
    turned, normed = ("G19-rope-half-width", "G5b-no-rope", "G6-rope-interleaved"), ("G18-qk-norm-after-rope",)
    for id, comment, n, first, n_rot, kind, flags in (
        ("whole", "biases, norms, a part of the dimensions turns", 4, 5, N_ROT, {"has_biases": True, "has_norms": True},
         ("basic", "G17-qk-biases-forgotten", "G6b-rope-all-dims", *turned, *normed)),
        ("bare", "no biases, no norms", 3, 2, N_ROT, {"has_biases": False, "has_norms": False}, ("basic", *turned)),
        ("whole_rotary", "norms, every dimension turns", 3, 3, SIZE, {"has_biases": False, "has_norms": True},
         ("basic", *turned, *normed)),
    ):  # fmt: skip
        w = plain_weights("plain_attn", **kind)
        x = bell(f"plain_attn/{id}/x", (n, N_EMBD))
        k, v = (bell(f"plain_attn/{id}/{part}", (first, N_HEAD_KV, SIZE)) for part in "kv")
        params = {"n_head": N_HEAD, "n_head_kv": N_HEAD_KV, "n_embd_head": SIZE, "n_rot": n_rot, "eps": EPS,
                  "freq_base": hex_float(1e4), "kv_type": "F32", "first": first}  # fmt: skip
        data = {"x": x, "k_cache": k, "v_cache": v}
        add(suite, id, comment, w, data, params, plain_oracle(w, x, k, v, n_rot), flags, ("plain_attention",))
    return suite


def delta_grouped() -> SuiteBuilder:
    about = "A gated DeltaNet mixer with key heads in groups: beta and alpha in ssm_ba, perhaps all others in ssm_in."
    rules = ("S6", "S9", "S11", "S12", "S13", "S14", "S30", "S50", "S51")
    suite = SuiteBuilder("L2", "delta_layer_grouped", "delta_layer", rules, about)
    own = delta_weights("delta_grouped")
    own["ssm_ba.weight"] = np.concatenate([own.pop("ssm_beta.weight"), own.pop("ssm_alpha.weight")])
    fused = {name: w for name, w in own.items() if name not in ("attn_qkv.weight", "attn_gate.weight")}
    fused["ssm_in.weight"] = bell("delta_grouped/in", (2 * 2 * 8 + 2 * 4 * 8, N_EMBD), 0.3)
    params = {"n_k_heads": 2, "n_v_heads": 4, "d_state": 8, "eps": EPS, "keep": 1, "grouped": True}
    flags = ("basic", "G13b-v-heads-tiled", "G16-beta-alpha-swapped", "G16b-beta-alpha-halves")
    keys = {"ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.state_size": 8, "ssm.conv_kernel": 4,
            "attention.layer_norm_rms_epsilon": float.fromhex(EPS)}  # fmt: skip
    for id, comment, w in (
        ("from_nothing", "q, k, v and z in two projections", own),
        ("fused", "in one: ssm_in", fused),
    ):
        x = bell(f"delta_grouped/{id}/x", (4, N_EMBD))
        data = {"x": x, "conv_states": np.zeros((3, 64), np.float32), "state_predelta": np.zeros((4, 8, 8), np.float32)}
        block = naive_moe.as_qwen35({f"blk.0.{name}": array for name, array in w.items()}, keys, 0)
        y = naive_model.linear_layer(block, keys, 0, x)[0]
        add(suite, id, comment, w, data, params, {"linear_attn_out": y}, flags, ("ssm_ba",))
    return suite


def suites() -> Iterator[SuiteBuilder]:
    for make in (route, moe_ffn, plain_attn_layer, delta_grouped):
        yield make()
