"""The gated attention layer kind. Its numerics are mtpref/ops/compose.py:attn_layer (S6, S8, S10, S15 to
S17)."""

from mtpref.config import AttnConfig, read_attn_config
from mtpref.model.kinds import F32, LayerKind, Span, TensorSlot
from mtpref.ops import LayerTap, LayerWeights
from mtpref.state import LayerState, StateSpec


def _tensors(cfg: AttnConfig) -> tuple[TensorSlot, ...]:
    d = cfg.n_embd_head
    return (
        TensorSlot("attn_q.weight", (2 * cfg.n_head * d, cfg.n_embd), True),
        TensorSlot("attn_k.weight", (cfg.n_head_kv * d, cfg.n_embd), True),
        TensorSlot("attn_v.weight", (cfg.n_head_kv * d, cfg.n_embd), True),
        TensorSlot("attn_output.weight", (cfg.n_embd, cfg.n_head * d), True),
        TensorSlot("attn_q_norm.weight", (d,), False),
        TensorSlot("attn_k_norm.weight", (d,), False),
    )


def _state(cfg: AttnConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: after norm and RoPE; cache_v: as projected. One cell per position, in the cache's type."""
    shape = (cfg.n_head_kv, cfg.n_embd_head)
    return (
        StateSpec("cache_k", shape, positional=True, kv_type=kv_type),
        StateSpec("cache_v", shape, positional=True, kv_type=kv_type),
    )


def _forward(w: LayerWeights, cfg: AttnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    n_cells = span.first + x.shape[0]
    return span.ops.attn_layer(
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


GATED_ATTENTION = LayerKind("gated_attention", read_attn_config, _tensors, _state, _forward)
