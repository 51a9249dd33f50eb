"""The Mamba-2 layer kind. Its numerics are mtpref/spec/ops/compose_ssm.py:ssm_layer (S6, S49, S122 to S125)."""

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import SsmConfig, Values
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState, StateSpec


def _configure(v: Values) -> SsmConfig:
    cfg = SsmConfig(v["n_embd"], v["d_conv"], v["d_inner"], v["d_state"], v["n_ssm_head"], v["n_group"], v["rms_eps"])
    label = f"{v.meta.source}: key {v.meta.arch}"
    for key, count in (("time_step_rank", cfg.n_head), ("group_count", cfg.n_group)):
        if cfg.d_inner % count:
            raise MtprefError(f"{label}.ssm.inner_size is {cfg.d_inner}, expected a multiple of ssm.{key} = {count}; "
                              "convert the model again")  # fmt: skip
    if cfg.n_head % cfg.n_group:
        raise MtprefError(f"{label}.ssm.time_step_rank is {cfg.n_head}, expected a multiple of ssm.group_count = "
                          f"{cfg.n_group}; convert the model again")  # fmt: skip
    return cfg


def _state(cfg: SsmConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_r: the last d_conv - 1 raw rows, oldest first; cache_s: (H, P, N). Always float32."""
    return (
        StateSpec("cache_r", (cfg.d_conv - 1, cfg.conv_dim), positional=False),
        StateSpec("cache_s", (cfg.n_head, cfg.d_inner // cfg.n_head, cfg.d_state), positional=False),
    )


def _forward(w: LayerWeights, cfg: SsmConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    conv, ssm = state.arrays["cache_r"], state.arrays["cache_s"]
    y, windows, states = span.ops.ssm_layer(span.ops, w, cfg, x, conv, ssm, span.keep, tap)
    state.arrays.update(cache_r=windows[-1], cache_s=states[-1])
    state.planes = {"cache_r": windows, "cache_s": states}
    return y


_ROWS = "product with blk.{i}.ssm_in.weight: gate, rows of the convolution (x, b, c), step; "
GRAPH = {
    "conv_output_silu": Made(
        (INPUT,),
        _ROWS + "convolution over the rows before it with blk.{i}.ssm_conv1d.weight, plus blk.{i}.ssm_conv1d.bias, "
        "then silu",
        (spec.mul_mat_exact, spec.conv_bias_silu),
    ),
    "state_prescan": Made((), "the recurrent state that earlier tokens left (zero at the start)"),
    "scan_output": Made(
        ("conv_output_silu", "state_prescan", INPUT),
        "the scan, its steps with blk.{i}.ssm_dt.bias and blk.{i}.ssm_a; head h reads b and c of group h // (H / G)",
        (spec.add_bias, spec.ssm_scan),
    ),
    "new_state": Made(("conv_output_silu", "state_prescan", INPUT), "the scan's state", (spec.ssm_scan,)),
    "final_output": Made(
        ("scan_output", "conv_output_silu", INPUT),
        "plus x times blk.{i}.ssm_d, times silu(gate), rms_norm of each group with blk.{i}.ssm_norm.weight",
        (spec.gated_group_norm,),
    ),
    "mamba_out": Made(("final_output",)),
}
SSM = LayerKind("ssm", _configure, _state, _forward, GRAPH)
