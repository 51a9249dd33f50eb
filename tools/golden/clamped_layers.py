"""L2 of experts whose products are clamped, by score and by token id. Expected values are naive float64."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.compressed import EXPERTS
from golden.compressed_layers import block_of
from golden.l2_layers import add
from golden.streams import bell, stream
from mtpref.golden.build import SuiteBuilder
from mtpref.golden.format import hex_float
from tests import naive, naive_dsv4

F32 = NDArray[np.float32]
NONE = hex_float(0.0)


def expert_weights(n: int) -> dict[str, Any]:
    """Five experts and a shared one, all as wide as their input; strong enough that limits bind."""
    name, w = f"clamped_moe_ffn/{n}", {}
    w["ffn_gate_inp.weight"] = bell(f"{name}/router", (5, n), 0.3)
    w["exp_probs_b.bias"] = bell(f"{name}/bias", (5,), 0.25)
    scale = 1.5 / np.sqrt(n)
    for part in ("gate", "up", "down"):
        w[f"ffn_{part}_exps.weight"] = bell(f"{name}/{part}", (5, n, n), scale)
        w[f"ffn_{part}_shexp.weight"] = bell(f"{name}/shared/{part}", (n, n), scale)
    return w


def experts_oracle(
    w: Mapping[str, F32], params: Mapping[str, Any], x: F32, tokens: NDArray[np.int32]
) -> tuple[NDArray, dict[str, NDArray]]:
    hparams = {
        "expert_used_count": w["ffn_gate_tid2eid.weight"].shape[1]
        if "ffn_gate_tid2eid.weight" in w
        else params["n_used"],
        "expert_weights_norm": params["normalise"],
        "expert_weights_scale": float.fromhex(params["scale"]),
        "hash_layer_count": int("ffn_gate_tid2eid.weight" in w),
        "swiglu_clamp_exp": float.fromhex(params["clamp"]),
        "swiglu_clamp_shexp": float.fromhex(params["clamp_shared"]),
    }
    return naive_dsv4.experts(block_of(w), hparams, 0, naive.f64(x), [int(i) for i in tokens])


def hashed(w: Mapping[str, F32], n_used: int) -> dict[str, Any]:
    """The same network, routed by token id."""
    n_expert = len(w["ffn_gate_inp.weight"])
    keys = stream("clamped_moe_ffn/table", 16 * n_expert).reshape(16, n_expert)
    table = np.argsort(keys, axis=1, kind="stable")[:, :n_used].astype(np.int32)
    own: dict[str, Any] = {name: x for name, x in w.items() if name != "exp_probs_b.bias"}
    return own | {"ffn_gate_tid2eid.weight": table}


def clamped_moe_ffn() -> SuiteBuilder:
    about = "Experts whose products are clamped before silu, chosen by score or by token id, and the shared expert."
    rules = ("S6", "S41", "S42", "S44", "S45", "S46", "S48", "S79", "S80", "S91", "S92")
    suite = SuiteBuilder("L2", "clamped_moe_ffn", "clamped_moe_ffn", rules, about)
    tokens = np.array([3, 15, 0, 3], np.int32)
    params = {"n_used": 2, "normalise": True, "scale": hex_float(1.5), "clamp": hex_float(1.25),
              "clamp_shared": hex_float(0.75)}  # fmt: skip
    small, of_q8_0 = expert_weights(16), expert_weights(32)
    for id, comment, w, changes, numerics in (
        ("by_score", "sqrt(softplus), a selection bias, scaled", small, {}, "exact"),
        ("by_score", "sqrt(softplus), a selection bias, scaled", of_q8_0, {}, "ggml"),
        ("by_token", "a table of two experts a token", hashed(small, 2), {}, "exact"),
        ("unclamped", "no limits: plain networks", small, {"clamp": NONE, "clamp_shared": NONE}, "exact"),
        ("shared_alone", "a limit of the shared expert's alone", small, {"clamp": NONE}, "exact"),
    ):
        x = bell("clamped_moe_ffn/x", (4, w["ffn_gate_inp.weight"].shape[1]))
        own, is_hashed = {**params, **changes}, "ffn_gate_tid2eid.weight" in w
        y, t = experts_oracle(w, own, x, tokens)
        oracle = {"ids": [int(e) for e in t["ffn_moe_topk"].reshape(-1)], "w": t["ffn_moe_weights"], "ffn_out": y}
        data: dict[str, Any] = {"x": x} | ({"tokens": tokens} if is_hashed else {})
        flags = ("basic", "E3-weights-unnormed", "E5-scale-forgotten", "E7-sigmoid-router", "E7b-softmax-router",
                 *(("E14-clamp-after-silu",) if own["clamp_shared"] != NONE else ()))  # fmt: skip
        add(suite, id, comment, w, data, own, oracle, flags, EXPERTS, (numerics,))
    return suite


def route_by_token() -> SuiteBuilder:
    about = "Experts by token id; their weights are of the router's own probabilities."
    suite = SuiteBuilder("L2", "route_by_token", "route_by_token", ("S6", "S41", "S45", "S80", "S91"), about)
    x, tokens = bell("route_by_token/x", (5, 16)), np.array([1, 9, 1, 0, 15], np.int32)
    for id, comment, normalise, scale in (
        ("normalised", "divided by their sum, scaled", True, 1.5),
        ("plain", "as they are", False, 0.0),
    ):
        w = hashed({"ffn_gate_inp.weight": bell("route_by_token/router", (7, 16), 0.3)}, 3)
        params = {"normalise": normalise, "scale": hex_float(scale)}
        probs = np.sqrt(naive.softplus(naive.matmul(w["ffn_gate_inp.weight"], x)))
        ids = w["ffn_gate_tid2eid.weight"][tokens]
        weights = np.take_along_axis(probs, ids, axis=1)
        weights = weights / (weights[:, :1] + weights[:, 1:2] + weights[:, 2:]) if normalise else weights
        oracle = {"ids": [int(e) for e in ids.reshape(-1)], "ffn_moe_probs": probs,
                  "w": weights * scale if scale else weights}  # fmt: skip
        data: dict[str, Any] = {"x": x, "tokens": tokens}
        add(suite, id, comment, w, data, params, oracle,
            ("basic", "E7-sigmoid-router", "E7b-softmax-router"), EXPERTS, ("exact",))  # fmt: skip
    return suite


def layers() -> Iterator[SuiteBuilder]:
    yield clamped_moe_ffn()
    yield route_by_token()
