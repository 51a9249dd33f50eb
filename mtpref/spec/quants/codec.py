"""`dequantize` and `quantize`: whole tensors or parts of them, in bounded steps."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.quants import codebook, floats, grids, k_quants, legacy, ternary
from mtpref.spec.quants.sizes import F32, U8, type_of

# (n_blocks, block_bytes) uint8 -> (n_blocks, block_elements) float32
_DECODERS: dict[str, Callable[[U8], F32]] = {
    "F32": floats.decode_f32,
    "F16": floats.decode_f16,
    "BF16": floats.decode_bf16,
    **{name: partial(legacy.decode_legacy, name) for name in legacy.LEGACY_TYPES},
    **{name: partial(k_quants.decode_k, name) for name in k_quants.K_TYPES},
    "IQ4_NL": codebook.decode_iq4_nl,
    "IQ4_XS": codebook.decode_iq4_xs,
    "MXFP4": codebook.decode_mxfp4,
    "NVFP4": codebook.decode_nvfp4,
    "TQ1_0": ternary.decode_tq1_0,
    "TQ2_0": ternary.decode_tq2_0,
    "Q1_0": ternary.decode_q1_0,
    "Q2_0": ternary.decode_q2_0,
    **{name: partial(grids.decode_grid, name) for name in grids.GRID_TYPES},
}
DEQUANTIZABLE: tuple[str, ...] = tuple(_DECODERS)

# (n_blocks, block_elements) float32 -> (n_blocks, block_bytes) uint8
_ENCODERS: dict[str, Callable[[F32], U8]] = {
    "F32": floats.encode_f32,
    "F16": floats.encode_f16,
    "BF16": floats.encode_bf16,
    **{name: partial(legacy.encode_legacy, name) for name in legacy.LEGACY_TYPES},
}
QUANTIZABLE: tuple[str, ...] = tuple(_ENCODERS)

# Values decoded at a time: bounds the temporaries (at most about 40 bytes a value) whatever the tensor's size.
CHUNK_ELEMENTS = 1 << 16


def row_bytes(type_name: str, n: int) -> int:
    """Bytes of one row of n values. MtprefError when n is not a multiple of the block size."""
    t = type_of(type_name)
    if n % t.block_elements:
        raise MtprefError(
            f"{type_name}: row of {n} values, expected a multiple of its block size {t.block_elements}; "
            "choose F32, F16, BF16 or Q8_0 for such rows"
        )
    return n // t.block_elements * t.block_bytes


def dequantize(type_name: str, raw: U8, shape: tuple[int, ...]) -> F32:
    """Decode a whole tensor to float32, bit-equal with gguf.quants.dequantize.

    Shapes   raw: uint8, the tensor's bytes    shape: NumPy order, at least one dimension, the last is the row
    Errors   MtprefError: type without decoder, row no multiple of the block, wrong byte count
    """
    decode = _DECODERS.get(type_name)
    if decode is None:
        raise UnsupportedError(
            f"tensor type {type_name}: no decoder, expected one of {', '.join(DEQUANTIZABLE)}; "
            "requantise the file, for example with llama-quantize to Q8_0"
        )
    n = math.prod(shape)
    expected = n // max(shape[-1], 1) * row_bytes(type_name, shape[-1])
    flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if flat.size != expected:
        raise MtprefError(f"{type_name} tensor of shape {shape}: {flat.size} bytes, expected {expected}")
    t = type_of(type_name)
    blocks = flat.reshape(-1, t.block_bytes)
    out = np.empty((len(blocks), t.block_elements), np.float32)
    step = CHUNK_ELEMENTS // t.block_elements
    # A damaged block may hold an infinite or NaN scale: that is data here, not an arithmetic mishap.
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            out[i : i + step] = decode(blocks[i : i + step])
    return out.reshape(shape)


def quantize(type_name: str, x: npt.NDArray[np.floating]) -> U8:
    """Encode rows, byte-equal with gguf.quants.quantize (ggml's scalar reference).

    Shapes   x: (..., n) floating, taken as float32    out: (..., row_bytes(type_name, n)) uint8
    Errors   MtprefError: type without encoder, row no multiple of the block, values that a scale cannot hold
    """
    encode = _ENCODERS.get(type_name)
    if encode is None:
        raise MtprefError(f"tensor type {type_name}: no encoder, expected one of {', '.join(QUANTIZABLE)}")
    if x.ndim == 0:
        raise MtprefError(f"{type_name}: a scalar cannot be encoded, expected at least one dimension")
    n_bytes = row_bytes(type_name, x.shape[-1])
    t = type_of(type_name)
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, t.block_elements)
    out = np.empty((len(blocks), t.block_bytes), np.uint8)
    step = CHUNK_ELEMENTS // t.block_elements
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            out[i : i + step] = encode(blocks[i : i + step])
    return out.reshape(*x.shape[:-1], n_bytes)
