"""The Kimi delta attention layer kind. Its numerics are mtpref/spec/ops/compose_kda.py:kda_layer (S6, S9, S11, S128 to
S131)."""

from collections.abc import Callable
from typing import Any

from mtpref import spec
from mtpref.base.errors import UnsupportedError
from mtpref.spec.config import KdaConfig, Values
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, StateSpec


def _configure(v: Values) -> KdaConfig:
    if not v["has_safe_gate"]:
        raise UnsupportedError(
            f"{v.meta.source}: key {v.meta.arch}.kda.safe_gate is false, expected true: llama.cpp's graph knows a "
            "bounded decay alone"
        )
    return KdaConfig(v["n_embd"], v["d_conv"], v["n_head"], v["n_kda"], v["lower_bound"], v["rms_eps"])


def _state(cfg: KdaConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_r: the last d_conv - 1 raw rows of q, k and v side by side, oldest first; cache_s: (H, value, key). Always
    float32."""
    return (
        StateSpec("cache_r", (cfg.d_conv - 1, cfg.conv_dim), positional=False),
        StateSpec("cache_s", (cfg.n_head, cfg.size, cfg.size), positional=False),
    )


def _forward(w: LayerWeights, cfg: KdaConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    conv, ssm = state.arrays["cache_r"], state.arrays["cache_s"]
    y, windows, states = span.ops.kda_layer(span.ops, w, cfg, x, conv, ssm, span.keep, tap)
    state.arrays.update(cache_r=windows[-1], cache_s=states[-1])
    state.planes = {"cache_r": windows, "cache_s": states}
    return y


_LEFT = "that earlier tokens left (zero at the start; rolled back after a rejection)"
_NORMED = "l2_norm, epsilon inside the sum"
_RECUR_IN = ("k_conv_predelta", "v_conv_predelta", "kda_gate", "beta_sigmoid", "state_predelta")


def _made(part: str, more: str = "") -> Made:
    step = f"product with blk.{{i}}.attn_{part}.weight, convolution with blk.{{i}}.ssm_conv1d_{part}.weight, silu{more}"
    rules: tuple[Callable[..., Any], ...] = (spec.mul_mat_exact, spec.conv_silu)
    return Made((INPUT, "conv_states"), step, (*rules, spec.l2_norm) if more else rules)


GRAPH = {
    "conv_states": Made((), f"the windows of the three convolutions {_LEFT}"),
    "kda_gate": Made(
        (INPUT,),
        "product with blk.{i}.ssm_f_a.weight plus ssm_dt.bias, times ssm_a of the head, sigmoid, times the lower bound",
        (spec.mul_mat_exact, spec.channel_gates),
    ),
    "beta_sigmoid": Made((INPUT,), "blk.{i}.ssm_beta.weight, then sigmoid", (spec.mul_mat_exact, spec.channel_gates)),
    "q_conv_predelta": _made("q", f", {_NORMED}"),
    "k_conv_predelta": _made("k", f", {_NORMED}"),
    "v_conv_predelta": _made("v"),
    "state_predelta": Made((), f"the recurrent state {_LEFT}"),
    "kda_scan_out": Made(
        ("q_conv_predelta", *_RECUR_IN),
        "the delta rule, each channel of a key with its own decay",
        (spec.channel_delta_rule,),
    ),
    "new_state": Made(_RECUR_IN, "the delta rule's state", (spec.channel_delta_rule,)),
    "kda_g2": Made((INPUT,), "product with blk.{i}.ssm_g_a.weight", (spec.mul_mat_exact,)),
    "kda_normed": Made(
        ("kda_scan_out", "kda_g2"),
        "rms_norm of each head with blk.{i}.ssm_norm.weight, times sigmoid of the gate",
        (spec.sigmoid_gated_norm,),
    ),
    "kda_out": Made(("kda_normed",)),
}
KDA = LayerKind("kda", _configure, _state, _forward, GRAPH)
