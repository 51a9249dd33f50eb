"""The table of numerics: every operation of the model by name, each entry replaceable.

Owns the list of operations and the rule that ties fused entries to their parts. Entries of the reference
table are the functions of mtpref/spec; mtpref/engine/recipe.py puts the Numba twins in their place. It must not
choose between them. What an entry takes and gives: types.py.
"""

from dataclasses import dataclass, fields, replace
from typing import Unpack

from mtpref.spec.ops import types
from mtpref.spec.ops.types import CoarseEntries, OpEntries


@dataclass(frozen=True)
class Ops:
    """Fine entries are the spec's functions; coarse entries compose the fine ones unless a fused twin
    replaces them.

    A coarse entry takes the table itself as its first argument. `replaced` is the only way to change
    entries: it drops every fused twin that would hide a replaced part.
    """

    mul_mat: types.MulMat  # S6
    get_rows: types.GetRows  # S7
    rms_norm: types.RmsNorm  # S8
    l2_norm: types.L2Norm  # S9
    rope_table: types.RopeTable  # S10
    rope: types.Rope  # S10
    conv_silu: types.ConvSilu  # S11
    delta_gates: types.DeltaGates  # S12
    delta_rule: types.DeltaRule  # S13
    gated_norm: types.GatedNorm  # S14
    split_q_gate: types.SplitQGate  # S15
    store_kv: types.StoreKv  # S15
    attention: types.Attention  # S16
    attn_gate: types.AttnGate  # S17
    swiglu: types.SwiGlu  # S18
    mtp_concat: types.MtpConcat  # S19
    argmax: types.Argmax  # S21
    top_candidates: types.TopCandidates  # S22
    expert_probs: types.ExpertProbs  # S41
    expert_scores: types.ExpertScores  # S42
    group_scores: types.GroupScores  # S43
    limit_groups: types.LimitGroups  # S43
    select_experts: types.SelectExperts  # S44
    router_gap: types.RouterGap  # S44
    expert_weights: types.ExpertWeights  # S45
    weigh_experts: types.WeighExperts  # S46
    sum_experts: types.SumExperts  # S46
    shared_gate: types.SharedGate  # S47
    add_bias: types.AddBias  # S49
    repeat_heads: types.RepeatHeads  # S50
    split_beta_alpha: types.SplitBetaAlpha  # S51
    split_qkvz: types.SplitQkvz  # S51
    rope_interleaved: types.Rope  # S53
    layer_norm: types.LayerNorm  # S60
    index_scores: types.IndexScores  # S62
    select_cells: types.SelectCells  # S63
    selection_gap: types.SelectionGap  # S63
    stream_weights: types.StreamWeights  # S70
    head_weights: types.HeadWeights  # S70
    read_streams: types.ReadStreams  # S72
    write_streams: types.WriteStreams  # S73
    rope_last: types.RopeLast  # S74
    compress_rows: types.CompressRows  # S75
    window_start: types.WindowStart  # S76
    n_compressed: types.NCompressed  # S76
    row_scores: types.RowScores  # S77
    best_rows: types.BestRows  # S77
    sink_attention: types.SinkAttention  # S78
    clamped_swiglu: types.ClampedSwiGlu  # S79
    hashed_experts: types.HashedExperts  # S80
    cell_attention: types.CellAttention  # S95
    limited_swiglu: types.LimitedSwiGlu  # S96
    head_gate: types.HeadGate  # S97
    scaled_output: types.ScaledOutput  # S97
    unscaled_attention: types.UnscaledAttention  # S100
    geglu: types.SwiGlu  # S101
    soft_cap: types.SoftCap  # S102
    scaled_embedding: types.ScaledEmbedding  # S103
    relu_squared: types.ReluSquared  # S121
    conv_bias_silu: types.ConvBiasSilu  # S122
    ssm_scan: types.SsmScan  # S123
    gated_group_norm: types.GatedGroupNorm  # S124
    channel_gates: types.ChannelGates  # S128
    channel_delta_rule: types.DeltaRule  # S129
    sigmoid_gated_norm: types.GatedNorm  # S130
    delta_layer: types.DeltaLayer  # S30
    attn_layer: types.AttnLayer  # S30
    plain_attn_layer: types.AttnLayer  # S30
    latent_input: types.LatentInput  # S55
    head_products: types.HeadProducts  # S56
    latent_attn_layer: types.LatentAttnLayer  # S57
    expanded_attn_layer: types.ExpandedAttnLayer  # S58
    selected_attention: types.SelectedAttention  # S64
    index_cells: types.IndexCells  # S65
    indexed_attn_layer: types.IndexedAttnLayer  # S66
    ffn: types.Ffn  # S30
    head: types.Head  # S31
    mtp_input: types.MtpInput  # S31
    mtp_norm: types.MtpNorm  # S31
    route: types.Route  # S48
    experts: types.Experts  # S48
    shared_expert: types.SharedExpert  # S48
    moe_ffn: types.MoeFfn  # S48
    connect: types.Connect  # S82
    leave_streams: types.LeaveStreams  # S83
    streams_input: types.MtpInput  # S84
    window_input: types.WindowInput  # S85
    compressor: types.Compressor  # S86
    chosen_rows: types.ChosenRows  # S87
    window_attention: types.WindowAttention  # S88
    grouped_output: types.GroupedOutput  # S89
    compressed_attn_layer: types.CompressedAttnLayer  # S90
    route_by_token: types.RouteByToken  # S91
    clamped_experts: types.ClampedExperts  # S92
    seen_attention: types.SeenAttention  # S98
    windowed_attn_layer: types.WindowedAttnLayer  # S98
    unscaled_seen: types.UnscaledSeen  # S104
    cells_of: types.CellsOf  # S104
    unscaled_attn_layer: types.UnscaledAttnLayer  # S104
    layer_inputs: types.LayerInputs  # S105
    own_input: types.OwnInput  # S105
    dense_beside_experts: types.DenseBesideExperts  # S106
    assistant_input: types.MtpInput  # S108
    assistant_row: types.AssistantRow  # S108
    ssm_layer: types.SsmLayer  # S125
    kda_layer: types.KdaLayer  # S131
    composed: CoarseEntries  # what each coarse entry is when no fused twin stands in for it

    def replaced(self, **entries: Unpack[OpEntries]) -> "Ops":
        """A table with other entries; fused twins whose parts are among them fall back to the composition."""
        fallen = {coarse: self.composed[coarse] for coarse, parts in PARTS.items()  # type: ignore[literal-required]
                  if coarse not in entries and not parts.isdisjoint(entries)}  # fmt: skip
        return replace(self, **{**fallen, **entries})


_ROUTE = frozenset(
    {
        "mul_mat",
        "expert_probs",
        "expert_scores",
        "group_scores",
        "limit_groups",
        "select_experts",
        "router_gap",
        "expert_weights",
    }
)
_EXPERTS = frozenset({"mul_mat", "swiglu", "relu_squared", "weigh_experts", "sum_experts"})
_LATENT_INPUT = frozenset({"mul_mat", "rms_norm", "rope_interleaved", "rope"})
_LATENT_ATTN = _LATENT_INPUT | {"latent_input", "store_kv", "attention"}
_WINDOW_INPUT = frozenset({"mul_mat", "rms_norm", "rope_last"})
_COMPRESSOR = frozenset({"mul_mat", "get_rows", "compress_rows", "rms_norm", "rope_last", "store_kv"})
_CHOSEN_ROWS = frozenset({"mul_mat", "rope_last", "n_compressed", "row_scores", "best_rows"})
_WINDOW_ATTENTION = frozenset({"window_start", "n_compressed", "sink_attention"})
_GROUPED_OUTPUT = frozenset({"rope_last", "mul_mat"})
_SEEN = frozenset({"attention", "window_start", "cell_attention"})
_UNSCALED_SEEN = frozenset({"window_start", "unscaled_attention"})
_CELLS_OF = frozenset({"mul_mat", "rms_norm", "rope"})
_SHARED_EXPERT = frozenset({"mul_mat", "swiglu", "relu_squared", "shared_gate"})
PARTS: dict[str, frozenset[str]] = {
    "delta_layer": frozenset(
        {
            "mul_mat",
            "conv_silu",
            "l2_norm",
            "delta_gates",
            "delta_rule",
            "gated_norm",
            "repeat_heads",
            "split_beta_alpha",
            "split_qkvz",
        }
    ),
    "attn_layer": frozenset({"mul_mat", "split_q_gate", "rms_norm", "rope", "store_kv", "attention", "attn_gate"}),
    "plain_attn_layer": frozenset({"mul_mat", "add_bias", "rms_norm", "rope", "store_kv", "attention"}),
    "latent_input": _LATENT_INPUT,
    "head_products": frozenset({"mul_mat"}),
    "latent_attn_layer": _LATENT_ATTN | {"head_products", "head_gate"},
    "expanded_attn_layer": _LATENT_ATTN,
    "selected_attention": frozenset({"attention"}),
    "indexed_attn_layer": _LATENT_ATTN | {"head_products", "selected_attention"},
    "index_cells": frozenset(
        {
            "mul_mat",
            "rms_norm",
            "layer_norm",
            "rope",
            "rope_interleaved",
            "store_kv",
            "index_scores",
            "select_cells",
            "selection_gap",
        }
    ),
    "ffn": frozenset({"mul_mat", "swiglu"}),
    "head": frozenset({"mul_mat"}),
    "mtp_input": frozenset({"rms_norm", "mtp_concat", "mul_mat"}),
    "mtp_norm": frozenset({"rms_norm"}),
    "route": _ROUTE,
    "experts": _EXPERTS,
    "shared_expert": _SHARED_EXPERT,
    "seen_attention": _SEEN,
    "windowed_attn_layer": _SEEN
    | {
        "seen_attention",
        "mul_mat",
        "rms_norm",
        "rope",
        "rope_interleaved",
        "store_kv",
        "head_gate",
        "scaled_output",
    },
    "unscaled_seen": _UNSCALED_SEEN,
    "cells_of": _CELLS_OF,
    "unscaled_attn_layer": _UNSCALED_SEEN | _CELLS_OF | {"unscaled_seen", "cells_of", "store_kv"},
    "layer_inputs": frozenset({"get_rows", "scaled_embedding", "mul_mat", "rms_norm"}),
    "own_input": frozenset({"mul_mat", "geglu", "rms_norm"}),
    "dense_beside_experts": _ROUTE | {"rms_norm", "route", "geglu", "weigh_experts", "sum_experts"},
    "assistant_input": frozenset({"scaled_embedding", "mtp_concat", "mul_mat"}),
    "assistant_row": frozenset({"mul_mat"}),
    "ssm_layer": frozenset({"mul_mat", "conv_bias_silu", "add_bias", "ssm_scan", "gated_group_norm"}),
    "kda_layer": frozenset(
        {"mul_mat", "conv_silu", "l2_norm", "channel_gates", "channel_delta_rule", "sigmoid_gated_norm"}
    ),
    # The parts of its parts, and these.
    "connect": frozenset({"rms_norm", "mul_mat", "stream_weights", "read_streams"}),
    "leave_streams": frozenset({"rms_norm", "mul_mat", "head_weights", "read_streams"}),
    "streams_input": frozenset({"rms_norm", "mtp_concat", "mul_mat"}),
    "window_input": _WINDOW_INPUT,
    "compressor": _COMPRESSOR,
    "chosen_rows": _CHOSEN_ROWS,
    "window_attention": _WINDOW_ATTENTION,
    "grouped_output": _GROUPED_OUTPUT,
    "compressed_attn_layer": _WINDOW_INPUT
    | _COMPRESSOR
    | _CHOSEN_ROWS
    | _WINDOW_ATTENTION
    | _GROUPED_OUTPUT
    | {"window_input", "compressor", "chosen_rows", "window_attention", "grouped_output"},
    "route_by_token": frozenset({"mul_mat", "expert_probs", "hashed_experts", "expert_weights"}),
    "clamped_experts": frozenset({"mul_mat", "clamped_swiglu", "weigh_experts", "sum_experts"}),
    "moe_ffn": _ROUTE | _EXPERTS | _SHARED_EXPERT | {"route", "experts", "shared_expert", "scaled_output"},
}

FINE = tuple(f.name for f in fields(Ops) if f.name not in PARTS and f.name != "composed")
