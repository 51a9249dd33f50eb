"""The reference table: every entry a function of mtpref/spec, coarse entries composed of fine ones."""

from functools import partial

from mtpref import spec
from mtpref.spec.ops import compose, compose_latent, compose_moe, compose_windowed
from mtpref.spec.ops.table import Ops
from mtpref.spec.ops.types import CoarseEntries

COMPOSED: CoarseEntries = {
    "delta_layer": compose.delta_layer,
    "attn_layer": compose.attn_layer,
    "ffn": compose.ffn,
    "head": compose.head,
    "mtp_input": compose.mtp_input,
    "mtp_norm": compose.mtp_norm,
    "plain_attn_layer": compose.plain_attn_layer,
    "latent_input": compose_latent.latent_input,
    "head_products": compose_latent.head_products,
    "latent_attn_layer": compose_latent.latent_attn_layer,
    "expanded_attn_layer": compose_latent.expanded_attn_layer,
    "route": compose_moe.route,
    "experts": compose_moe.experts,
    "shared_expert": compose_moe.shared_expert,
    "moe_ffn": compose_moe.moe_ffn,
    "seen_attention": compose_windowed.seen_attention,
    "windowed_attn_layer": compose_windowed.windowed_attn_layer,
}


def spec_ops(numerics: str) -> Ops:
    """The reference table of `exact` or `ggml` numerics: functions of mtpref/spec only."""
    dot = spec.dot64 if numerics == "exact" else spec.dot32
    return Ops(
        mul_mat=spec.mul_mat_exact if numerics == "exact" else spec.mul_mat_ggml,
        get_rows=spec.get_rows,
        rms_norm=spec.rms_norm,
        l2_norm=spec.l2_norm,
        rope_table=spec.rope_table,
        rope=spec.rope,
        conv_silu=partial(spec.conv_silu, dot=dot),
        delta_gates=spec.delta_gates,
        delta_rule=partial(spec.delta_rule, dot=dot),
        gated_norm=spec.gated_norm,
        split_q_gate=spec.split_q_gate,
        store_kv=spec.store_kv,
        attention=partial(spec.attention, dot=dot),
        attn_gate=spec.attn_gate,
        swiglu=spec.swiglu,
        mtp_concat=spec.mtp_concat,
        argmax=spec.argmax,
        top_candidates=spec.top_candidates,
        expert_probs=spec.expert_probs,
        expert_scores=spec.expert_scores,
        group_scores=spec.group_scores,
        limit_groups=spec.limit_groups,
        select_experts=spec.select_experts,
        router_gap=spec.router_gap,
        expert_weights=spec.expert_weights,
        weigh_experts=spec.weigh_experts,
        sum_experts=spec.sum_experts,
        shared_gate=spec.shared_gate,
        add_bias=spec.add_bias,
        repeat_heads=spec.repeat_heads,
        split_beta_alpha=spec.split_beta_alpha,
        split_qkvz=spec.split_qkvz,
        rope_interleaved=spec.rope_interleaved,
        window_start=spec.window_start,
        cell_attention=partial(spec.cell_attention, dot=dot),
        limited_swiglu=spec.limited_swiglu,
        head_gate=spec.head_gate,
        scaled_output=spec.scaled_output,
        delta_layer=compose.delta_layer,
        attn_layer=compose.attn_layer,
        ffn=compose.ffn,
        head=compose.head,
        mtp_input=compose.mtp_input,
        mtp_norm=compose.mtp_norm,
        plain_attn_layer=compose.plain_attn_layer,
        latent_input=compose_latent.latent_input,
        head_products=compose_latent.head_products,
        latent_attn_layer=compose_latent.latent_attn_layer,
        expanded_attn_layer=compose_latent.expanded_attn_layer,
        route=compose_moe.route,
        experts=compose_moe.experts,
        shared_expert=compose_moe.shared_expert,
        moe_ffn=compose_moe.moe_ffn,
        seen_attention=compose_windowed.seen_attention,
        windowed_attn_layer=compose_windowed.windowed_attn_layer,
        composed=COMPOSED,
    )
