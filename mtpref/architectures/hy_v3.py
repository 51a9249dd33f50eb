"""hy_v3: Hunyuan 3. Attention everywhere, dense layers where a router is missing, else experts; one MTP block.

The data sheet. Source: llama.cpp src/models/hy-v3.cpp, conversion/hunyuan.py; transformers' HYV3Config.
"""

from dataclasses import replace

from mtpref.architectures.attention import plain_attention
from mtpref.architectures.common import base_hypers, n_embd, numbered_head_tensors, root_tensors
from mtpref.architectures.experts import (
    FUSED_STACKS,
    expert_gating_func,
    expert_stacks,
    expert_weights_norm,
    expert_weights_scale,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    n_ff_exp,
    router,
    shared_expert,
)
from mtpref.architectures.qwen35 import FFN
from mtpref.architectures.sheet import Architecture, Block, ByTensor, HeadSheet, HuggingFace, Hyper, Tensor
from mtpref.architectures.transforms import AS_IS
from mtpref.spec.kinds import MOE_FFN, SWIGLU_FFN, WHOLE_ROTARY_ATTENTION, Sequential

# HYPER-PARAMETERS

n_rot = Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096)
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", default=lambda v: v["n_ff_exp"],
                   hf=lambda c: c["moe_intermediate_size"] * (c.get("num_shared_experts") or 1),
                   hf_fields=("moe_intermediate_size",))  # fmt: skip
# transformers' own, where a config.json leaves them out
_DEFAULTS = {"rope.freq_base": 11158840.0, "attention.layer_norm_rms_epsilon": 1e-5}

# TENSORS

_norms = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "post_attention_layernorm.weight", cb="attn_post_norm"),
)
_attention = plain_attention(needs_norms=True)
_moe = (
    router("mlp.router.gate.weight"),
    Tensor("exp_probs_b", (n_expert,), "mlp.expert_bias", optional=True, cb="ffn_moe_probs_biased"),
    *expert_stacks(has_fused=True),
    *(
        replace(t, optional=True, group="shared expert")
        for t in shared_expert(n_ff_shexp, "mlp.shared_mlp", is_gated=False)
    ),
)

# BLOCKS

_residual = Sequential("attn_norm.weight", "ffn_norm.weight")
_dense_tensors, _moe_tensors = _norms + _attention + FFN, _norms + _attention + _moe
DENSE = Block("dense", WHOLE_ROTARY_ATTENTION, SWIGLU_FFN, _dense_tensors, _residual, marks=("ffn_gate.",))
MOE = Block("moe", WHOLE_ROTARY_ATTENTION, MOE_FFN, _moe_tensors, _residual, marks=("ffn_gate_inp.",))
MTP = replace(MOE, name="mtp", marks=("nextn.",))

_names = {"attn_residual": "ffn_inp", "attn_post_norm": "ffn_norm", "ffn_shexp": "ffn_shared_out",
          "attn_output": "attn_out"}  # fmt: skip

HY_V3 = Architecture(
    name="hy_v3",
    hypers=(
        *(replace(h, hf_default=_DEFAULTS.get(h.key, h.hf_default)) for h in base_hypers),
        n_expert,
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        n_rot,
        n_ff_exp,
        n_ff_shexp,
        replace(expert_weights_norm, hf="route_norm", hf_default=True),
        replace(expert_weights_scale, hf="router_scaling_factor", hf_default=2.826),
        expert_gating_func,
    ),
    tensors=root_tensors(norm=AS_IS),
    layers=ByTensor(having=MOE, lacking=DENSE, tensor="ffn_gate_inp.weight",
                    hf_kinds="mlp_layer_types", hf_count="first_k_dense_replace"),
    n_heads=16,
    head=HeadSheet(
        MTP, numbered_head_tensors("final_layernorm"), hidden="post", chain="post",
        without=("ffn_gate_inp.weight", replace(DENSE, name="mtp", marks=("nextn.",))), may_lack=True,
    ),
    hf=HuggingFace(
        classes=("HYV3ForCausalLM",),
        model_types=("hy_v3",),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        stacks=FUSED_STACKS,
        heads_after="expert_gating_func",
    ),
    cb=_names,
    cb_head=_names,
)  # fmt: skip
