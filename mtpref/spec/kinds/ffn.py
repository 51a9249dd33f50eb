"""The dense feed-forward kind. Its numerics are mtpref/spec/ops/compose.py:ffn (S6, S18)."""

from mtpref import spec
from mtpref.spec.config import FfnConfig, Values
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span, no_state
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState


def _configure(v: Values) -> FfnConfig:
    return FfnConfig(v["n_embd"], v["n_ff"])


def _forward(w: LayerWeights, cfg: FfnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    return span.ops.ffn(span.ops, w, x, tap)


GRAPH = {
    "ffn_gate": Made((INPUT,)),
    "ffn_up": Made((INPUT,)),
    "ffn_swiglu": Made(("ffn_gate", "ffn_up"), "silu(gate) * up", (spec.swiglu,)),
    "ffn_out": Made(("ffn_swiglu",)),
}
SWIGLU_FFN = LayerKind("swiglu_ffn", _configure, no_state, _forward, GRAPH)
