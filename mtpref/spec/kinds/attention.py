"""The plain attention layer kind: biases and norms of q and k where the file has them, no gate. Its numerics are
mtpref/spec/ops/compose.py:plain_attn_layer (S6, S8, S10, S15, S16, S49)."""

from dataclasses import replace

from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import AttnConfig, Values
from mtpref.spec.kinds.gated_attention import configure, kv_state
from mtpref.spec.kinds.kind import F32, LayerKind, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState


def _configure_whole(v: Values) -> AttnConfig:
    cfg = configure(v)
    if cfg.n_rot != cfg.n_embd_head:
        raise MtprefError(
            f"{v.meta.source}: {v.meta.arch}.rope.dimension_count is {cfg.n_rot}, expected {cfg.n_embd_head} = "
            f"attention.key_length: heads of {v.meta.arch} turn as a whole; convert the model again"
        )
    return cfg


def _forward(w: LayerWeights, cfg: AttnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    n_cells = span.first + x.shape[0]
    return span.ops.plain_attn_layer(
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


def _configure_text(v: Values) -> AttnConfig:
    sections = v["rope_sections"]
    if min(sections[:2]) > 0:
        raise UnsupportedError(
            f"{v.meta.source}: {v.meta.arch}.rope.dimension_sections is {list(sections)}: a model for pictures, which "
            "is not supported; expected no sections"
        )
    return replace(configure(v), rope_sections=None)


ATTENTION = LayerKind("attention", configure, kv_state, _forward)
# The same with plain RoPE, where files for pictures have other sections: those are refused.
TEXT_ATTENTION = LayerKind("attention", _configure_text, kv_state, _forward)
# The same where RoPE must turn the whole head.
WHOLE_ROTARY_ATTENTION = LayerKind("attention", _configure_whole, kv_state, _forward)
