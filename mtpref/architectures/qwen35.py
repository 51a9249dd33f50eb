"""qwen35: Qwen3.5 dense. Gated DeltaNet, every fourth layer gated attention, one MTP block.

The data sheet of the architecture: hyper-parameters, layers, tensors, head, how checkpoints name and order them.
Source: llama.cpp src/models/qwen35.cpp, conversion/qwen.py; transformers' Qwen3_5TextConfig.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mtpref.architectures.common import (
    base_hypers,
    eh_proj_tensors,
    n_embd,
    n_embd_head,
    n_ff,
    n_head,
    n_head_kv,
    root_tensors,
)
from mtpref.architectures.sheet import (
    Alternating,
    Architecture,
    Block,
    Fused,
    HeadSheet,
    HuggingFace,
    Hyper,
    Rows,
    Tensor,
    by_group,
    one_after_the_other,
)
from mtpref.architectures.transforms import NEGATIVE_EXP, ZERO_CENTRED, Change, VHeads
from mtpref.spec.kinds import GATED_ATTENTION, GATED_DELTA_NET, SWIGLU_FFN, Sequential

# HYPER-PARAMETERS

d_conv = Hyper("d_conv", "ssm.conv_kernel", low=2, high=32, hf="linear_conv_kernel_dim")
d_state = Hyper("d_state", "ssm.state_size", high=4096, hf="linear_key_head_dim")  # S, one DeltaNet head's width
n_k_head = Hyper("n_k_head", "ssm.group_count", high=4096, hf="linear_num_key_heads")  # H_k
n_v_head = Hyper("n_v_head", "ssm.time_step_rank", high=4096, hf="linear_num_value_heads")  # H_v
d_inner = Hyper("d_inner", "ssm.inner_size", hf=lambda c: c["linear_value_head_dim"] * c["linear_num_value_heads"],
                hf_fields=("linear_value_head_dim",))  # fmt: skip
n_rot = Hyper(
    "n_rot",
    "rope.dimension_count",
    default=lambda v: v["n_embd_head"],
    high=4096,
    hf=lambda c: int(c["n_embd_head"] * (c.get("partial_rotary_factor") or 0.25)),
)
rope_sections = Hyper(
    "rope_sections", "rope.dimension_sections", "arr:i32", hf="mrope_section", hf_default=(11, 11, 10, 0)
)

# TENSORS

# q and k heads come first in a fused tensor, and stay; V heads are tiled in GGUF and grouped in checkpoints.
_v_heads = VHeads("n_k_head", "n_v_head")
_v_rows, _v_columns = Change(rows=_v_heads), Change(columns=_v_heads)
_qkv_rows = Change(rows=replace(_v_heads, skip=2 * n_k_head * d_state))
_conv_dim = 2 * n_k_head * d_state + n_v_head * d_state

NORMS = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", ZERO_CENTRED, cb="attn_norm"),
    Tensor(
        "post_attention_norm.weight", (n_embd,), "post_attention_layernorm.weight", ZERO_CENTRED, cb="attn_post_norm"
    ),
)
DELTA = (
    Tensor("attn_qkv.weight", (_conv_dim, n_embd), "linear_attn.in_proj_qkv.weight", _qkv_rows, role="attn_v",
           cb="linear_attn_qkv_mixed"),
    Tensor("attn_gate.weight", (n_v_head * d_state, n_embd), "linear_attn.in_proj_z.weight", _v_rows, cb="z"),
    Tensor("ssm_conv1d.weight", (_conv_dim, d_conv), "linear_attn.conv1d.weight", replace(_qkv_rows, squeeze=True),
           cb="conv_output_silu", keep_f32=True),
    Tensor("ssm_dt.bias", (n_v_head,), "linear_attn.dt_bias", _v_rows, cb="gate"),
    Tensor("ssm_a", (n_v_head,), "linear_attn.A_log", replace(NEGATIVE_EXP, rows=_v_heads), cb="gate"),
    Tensor("ssm_beta.weight", (n_v_head, n_embd), "linear_attn.in_proj_b.weight", _v_rows, cb="beta_sigmoid"),
    Tensor("ssm_alpha.weight", (n_v_head, n_embd), "linear_attn.in_proj_a.weight", _v_rows, cb="gate"),
    Tensor("ssm_norm.weight", (d_state,), "linear_attn.norm.weight", cb="final_output"),
    Tensor("ssm_out.weight", (n_embd, n_v_head * d_state), "linear_attn.out_proj.weight", _v_columns,
           cb="linear_attn_out"),
)  # fmt: skip
ATTENTION = (
    # per head: q, then gate
    Tensor("attn_q.weight", (2 * n_head * n_embd_head, n_embd), "self_attn.q_proj.weight", cb="Qcur_full"),
    Tensor(
        "attn_k.weight", (n_head_kv * n_embd_head, n_embd), "self_attn.k_proj.weight", role="attn_k", cb="Kcur_normed"
    ),
    Tensor("attn_v.weight", (n_head_kv * n_embd_head, n_embd), "self_attn.v_proj.weight", role="attn_v", cb="Vcur"),
    Tensor(
        "attn_output.weight",
        (n_embd, n_head * n_embd_head),
        "self_attn.o_proj.weight",
        role="attn_output",
        cb="attn_output",
    ),
    Tensor("attn_q_norm.weight", (n_embd_head,), "self_attn.q_norm.weight", ZERO_CENTRED, cb="Qcur_normed"),
    Tensor("attn_k_norm.weight", (n_embd_head,), "self_attn.k_norm.weight", ZERO_CENTRED, cb="Kcur_normed"),
)
FFN = (
    Tensor("ffn_gate.weight", (n_ff, n_embd), "mlp.gate_proj.weight", cb="ffn_gate"),
    Tensor("ffn_up.weight", (n_ff, n_embd), "mlp.up_proj.weight", cb="ffn_up"),
    Tensor("ffn_down.weight", (n_embd, n_ff), "mlp.down_proj.weight", role="ffn_down", cb="ffn_out"),
)

# BLOCKS

_residual = Sequential("attn_norm.weight", "post_attention_norm.weight")
DELTA_NET = Block("delta_net", GATED_DELTA_NET, SWIGLU_FFN, NORMS + DELTA + FFN, _residual, marks=("ssm_",))
ATTENDING = Block("attention", GATED_ATTENTION, SWIGLU_FFN, NORMS + ATTENTION + FFN, _residual, marks=("attn_q.",))
MTP = replace(ATTENDING, name="mtp", marks=("nextn.",))


def alternating(delta_net: Block, attending: Block) -> Alternating:
    """Which block each layer is, as all of the family say it."""
    return Alternating(
        marked=delta_net,
        other=attending,
        flags="attention.recurrent_layers",
        interval="full_attention_interval",
        default=4,
        hf_flags="layer_types",
        hf_kinds={"linear_attention": True, "full_attention": False},
        hf_interval="full_attention_interval",
    )


# CHECKPOINTS: fused names, by who writes them.
# in_proj_qkvz, in_proj_ba    Qwen3-Next: for each k head its q, k, r v heads and r z heads (r = H_v / H_k); b, then a
# qkv_proj, gate_up_proj      engines that re-save what they run (vLLM, SGLang): the parts one after the other


def _qkvz(v: Mapping[str, int]) -> list[Rows]:
    size, r = v["d_state"], v["n_v_head"] // v["n_k_head"]
    q, k, value, z = by_group(v["n_k_head"], (size, size, r * size, r * size))
    return [np.concatenate([q, k, value]), z]


def _ba(v: Mapping[str, int]) -> list[Rows]:
    r = v["n_v_head"] // v["n_k_head"]
    return by_group(v["n_k_head"], (r, r))


def _qkv(v: Mapping[str, int]) -> list[Rows]:
    width = v["n_embd_head"]
    return one_after_the_other((2 * v["n_head"] * width, v["n_head_kv"] * width, v["n_head_kv"] * width))


FUSED = (
    Fused("linear_attn.in_proj_qkvz.weight", ("linear_attn.in_proj_qkv.weight", "linear_attn.in_proj_z.weight"), _qkvz),
    Fused("linear_attn.in_proj_ba.weight", ("linear_attn.in_proj_b.weight", "linear_attn.in_proj_a.weight"), _ba),
    Fused(
        "self_attn.qkv_proj.weight",
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        _qkv,
    ),
    Fused("mlp.gate_up_proj.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
)

QWEN35 = Architecture(
    name="qwen35",
    pre="qwen35",
    hypers=(
        *base_hypers,
        d_conv,
        d_state,
        n_k_head,
        n_v_head,
        d_inner,
        n_rot,
        rope_sections,
    ),
    tensors=root_tensors(norm=ZERO_CENTRED),
    layers=alternating(DELTA_NET, ATTENDING),
    # The hidden row is the trunk's after its final norm, in the chain the head's own after its norm.
    head=HeadSheet(MTP, eh_proj_tensors(norm=ZERO_CENTRED), hidden="post", chain="post"),
    hf=HuggingFace(
        classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        model_types=("qwen3_5", "qwen3_5_text"),
        layer="model.layers.{il}.",
        head="mtp.",
        head_block="mtp.layers.{i}.",
        n_heads="mtp_num_hidden_layers",
        layers_after="ssm.inner_size",
        fused=FUSED,
    ),
)
