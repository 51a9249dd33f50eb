"""L2: whole mixers and feed-forward networks of small shapes, weights included."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import EPS, GGML, ours
from golden.streams import bell, quantised, uniform
from mtpref.golden.build import SuiteBuilder, close, value
from mtpref.golden.format import Tensor, hex_float
from tests import naive, naive_model

F32 = NDArray[np.float32]
N_EMBD, N_FF = 32, 64
STAYS_F32 = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "conv1d")
SAFE_GAP = 1e-4  # between the score of the last expert (or group) chosen and the next: far beyond what float32 leaves
DELTA = {"n_k_heads": 2, "n_v_heads": 4, "d_state": 8, "eps": EPS}
ATTN = {"n_head": 4, "n_head_kv": 2, "n_embd_head": 16, "n_rot": 8, "sections": [2, 1, 1, 0], "eps": EPS,
        "freq_base": hex_float(1e4), "kv_type": "F32"}  # fmt: skip


def delta_weights(name: str) -> dict[str, F32]:
    n_qk, n_v = 2 * 2 * 8, 4 * 8
    w = {
        "attn_qkv.weight": bell(f"{name}/qkv", (n_qk + n_v, N_EMBD), 0.3),
        "attn_gate.weight": bell(f"{name}/z", (n_v, N_EMBD), 0.3),
        "ssm_beta.weight": bell(f"{name}/beta", (4, N_EMBD), 0.3),
        "ssm_alpha.weight": bell(f"{name}/alpha", (4, N_EMBD), 0.3),
        "ssm_dt.bias": bell(f"{name}/dt", (4,)),
        "ssm_a": -uniform(f"{name}/a", (4,), 0.05, 2.0),
        "ssm_conv1d.weight": bell(f"{name}/conv", (n_qk + n_v, 4), 0.5),
        "ssm_norm.weight": uniform(f"{name}/norm", (8,), 0.3, 1.6),
        "ssm_out.weight": bell(f"{name}/out", (N_EMBD, n_v), 0.3),
    }
    return w


def delta_oracle(w: Mapping[str, NDArray], x: F32, conv: F32, state: F32) -> dict[str, NDArray]:
    """The DeltaNet mixer after a given window and state, in the oracle's operations."""
    n, n_k, n_v, size = len(x), 2, 4, 8
    eps = float.fromhex(EPS)
    qkv, z = naive.matmul(w["attn_qkv.weight"], x), naive.matmul(w["attn_gate.weight"], x)
    beta_raw, alpha = naive.matmul(w["ssm_beta.weight"], x), naive.matmul(w["ssm_alpha.weight"], x)
    beta, g = naive.delta_gates(beta_raw, alpha, w["ssm_dt.bias"], w["ssm_a"])
    mixed, history = naive.conv_window(qkv, conv.T, w["ssm_conv1d.weight"])[1:]
    heads = mixed.reshape(n, -1, size)
    q, k = naive.l2_norm(heads[:, :n_k], eps), naive.l2_norm(heads[:, n_k : 2 * n_k], eps)
    o, last = naive.gated_delta_rule(q, k, heads[:, 2 * n_k :], g, beta, state)
    final = naive.gated_norm(o, z.reshape(n, n_v, size), w["ssm_norm.weight"], eps)
    return {
        "linear_attn_qkv_mixed": qkv, "z": z, "conv_output_silu": mixed, "q_conv_predelta": q, "k_conv_predelta": k,
        "v_conv_predelta": heads[:, 2 * n_k :], "gate": g, "beta_sigmoid": beta, "attn_output": o, "new_state": last,
        "final_output": final, "linear_attn_out": naive.matmul(w["ssm_out.weight"], final.reshape(n, -1)),
        "conv": history.T[None], "states": last[None],
    }  # fmt: skip


def attn_weights(name: str) -> dict[str, F32]:
    return {
        "attn_q.weight": bell(f"{name}/q", (4 * 2 * 16, N_EMBD), 0.3),
        "attn_k.weight": bell(f"{name}/k", (2 * 16, N_EMBD), 0.3),
        "attn_v.weight": bell(f"{name}/v", (2 * 16, N_EMBD), 0.3),
        "attn_output.weight": bell(f"{name}/o", (N_EMBD, 4 * 16), 0.3),
        "attn_q_norm.weight": uniform(f"{name}/qn", (16,), 0.3, 1.6),
        "attn_k_norm.weight": uniform(f"{name}/kn", (16,), 0.3, 1.6),
    }


def attn_oracle(w: Mapping[str, NDArray], x: F32, k_past: F32, v_past: F32) -> dict[str, NDArray]:
    """The gated attention mixer after given cells."""
    n, first, eps = len(x), len(k_past), float.fromhex(EPS)
    positions = list(range(first, first + n))
    rope = (8, 1e4, [2, 1, 1, 0])
    q_full = naive.matmul(w["attn_q.weight"], x)
    q, gate = naive.split_q_gate(q_full, 4)
    k = naive.matmul(w["attn_k.weight"], x).reshape(n, 2, 16)
    v = naive.matmul(w["attn_v.weight"], x).reshape(n, 2, 16)
    qn, kn = naive.rms_norm(q, w["attn_q_norm.weight"], eps), naive.rms_norm(k, w["attn_k_norm.weight"], eps)
    qr, kr = naive.rope_imrope_text(qn, positions, *rope), naive.rope_imrope_text(kn, positions, *rope)
    o = naive.attention(qr, np.concatenate([k_past, kr]), np.concatenate([v_past, v]), first)
    gated = o * naive.sigmoid(gate)
    return {
        "Qcur_full": q_full, "Vcur": v, "Qcur_normed": qn, "Kcur_normed": kn, "gate_reshaped": gate, "Qcur": qr,
        "Kcur": kr, "attn_pregate": o, "attn_gated": gated, "attn_output": naive.matmul(w["attn_output.weight"], gated),
    }  # fmt: skip


def add(
    suite: SuiteBuilder, id: str, comment: str, weights: Mapping[str, F32], data: Mapping[str, F32],
    params: Mapping[str, Any], oracle: Mapping[str, Any], flags: tuple[str, ...], need: tuple[str, ...] = (),
    numerics: tuple[str, ...] = ("exact", "ggml"),
) -> None:  # fmt: skip
    """The same layer twice: F32 weights against the oracle, Q8_0 weights against the specification's `ggml` bits."""
    if "exact" in numerics:
        inputs: dict[str, Any] = {**weights, **data}
        given = checked(ours(suite.op, params, inputs))
        out = {name: _expected("layer_f32", wanted, given[name]) for name, wanted in oracle.items()}
        suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=need)
    if "ggml" in numerics:
        q8 = {name: to_q8_0(name, w) for name, w in weights.items()} | dict(data)
        bits = checked(ours(suite.op, params, q8, GGML))
        out = {name: _expected("model_ggml", bits[name]) for name in oracle}
        suite.case(f"{id}_q8_0", f"{comment}; Q8_0 weights", inputs=q8, out=out, params=params, numerics="ggml",
                   requires=("ggml", "q8_0", *need), flags=flags)  # fmt: skip


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """Errors  ValueError where a choice of experts hangs on a near tie"""
    if "ffn_moe_gap" in given and given["ffn_moe_gap"].min() < SAFE_GAP:
        raise ValueError("a choice of experts hangs on a near tie: take other inputs")
    return given


def _expected(tolerance: str, wanted: Any, given: Any = None) -> dict[str, Any]:
    return value(wanted) if isinstance(wanted, list) else close(tolerance, wanted, given)


def to_q8_0(name: str, w: F32) -> F32 | Tensor:
    """Matrices and stacks as a file would hold them; what stays float32 there stays so here."""
    is_plain = w.ndim < 2 or w.shape[-1] % 32 or any(part in name for part in STAYS_F32)
    return w if is_plain else quantised("Q8_0", w)


def delta_layer() -> SuiteBuilder:
    about = "A gated DeltaNet mixer: projections, conv window, l2 norms, gates, delta rule, gated norm, output."
    suite = SuiteBuilder("L2", "delta_layer", "delta_layer", ("S6", "S9", "S11", "S12", "S13", "S14", "S30"), about)
    w = delta_weights("delta_layer")
    for id, comment, n, is_empty, flags in (
        ("from_nothing", "five tokens on an empty state", 5, True, ("basic", "G13-v-heads-grouped")),
        ("one_step", "one token after a window and a state", 1, False, ("carry",)),
    ):
        x = bell(f"delta_layer/{id}/x", (n, N_EMBD))
        conv, state = bell(f"delta_layer/{id}/c", (3, 64)), bell(f"delta_layer/{id}/s", (4, 8, 8))
        if is_empty:
            conv, state = np.zeros_like(conv), np.zeros_like(state)
        data = {"x": x, "conv_states": conv, "state_predelta": state}
        add(suite, id, comment, w, data, DELTA | {"keep": 1}, delta_oracle(w, x, conv, state), flags)
    return suite


def attn_layer() -> SuiteBuilder:
    about = "A gated attention mixer: projections, q and k norms, partial RoPE, attention, sigmoid gate, output."
    suite = SuiteBuilder("L2", "attn_layer", "attn_layer", ("S6", "S8", "S10", "S15", "S16", "S17", "S30"), about)
    w = attn_weights("attn_layer")
    flags = ("basic", "G4-gate-silu", "G5-no-qk-norm", "G5b-no-rope", "G6-rope-interleaved", "G6b-rope-all-dims",
             "G9-q-gate-halves", "G14-gate-skipped")  # fmt: skip
    for id, comment, n, first in (("from_nothing", "five tokens, no past", 5, 0), ("one_step", "one token at 6", 1, 6)):
        x = bell(f"attn_layer/{id}/x", (n, N_EMBD))
        k, v = bell(f"attn_layer/{id}/k", (first, 2, 16)), bell(f"attn_layer/{id}/v", (first, 2, 16))
        data = {"x": x} | ({"k_cache": k, "v_cache": v} if first else {})
        add(suite, id, comment, w, data, ATTN | {"first": first}, attn_oracle(w, x, k, v), flags)
    return suite


def ffn() -> SuiteBuilder:
    suite = SuiteBuilder("L2", "ffn", "ffn", ("S6", "S18", "S30"), "down(silu(gate(x)) * up(x)).")
    shapes = {"ffn_gate.weight": (N_FF, N_EMBD), "ffn_up.weight": (N_FF, N_EMBD), "ffn_down.weight": (N_EMBD, N_FF)}
    w = {name: bell(f"ffn/{name}", shape, 0.3) for name, shape in shapes.items()}
    x = bell("ffn/x", (3, N_EMBD))
    oracle = {"ffn_out": naive_model.ffn({f"blk.0.{name}": array for name, array in w.items()}, 0, x)}
    add(suite, "basic", "three tokens", w, {"x": x}, {}, oracle, ("basic",))
    return suite


def suites() -> Iterator[SuiteBuilder]:
    for make in (delta_layer, attn_layer, ffn):
        yield make()
