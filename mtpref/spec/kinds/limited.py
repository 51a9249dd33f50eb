"""Feed-forward networks with a limited activation, dense and of experts. Their numerics are
mtpref/spec/ops/compose_windowed.py's (S96): where nothing is limited, the networks of blocks (S30) and experts (S48).
"""

from dataclasses import replace

from mtpref import spec
from mtpref.spec.config import FfnConfig, MoeConfig, Values
from mtpref.spec.kinds import ffn, moe_ffn
from mtpref.spec.kinds.kind import F32, Graph, LayerKind, Made, Span, no_state
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.ops.compose_windowed import limited_ops
from mtpref.spec.state import LayerState


def _configure(v: Values) -> FfnConfig:
    """A dense network takes the shared experts' limit."""
    return FfnConfig(v["n_embd"], v["n_ff"], v["clamp_shexp"])


def _configure_moe(v: Values) -> MoeConfig:
    return replace(moe_ffn.MOE_FFN.configure(v), clamp=v["clamp_exp"], clamp_shared=v["clamp_shexp"])


def _forward(w: LayerWeights, cfg: FfnConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops = limited_ops(span.ops, cfg.clamp)
    return ops.ffn(ops, w, x, tap)


def _forward_moe(w: LayerWeights, cfg: MoeConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops = limited_ops(span.ops, cfg.clamp, cfg.clamp_shared)
    y, routing = ops.moe_ffn(ops, w, cfg, x, tap)
    span.routings.append(routing)
    return y


_STEP = "silu(gate) * up, limited where the layer has a limit"


def _limited(made: Made) -> Made:
    rules = tuple(spec.limited_swiglu if rule is spec.swiglu else rule for rule in made.rules)
    return replace(made, rules=rules, step=_STEP if made.step == "silu(gate) * up" else made.step)


_DENSE: Graph = {name: _limited(made) for name, made in ffn.GRAPH.items()}
_MOE: Graph = {name: _limited(made) for name, made in moe_ffn.GRAPH.items()}
LIMITED_FFN = LayerKind("limited_ffn", _configure, no_state, _forward, _DENSE)
LIMITED_MOE_FFN = LayerKind("moe_ffn", _configure_moe, no_state, _forward_moe, _MOE)
