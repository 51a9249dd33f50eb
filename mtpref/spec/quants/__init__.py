"""Tensor block formats: sizes of every ggml type, decoders of all that can be decoded, encoders of the simple ones.

Owns the byte layouts. Knows nothing of files, tensor names or models. A decoder gives the same bits as the `gguf`
package: float32 arithmetic in the order that its docstring states. Block structures are those of
ggml/src/ggml-common.h; functions are those of ggml/src/ggml-quants.c.

Read in this order: sizes, floats, legacy (Q4_0 .. Q8_0), k_quants (Q2_K .. Q6_K), then the types that are only
decoded: codebook, ternary, grids; codec has `dequantize` and `quantize`. The products build on `unpack_legacy` and
`unpack_k`, which give the integers of a block without the floats.
"""

from mtpref.spec.quants.codec import DEQUANTIZABLE, QUANTIZABLE, dequantize, quantize, row_bytes
from mtpref.spec.quants.k_quants import (
    K_TYPES,
    KBlocks,
    q2_k_quants,
    q3_k_quants,
    q3_k_scales,
    q4_k_quants,
    q4_k_scales,
    q5_k_quants,
    q6_k_quants,
    q6_k_scales,
    unpack_k,
)
from mtpref.spec.quants.legacy import LEGACY_TYPES, LegacyBlocks, unpack_legacy
from mtpref.spec.quants.sizes import TYPE_IDS, TYPES, QuantType

__all__ = [
    "DEQUANTIZABLE",
    "K_TYPES",
    "LEGACY_TYPES",
    "QUANTIZABLE",
    "TYPES",
    "TYPE_IDS",
    "KBlocks",
    "LegacyBlocks",
    "QuantType",
    "dequantize",
    "q2_k_quants",
    "q3_k_quants",
    "q3_k_scales",
    "q4_k_quants",
    "q4_k_scales",
    "q5_k_quants",
    "q6_k_quants",
    "q6_k_scales",
    "quantize",
    "row_bytes",
    "unpack_k",
    "unpack_legacy",
]
