"""step35: Step-3.5-Flash and 3.7-Flash. Attention with a window in most layers, a gate for each head; experts; several
MTP blocks in a chain.

The data sheet. Source: llama.cpp src/models/step35.cpp, conversion/step3.py.
"""

from dataclasses import replace

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
from mtpref.architectures.sheet import Architecture, Block, ByTensor, Either, HeadSheet, Hyper, Tensor
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
clamp_exp = Hyper("clamp_exp", "swiglu_clamp_exp", "f32/layer", default=0.0, low=0.0, high=1e6)
clamp_shexp = Hyper("clamp_shexp", "swiglu_clamp_shexp", "f32/layer", default=0.0, low=0.0, high=1e6)

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
    Tensor("ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd), "moe.gate_proj.weight", cb="ffn_moe_gate"),
    Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd), "moe.up_proj.weight", cb="ffn_moe_up"),
    Tensor("ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp), "moe.down_proj.weight", role="ffn_down",
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
        *(replace(h, hf="num_attention_groups") if h.name == "n_head_kv" else h for h in windowed_base_hypers()),
        n_rot,
        n_window,
        is_windowed,
        freq_base_windowed,
        n_expert_group,
        n_expert_group_used,
        replace(n_expert, hf="moe_num_experts"),
        replace(n_expert_used, hf="moe_top_k"),
        n_ff_exp,
        n_ff_shexp,
        replace(expert_weights_scale, hf="moe_router_scaling_factor"),
        replace(expert_weights_norm, hf="norm_expert_weight"),
        replace(expert_gating_func, hf=lambda c: None),
        clamp_exp,
        clamp_shexp,
    ),
    tensors=(
        *untied_root_tensors(ZERO_CENTRED),
        Tensor(FACTORS, (Share(n_rot, 2 * ONE),), optional=True, cb="Qcur"),
    ),
    layers=ByTensor(having=MOE, lacking=DENSE, tensor="ffn_gate_inp.weight", hf_kinds="", hf_count=""),
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
    hf=None,
    cb=_names,
    cb_head=_head_names,
)  # fmt: skip
