"""Shapes that files claim.

Owns the rule for both containers: whole numbers, few dimensions, and no axis that an array of this machine cannot have.
An axis of 2**40 beside one of 0 makes no bytes, and still breaks what multiplies the others first.
"""

import math
from collections.abc import Sequence

from mtpref.base.errors import MtprefError

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 48


def shape_bytes(shape: Sequence[int], item_bytes: int, what: str = "shape") -> int:
    """Bytes of an array of this shape; axes of 0 count as 1 for the limit alone.

    Errors   MtprefError for what is no shape
    """
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise MtprefError(f"{what} {str(tuple(shape))[:80]}, expected at most {MAX_DIMENSIONS} whole numbers")
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise MtprefError(f"{what} {str(tuple(shape))[:80]}, expected at most {MAX_ELEMENTS} elements")
    return math.prod(shape) * item_bytes
