"""step35: Step-3.5-Flash and 3.7-Flash. Attention with a window in most layers, a gate for each head; experts; several
MTP blocks in a chain.

The data sheet. Source: llama.cpp src/models/step35.cpp, conversion/step3.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mtpref.architectures.common import n_embd, n_embd_head, n_embd_head_v, n_ff, n_head, n_head_kv
from mtpref.architectures.dims import ONE, Share
from mtpref.architectures.experts import (
    expert_gating_func,
    expert_weights_norm,
    expert_weights_scale,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    n_ff_exp,
    router,
)
from mtpref.architectures.sheet import (
    OPTIONAL,
    Architecture,
    Block,
    ByTensor,
    Either,
    FusedStack,
    HeadSheet,
    HuggingFace,
    Hyper,
    Tensor,
)
from mtpref.architectures.transforms import ZERO_CENTRED
from mtpref.architectures.windows import (
    chained_head_tensors,
    freq_base_windowed,
    is_windowed,
    n_window,
    untied_root_tensors,
    windowed_base_hypers,
)
from mtpref.spec.kinds import (
    HALF_ROTARY_ATTENTION,
    HALF_ROTARY_HEAD_ATTENTION,
    LIMITED_FFN,
    LIMITED_MOE_FFN,
    Sequential,
)
from mtpref.spec.kinds.windowed import FACTORS

# HYPER-PARAMETERS

# What a layer with a window turns; one without turns half of it.
n_rot = Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096)
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", default=lambda v: v["n_ff_exp"],
                   hf="share_expert_dim")  # fmt: skip
# config.json's fields of counts that layers with a window have others of.
_COUNTS = {"n_head": "num_attention_heads", "n_head_kv": "num_attention_groups"}


def _windowed(c: Mapping[str, Any]) -> list[bool]:
    """Of each block that is written whether it has a window; blocks that config.json does not list have none."""
    n = c["num_hidden_layers"] + c.get("n_written_heads", 0)
    kinds = [kind == "sliding_attention" for kind in c.get("layer_types") or []]
    return (kinds + [False] * n)[:n]


def _by_window(field: str) -> Callable[[Mapping[str, Any]], list[int]]:
    """Counts of each block: those of layers with a window stand in attention_other_setting."""

    def of(c: Mapping[str, Any]) -> list[int]:
        other = (c.get("attention_other_setting") or {}).get(field, c[field])
        return [other if windowed else c[field] for windowed in _windowed(c)]

    return of


def _limits(field: str) -> Callable[[Mapping[str, Any]], list[float] | None]:
    def of(c: Mapping[str, Any]) -> list[float] | None:
        n = c["num_hidden_layers"] + c.get("n_written_heads", 0)
        return None if c.get(field) is None else ([float(x or 0.0) for x in c[field]] + [0.0] * n)[:n]

    return of


def _moe_layers(c: Mapping[str, Any]) -> list[int]:
    return sorted(int(i) for i in (c.get("moe_layers_enum") or "").split(",") if i.strip())


def _having_experts(c: Mapping[str, Any], n_layer: int) -> list[bool] | None:
    layers = set(_moe_layers(c))
    return [il in layers for il in range(n_layer)] if layers else None


def _keys_of_experts(c: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    leading = next(iter(_moe_layers(c)), 0)
    every = ("moe_every_n_layers", int(c.get("moe_every_n_layer") or 1), "u32")
    return [("leading_dense_block_count", leading, "u32"), every]


def _factors(c: Mapping[str, Any]) -> list[float] | None:
    """Llama 3's factors of the pairs that a layer without a window turns, and 1 for the rest of the widest layer's."""
    if c.get("rope_type") != "llama3":
        return None
    base, size = np.float32(c.get("rope_theta") or 10000.0), int(c["n_embd_head"])
    n_rot = size // 2
    steps = np.arange(0, n_rot, 2, dtype=np.float32) / np.float32(n_rot)
    frequencies = np.float32(1.0) / base**steps
    factor, context = float(c.get("factor") or 8.0), int(c.get("original_max_position_embeddings") or 8192)
    low, high = float(c.get("low_freq_factor") or 1.0), float(c.get("high_freq_factor") or 4.0)
    made = []
    for frequency in frequencies.tolist():
        length = 2 * math.pi / frequency
        if length < context / high or length > context / low:
            made.append(1.0 if length < context / high else factor)
        else:
            smooth = (context / length - low) / (high - low)
            made.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return [*made, *[1.0] * (size // 2 - len(made))]


# TENSORS

_query, _key, _value = n_head * n_embd_head, n_head_kv * n_embd_head, n_head_kv * n_embd_head_v
_norms = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", ZERO_CENTRED, cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "post_attention_layernorm.weight", ZERO_CENTRED, cb="attn_post_norm"),
)
_attention = (
    Either((
        (
            Tensor("attn_qkv.weight", (_query + _key + _value, n_embd), role="attn_v", cb="Vcur",
                   parts=(("attn_q.weight", _query), ("attn_k.weight", _key), ("attn_v.weight", _value))),
        ),
        (
            Tensor("attn_q.weight", (_query, n_embd), "self_attn.q_proj.weight", cb="Qcur_normed"),
            Tensor("attn_k.weight", (_key, n_embd), "self_attn.k_proj.weight", role="attn_k", cb="Kcur_normed"),
            Tensor("attn_v.weight", (_value, n_embd), "self_attn.v_proj.weight", role="attn_v", cb="Vcur"),
        ),
    )),
    Tensor("attn_q_norm.weight", (n_embd_head,), "self_attn.q_norm.weight", ZERO_CENTRED, optional=True,
           cb="Qcur_normed"),
    Tensor("attn_k_norm.weight", (n_embd_head,), "self_attn.k_norm.weight", ZERO_CENTRED, optional=True,
           cb="Kcur_normed"),
    Tensor("attn_gate.weight", (n_head, n_embd), "self_attn.g_proj.weight", optional=True, cb="attn_gate"),
    Tensor("attn_output.weight", (n_embd, n_head * n_embd_head_v), "self_attn.o_proj.weight", role="attn_output",
           cb="attn_output"),
)  # fmt: skip
_ffn = (
    Tensor("ffn_gate.weight", (n_ff, n_embd), "mlp.gate_proj.weight", cb="ffn_gate"),
    Tensor("ffn_up.weight", (n_ff, n_embd), "mlp.up_proj.weight", cb="ffn_up"),
    Tensor("ffn_down.weight", (n_embd, n_ff), "mlp.down_proj.weight", role="ffn_down", cb="ffn_out"),
)
_moe = (
    router("moe.gate.weight"),
    Tensor("exp_probs_b.bias", (n_expert,), "moe.router_bias", optional=True, cb="ffn_moe_probs_biased"),
    Tensor("ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd), "moe.experts.{e}.gate_proj.weight", cb="ffn_moe_gate"),
    Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd), "moe.experts.{e}.up_proj.weight", cb="ffn_moe_up"),
    Tensor("ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp), "moe.experts.{e}.down_proj.weight", role="ffn_down",
           cb="ffn_moe_down"),
    Tensor("ffn_gate_shexp.weight", (n_ff_shexp, n_embd), "share_expert.gate_proj.weight", cb="ffn_shexp"),
    Tensor("ffn_up_shexp.weight", (n_ff_shexp, n_embd), "share_expert.up_proj.weight", cb="ffn_shexp"),
    Tensor("ffn_down_shexp.weight", (n_embd, n_ff_shexp), "share_expert.down_proj.weight", role="ffn_down",
           cb="ffn_shexp"),
)  # fmt: skip

# BLOCKS

_residual = Sequential("attn_norm.weight", "ffn_norm.weight")
DENSE = Block("dense", HALF_ROTARY_ATTENTION, LIMITED_FFN, _norms + _attention + _ffn, _residual, marks=("ffn_gate.",))
MOE = Block("moe", HALF_ROTARY_ATTENTION, LIMITED_MOE_FFN, _norms + _attention + _moe, _residual,
            marks=("ffn_gate_inp.",))  # fmt: skip
MTP, MTP_DENSE = (
    replace(block, name="mtp", mixer=HALF_ROTARY_HEAD_ATTENTION, marks=("nextn.",)) for block in (MOE, DENSE)
)

_names = {"attn_residual": "ffn_inp", "attn_post_norm": "ffn_norm", "Qcur": "Qcur_pos", "Kcur": "Kcur_pos",
          "kqv_out": "attn_out", "attn_output": "attn_proj", "ffn_shexp": "ffn_shared_out"}  # fmt: skip
_head_names = _names | {"attn_residual": "attn_residual"}

STEP35 = Architecture(
    name="step35",
    hypers=(
        *(
            replace(h, hf=_by_window(_COUNTS[h.name]), hf_fields=(_COUNTS[h.name],)) if h.name in _COUNTS
            else replace(h, hf_default=1e-5) if h.name == "rms_eps" else h
            for h in windowed_base_hypers()
        ),
        replace(n_rot, hf=lambda c: None),
        n_window,
        replace(is_windowed, hf=_windowed),
        replace(freq_base_windowed, hf="rope_theta_windowed", hf_default=OPTIONAL),
        n_expert_group,
        n_expert_group_used,
        replace(n_expert, hf="moe_num_experts"),
        replace(n_expert_used, hf="moe_top_k"),
        n_ff_exp,
        n_ff_shexp,
        replace(expert_weights_scale, hf="moe_router_scaling_factor"),
        replace(expert_weights_norm, hf="norm_expert_weight"),
        replace(expert_gating_func, hf=lambda c: None),
        Hyper("clamp_exp", "swiglu_clamp_exp", "f32/layer", default=0.0, low=0.0, high=1e6,
              hf=_limits("swiglu_limits")),
        Hyper("clamp_shexp", "swiglu_clamp_shexp", "f32/layer", default=0.0, low=0.0, high=1e6,
              hf=_limits("swiglu_limits_shared")),
    ),
    tensors=(
        *untied_root_tensors(ZERO_CENTRED),
        Tensor(FACTORS, (Share(n_rot, 2 * ONE),), optional=True, cb="Qcur"),
    ),
    layers=ByTensor(having=MOE, lacking=DENSE, tensor="ffn_gate_inp.weight", hf_kinds="", hf_count="",
                    hf_having=_having_experts, hf_keys=_keys_of_experts),
    head=HeadSheet(
        MTP,
        chained_head_tensors(
            ZERO_CENTRED,
            {
                "eh_proj": "eh_proj.weight",
                "enorm": "enorm.weight",
                "hnorm": "hnorm.weight",
                "shared_head_norm": "transformer.shared_head.norm.weight",
                "embed_tokens": "embed_tokens.weight",
                "shared_head_head": "transformer.shared_head.output.weight",
            },
        ),
        hidden="pre", chain="pre", without=("ffn_gate_inp.weight", MTP_DENSE), may_lack=True,
    ),
    n_heads=16,
    hf=HuggingFace(
        classes=("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
        model_types=("step3p5", "step3p7"),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        stacks=tuple(
            FusedStack(f"moe.{x}_proj", (f"moe.experts.{{e}}.{x}_proj.weight",)) for x in ("gate", "up", "down")
        ),
        layers_after="expert_weights_norm",
        heads_after="swiglu_clamp_shexp",
        late=("attention.head_count_kv", "expert_count", "expert_used_count"),
        has_windows=True,
        factors=_factors,
    ),
    cb=_names,
    cb_head=_head_names,
)  # fmt: skip
