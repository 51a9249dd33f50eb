"""Attention through a latent row (MLA). Its numerics are mtpref/spec/ops/compose_latent.py (S6, S8, S15, S16, S53 to
S58)."""

from dataclasses import replace

import numpy as np

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import LatentConfig, Values, read_rope_scaling
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span, rope_constants
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.rope_scaling import LIMITS
from mtpref.spec.state import LayerState, StateSpec

LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"


def configure(
    v: Values, *, reads_log_multiplier: bool = True, is_mscale_all_dim: bool = True, is_absorbed: bool = False
) -> LatentConfig:
    """The hyper-parameters of a layer.

    reads_log_multiplier  whether the architecture's files tell mscale_all_dim
    is_mscale_all_dim     whether mscale is taken to be that too (YaRN); else it is 1
    is_absorbed           whether there are no files but in the absorbed form
    """
    n_key, n_rot, n_latent = v["n_key"], v["n_rot"], v["n_latent"]
    label = f"{v.meta.source}: key {v.meta.arch}"
    if n_rot % 2 or n_rot >= n_key:
        raise MtprefError(f"{label}.rope.dimension_count is {n_rot}, expected an even count below {n_key}, the width "
                          "of a head's key; try: mtpref inspect FILE")  # fmt: skip
    is_absorbed = is_absorbed or all(v.meta.has(f"attention.{n}_length_mla") for n in ("key", "value"))
    if is_absorbed and (v["n_embd_head"], v["n_embd_head_v"]) != (n_latent + n_rot, n_latent):
        raise MtprefError(
            f"{label}.attention.key_length is {v['n_embd_head']} and value_length {v['n_embd_head_v']}, expected "
            f"{n_latent + n_rot} = kv_lora_rank + rope.dimension_count and {n_latent} = kv_lora_rank; convert the "
            "model again"
        )
    n_head_kv = 1 if is_absorbed else v["n_head"]
    if v["n_head_kv"] != n_head_kv:
        every = "without attention.key_length_mla every head has a key and a value of its own"
        why = "one row serves all heads" if is_absorbed else every
        raise MtprefError(f"{label}.attention.head_count_kv is {v['n_head_kv']}, expected {n_head_kv}: {why}; convert "
                          "the model again")  # fmt: skip
    if v.meta.has("attention.temperature_scale") and v.meta.f32("attention.temperature_scale", low=-1e9, high=1e9):
        raise UnsupportedError(f"{label}.attention.temperature_scale is not 0: scores that are scaled by position are "
                               "not supported, expected no such key")  # fmt: skip
    freq_base = v["freq_base"] if v.meta.rope.freq_base is None else v.meta.rope.freq_base
    low, high = LIMITS["log_multiplier"]
    tenth = v.meta.f32(LOG_MULTIPLIER, 0.0, low=low, high=high) if reads_log_multiplier else 0.0
    cfg = LatentConfig(
        n_embd=v["n_embd"],
        n_head=v["n_head"],
        n_key=n_key,
        n_value=v["n_value"],
        n_latent=n_latent,
        n_rot=n_rot,
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        is_absorbed=is_absorbed,
        rope_scaling=replace(read_rope_scaling(v.meta, freq_base), log_multiplier=tenth),
        is_mscale_all_dim=is_mscale_all_dim,
    )
    return replace(cfg, scale=_scale(cfg))


def _scale(cfg: LatentConfig) -> float:
    scaling = cfg.rope_scaling
    magnitude = rope_constants(cfg.rotary)[2]
    if not scaling.ext_factor:
        magnitude *= 1.0 - 0.1 * float(np.log(np.float64(np.float32(scaling.freq_scale))))
    return spec.latent_scale(cfg.n_key, cfg.n_row, scaling.freq_scale, magnitude, cfg.mscale_all_dim)


def _state(cfg: LatentConfig, kv_type: str) -> tuple[StateSpec, ...]:
    """cache_k: one row [c | k_pe] a position, for all heads; of an older file every head's key, and cache_v."""
    if cfg.is_absorbed:
        return (StateSpec("cache_k", (1, cfg.n_row), positional=True, kv_type=kv_type),)
    shape = (cfg.n_head, cfg.n_row)
    return (
        StateSpec("cache_k", shape, positional=True, kv_type=kv_type),
        StateSpec("cache_v", shape, positional=True, kv_type=kv_type),
    )


def _forward(w: LayerWeights, cfg: LatentConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    ops, n_cells, kv_type = span.ops, span.first + len(x), state.specs[0].kv_type
    table, keys = span.rope_cos_sin(cfg.rotary), state.arrays["cache_k"][:n_cells]
    if cfg.is_absorbed:
        return ops.latent_attn_layer(ops, w, cfg, x, keys, kv_type, span.first, table, tap)
    values = state.arrays["cache_v"][:n_cells]
    return ops.expanded_attn_layer(ops, w, cfg, x, keys, values, kv_type, span.first, table, tap)


_PRODUCT = (spec.mul_mat_exact,)
_ROPE = "RoPE, neighbours paired"
GRAPH = {
    "q": Made(
        (INPUT,),
        "product with blk.{i}.attn_q_a.weight, rms_norm with blk.{i}.attn_q_a_norm.weight, product with "
        "blk.{i}.attn_q_b.weight (or one product with blk.{i}.attn_q.weight): each head [nope | rope]",
        (spec.mul_mat_exact, spec.rms_norm),
    ),
    "kv_cmpr_pe": Made((INPUT,), "product with blk.{i}.attn_kv_a_mqa.weight: latent, then the turned part", _PRODUCT),
    "kv_cmpr": Made(
        ("kv_cmpr_pe",), "the latent, rms_norm with blk.{i}.attn_kv_a_norm.weight", (spec.rms_norm,)
    ),
    "k_pe": Made(("kv_cmpr_pe",), f"the turned part, not normed: {_ROPE}", (spec.rope_interleaved,)),
    "q_pe": Made(("q",), f"the last n_rot dimensions of each head, {_ROPE}", (spec.rope_interleaved,)),
    "q_nope_absorbed_perm": Made(("q",), "each head's product with its matrix of blk.{i}.attn_k_b.weight", _PRODUCT,
                            instead=()),
    "kv": Made(("kv_cmpr",), "product with blk.{i}.attn_kv_b.weight: each head [k_nope | v]", _PRODUCT, instead=()),
    "Qcur": Made(
        ("q_nope_absorbed_perm", "q_pe", "q"), "[absorbed | turned] of each head ([nope | turned] in older files)"
    ),
    "Kcur": Made(("kv_cmpr", "k_pe", "kv"), "[latent | turned], a row for all heads (each head's in older files)"),
    "Vcur": Made(("kv",), "each head's value", instead=("kv_cmpr",)),
    "kqv_out": Made(("Qcur", "Kcur", "Vcur"), "causal attention, each head's product with its matrix of "
                    "blk.{i}.attn_v_b.weight", (spec.latent_scale, spec.attention, spec.mul_mat_exact)),
    "attn_output": Made(("kqv_out",)),
}  # fmt: skip
LATENT_ATTENTION = LayerKind("latent_attention", configure, _state, _forward, GRAPH)
