"""The gated attention layer kind. Its numerics are mtpref/spec/ops/compose.py:attn_layer (S6, S8, S10, S15 to
S17)."""

from collections.abc import Callable

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import AttnConfig, Values, read_rope_scaling
from mtpref.spec.kinds.kind import F32, INPUT, Forward, LayerKind, Made, Span
from mtpref.spec.ops import LayerTap, LayerWeights, Ops
from mtpref.spec.ops.types import AttnLayer
from mtpref.spec.state import LayerState, StateSpec


def configure(v: Values) -> AttnConfig:
    """The hyper-parameters of an attention layer; without a count of turned dimensions it does not turn (NoPE).

    Errors   MtprefError for shapes that contradict each other
    """
    n_head, n_head_kv, d_head, d_value = (v[name] for name in ("n_head", "n_head_kv", "n_embd_head", "n_embd_head_v"))
    n_rot = v["n_rot"] if "n_rot" in list(v) else 0
    if not n_head_kv or n_head % n_head_kv or d_value != d_head or n_rot > d_head or n_rot % 2:
        raise MtprefError(
            f"{v.meta.source}: attention shape head_count {n_head}, head_count_kv {n_head_kv}, key_length {d_head}, "
            f"value_length {d_value}, rope.dimension_count {n_rot}, expected a multiple of head_count_kv, equal "
            "lengths and an even dimension_count no larger than key_length"
        )
    sections = v["rope_sections"] if "rope_sections" in list(v) else None
    freq_base = v["freq_base"] if v.meta.rope.freq_base is None else v.meta.rope.freq_base
    return AttnConfig(
        n_embd=v["n_embd"],
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_embd_head=d_head,
        n_rot=n_rot,
        rope_sections=None if sections is None else (sections[0], sections[1], sections[2], sections[3]),
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        rope_scaling=read_rope_scaling(v.meta, freq_base),
    )


def kv_state(cfg: AttnConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: after norm and RoPE; cache_v: as projected. One cell per position, in the cache's type."""
    shape = (cfg.n_head_kv, cfg.n_embd_head)
    return (
        StateSpec("cache_k", shape, positional=True, kv_type=kv_type),
        StateSpec("cache_v", shape, positional=True, kv_type=kv_type),
    )


def forward_by(layer: Callable[[Ops], AttnLayer]) -> Forward:
    """The forward of an attention kind over the cells of `kv_state`. layer: the entry of the table that it runs"""

    def forward(w: LayerWeights, cfg: AttnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
        n_cells = span.first + x.shape[0]
        return layer(span.ops)(
            span.ops,
            w,
            cfg,
            x,
            state.arrays["cache_k"][:n_cells],
            state.arrays["cache_v"][:n_cells],
            state.specs[0].kv_type,
            span.first,
            span.rope_cos_sin(cfg),
            tap,
        )

    return forward


ROPE = "RoPE of the first n_rot dimensions, halves paired"
GRAPH = {
    "Qcur_full": Made(
        (INPUT,), "product with blk.{i}.attn_q.weight: query and gate of each head", (spec.mul_mat_exact,)
    ),
    "Vcur": Made((INPUT,)),
    "Qcur_normed": Made(
        ("Qcur_full",),
        "the query half of each head, rms_norm with blk.{i}.attn_q_norm.weight",
        (spec.split_q_gate, spec.rms_norm),
    ),
    "Kcur_normed": Made(
        (INPUT,),
        "blk.{i}.attn_k.weight, rms_norm with blk.{i}.attn_k_norm.weight",
        (spec.mul_mat_exact, spec.rms_norm),
    ),
    "gate_reshaped": Made(("Qcur_full",), "the gate half of each head", (spec.split_q_gate,)),
    "Qcur": Made(("Qcur_normed",), ROPE, (spec.rope,)),
    "Kcur": Made(("Kcur_normed",), ROPE, (spec.rope,)),
    "attn_pregate": Made(("Qcur", "Kcur", "Vcur"), "causal attention over the KV cache", (spec.attention,)),
    "gate_sigmoid": Made(("gate_reshaped",), "sigmoid", (spec.attn_gate,)),
    "attn_gated": Made(("attn_pregate", "gate_reshaped"), "times sigmoid of the gate", (spec.attn_gate,)),
    "attn_output": Made(("attn_gated",)),
}
GATED_ATTENTION = LayerKind("gated_attention", configure, kv_state, forward_by(lambda ops: ops.attn_layer), GRAPH)
