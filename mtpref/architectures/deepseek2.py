"""deepseek2: DeepSeek-V2, V3 and R1, Kimi-K2, GLM-4.7-Flash. Attention through a latent row, dense layers in front,
then experts; one MTP block.

The data sheet. Source: llama.cpp src/models/deepseek2.cpp, conversion/deepseek.py, conversion/glm.py; transformers'
DeepseekV3Config and Glm4MoeLiteConfig.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpref.architectures.common import GLM_SPECIAL, base_hypers, n_embd, n_head, numbered_head_tensors, root_tensors
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
    Either,
    Fused,
    HeadSheet,
    HuggingFace,
    Hyper,
    LeadingDense,
    Rows,
    Tensor,
    by_group,
)
from mtpref.architectures.transforms import AS_IS, BY_HEAD, BY_HEAD_TRANSPOSED
from mtpref.spec.config import Values
from mtpref.spec.kinds import LATENT_ATTENTION, MOE_FFN, SWIGLU_FFN, Sequential

SOFTMAX, SIGMOID, OTHER = 1, 2, 4  # numbers of expert_gating_func; the last one no file of it runs with
_FLASH = ((47, 48), 154880)  # layers and vocabulary of GLM-4.7-Flash, by which llama.cpp tells it


def _gating(v: Values) -> int:
    """The router of a file that does not say it: softmax, save in GLM-4.7-Flash."""
    meta = v.meta
    n_layer = v["n_block"] - meta.u32("nextn_predict_layers", 0, low=0, high=v["n_block"])
    tokens: Any = meta.kv.get("tokenizer.ggml.tokens", ())
    n_vocab = meta.u32("vocab_size") if meta.has("vocab_size") else len(tokens)
    return SIGMOID if n_layer in _FLASH[0] and n_vocab == _FLASH[1] else SOFTMAX


def _gating_of_checkpoint(c: Mapping[str, Any]) -> int | None:
    named = c.get("scoring_func")
    return None if named is None else {"softmax": SOFTMAX, "sigmoid": SIGMOID}.get(named, OTHER)


# HYPER-PARAMETERS

n_q_latent = Hyper("n_q_latent", "attention.q_lora_rank", default=0, low=0, hf="q_lora_rank", hf_default=OPTIONAL)
n_latent = Hyper("n_latent", "attention.kv_lora_rank", hf="kv_lora_rank", hf_default=512)
n_rot = Hyper("n_rot", "rope.dimension_count", high=4096, hf="qk_rope_head_dim")
n_row = Hyper("n_embd_head", "attention.key_length", hf_fields=("qk_rope_head_dim",),
              hf=lambda c: (c.get("kv_lora_rank") or 512) + c["qk_rope_head_dim"])  # fmt: skip
n_row_value = Hyper("n_embd_head_v", "attention.value_length", hf=lambda c: c.get("kv_lora_rank") or 512)
# Of a head before absorption; older files have them under the keys of the row.
n_key = Hyper("n_key", "attention.key_length_mla", default=lambda v: v["n_embd_head"], high=1 << 16,
              hf=lambda c: c["qk_nope_head_dim"] + c["qk_rope_head_dim"], hf_fields=("qk_nope_head_dim",))  # fmt: skip
n_value = Hyper("n_value", "attention.value_length_mla", default=lambda v: v["n_embd_head_v"], high=1 << 16,
                hf="v_head_dim")  # fmt: skip
n_expert_shared = Hyper("n_expert_shared", "expert_shared_count", low=0, high=4096, hf="n_shared_experts",
                        hf_default=0)  # fmt: skip
n_vocab_key = Hyper("n_vocab_key", "vocab_size", default=1, hf="vocab_size")
log_multiplier = Hyper(
    "log_multiplier", "rope.scaling.yarn_log_multiplier", "f32", default=0.0, low=0.0, high=100.0,
    hf=lambda c: None if c.get("mscale_all_dim") is None else 0.1 * c["mscale_all_dim"],
)  # fmt: skip
_n_nope = n_key - n_rot

# TENSORS

# No checkpoint has these: they are kv_b_proj, each head's rows of keys, then of values.
K_B, V_B = "self_attn.k_b_proj.weight", "self_attn.v_b_proj.weight"


def _kv_b_rows(v: Mapping[str, int]) -> list[Rows]:
    return by_group(v["n_head"], (v["n_key"] - v["n_rot"], v["n_value"]))


norms = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "post_attention_layernorm.weight", cb="attn_post_norm"),
)
_query = (
    Tensor("attn_q_a.weight", (n_q_latent, n_embd), "self_attn.q_a_proj.weight", cb="q"),
    Tensor("attn_q_a_norm.weight", (n_q_latent,), "self_attn.q_a_layernorm.weight", cb="q"),
    Tensor("attn_q_b.weight", (n_head * n_key, n_q_latent), "self_attn.q_b_proj.weight", cb="q"),
)
_query_at_once = (Tensor("attn_q.weight", (n_head * n_key, n_embd), "self_attn.q_proj.weight", cb="q"),)
_expansion = (
    Tensor("attn_k_b.weight", (n_head, n_latent, _n_nope), K_B, BY_HEAD_TRANSPOSED, cb="q_nope_absorbed_perm"),
    Tensor("attn_v_b.weight", (n_head, n_value, n_latent), V_B, BY_HEAD, cb="kqv_out"),
)
# Older files: every head's [k_nope | v].
_expansion_of_old = (Tensor("attn_kv_b.weight", (n_head * (_n_nope + n_value), n_latent), role="attn_v", cb="kv"),)
_latent = (
    Tensor("attn_kv_a_mqa.weight", (n_latent + n_rot, n_embd), "self_attn.kv_a_proj_with_mqa.weight", cb="kv_cmpr_pe"),
    Tensor("attn_kv_a_norm.weight", (n_latent,), "self_attn.kv_a_layernorm.weight", cb="kv_cmpr"),
)
_output = Tensor(
    "attn_output.weight", (n_embd, n_head * n_value), "self_attn.o_proj.weight", role="attn_output", cb="attn_output"
)
_attention = (Either((_query, _query_at_once)), *_latent, Either((_expansion, _expansion_of_old)), _output)
# Queries by two products, one row a token: the one form that later architectures have.
split_attention = (*_query, *_latent, *_expansion, _output)


def moe_tensors(*, has_fused: bool) -> tuple[Tensor | Either, ...]:
    """Router, experts and shared experts. has_fused: as expert_stacks"""
    return (
        router("mlp.gate.weight"),
        Tensor("exp_probs_b.bias", (n_expert,), "mlp.gate.e_score_correction_bias", optional=True,
               cb="ffn_moe_probs_biased"),
        *expert_stacks(has_fused=has_fused),
        *shared_expert(n_ff_exp * n_expert_shared, "mlp.shared_experts", is_gated=False),
    )  # fmt: skip


# BLOCKS

_residual = Sequential("attn_norm.weight", "ffn_norm.weight")
DENSE = Block("dense", LATENT_ATTENTION, SWIGLU_FFN, norms + _attention + FFN, _residual, marks=("ffn_gate.",))
MOE = Block("moe", LATENT_ATTENTION, MOE_FFN, norms + _attention + moe_tensors(has_fused=True), _residual,
            marks=("ffn_gate_inp.",))  # fmt: skip
MTP = replace(MOE, name="mtp", marks=("nextn.",))

_names = {"attn_residual": "ffn_inp", "attn_post_norm": "ffn_norm"}
_head_names = {"q": "q_b", "kv_cmpr": "kv_cmpr_norm", "k_pe": "k_pe_rope", "q_pe": "q_pe_rope"}

DEEPSEEK2 = Architecture(
    name="deepseek2",
    hypers=(
        *(
            replace(h, hf=lambda c: 1, hf_fields=()) if h.key == "attention.head_count_kv" else h
            for h in base_hypers
            if h.key not in ("attention.key_length", "attention.value_length")
        ),
        replace(n_expert, hf="n_routed_experts"),
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        replace(expert_gating_func, default=_gating, hf=_gating_of_checkpoint),
        n_vocab_key,
        n_q_latent,
        n_latent,
        n_row,
        n_row_value,
        n_key,
        n_value,
        n_ff_exp,
        n_expert_shared,
        expert_weights_scale,
        replace(expert_weights_norm, hf=lambda c: c.get("norm_topk_prob") or None),
        n_rot,
        log_multiplier,
    ),
    tensors=root_tensors(norm=AS_IS),
    layers=LeadingDense(DENSE, MOE, key="leading_dense_block_count", hf="first_k_dense_replace"),
    head=HeadSheet(
        MTP, numbered_head_tensors("shared_head.norm"), hidden="post", chain="post",
        may_lack=True,
    ),
    hf=HuggingFace(
        classes=(
            "DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM",
            "KimiK25ForConditionalGeneration", "KimiVLForConditionalGeneration",
        ),
        model_types=("deepseek_v3", "deepseek_v2", "glm4_moe_lite", "kimi_k2", "kimi_k25", "kimi_vl"),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        fused=(Fused("self_attn.kv_b_proj.weight", (K_B, V_B), _kv_b_rows),),
        stacks=FUSED_STACKS,
        special=GLM_SPECIAL,
        special_classes=("Glm4MoeLiteForCausalLM",),
        without_head_dim=("Glm4MoeLiteForCausalLM",),
        layers_after="expert_gating_func",
        heads_after="rope.scaling.yarn_log_multiplier",
    ),
    cb=_names,
    cb_head=_names | _head_names,
)  # fmt: skip
