"""Digests: a few numbers that stand for a tensor, so that vectors of a real model can be committed.

Owns what they hold and when two tensors cannot have been within a class of each other. A digest can only refute: a
tensor that passes may still differ in values that are not shown.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
N_ENDS = 8


def digest_of(array: F32) -> dict[str, Any]:
    """n, SHA-256 of the little-endian float32 bytes, sum, l2 norm, greatest magnitude, first and last values.

    Dtypes  sum and norm in float64, added exactly (math.fsum); floats as hex strings
    """
    values = np.ascontiguousarray(array, np.float32).reshape(-1)
    wide = values.astype(np.float64)
    return {
        "n": int(values.size),
        "sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
        "sum": math.fsum(wide).hex(),
        "norm": math.sqrt(math.fsum(wide * wide)).hex(),
        "abs_max": float(np.abs(wide).max(initial=0.0)).hex(),
        "first": [float(x).hex() for x in wide[:N_ENDS]],
        "last": [float(x).hex() for x in wide[-N_ENDS:]],
    }


def digest_difference(wanted: Mapping[str, Any], array: F32, limit: float) -> str | None:
    """Why a tensor cannot be within NMSE `limit` of the digest's; None where it may be.

    Rule    equal bytes pass. Else with r = sqrt(limit) * norm: norms, magnitudes and shown values may differ by r, sums
            by r * sqrt(n), since sum((a - b)^2) <= limit * sum(a^2) bounds them so
    """
    found = digest_of(array)
    if found["sha256"] == wanted["sha256"]:
        return None
    if limit == 0.0:
        return "other bytes than the digest's"
    if found["n"] != int(wanted["n"]):
        return f"{found['n']} values, expected {wanted['n']}"
    if not np.isfinite(array).all():
        return "not finite"
    reach = math.sqrt(limit) * float.fromhex(wanted["norm"])
    for name, allowed in (("norm", reach), ("abs_max", reach), ("sum", reach * math.sqrt(found["n"]))):
        a, b = float.fromhex(wanted[name]), float.fromhex(found[name])
        if not abs(a - b) <= allowed:
            return f"{name} {b:.6g}, expected {a:.6g} within {allowed:.1e}"
    for name in ("first", "last"):
        for i, (a, b) in enumerate(zip(wanted[name], found[name], strict=False)):
            if not abs(float.fromhex(a) - float.fromhex(b)) <= reach:
                at = i if name == "first" else i - len(wanted[name])
                return f"value [{at}] {float.fromhex(b):.6g}, expected {float.fromhex(a):.6g} within {reach:.1e}"
    return None
