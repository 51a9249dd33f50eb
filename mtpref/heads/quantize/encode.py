"""Rows of float32 to the bytes of a type.

Owns the choice of an encoder. The simple types are this project's own, byte for byte ggml's; K-quants, MXFP4, and
every type with an importance matrix, are ggml's own code through the package libgguf (extra `quantize`), since their
search for scales is nothing that a port has to follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.spec.quants import K_TYPES, QUANTIZABLE, TYPE_IDS, quantize, row_bytes

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
ENCODABLE = (*QUANTIZABLE, *K_TYPES, "MXFP4")
WEIGHTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_TYPES)  # that importance changes


def needs_library(kind: str, *, weighted: bool) -> bool:
    """Whether the extra `quantize` is needed."""
    return kind not in QUANTIZABLE or (weighted and kind in WEIGHTED)


def encode(kind: str, rows: F32, weights: F32 | None = None) -> U8:
    """Encode rows.

    Shapes    rows: (n, n_in) float32    weights: (n_in,) float32, the importance of each column, or None
    Returns   (n, row_bytes) uint8
    Errors    MtprefError for a type without encoder, or one whose encoder is not installed
    """
    if kind not in ENCODABLE:
        raise MtprefError(f"type {kind}: no encoder, expected one of {', '.join(ENCODABLE)}")
    if not needs_library(kind, weighted=weights is not None):
        return quantize(kind, rows)
    made = library().quantize_rows(np.ascontiguousarray(rows, np.float32), TYPE_IDS[kind], weights)
    return np.asarray(made, np.uint8).reshape(len(rows), row_bytes(kind, rows.shape[-1]))


def library() -> Any:
    """The package libgguf, which is ggml's quantisers.

    Errors   MtprefError where it is not installed
    """
    try:
        import libgguf
    except ImportError as error:
        raise MtprefError(
            "K-quants (the mixtures of Q4_0 to Q5_1 have some, too), MXFP4 and importance matrices need "
            f"the package libgguf ({error}); try: pip install libgguf, or the type Q8_0 without "
            "`importance`"
        ) from None
    return libgguf
