"""RoPE scaling: what a file's keys and a caller's overrides come to.

Owns the parameters of linear and YaRN scaling and llama.cpp's rules for what is set by whom. It reads no file
(config.py does) and computes no angle (S10 in mtpref/spec does).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mtpref.base.settings import Bounds, OneOf, check_fields

TYPES = ("none", "linear", "yarn")
MIN_FACTOR, MAX_FACTOR = 1.0 / 1024, 1e6  # of the context; beyond it a key is wrong
BETA_FAST, BETA_SLOW = 32.0, 1.0  # rotations over the original context; the defaults of YaRN's paper
MAX_ANGLE = 1 << 20  # sincos64 (S3) is stated for angles below it


@dataclass(frozen=True)
class RopeScaling:
    """Parameters of the scaled rotary embedding (S10). The default is no scaling.

    A pair's frequency is multiplied by freq_scale, save the share that YaRN leaves as it is where ext_factor is not
    0; cosine and sine are multiplied by a magnitude. Numbers are float32 values, as llama.cpp holds them.
    """

    type: str = "none"  # rope.scaling.type
    freq_scale: float = 1.0  # 1 / rope.scaling.factor
    n_ctx_orig: int = 0  # rope.scaling.original_context_length, else context_length
    ext_factor: float = 0.0  # rope.scaling.yarn_ext_factor: 0 is linear scaling of every pair
    attn_factor: float = 1.0  # rope.scaling.attn_factor
    yarn_attn_factor: float = 1.0  # rope.scaling.yarn_attn_factor: counts only where ext_factor is 0
    log_multiplier: float = 0.0  # rope.scaling.yarn_log_multiplier
    beta_fast: float = BETA_FAST  # rope.scaling.yarn_beta_fast
    beta_slow: float = BETA_SLOW  # rope.scaling.yarn_beta_slow


# Limits of a number, for keys and overrides alike.
LIMITS: dict[str, tuple[float, float]] = {
    "ext_factor": (0.0, 100.0),
    "attn_factor": (1e-3, 1e3),
    "log_multiplier": (0.0, 100.0),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
}


def _limited(name: str) -> Bounds:
    return Bounds(*LIMITS[name])


@dataclass(frozen=True, kw_only=True)
class RopeOverrides:
    """What a caller sets in place of a file's RoPE keys; None leaves the file's (llama.cpp's --rope-* and --yarn-*).

    Errors  SettingError, one line, for a value out of range
    """

    scaling_type: Annotated[str, OneOf(TYPES)] | None = None  # --rope-scaling
    freq_scale: Annotated[float, Bounds(1.0 / MAX_FACTOR, 1.0 / MIN_FACTOR)] | None = None  # or 1 / --rope-scale
    freq_base: Annotated[float, Bounds(1.0, 1e12)] | None = None  # --rope-freq-base
    n_ctx_orig: Annotated[int, Bounds(1, 1 << 24)] | None = None  # --yarn-orig-ctx
    ext_factor: Annotated[float, _limited("ext_factor")] | None = None  # --yarn-ext-factor
    attn_factor: Annotated[float, _limited("attn_factor")] | None = None  # --yarn-attn-factor
    beta_fast: Annotated[float, _limited("beta_fast")] | None = None  # --yarn-beta-fast
    beta_slow: Annotated[float, _limited("beta_slow")] | None = None  # --yarn-beta-slow

    def __post_init__(self) -> None:
        check_fields(self)


def freq_scale_of(factor: float) -> float:
    """1 / factor in float32: the number that llama.cpp computes with. 0 is "not set", so 1."""
    return 1.0 if factor == 0.0 else float(np.float32(1.0) / np.float32(factor))


def resolve(keys: Mapping[str, float | int | str], overrides: RopeOverrides) -> RopeScaling:
    """The scaling of a run: the file's `keys` (named as RopeScaling's fields), then the overrides.

    Rule     type none sets freq_scale to 1; an unset ext_factor is 1 in type yarn and 0 otherwise, and it alone
             decides whether YaRN's rule holds
    Source   llama.cpp, src/llama-context.cpp
    """
    scaling_type = overrides.scaling_type or str(keys["type"])
    unset = 1.0 if scaling_type == "yarn" else 0.0
    freq_scale = float(keys["freq_scale"] if overrides.freq_scale is None else overrides.freq_scale)
    chosen = {"ext_factor": unset, "beta_fast": BETA_FAST, "beta_slow": BETA_SLOW} | {
        name: value for name, value in keys.items() if name not in ("type", "freq_scale")
    }
    for name, value in (
        ("n_ctx_orig", overrides.n_ctx_orig),
        ("ext_factor", overrides.ext_factor),
        ("yarn_attn_factor", overrides.attn_factor),
        ("beta_fast", overrides.beta_fast),
        ("beta_slow", overrides.beta_slow),
    ):
        if value is not None:
            chosen[name] = value
    scale = 1.0 if scaling_type == "none" else float(np.float32(freq_scale))
    return RopeScaling(type=scaling_type, freq_scale=scale, **chosen)  # type: ignore[arg-type]
