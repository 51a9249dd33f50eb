"""The gated DeltaNet layer kind. Its numerics are mtpref/ops/compose.py:delta_layer (S6, S9, S11 to S14)."""

from mtpref.config import DeltaConfig, read_delta_config
from mtpref.model.kinds import F32, LayerKind, Span, TensorSlot
from mtpref.ops import LayerTap, LayerWeights
from mtpref.state import LayerState, StateSpec


def _tensors(cfg: DeltaConfig) -> tuple[TensorSlot, ...]:
    return (
        TensorSlot("attn_qkv.weight", (cfg.conv_dim, cfg.n_embd), True),
        TensorSlot("attn_gate.weight", (cfg.d_inner, cfg.n_embd), True),
        TensorSlot("ssm_conv1d.weight", (cfg.conv_dim, cfg.d_conv), False),
        TensorSlot("ssm_dt.bias", (cfg.n_v_heads,), False),
        TensorSlot("ssm_a", (cfg.n_v_heads,), False),
        TensorSlot("ssm_beta.weight", (cfg.n_v_heads, cfg.n_embd), True),
        TensorSlot("ssm_alpha.weight", (cfg.n_v_heads, cfg.n_embd), True),
        TensorSlot("ssm_norm.weight", (cfg.d_state,), False),
        TensorSlot("ssm_out.weight", (cfg.n_embd, cfg.d_inner), True),
    )


def _state(cfg: DeltaConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_r: the last d_conv - 1 raw rows, oldest first; cache_s: (H_v, value, key). Always float32."""
    return (
        StateSpec("cache_r", (cfg.d_conv - 1, cfg.conv_dim), positional=False),
        StateSpec("cache_s", (cfg.n_v_heads, cfg.d_state, cfg.d_state), positional=False),
    )


def _forward(w: LayerWeights, cfg: DeltaConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    conv, ssm = state.arrays["cache_r"], state.arrays["cache_s"]
    y, windows, states = span.ops.delta_layer(span.ops, w, cfg, x, conv, ssm, span.keep, tap)
    state.arrays.update(cache_r=windows[-1], cache_s=states[-1])
    state.planes = {"cache_r": windows, "cache_s": states}
    return y


GATED_DELTA_NET = LayerKind("gated_delta_net", read_delta_config, _tensors, _state, _forward)
