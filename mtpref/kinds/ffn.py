"""The dense feed-forward kind. Its numerics are mtpref/ops/compose.py:ffn (S6, S18)."""

from mtpref.config import FfnConfig, Values
from mtpref.kinds.kind import F32, LayerKind, Span, no_state
from mtpref.ops import LayerTap, LayerWeights
from mtpref.state import LayerState


def _configure(v: Values) -> FfnConfig:
    return FfnConfig(v["n_embd"], v["n_ff"])


def _forward(w: LayerWeights, cfg: FfnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    return span.ops.ffn(span.ops, w, x, tap)


SWIGLU_FFN = LayerKind("swiglu_ffn", _configure, no_state, _forward)
