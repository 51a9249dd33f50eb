"""How far a healthy run may be from stock llama.cpp's: limits by weight type. The one place that has them."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """nmse  of logits in `ggml` and in `exact` numerics    p, margin  see agree.Agreement    gap  a router's gap (S44)
    below which another expert may be chosen"""

    ggml: float
    exact: float
    p: float
    margin: float
    gap: float


# By the coarsest weight type of the file. Rounding differs: ggml's vector code rounds some activations to other codes
# than its scalar reference, and a deep model adds that up. A wrong tensor gives an NMSE near 1. docs/checks.md has what
# was measured. gap: how far a jitter of 3e-7 in each norm moves the router gaps of small models by such roundings
# (Q8_0 0.004, Q4_K 0.026).
LIMITS = {
    "F32": Limits(1e-6, 1e-6, 0.0015, 0.01, 1e-6),
    "F16": Limits(1e-4, 1e-4, 0.01, 0.05, 1e-4),
    "BF16": Limits(5e-4, 2e-3, 0.03, 0.1, 1e-3),
    "Q8_0": Limits(2e-3, 5e-3, 0.06, 0.2, 5e-3),
    "other": Limits(5e-3, 2e-2, 0.12, 0.5, 0.03),
}
EXACT_FACTOR = 3


def limits_of(types: Collection[str]) -> tuple[Limits, str]:
    """The limits of the coarsest of these weight types, and its name. LIMITS is in the order of coarseness."""
    order = [name for name in LIMITS if name != "other"]
    coarse = sorted(set(types) - set(order))
    if coarse:
        return LIMITS["other"], coarse[0]
    kind = max(types, key=order.index)
    return LIMITS[kind], kind


def router_gap(types: Collection[str]) -> float:
    """The router gap below which a healthy port may choose another expert."""
    return limits_of(types)[0].gap


def decision_limits(types: Collection[str], numerics: str) -> tuple[float, float, str]:
    """How far a candidate's p may be off, below which margin a target's choice may turn, and the coarsest type."""
    limits, kind = limits_of(types)
    factor = EXACT_FACTOR if numerics == "exact" and kind != "F32" else 1
    return limits.p * factor, limits.margin * factor, kind
