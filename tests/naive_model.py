"""Naive float64 forward passes of the qwen35 trunk and of its MTP block.

Owns the obvious whole: everything is recomputed over the whole sequence at each call, there is no cache.
`weights` maps GGUF tensor names to float64 arrays in NumPy shape (reversed ne), `hparams` maps GGUF keys
without the architecture prefix to values. Intermediate tensors carry llama.cpp's cb() names, token-major. The
speculative loop on top of this is in naive_loop.py; the single operations are in naive.py.
"""

from typing import Any, NamedTuple

import numpy as np

from tests import naive

Array = np.ndarray
Weights = dict[str, Array]
HParams = dict[str, Any]


class TrunkResult(NamedTuple):
    """logits (n, n_vocab); h_post, h_pre (n, n_embd): after and before output_norm; tensors by cb() name."""

    logits: Array
    h_post: Array
    h_pre: Array
    tensors: dict[str, Array]


class MtpResult(NamedTuple):
    """logits (n, n_vocab); h_nextn, h_pre (n, n_embd): after and before the head norm; tensors."""

    logits: Array
    h_nextn: Array
    h_pre: Array
    tensors: dict[str, Array]


def n_layer(hparams: HParams) -> int:
    """Trunk layers: block_count counts the MTP blocks too."""
    return int(hparams["block_count"]) - int(hparams.get("nextn_predict_layers", 0))


def is_recurrent(hparams: HParams, il: int) -> bool:
    """attention.recurrent_layers if present, else all but each full_attention_interval-th; MTP never."""
    if il >= n_layer(hparams):
        return False
    array = hparams.get("attention.recurrent_layers")
    if array is not None:
        return bool(array[il])
    return (il + 1) % int(hparams.get("full_attention_interval", 4)) != 0


def eps_of(hparams: HParams) -> float:
    return float(hparams["attention.layer_norm_rms_epsilon"])


def linear_layer(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """Gated DeltaNet over a whole sequence from the zero state. h (n, n_embd), already normed."""
    n_k_head, n_v_head = int(hparams["ssm.group_count"]), int(hparams["ssm.time_step_rank"])
    size, eps, n = int(hparams["ssm.state_size"]), eps_of(hparams), len(h)
    w = {name: weights[f"blk.{il}.{name}"] for name in LINEAR_TENSORS}
    t: dict[str, Array] = {}
    # PROJECTIONS
    t["linear_attn_qkv_mixed"] = naive.matmul(w["attn_qkv.weight"], h)
    t["z"] = naive.matmul(w["attn_gate.weight"], h)
    t["beta"] = naive.matmul(w["ssm_beta.weight"], h)
    t["alpha"] = naive.matmul(w["ssm_alpha.weight"], h)
    t["beta_sigmoid"], t["gate"] = naive.delta_gates(t["beta"], t["alpha"], w["ssm_dt.bias"], w["ssm_a"])
    t["a_softplus"] = naive.softplus(t["alpha"] + w["ssm_dt.bias"])
    # CONV
    history = np.zeros((w["ssm_conv1d.weight"].shape[0], int(hparams["ssm.conv_kernel"]) - 1))
    t["conv_output_raw"], t["conv_output_silu"], t["conv_state_last"] = naive.conv_window(
        t["linear_attn_qkv_mixed"], history, w["ssm_conv1d.weight"]
    )
    n_qk = n_k_head * size
    t["q_conv"] = t["conv_output_silu"][:, :n_qk].reshape(n, n_k_head, size)
    t["k_conv"] = t["conv_output_silu"][:, n_qk : 2 * n_qk].reshape(n, n_k_head, size)
    t["v_conv"] = t["conv_output_silu"][:, 2 * n_qk :].reshape(n, n_v_head, size)
    # RECURRENCE
    t["q_conv_predelta"] = naive.l2_norm(t["q_conv"], eps)
    t["k_conv_predelta"] = naive.l2_norm(t["k_conv"], eps)
    t["v_conv_predelta"] = t["v_conv"]
    t["attn_output"], t["new_state"] = naive.gated_delta_rule(
        t["q_conv_predelta"],
        t["k_conv_predelta"],
        t["v_conv"],
        t["gate"],
        t["beta_sigmoid"],
        np.zeros((n_v_head, size, size)),
    )
    # OUTPUT
    z = t["z"].reshape(n, n_v_head, size)
    t["final_output"] = naive.gated_norm(t["attn_output"], z, w["ssm_norm.weight"], eps).reshape(n, -1)
    t["linear_attn_out"] = naive.matmul(w["ssm_out.weight"], t["final_output"])
    return t["linear_attn_out"], t


LINEAR_TENSORS = (
    "attn_qkv.weight",
    "attn_gate.weight",
    "ssm_beta.weight",
    "ssm_alpha.weight",
    "ssm_dt.bias",
    "ssm_a",
    "ssm_conv1d.weight",
    "ssm_norm.weight",
    "ssm_out.weight",
)


def project_qkv(weights: Weights, il: int, h: Array, n_q: int, n_kv: int) -> tuple[Array, Array, Array]:
    """Separate attn_q/k/v, or one attn_qkv with the rows q | k | v."""
    fused = weights.get(f"blk.{il}.attn_qkv.weight")
    if fused is not None:
        rows = naive.matmul(fused, h)
        return rows[:, :n_q], rows[:, n_q : n_q + n_kv], rows[:, n_q + n_kv :]
    q, k, v = (naive.matmul(weights[f"blk.{il}.attn_{x}.weight"], h) for x in "qkv")
    return q, k, v


def attention_layer(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """Gated full attention over a whole sequence, no cells before it. h (n, n_embd), already normed."""
    n_head, n_head_kv = int(hparams["attention.head_count"]), int(hparams["attention.head_count_kv"])
    head_dim, eps, n = int(hparams["attention.key_length"]), eps_of(hparams), len(h)
    n_rot, base = int(hparams["rope.dimension_count"]), float(hparams.get("rope.freq_base", 10000.0))
    scaling = naive.rope_scaled(
        n_rot,
        base,
        float(hparams.get("rope.scaling.factor", 1.0)),
        int(hparams.get("rope.scaling.original_context_length", 0)),
        hparams.get("rope.scaling.type") == "yarn",
    )
    rope = (n_rot, base, [int(s) for s in hparams["rope.dimension_sections"]], scaling)
    t: dict[str, Array] = {}
    t["Qcur_full"], k, v = project_qkv(weights, il, h, 2 * n_head * head_dim, n_head_kv * head_dim)
    t["Qcur_reshaped"], t["gate_reshaped"] = naive.split_q_gate(t["Qcur_full"], n_head)
    t["Qcur_normed"] = naive.rms_norm(t["Qcur_reshaped"], weights[f"blk.{il}.attn_q_norm.weight"], eps)
    t["Kcur_normed"] = naive.rms_norm(k.reshape(n, n_head_kv, head_dim), weights[f"blk.{il}.attn_k_norm.weight"], eps)
    t["Qcur"] = naive.rope_imrope_text(t["Qcur_normed"], positions, *rope)
    t["Kcur"] = naive.rope_imrope_text(t["Kcur_normed"], positions, *rope)
    t["Vcur"] = v.reshape(n, n_head_kv, head_dim)
    t["attn_pregate"] = naive.attention(t["Qcur"], t["Kcur"], t["Vcur"], 0)
    t["gate_sigmoid"] = naive.sigmoid(t["gate_reshaped"])
    t["attn_gated"] = naive.gated_attention(t["Qcur"], t["gate_reshaped"], t["Kcur"], t["Vcur"], 0)
    t["attn_output"] = naive.matmul(weights[f"blk.{il}.attn_output.weight"], t["attn_gated"])
    return t["attn_output"], t


def ffn(weights: Weights, il: int, x: Array) -> Array:
    gate, up, down = (weights[f"blk.{il}.ffn_{part}.weight"] for part in ("gate", "up", "down"))
    return naive.swiglu(x, gate, up, down)


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ...; tensors are named `name-layer`, or `name` alone."""
    eps = eps_of(hparams)
    positions = list(range(len(tokens)))
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {"model.input_embed": x}
    for il in range(n_layer(hparams)):
        t: dict[str, Array] = {}
        t["attn_norm"] = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], eps)
        if is_recurrent(hparams, il):
            mixed, parts = linear_layer(weights, hparams, il, t["attn_norm"])
        else:
            mixed, parts = attention_layer(weights, hparams, il, t["attn_norm"], positions)
        t.update(parts)
        t["attn_residual"] = x + mixed
        t["attn_post_norm"] = naive.rms_norm(t["attn_residual"], weights[f"blk.{il}.post_attention_norm.weight"], eps)
        t["ffn_out"] = ffn(weights, il, t["attn_post_norm"])
        x = t["attn_residual"] + t["ffn_out"]
        t["post_ffn"] = t["l_out"] = x
        tensors.update({f"{name}-{il}": value for name, value in t.items()})
    h_post = naive.rms_norm(x, weights["output_norm.weight"], eps)
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), h_post)
    tensors.update({"h_nextn": h_post, "result_norm": h_post, "result_output": logits})
    return TrunkResult(logits, h_post, x, tensors)


# cb() names of the attention inside the MTP block that differ from the trunk's
MTP_ATTENTION_NAMES = {
    "Qcur_full": "mtp_Qcur_full",
    "Qcur_normed": "mtp_Qcur_normed",
    "gate_reshaped": "mtp_gate",
    "Kcur_normed": "mtp_Kcur_normed",
    "Vcur": "mtp_Vcur",
    "attn_pregate": "mtp_attn_pregate",
    "attn_output": "mtp_attn_out",
}


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i.

    llama.cpp pairs (x_p, h_{p-1}) at position p with a zero hidden in row 0; the training contract pairs
    (x_{p+1}, h_p) at position p. Both are only a choice of the arguments here.
    """
    eps, il = eps_of(hparams), n_layer(hparams)
    p = f"blk.{il}."
    embd = naive.f64(weights.get(p + "nextn.embed_tokens.weight", weights["token_embd.weight"]))
    t: dict[str, Array] = {}
    t["mtp_tok_embd"] = embd[np.asarray(tokens, dtype=np.int64)]
    t["mtp_h_input"] = naive.f64(hiddens)
    t["mtp_enorm"] = naive.rms_norm(t["mtp_tok_embd"], weights[p + "nextn.enorm.weight"], eps)
    t["mtp_hnorm"] = naive.rms_norm(t["mtp_h_input"], weights[p + "nextn.hnorm.weight"], eps)
    t["mtp_concat"] = np.concatenate([t["mtp_enorm"], t["mtp_hnorm"]], axis=-1)
    t["mtp_eh_proj"] = naive.matmul(weights[p + "nextn.eh_proj.weight"], t["mtp_concat"])
    t["mtp_attn_norm"] = naive.rms_norm(t["mtp_eh_proj"], weights[p + "attn_norm.weight"], eps)
    mixed, parts = attention_layer(weights, hparams, il, t["mtp_attn_norm"], positions)
    t.update({MTP_ATTENTION_NAMES.get(name, name): value for name, value in parts.items()})
    t["mtp_attn_residual"] = t["mtp_eh_proj"] + mixed
    t["mtp_attn_post_norm"] = naive.rms_norm(t["mtp_attn_residual"], weights[p + "post_attention_norm.weight"], eps)
    t["mtp_ffn_out"] = ffn(weights, il, t["mtp_attn_post_norm"])
    x = t["mtp_attn_residual"] + t["mtp_ffn_out"]
    t["mtp_post_ffn"] = x
    head_norm = weights.get(p + "nextn.shared_head_norm.weight", weights["output_norm.weight"])
    h_nextn = naive.rms_norm(x, head_norm, eps)
    shared_head = weights.get("output.weight", weights["token_embd.weight"])
    logits = naive.matmul(weights.get(p + "nextn.shared_head_head.weight", shared_head), h_nextn)
    tensors = {(name if name == "mtp_h_input" else f"{name}-{il}"): value for name, value in t.items()}
    tensors.update({"h_nextn": h_nextn, "mtp_shared_head_norm": h_nextn, "result_output": logits})
    return MtpResult(logits, h_nextn, x, tensors)


def load_gguf(path: str) -> tuple[HParams, Weights]:
    """Every tensor of a GGUF as float64, and the hyper-parameters, through the `gguf` package."""
    import gguf

    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    hparams = {
        key[len(arch) + 1 :]: field.contents() for key, field in reader.fields.items() if key.startswith(arch + ".")
    }
    weights = {}
    for tensor in reader.tensors:
        is_table = tensor.tensor_type == gguf.GGMLQuantizationType.I32
        values = tensor.data if is_table else gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        weights[tensor.name] = values.reshape(tuple(int(d) for d in reversed(tensor.shape))).astype(np.float64)
    return hparams, weights
