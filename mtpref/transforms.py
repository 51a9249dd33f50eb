"""Weight conventions: a Qwen3.5 checkpoint (HF) on one side, GGUF on the other, and the way between them.

Owns the names and the four changes a converter makes, each with its inverse:

* zero-centred norms: GGUF w = HF w + 1 (every norm but the DeltaNet output norm ``ssm_norm``);
* decay: GGUF ``ssm_a`` = -exp(HF ``A_log``);
* V heads: GGUF tiled order, HF grouped order (only if H_v != H_k);
* convolution: GGUF (channels, kernel), HF (channels, 1, kernel).

Works on NumPy arrays, rows first (a matrix is (n_out, n_in), GGUF dims reversed).
Knows nothing of files or models.
Facts: llama.cpp's converter for the Qwen3-Next family (conversion/qwen.py) and src/models/qwen35.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtpref.errors import MtprefError

GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
HEAD_NAMES = {
    "fc.weight": "nextn.eh_proj.weight",
    "pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
}
ZERO_CENTRED = frozenset(
    {
        "output_norm.weight",
        "attn_norm.weight",
        "post_attention_norm.weight",
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "nextn.enorm.weight",
        "nextn.hnorm.weight",
        "nextn.shared_head_norm.weight",
    }
)


# DeltaNet tensors whose rows are V heads, and those whose rows are q, k and V heads.
V_ROWS = frozenset({"attn_gate.weight", "ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias"})
QKV_ROWS = frozenset({"attn_qkv.weight", "ssm_conv1d.weight"})


@dataclass(frozen=True)
class ConvertDims:
    """The sizes the conversion needs, under GGUF's names.

    n_layer: trunk layers (the MTP block is ``blk.<n_layer>``); ssm_group_count: H_k; ssm_time_step_rank: H_v;
    ssm_state_size: S, the width of one head.
    """

    n_layer: int
    ssm_group_count: int
    ssm_time_step_rank: int
    ssm_state_size: int

    def __post_init__(self) -> None:
        if self.ssm_group_count < 1 or self.ssm_time_step_rank % self.ssm_group_count:
            raise MtprefError(
                f"V heads: H_v = {self.ssm_time_step_rank} is not a multiple of H_k = "
                f"{self.ssm_group_count}; check ssm.time_step_rank and ssm.group_count"
            )


def norm_to_gguf(weight: np.ndarray) -> np.ndarray:
    """w + 1, in float32."""
    return weight.astype(np.float32) + np.float32(1.0)


def norm_from_gguf(weight: np.ndarray) -> np.ndarray:
    """w - 1, in float32. Restores the HF weight to within 2^-24 for |w| < 1: the addition has rounded."""
    return weight.astype(np.float32) - np.float32(1.0)


def a_log_to_ssm_a(a_log: np.ndarray) -> np.ndarray:
    """-exp(A_log); computed in float64, rounded once to float32."""
    return (-np.exp(a_log.astype(np.float64))).astype(np.float32)


def ssm_a_to_a_log(ssm_a: np.ndarray) -> np.ndarray:
    """log(-ssm_a); computed in float64, rounded once to float32. ssm_a must be negative."""
    if not np.all(ssm_a < 0):
        raise MtprefError(f"ssm_a: largest value {ssm_a.max()}, expected all < 0; is this already A_log?")
    return np.log(-ssm_a.astype(np.float64)).astype(np.float32)


def conv1d_to_gguf(weight: np.ndarray) -> np.ndarray:
    """(channels, 1, kernel) to (channels, kernel)."""
    if weight.ndim != 3 or weight.shape[1] != 1:
        raise MtprefError(f"conv1d.weight: shape {weight.shape}, expected (channels, 1, kernel)")
    return weight[:, 0, :]


def conv1d_from_gguf(weight: np.ndarray) -> np.ndarray:
    """(channels, kernel) to (channels, 1, kernel)."""
    if weight.ndim != 2:
        raise MtprefError(f"ssm_conv1d.weight: shape {weight.shape}, expected (channels, kernel)")
    return weight[:, None, :]


def v_head_source(n_k: int, n_v: int) -> np.ndarray:
    """The HF V head each GGUF V head comes from: head t * H_k + g <- head g * r + t, r = H_v / H_k."""
    return np.arange(n_v).reshape(n_k, n_v // n_k).T.reshape(-1)


def reorder_v_heads(x: np.ndarray, axis: int, n_k: int, n_v: int, to_gguf: bool) -> np.ndarray:
    """Move whole V heads along ``axis`` between grouped (HF) and tiled (GGUF) order.

    The axis holds n_v equal pieces, one a head (of S rows, or of one value for ``ssm_a``).
    """
    if x.shape[axis] % n_v:
        raise MtprefError(f"V heads: axis of {x.shape[axis]} values, expected a multiple of H_v = {n_v}")
    source = v_head_source(n_k, n_v)
    if not to_gguf:
        source = np.argsort(source)
    moved = np.moveaxis(x, axis, 0)
    heads = moved.reshape(n_v, x.shape[axis] // n_v, *moved.shape[1:])
    return np.ascontiguousarray(np.moveaxis(heads[source].reshape(moved.shape), 0, axis))


def _reorder_tensor(suffix: str, x: np.ndarray, dims: ConvertDims, to_gguf: bool) -> np.ndarray:
    """Apply the V head order to the part of a DeltaNet tensor that is laid out by V head; others pass."""
    n_k, n_v = dims.ssm_group_count, dims.ssm_time_step_rank
    if n_k == n_v:
        return x
    if suffix in V_ROWS:
        return reorder_v_heads(x, 0, n_k, n_v, to_gguf)
    if suffix == "ssm_out.weight":
        return reorder_v_heads(x, 1, n_k, n_v, to_gguf)
    if suffix in QKV_ROWS:
        n_keep = 2 * n_k * dims.ssm_state_size
        value = reorder_v_heads(x[n_keep:], 0, n_k, n_v, to_gguf)
        return np.concatenate([x[:n_keep], value], axis=0)
    return x


def row_order(gguf_name: str, n_rows: int, dims: ConvertDims) -> np.ndarray | None:
    """Which HF row each GGUF row of a tensor comes from, or None where they keep their order."""
    suffix = _suffix(gguf_name)
    if suffix == "ssm_out.weight" or dims.ssm_group_count == dims.ssm_time_step_rank:
        return None
    if suffix in V_ROWS or suffix in QKV_ROWS:
        return _reorder_tensor(suffix, np.arange(n_rows), dims, to_gguf=True)
    return None


def column_order(gguf_name: str, n_columns: int, dims: ConvertDims) -> np.ndarray | None:
    """Which HF column each GGUF column of a matrix comes from, or None where they keep their order."""
    if _suffix(gguf_name) != "ssm_out.weight" or dims.ssm_group_count == dims.ssm_time_step_rank:
        return None
    return reorder_v_heads(np.arange(n_columns), 0, dims.ssm_group_count, dims.ssm_time_step_rank, to_gguf=True)


def apply_values(gguf_name: str, x: np.ndarray) -> np.ndarray:
    """The operation on values alone (norm + 1, -exp), then float32. Rows and columns stay where they are.

    float16 is rounded to float16 once more behind the operation, since llama.cpp's converter computes in the type of
    the checkpoint; for every other type the operation is float32's.
    """
    suffix = _suffix(gguf_name)
    if suffix in ZERO_CENTRED:
        made = norm_to_gguf(x)
    elif suffix == "ssm_a":
        made = a_log_to_ssm_a(x)
    else:
        return x.astype(np.float32)
    return made.astype(np.float16).astype(np.float32) if x.dtype == np.float16 else made


def _suffix(gguf_name: str) -> str:
    """The name without ``blk.N.``. ``attn_qkv`` is DeltaNet's: attention layers keep q, k, v apart."""
    return gguf_name.split(".", 2)[2] if gguf_name.startswith("blk.") else gguf_name


def tensor_to_gguf(gguf_name: str, x: np.ndarray, dims: ConvertDims) -> np.ndarray:
    """One tensor from HF's convention to GGUF's, by its GGUF name. float32 out; only conv1d changes shape."""
    suffix = _suffix(gguf_name)
    x = apply_values(gguf_name, x.astype(np.float32))
    if suffix == "ssm_conv1d.weight":
        x = conv1d_to_gguf(x)
    return _reorder_tensor(suffix, x, dims, to_gguf=True)


def tensor_from_gguf(gguf_name: str, x: np.ndarray, dims: ConvertDims) -> np.ndarray:
    """Inverse of tensor_to_gguf; exact but for the rounding of norms and of log(exp())."""
    suffix = _suffix(gguf_name)
    x = x.astype(np.float32)
    if suffix in ZERO_CENTRED:
        return norm_from_gguf(x)
    x = _reorder_tensor(suffix, x, dims, to_gguf=False)
    if suffix == "ssm_a":
        return ssm_a_to_a_log(x)
    return conv1d_from_gguf(x) if suffix == "ssm_conv1d.weight" else x


def hf_to_gguf_name(name: str, n_layer: int) -> str:
    """HF tensor name to GGUF name; the MTP block becomes ``blk.<n_layer>``."""
    short = name.replace("model.language_model.", "model.", 1).replace("model.mtp.", "mtp.", 1)
    if short in GLOBAL_NAMES:
        return GLOBAL_NAMES[short]
    parts = short.split(".", 3)
    if len(parts) == 4 and parts[1] == "layers" and parts[2].isdecimal() and parts[3] in LAYER_NAMES:
        if parts[0] == "model" and int(parts[2]) < n_layer:
            return f"blk.{int(parts[2])}.{LAYER_NAMES[parts[3]]}"
        if parts[0] == "mtp":
            return f"blk.{n_layer + int(parts[2])}.{LAYER_NAMES[parts[3]]}"
    if short.startswith("mtp.") and short[4:] in HEAD_NAMES:
        return f"blk.{n_layer}.{HEAD_NAMES[short[4:]]}"
    raise MtprefError(f"{name}: no GGUF name in a qwen35 model of {n_layer} layers, expected a Qwen3.5 tensor name")


def gguf_to_hf_name(name: str, n_layer: int) -> str:
    """Inverse of hf_to_gguf_name (short HF prefixes: ``model.`` and ``mtp.``)."""
    for hf, gguf in GLOBAL_NAMES.items():
        if gguf == name:
            return hf
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal():
        index = int(parts[1])
        prefix = f"model.layers.{index}." if index < n_layer else f"mtp.layers.{index - n_layer}."
        for hf, gguf in LAYER_NAMES.items():
            if gguf == parts[2]:
                return prefix + hf
        for hf, gguf in HEAD_NAMES.items():
            if gguf == parts[2] and index == n_layer:
                return "mtp." + hf
    raise MtprefError(f"{name}: no HF name in a qwen35 model of {n_layer} layers, expected a qwen35 tensor name")


def state_to_gguf(state: Mapping[str, np.ndarray], dims: ConvertDims) -> dict[str, np.ndarray]:
    """A whole HF state dict under GGUF names and conventions, in the order given."""
    names = {hf: hf_to_gguf_name(hf, dims.n_layer) for hf in state}
    return {gguf: tensor_to_gguf(gguf, state[hf], dims) for hf, gguf in names.items()}


def state_from_gguf(tensors: Mapping[str, np.ndarray], dims: ConvertDims) -> dict[str, np.ndarray]:
    """A whole GGUF tensor table (dequantised) under HF names and conventions."""
    return {gguf_to_hf_name(name, dims.n_layer): tensor_from_gguf(name, x, dims) for name, x in tensors.items()}
