"""The dense feed-forward kind. Its numerics are mtpref/ops/compose.py:ffn (S6, S18)."""

from mtpref.config import FfnConfig, read_ffn_config
from mtpref.model.kinds import F32, LayerKind, Span, TensorSlot, no_state
from mtpref.ops import LayerTap, LayerWeights
from mtpref.state import LayerState


def _tensors(cfg: FfnConfig) -> tuple[TensorSlot, ...]:
    return (
        TensorSlot("ffn_gate.weight", (cfg.n_ff, cfg.n_embd), True),
        TensorSlot("ffn_up.weight", (cfg.n_ff, cfg.n_embd), True),
        TensorSlot("ffn_down.weight", (cfg.n_embd, cfg.n_ff), True),
    )


def _forward(w: LayerWeights, cfg: FfnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    return span.ops.ffn(span.ops, w, x, tap)


SWIGLU_FFN = LayerKind("swiglu_ffn", read_ffn_config, _tensors, no_state, _forward)
