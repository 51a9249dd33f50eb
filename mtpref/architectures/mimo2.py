"""mimo2: MiMo-V2-Flash, V2.5 and V2.5-Pro. Attention with a window and sinks in most layers, keys wider than values;
experts without a shared one; three MTP blocks in a chain.

The data sheet. Source: llama.cpp src/models/mimo2.cpp, conversion/mimo.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpref.architectures.common import n_embd, n_embd_head, n_embd_head_v, n_ff, n_head, n_head_kv, rms_eps
from mtpref.architectures.experts import (
    expert_gating_func,
    expert_stacks,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    n_ff_exp,
    router,
)
from mtpref.architectures.sheet import (
    OPTIONAL,
    SILU,
    Architecture,
    Block,
    ByTensor,
    Either,
    HeadSheet,
    HuggingFace,
    Hyper,
    Tensor,
)
from mtpref.architectures.transforms import AS_IS
from mtpref.architectures.windows import (
    chained_head_tensors,
    freq_base_windowed,
    is_windowed,
    n_window,
    untied_root_tensors,
    windowed_base_hypers,
)
from mtpref.spec.kinds import SIGMOID_MOE_FFN, SWIGLU_FFN, WINDOWED_ATTENTION, WINDOWED_HEAD_ATTENTION, Sequential

# HYPER-PARAMETERS

n_rot = Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096,
              hf=lambda c: int(c["n_embd_head"] * (c.get("partial_rotary_factor") or 1.0)))  # fmt: skip
value_scale = Hyper("value_scale", "attention.value_scale", "f32", default=0.0, low=-1e6, high=1e6,
                    hf="attention_value_scale", hf_default=OPTIONAL)  # fmt: skip


def _windowed(c: Mapping[str, Any]) -> list[int]:
    """Of each block that is written whether it has a window: every MTP block has."""
    n_heads = c.get("n_written_heads", 0)
    return [int(x) for x in c["hybrid_layer_pattern"][: c["num_hidden_layers"]]] + [1] * n_heads


def _other_window(c: Mapping[str, Any]) -> str | None:
    """Where transformers and SGLang let a token see more cells than llama.cpp, whose key counts the token's own."""
    n, n_before = c.get("sliding_window"), c.get("sliding_window_size")
    if n is None or n_before is None or n_before + 1 == n:
        return None
    return (
        f"attention.sliding_window is config.json's sliding_window, {n} cells with the token's own; transformers and "
        f"SGLang read sliding_window_size, {n_before} cells before it: {n_before + 1}"
    )


def _kv_heads(c: Mapping[str, Any]) -> list[int]:
    return [c["swa_num_key_value_heads"] if windowed else c["num_key_value_heads"] for windowed in _windowed(c)]


def _having_experts(c: Mapping[str, Any], n_layer: int) -> list[bool] | None:
    found = c.get("moe_layer_freq")
    return [bool(x) for x in found[:n_layer]] if found is not None and len(found) >= n_layer else None


_OWN_FIELDS: dict[str, dict[str, Any]] = {
    "n_head_kv": {"hf": _kv_heads, "hf_fields": ("num_key_value_heads", "swa_num_key_value_heads")},
    "n_embd_head_v": {"hf": "v_head_dim"},
}

# TENSORS

_query, _key, _value = n_head * n_embd_head, n_head_kv * n_embd_head, n_head_kv * n_embd_head_v
_fused = Tensor(
    "attn_qkv.weight", (_query + _key + _value, n_embd), "self_attn.qkv_proj.weight", role="attn_v", cb="Vcur",
    parts=(("attn_q.weight", _query), ("attn_k.weight", _key), ("attn_v.weight", _value)), by_rank=True,
)  # fmt: skip
_apart = (
    Tensor("attn_q.weight", (_query, n_embd), "self_attn.q_proj.weight", cb="Qcur_normed"),
    Tensor("attn_k.weight", (_key, n_embd), "self_attn.k_proj.weight", role="attn_k", cb="Kcur_normed"),
    Tensor("attn_v.weight", (_value, n_embd), "self_attn.v_proj.weight", role="attn_v", cb="Vcur"),
)
_around = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "post_attention_layernorm.weight", cb="attn_post_norm"),
    Tensor("attn_sinks.weight", (n_head,), "self_attn.attention_sink_bias", optional=True, cb="kqv_out"),
    Tensor("attn_output.weight", (n_embd, n_head * n_embd_head_v), "self_attn.o_proj.weight", role="attn_output",
           cb="attn_output"),
)  # fmt: skip
_ffn = (
    Tensor("ffn_gate.weight", (n_ff, n_embd), "mlp.gate_proj.weight", cb="ffn_gate"),
    Tensor("ffn_up.weight", (n_ff, n_embd), "mlp.up_proj.weight", cb="ffn_up"),
    Tensor("ffn_down.weight", (n_embd, n_ff), "mlp.down_proj.weight", role="ffn_down", cb="ffn_out"),
)
_moe = (
    router("mlp.gate.weight"),
    Tensor("exp_probs_b.bias", (n_expert,), "mlp.gate.e_score_correction_bias", optional=True,
           cb="ffn_moe_probs_biased"),
    *expert_stacks(has_fused=False),
)  # fmt: skip
_either = Either(((_fused,), _apart))

# BLOCKS

_residual = Sequential("attn_norm.weight", "ffn_norm.weight")
DENSE = Block("dense", WINDOWED_ATTENTION, SWIGLU_FFN, (_either, *_around, *_ffn), _residual, marks=("ffn_gate.",))
MOE = Block("moe", WINDOWED_ATTENTION, SIGMOID_MOE_FFN, (_either, *_around, *_moe), _residual,
            marks=("ffn_gate_inp.",))  # fmt: skip
# llama.cpp's graph of a head knows fused queries, keys and values alone, and a dense network.
MTP = Block("mtp", WINDOWED_HEAD_ATTENTION, SWIGLU_FFN, (_fused, *_around, *_ffn), _residual, marks=("nextn.",))
# Stands in for nextn.shared_head_norm, and is what conversions write.
_OUT_NORM = Tensor("layer_output_norm.weight", (n_embd,), "final_layernorm.weight", optional=True,
                   cb="shared_head_norm")  # fmt: skip

_names = {"attn_residual": "ffn_inp", "attn_post_norm": "ffn_norm", "attn_output": "attn_out",
          "attn_scaled": "attn_out_scaled"}  # fmt: skip

MIMO2 = Architecture(
    name="mimo2",
    hypers=(
        *(replace(h, **_OWN_FIELDS.get(h.name, {})) for h in windowed_base_hypers() if h.name != "rms_eps"),
        replace(n_expert, hf="n_routed_experts"),
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        replace(expert_gating_func, hf=lambda c: 2 if c.get("scoring_func") == "sigmoid" else None),
        n_window,
        replace(is_windowed, hf=_windowed, hf_fields=("hybrid_layer_pattern",)),
        n_ff_exp,
        n_rot,
        replace(rms_eps, hf="layernorm_epsilon", hf_default=1e-5),
        value_scale,
        replace(freq_base_windowed, hf="swa_rope_theta", hf_default=OPTIONAL),
    ),
    tensors=untied_root_tensors(AS_IS),
    layers=ByTensor(having=MOE, lacking=DENSE, tensor="ffn_gate_inp.weight", hf_kinds="", hf_count="",
                    hf_having=_having_experts),
    head=HeadSheet(
        MTP,
        (
            *chained_head_tensors(
                AS_IS,
                {
                    "eh_proj": "eh_proj.weight",
                    "enorm": "enorm.weight",
                    "hnorm": "hnorm.weight",
                    "shared_head_norm": "shared_head.norm.weight",
                    "embed_tokens": "embed_tokens.weight",
                    "shared_head_head": "shared_head.head.weight",
                },
            ),
            _OUT_NORM,
        ),
        hidden="pre", chain="pre", norm_instead=_OUT_NORM.name, may_lack=True,
    ),
    n_heads=16,
    hf=HuggingFace(
        classes=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
        model_types=("mimo_v2_flash", "mimo_v2"),
        layer="model.layers.{il}.",
        head="mtp.layers.{i}.",
        head_block="mtp.layers.{i}.",
        n_heads="num_nextn_predict_layers",
        says_heads=False,
        heads_after="attention.value_scale",
        sorts_stacks=False,
        late=("attention.layer_norm_rms_epsilon",),
        has_windows=True,
        fixed={**SILU, "topk_method": ("noaux_tc",)},
        doubt=_other_window,
    ),
    cb=_names,
    cb_head=_names,
)  # fmt: skip
