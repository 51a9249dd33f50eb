"""The gated DeltaNet layer kind. Its numerics are mtpref/spec/ops/compose.py:delta_layer (S6, S9, S11 to S14)."""

from dataclasses import replace
from functools import partial

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import DeltaConfig, Values
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span
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


_LEFT = "that earlier tokens left (zero at the start; rolled back after a rejection)"
_CONV_IN = ("conv_states", "linear_attn_qkv_mixed")
_RECUR_IN = ("k_conv_predelta", "v_conv_predelta", "gate", "beta_sigmoid", "state_predelta")
GRAPH = {
    "linear_attn_qkv_mixed": Made((INPUT,)),
    "z": Made((INPUT,)),
    "conv_states": Made((), f"the conv window {_LEFT}"),
    "conv_input": Made(_CONV_IN, "the window, then the rows of the batch"),
    "conv_output_raw": Made(_CONV_IN, "convolution with blk.{i}.ssm_conv1d.weight", (spec.conv_silu,)),
    "conv_output_silu": Made(_CONV_IN, "convolution with blk.{i}.ssm_conv1d.weight, then silu", (spec.conv_silu,)),
    "q_conv_predelta": Made(
        ("conv_output_silu",), "its first H_k heads, l2_norm, epsilon inside the sum", (spec.l2_norm,)
    ),
    "k_conv_predelta": Made(
        ("conv_output_silu",), "its next H_k heads, l2_norm, epsilon inside the sum", (spec.l2_norm,)
    ),
    "v_conv_predelta": Made(("conv_output_silu",), "its last H_v heads"),
    "alpha": Made((INPUT,), "product with blk.{i}.ssm_alpha.weight", (spec.mul_mat_exact,)),
    "a_softplus": Made((INPUT,), "softplus of the product with ssm_alpha plus ssm_dt.bias", (spec.delta_gates,)),
    "gate": Made(
        (INPUT,),
        "blk.{i}.ssm_alpha.weight, softplus with ssm_dt.bias, times ssm_a",
        (spec.mul_mat_exact, spec.delta_gates),
    ),
    "beta": Made((INPUT,), "product with blk.{i}.ssm_beta.weight", (spec.mul_mat_exact,)),
    "beta_sigmoid": Made((INPUT,), "blk.{i}.ssm_beta.weight, then sigmoid", (spec.mul_mat_exact, spec.delta_gates)),
    "state_predelta": Made((), f"the recurrent state {_LEFT}"),
    "attn_output": Made(
        ("q_conv_predelta", *_RECUR_IN), "the delta rule; v-head h reads q- and k-head h mod H_k", (spec.delta_rule,)
    ),
    "new_state": Made(_RECUR_IN, "the delta rule's state", (spec.delta_rule,)),
    "final_output": Made(
        ("attn_output", "z"), "rms_norm of each head with blk.{i}.ssm_norm.weight, times silu(z)", (spec.gated_norm,)
    ),
    "linear_attn_out": Made(("final_output",)),
}
GATED_DELTA_NET = LayerKind("gated_delta_net", _configure, _state, _forward, GRAPH)
_RULE = replace(GRAPH["attn_output"], step="the delta rule; v-head h reads q- and k-head h // (H_v / H_k)")
GROUPED = GRAPH | {"attn_output": _RULE}
# The same with key heads in groups (S50): files that keep the checkpoint's order of value heads.
GROUPED_DELTA_NET = LayerKind("gated_delta_net", partial(_configure, is_grouped=True), _state, _forward, GROUPED)
