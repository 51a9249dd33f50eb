"""Attention layers whose scores are not scaled, with or without a window, with cells of their own, another layer's, or
the target's; and the dense network beside experts. Their numerics are mtpref/spec/ops/compose_unscaled.py's (S6, S8,
S10, S76, S94, S100 to S106).

Owns what is kept of a sequence, as windowed.py has it, and whose cells a layer reads.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import FfnConfig, MoeConfig, ParallelConfig, UnscaledConfig, Values, read_rope_scaling
from mtpref.spec.kinds import ffn, moe_ffn
from mtpref.spec.kinds.kind import F32, INPUT, Cells, Graph, LayerKind, Made, Span, no_state
from mtpref.spec.kinds.windowed import FACTORS, planes_of
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.ops.compose_unscaled import gelu_ops
from mtpref.spec.state import LayerState, StateSpec


def _configure(v: Values, is_windowed: bool, reads: str = "") -> UnscaledConfig:
    """Of the file's keys. reads: "" (its own cells), "layer" (those of a layer before it), "target" (the target's)

    Errors   MtprefError for counts that contradict each other
    """
    widths = ("n_key_windowed", "n_value_windowed") if is_windowed else ("n_embd_head", "n_embd_head_v")
    n_key, n_value = (v[name] for name in widths)
    n_head, n_head_kv, n_rot = v["n_head"], v["n_head_kv"], v["n_rot_windowed" if is_windowed else "n_rot"]
    label, suffix = f"{v.meta.source}: key {v.meta.arch}", "_swa" if is_windowed else ""
    if n_value != n_key:
        raise MtprefError(
            f"{label}.attention.value_length{suffix} is {n_value}, expected {n_key} = attention.key_length{suffix}; "
            "try: mtpref inspect FILE"
        )
    if n_head % n_head_kv:
        raise MtprefError(f"{label}.attention.head_count is {n_head}, expected a multiple of attention.head_count_kv = "
                          f"{n_head_kv}; try: mtpref inspect FILE")  # fmt: skip
    if n_rot % 2 or not 0 < n_rot <= n_key:
        raise MtprefError(
            f"{label}.rope.dimension_count{suffix} is {n_rot}, expected an even count of at most {n_key} = "
            f"attention.key_length{suffix}; try: mtpref inspect FILE"
        )
    freq_base = v["freq_base_windowed"] if is_windowed else v["freq_base"]
    if not is_windowed and v.meta.rope.freq_base is not None:
        freq_base = v.meta.rope.freq_base
    scaling = read_rope_scaling(v.meta, freq_base)
    return UnscaledConfig(
        n_embd=v["n_embd"],
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_key=n_key,
        n_window=v["n_window"] if is_windowed else 0,
        n_rot=n_rot,
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        source=v["n_block"] - v["n_shared"] - (2 if is_windowed else 1) if reads == "layer" else None,
        has_cells=not reads,
        # llama.cpp scales the frequencies of layers without a window alone.
        rope_scaling=replace(scaling, freq_scale=1.0) if is_windowed else scaling,
    )


def _state(cfg: UnscaledConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: after norm and RoPE, cache_v: after its norm, a cell a position; with a window the cells of the last
    n_window - 1 tokens, oldest first (one, unseen, of a window of 1). Nothing where the cells are another's."""
    if not cfg.has_cells:
        return ()
    n_kept = (max(1, cfg.n_window - 1),) if cfg.n_window else ()
    name = "window" if cfg.n_window else "cache"
    return tuple(
        StateSpec(f"{name}_{part}", (*n_kept, cfg.n_head_kv, cfg.n_key), positional=not cfg.n_window, kv_type=kv_type)
        for part in "kv"
    )


def _forward(w: LayerWeights, cfg: UnscaledConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    """Its own cells, or those of the layer that it shares with, as they are after the batch."""
    if not cfg.has_cells:
        assert cfg.source is not None
        return _run(w, cfg, x, span.cells[cfg.source], span, tap)
    name, kv_type = "window" if cfg.n_window else "cache", state.specs[0].kv_type
    old = [state.arrays[f"{name}_{part}"] for part in "kv"]
    if cfg.n_window:
        k, v = (np.concatenate([a, np.empty((len(x), *a.shape[1:]), a.dtype)]) for a in old)
    else:
        k, v = (a[: span.first + len(x)] for a in old)
    cells = Cells(k, v, kv_type, span.first + len(x) - 1)
    span.cells.append(cells)
    y = _run(w, cfg, x, cells, span, tap)
    if cfg.n_window:
        state.planes = {
            f"window_{part}": planes_of(a, len(old[0]), span.keep) for part, a in zip("kv", (k, v), strict=True)
        }
        state.arrays.update({name: planes[-1].copy() for name, planes in state.planes.items()})
    return y


def target_cells(cfg: UnscaledConfig, span: Span) -> Cells:
    """S109. The target's cells that a layer of an assistant reads: those of the tokens before its position.

    Rule     the layer is the target's last one of the same kind, with a window or without; where that one shares the
             cells of a layer before it, theirs. Every step of a draft is at position n_past, that of the token that it
             goes on from, whose own cell is not there yet, and neither are those of drafted tokens. Nothing is written
    """
    assert span.target is not None
    assert cfg.source is not None
    state, n_cells = span.target[cfg.source], span.first
    if cfg.n_window:
        k, v = (state.arrays[f"window_{part}"] for part in "kv")
    else:
        k, v = (state.arrays[f"cache_{part}"][:n_cells] for part in "kv")
    return Cells(k, v, state.specs[0].kv_type, n_cells - 1)


def _forward_target(w: LayerWeights, cfg: UnscaledConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    return _run(w, cfg, x, target_cells(cfg, span), span, tap)


def _run(w: LayerWeights, cfg: UnscaledConfig, x: F32, cells: Cells, span: Span, tap: LayerTap) -> F32:
    table = span.rope_cos_sin(cfg.rotary, None if cfg.n_window else span.roots.get(FACTORS))
    return span.ops.unscaled_attn_layer(
        span.ops, w, cfg, x, cells.k, cells.v, cells.kv_type, span.pos, cells.last, table, tap
    )


_PRODUCT = (spec.mul_mat_exact,)
_ROPE = "RoPE of the layer's own base, halves paired; divided by rope_freqs.weight where there is no window"
GRAPH = {
    "Qcur": Made((INPUT,), "product with blk.{i}.attn_q.weight", _PRODUCT),
    "Qcur_normed": Made(("Qcur",), "rms_norm with blk.{i}.attn_q_norm.weight", (spec.rms_norm,)),
    "Qcur_pos": Made(("Qcur_normed",), _ROPE, (spec.rope, spec.divided_frequencies)),
    "Kcur": Made((INPUT,), "product with blk.{i}.attn_k.weight", _PRODUCT, instead=()),
    "Vcur": Made((INPUT,), "product with blk.{i}.attn_v.weight, or Kcur where there is none", _PRODUCT, instead=()),
    "Kcur_normed": Made(("Kcur",), "rms_norm with blk.{i}.attn_k_norm.weight", (spec.rms_norm,), instead=()),
    "Vcur_normed": Made(("Vcur",), "rms_norm without a weight", (spec.rms_norm,), instead=()),
    "Kcur_pos": Made(("Kcur_normed",), _ROPE, (spec.rope, spec.divided_frequencies), instead=()),
    "kqv_out": Made(
        ("Qcur_pos", "Kcur_pos", "Vcur_normed"),
        "causal attention, scores not scaled, over the cells or those of the window: the layer's own, another layer's, "
        "or the target's",
        (spec.unscaled_attention, spec.window_start),
    ),
    "attn_output": Made(("kqv_out",)),
}
_CALLED = frozenset({"unscaled_attn_layer"})
UNSCALED_ATTENTION = LayerKind(
    "unscaled_attention", partial(_configure, is_windowed=False), _state, _forward, GRAPH, _CALLED
)
UNSCALED_WINDOW = replace(UNSCALED_ATTENTION, configure=partial(_configure, is_windowed=True))
# The same over the cells of a layer before it.
SHARING_ATTENTION, SHARING_WINDOW = (
    replace(UNSCALED_ATTENTION, configure=partial(_configure, is_windowed=w, reads="layer")) for w in (False, True)
)
# The same over the target's.
TARGET_ATTENTION, TARGET_WINDOW = (
    replace(UNSCALED_ATTENTION, configure=partial(_configure, is_windowed=w, reads="target"), forward=_forward_target)
    for w in (False, True)
)


# NETWORKS


def _dense(v: Values) -> FfnConfig:
    return FfnConfig(v["n_embd"], v["n_ff"])


def _forward_dense(w: LayerWeights, cfg: FfnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops = gelu_ops(span.ops)
    return ops.ffn(ops, w, x, tap)


def _parallel(v: Values) -> ParallelConfig:
    n_expert, n_used = v["n_expert"], v["n_expert_used"]
    if not 0 < n_used <= n_expert:
        raise MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.expert_used_count is {n_used}, expected 1 to {n_expert} = "
            "expert_count; try: mtpref inspect FILE"
        )
    return ParallelConfig(MoeConfig(v["n_embd"], n_expert, n_used, "softmax", True, 0.0, 0, 0), v["rms_eps"])


def _forward_parallel(
    w: LayerWeights, cfg: ParallelConfig, x: F32, state: LayerState, span: Span, tap: LayerTap
) -> F32:
    y, routing = span.ops.dense_beside_experts(span.ops, w, cfg, x, tap)
    span.routings.append(routing)
    return y


_STEP = "gelu(gate) * up"


def _by_gelu(made: Made) -> Made:
    rules = tuple(spec.geglu if rule is spec.swiglu else rule for rule in made.rules)
    return replace(made, rules=rules, step=_STEP if made.step == "silu(gate) * up" else made.step)


def _reading(graph: Graph, names: tuple[str, ...], **others: str) -> Graph:
    """These entries, with what they read under other names."""
    read = {INPUT: others.pop("input", INPUT), **others}
    return {name: replace(graph[name], inputs=tuple(read.get(x, x) for x in graph[name].inputs)) for name in names}


_NORM = (spec.rms_norm,)
_DENSE: Graph = {name: _by_gelu(made) for name, made in ffn.GRAPH.items()}
_EXPERTS: Graph = {name: _by_gelu(made) for name, made in moe_ffn.GRAPH.items()}
_BESIDE: Graph = {
    "ffn_norm_1": Made((INPUT,), "rms_norm with blk.{i}.ffn_norm.weight", _NORM),
    **_reading(_DENSE, tuple(_DENSE), input="ffn_norm_1"),
    "ffn_mlp": Made(("ffn_out",), "rms_norm with blk.{i}.post_ffw_norm_1.weight", _NORM),
    "ffn_moe_logits": Made(
        (INPUT,),
        "rms_norm without a weight, over sqrt(n_embd), times blk.{i}.ffn_gate_inp.scale, product with "
        "blk.{i}.ffn_gate_inp.weight",
        (spec.rms_norm, spec.mul_mat_exact),
    ),
    **_reading(
        _EXPERTS,
        ("ffn_moe_probs", "ffn_moe_topk", "ffn_moe_gap", "ffn_moe_weights"),
        ffn_moe_probs_masked="ffn_moe_probs",
    ),
    "ffn_moe_weights_scaled": Made(
        ("ffn_moe_weights",), "times blk.{i}.ffn_down_exps.scale of the expert", instead=("ffn_moe_weights",)
    ),
    "ffn_norm_2": Made((INPUT,), "rms_norm with blk.{i}.pre_ffw_norm_2.weight", _NORM),
    **_reading(
        _EXPERTS,
        ("ffn_moe_gate_up", "ffn_moe_gate", "ffn_moe_up", "ffn_moe_swiglu", "ffn_moe_down", "ffn_moe_weighted",
         "ffn_moe_out"),
        input="ffn_norm_2", ffn_moe_weights="ffn_moe_weights_scaled",
    ),
    "ffn_moe": Made(("ffn_moe_out",), "rms_norm with blk.{i}.post_ffw_norm_2.weight", _NORM),
    "ffn_moe_combined": Made(("ffn_mlp", "ffn_moe"), "sum"),
}  # fmt: skip
GEGLU_FFN = LayerKind("geglu_ffn", _dense, no_state, _forward_dense, _DENSE, frozenset({"ffn"}))
# Dense network and experts, each with its own norms: the rows of the stream are its input.
DENSE_BESIDE_EXPERTS = LayerKind(
    "dense_beside_experts", _parallel, no_state, _forward_parallel, _BESIDE,
    frozenset({"ffn", "route", "experts", "dense_beside_experts"}),
)  # fmt: skip
