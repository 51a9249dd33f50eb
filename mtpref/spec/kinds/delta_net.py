"""The gated DeltaNet layer kind. Its numerics are mtpref/spec/ops/compose.py:delta_layer (S6, S9, S11 to S14)."""

from functools import partial

from mtpref.base.errors import MtprefError
from mtpref.spec.config import DeltaConfig, Values
from mtpref.spec.kinds.kind import F32, LayerKind, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, StateSpec


def _configure(v: Values, *, is_grouped: bool = False) -> DeltaConfig:
    cfg = DeltaConfig(v["n_embd"], v["d_conv"], v["d_state"], v["n_k_head"], v["n_v_head"], v["rms_eps"], is_grouped)
    label = f"{v.meta.source}: {v.meta.arch}"
    if cfg.n_v_head % cfg.n_k_head:
        raise MtprefError(
            f"{label}.ssm.time_step_rank {cfg.n_v_head} is no multiple of {v.meta.arch}.ssm.group_count "
            f"{cfg.n_k_head}; convert the model again"
        )
    if v["d_inner"] != cfg.d_inner:
        raise MtprefError(
            f"{label}.ssm.inner_size is {v['d_inner']}, expected {cfg.d_inner} = state_size * time_step_rank; "
            "convert the model again"
        )
    return cfg


def _state(cfg: DeltaConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_r: the last d_conv - 1 raw rows, oldest first; cache_s: (H_v, value, key). Always float32."""
    return (
        StateSpec("cache_r", (cfg.d_conv - 1, cfg.conv_dim), positional=False),
        StateSpec("cache_s", (cfg.n_v_head, cfg.d_state, cfg.d_state), positional=False),
    )


def _forward(w: LayerWeights, cfg: DeltaConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    conv, ssm = state.arrays["cache_r"], state.arrays["cache_s"]
    y, windows, states = span.ops.delta_layer(span.ops, w, cfg, x, conv, ssm, span.keep, tap)
    state.arrays.update(cache_r=windows[-1], cache_s=states[-1])
    state.planes = {"cache_r": windows, "cache_s": states}
    return y


GATED_DELTA_NET = LayerKind("gated_delta_net", _configure, _state, _forward)
# The same with key heads in groups (S50): files that keep the checkpoint's order of value heads.
GROUPED_DELTA_NET = LayerKind("gated_delta_net", partial(_configure, is_grouped=True), _state, _forward)
