"""glm4moe: GLM-4.5, 4.5-Air, 4.6. Attention everywhere, dense layers in front, then experts; one MTP block.

The data sheet. Source: llama.cpp src/models/glm4-moe.cpp, conversion/glm.py; transformers' Glm4MoeConfig.
"""

from dataclasses import replace

from mtpref.architectures.attention import plain_attention
from mtpref.architectures.common import GLM_SPECIAL, base_hypers, n_embd, numbered_head_tensors, rms_eps, root_tensors
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
from mtpref.architectures.sheet import (
    OPTIONAL,
    Architecture,
    Block,
    HeadSheet,
    HuggingFace,
    Hyper,
    LeadingDense,
    Tensor,
)
from mtpref.architectures.transforms import AS_IS
from mtpref.spec.kinds import MOE_FFN, SWIGLU_FFN, TEXT_ATTENTION, Sequential

# HYPER-PARAMETERS

n_expert_shared = Hyper("n_expert_shared", "expert_shared_count", high=4096, hf="n_shared_experts")
n_rot = Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096,
              hf=lambda c: int(c["n_embd_head"] * (c.get("partial_rotary_factor") or 0.5)))  # fmt: skip
# Of files for pictures, which are refused: llama.cpp's MTP graph takes another RoPE there than its trunk.
rope_sections = Hyper("rope_sections", "rope.dimension_sections", "arr:i32", default=(0, 0, 0, 0), low=0,
                      hf="mrope_section", hf_default=OPTIONAL)  # fmt: skip

# TENSORS

_norms = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Tensor("post_attention_norm.weight", (n_embd,), "post_attention_layernorm.weight", cb="attn_post_norm"),
)
_attention = plain_attention(needs_norms=False)
_moe = (
    router("mlp.gate.weight"),
    Tensor("exp_probs_b.bias", (n_expert,), "mlp.gate.e_score_correction_bias", cb="ffn_moe_probs_biased"),
    *expert_stacks(has_fused=False),
    *shared_expert(n_ff_exp * n_expert_shared, "mlp.shared_experts", is_gated=False),
)

# BLOCKS

_residual = Sequential("attn_norm.weight", "post_attention_norm.weight")
DENSE = Block("dense", TEXT_ATTENTION, SWIGLU_FFN, _norms + _attention + FFN, _residual, marks=("ffn_gate.",))
MOE = Block("moe", TEXT_ATTENTION, MOE_FFN, _norms + _attention + _moe, _residual, marks=("ffn_gate_inp.",))
MTP = replace(MOE, name="mtp", marks=("nextn.",))

_names = {"attn_residual": "ffn_inp", "attn_post_norm": "post_attn_norm", "ffn_shexp": "ffn_shexp_out"}

GLM4MOE = Architecture(
    name="glm4moe",
    pre="glm4",
    hypers=(
        *(replace(h, hf_default=1e-5) if h is rms_eps else h for h in base_hypers),
        replace(n_expert, hf="n_routed_experts"),
        n_expert_used,
        replace(n_expert_group, hf_default=1),
        replace(n_expert_group_used, hf_default=1),
        n_rot,
        rope_sections,
        n_ff_exp,
        n_expert_shared,
        expert_gating_func,
        expert_weights_scale,
        expert_weights_norm,
    ),
    tensors=root_tensors(norm=AS_IS),
    layers=LeadingDense(DENSE, MOE, key="leading_dense_block_count", hf="first_k_dense_replace"),
    head=HeadSheet(
        MTP, numbered_head_tensors("shared_head.norm"), hidden="post", chain="post",
        may_lack=True,
    ),
    hf=HuggingFace(
        classes=("Glm4MoeForCausalLM",),
        model_types=("glm4_moe",),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        stacks=FUSED_STACKS,
        special=GLM_SPECIAL,
        layers_after="expert_shared_count",
        heads_after="expert_weights_norm",
    ),
    cb=_names,
    cb_head=_names,
)  # fmt: skip
