"""S5 to S7: how weights meet activations: rounding to a type, activation quantisers, the matrix product.

Owns what `exact` and `ggml` numerics do with a weight matrix. It must not know which layer a matrix
belongs to. Read next: layers.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtpref import quants
from mtpref.errors import MtprefError
from mtpref.spec.arith import F32, dot32, dot64, fma32

Q8_0_BLOCK = 32
Q8_K_BLOCK = 256
N_SUB_BLOCKS = 8  # of 32 elements, in a Q4_K block of 256
N_Q6_SUB_BLOCKS = 16  # of 16 elements, in a Q6_K block of 256

# ggml's nearest_int adds 1.5 * 2**23 and takes the 23 mantissa bits of the sum, less those of the addend.
NEAREST_INT_MAGIC = np.float32(12582912.0)
MANTISSA_MASK = np.int32(0x007FFFFF)
NEAREST_INT_BITS = np.int32(0x00400000)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix as it lies in the file: never copied, never dequantised as a whole.

    type_name  ggml's name ("Q8_0"); raw: uint8 bytes, row after row; n_out rows of n_in elements.
    """

    name: str
    type_name: str
    n_out: int
    n_in: int
    raw: NDArray[np.uint8]

    @property
    def row_bytes(self) -> int:
        return self.raw.size // self.n_out

    def rows(self, first: int, last: int) -> "Matrix":
        """The rows first to last - 1, as a view."""
        raw = self.raw[first * self.row_bytes : last * self.row_bytes]
        return Matrix(self.name, self.type_name, last - first, self.n_in, raw)

    def dequantize(self) -> F32:
        return quants.dequantize(self.type_name, self.raw, (self.n_out, self.n_in))


def round_f16(x: F32) -> F32:
    """S5. x rounded to float16 (ties to even; infinity from 65520 up), returned as float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(np.asarray(x, np.float32).astype(np.float16).astype(np.float32))


def bf16_bits(x: F32) -> NDArray[np.uint16]:
    """S5. x rounded to bfloat16 (ties to even), as its 16 bits; a NaN stays NaN, made quiet."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.asarray(np.where(is_nan, quiet, rounded).astype(np.uint16))


def round_bf16(x: F32) -> F32:
    """S5. x rounded to bfloat16, returned as float32."""
    return np.asarray((bf16_bits(x).astype(np.uint32) << np.uint32(16)).view(np.float32))


def quantize_q8_0(x: F32) -> tuple[NDArray[np.int8], F32]:
    """S5. ggml's scalar Q8_0 activation quantiser, one block of 32.

    Rule     d = max|x| / 127; inv = 1 / d, or 0 where d = 0; code = round(x * inv), halves away from zero;
             d is stored as float16, the codes are made with the unrounded d
    Shapes   x: (..., n), n % 32 == 0 -> codes (..., n) int8, d (..., n / 32) float32 (a float16 value)
    Dtypes   float32 throughout
    Errors   none; a code is 0 where x * inv is not finite (1 / d overflows, or x is not a number)
    Source   ggml-quants.c, quantize_row_q8_0_ref. Its AVX2 twin rounds halves to even and multiplies by
             127 / max|x|: it differs from this rule in the last bit now and then.
    """
    blocks = x.reshape(*x.shape[:-1], -1, Q8_0_BLOCK)
    d = np.max(np.abs(blocks), axis=-1) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        inv = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
        scaled = blocks * inv[..., None]
    scaled = np.where(np.isfinite(scaled), scaled, np.float32(0))
    codes = np.trunc(scaled)
    codes += np.where(np.abs(scaled - codes) >= 0.5, np.sign(scaled), np.float32(0))
    return _to_int8(codes).reshape(x.shape), round_f16(d)


def quantize_q8_k(x: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """S5. ggml's Q8_K activation quantiser, one block of 256.

    Rule     m = the element of the greatest magnitude (the first one, with its sign); inv = -127 / m;
             code = min(127, round(inv * x)), halves to even; d = 1 / inv; all 0 where m = 0
    Shapes   x: (..., n), n % 256 == 0 -> codes (..., n) int8, d (..., n / 256) float32,
             sums of 16 codes (..., n / 16) int32
    Dtypes   float32 throughout
    Source   ggml-quants.c, quantize_row_q8_K_ref
    """
    blocks = x.reshape(*x.shape[:-1], -1, Q8_K_BLOCK)
    at = np.argmax(np.abs(blocks), axis=-1)
    m = np.take_along_axis(blocks, at[..., None], axis=-1)[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):
        inv = np.divide(np.float32(-127), m, out=np.zeros_like(m), where=m != 0)
        shifted = np.asarray(inv[..., None] * blocks + NEAREST_INT_MAGIC)
    rounded = (shifted.view(np.int32) & MANTISSA_MASK) - NEAREST_INT_BITS
    codes = np.minimum(rounded, 127).astype(np.int8).reshape(x.shape)
    d = np.divide(np.float32(1), inv, out=np.zeros_like(inv), where=inv != 0)
    sums = codes.reshape(*x.shape[:-1], -1, 16).sum(axis=-1, dtype=np.int32)
    return codes, d, sums


def mul_mat_exact(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `exact` numerics.

    Rule     each weight is dequantised to float32, then y_r = dot64(W_r, x)
    Shapes   w: (n_out, n_in), x: (T, n_in) -> (T, n_out)
    Dtypes   float32 in and out, products accumulated in float64 in the lane order
    """
    return dot64(w.dequantize()[None, :, :], x[:, None, :])


def mul_mat_ggml(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `ggml` numerics: x is brought to the type that ggml pairs with the weight's type.

    Rule     F32: y_r = dot32(W_r, x). F16, BF16: x is rounded to that type, then dot32.
             Q8_0: x to Q8_0; Q4_K, Q6_K: x to Q8_K; then block by block an exact integer dot and one fma32
    Shapes   w: (n_out, n_in), x: (T, n_in) -> (T, n_out)
    Dtypes   float32 in and out, accumulated in float32 as said
    Errors   MtprefError for a weight type without a rule
    Source   ggml-cpu.c, type_traits_cpu (vec_dot_type); the order of summation is this project's
    """
    if w.type_name not in GGML_PRODUCTS:
        known = ", ".join(GGML_PRODUCTS)
        raise MtprefError(f"{w.name}: no matrix product for type {w.type_name}, expected one of {known}; "
                          "requantise the file to one of them")  # fmt: skip
    return GGML_PRODUCTS[w.type_name](w, x)


def mul_mat_f32(w: Matrix, x: F32) -> F32:
    """S6. F32 weights: dot32 of the row and the activation."""
    return dot32(w.dequantize()[None, :, :], x[:, None, :])


def mul_mat_f16(w: Matrix, x: F32) -> F32:
    """S6. F16 weights: the activation is rounded to float16; products are exact in float32."""
    return dot32(w.dequantize()[None, :, :], round_f16(x)[:, None, :])


def mul_mat_bf16(w: Matrix, x: F32) -> F32:
    """S6. BF16 weights: the activation is rounded to bfloat16; products are exact in float32."""
    return dot32(w.dequantize()[None, :, :], round_bf16(x)[:, None, :])


def mul_mat_q8_0(w: Matrix, x: F32) -> F32:
    """S6. Q8_0 weights (d_w, w_i), Q8_0 activation (d_x, x_i).

    Formula  for each block of 32 in order: acc = fma32(float32(sum_i w_i x_i), d_w * d_x, acc), from acc = 0
    """
    d_w = _block_f16(w, 34, 0)
    codes_w = w.raw.view(np.int8).reshape(*d_w.shape, 34)[..., 2:].astype(np.int32)
    codes_x, d_x = quantize_q8_0(x)
    codes_x = codes_x.reshape(x.shape[0], -1, Q8_0_BLOCK).astype(np.int32)
    acc = np.zeros((x.shape[0], w.n_out), np.float32)
    for b in range(d_w.shape[1]):
        integer = codes_x[:, b] @ codes_w[:, b].T
        acc = fma32(integer.astype(np.float32), d_x[:, b, None] * d_w[None, :, b], acc)
    return acc


def mul_mat_q4_k(w: Matrix, x: F32) -> F32:
    """S6. Q4_K weights (d, dmin, sub-block scales s_j and minima m_j, codes 0..15), Q8_K activation (d_x,
    x_i).

    Formula  for each block of 256 in order, from acc = 0:
             acc = fma32(float32(sum_j s_j sum_i w_ji x_ji), d * d_x, acc)
             acc = fma32(float32(sum_j m_j sum_i x_ji), -(dmin * d_x), acc)
    """
    d = _block_f16(w, 144, 0)
    dmin = _block_f16(w, 144, 2)
    scales, mins = (part.reshape(*d.shape, N_SUB_BLOCKS) for part in quants.q4_k_scales(w.raw))
    codes_w = quants.q4_k_quants(w.raw).reshape(*d.shape, N_SUB_BLOCKS, 32)
    codes_x, d_x, sums = quantize_q8_k(x)
    codes_x = codes_x.reshape(x.shape[0], -1, N_SUB_BLOCKS, 32).astype(np.int32)
    sums = sums.reshape(x.shape[0], -1, N_SUB_BLOCKS, 2).sum(axis=-1)
    acc = np.zeros((x.shape[0], w.n_out), np.float32)
    for b in range(d.shape[1]):
        dots = np.einsum("rji,tji->trj", codes_w[:, b].astype(np.int32), codes_x[:, b])
        integer = (dots * scales[None, :, b].astype(np.int32)).sum(axis=-1, dtype=np.int32)
        acc = fma32(integer.astype(np.float32), d_x[:, b, None] * d[None, :, b], acc)
        minimum = sums[:, b] @ mins[:, b].astype(np.int32).T
        acc = fma32(minimum.astype(np.float32), -(d_x[:, b, None] * dmin[None, :, b]), acc)
    return acc


def mul_mat_q6_k(w: Matrix, x: F32) -> F32:
    """S6. Q6_K weights (d, int8 sub-block scales s_j, codes -32..31), Q8_K activation (d_x, x_i).

    Formula  for each block of 256 in order: acc = fma32(float32(sum_j s_j sum_i w_ji x_ji), d * d_x, acc)
    """
    d = _block_f16(w, 210, 208)
    scales = quants.q6_k_scales(w.raw).reshape(*d.shape, N_Q6_SUB_BLOCKS)
    codes_w = quants.q6_k_quants(w.raw).reshape(*d.shape, N_Q6_SUB_BLOCKS, 16)
    codes_x, d_x, _ = quantize_q8_k(x)
    codes_x = codes_x.reshape(x.shape[0], -1, N_Q6_SUB_BLOCKS, 16).astype(np.int32)
    acc = np.zeros((x.shape[0], w.n_out), np.float32)
    for b in range(d.shape[1]):
        dots = np.einsum("rji,tji->trj", codes_w[:, b].astype(np.int32), codes_x[:, b])
        integer = (dots * scales[None, :, b].astype(np.int32)).sum(axis=-1, dtype=np.int32)
        acc = fma32(integer.astype(np.float32), d_x[:, b, None] * d[None, :, b], acc)
    return acc


GGML_PRODUCTS = {
    "F32": mul_mat_f32,
    "F16": mul_mat_f16,
    "BF16": mul_mat_bf16,
    "Q8_0": mul_mat_q8_0,
    "Q4_K": mul_mat_q4_k,
    "Q6_K": mul_mat_q6_k,
}


def get_rows(w: Matrix, ids: NDArray[np.int32]) -> F32:
    """S7. The embedding: rows `ids` of W, dequantised to float32.

    Shapes   w: (n_vocab, n_embd), ids: (T,) -> (T, n_embd)
    """
    raw = w.raw.reshape(w.n_out, w.row_bytes)[np.asarray(ids, np.int64)]
    return quants.dequantize(w.type_name, raw.reshape(-1), (len(ids), w.n_in))


def _block_f16(w: Matrix, block_bytes: int, offset: int) -> F32:
    """The float16 at `offset` of every block: (n_out, n_blocks) float32."""
    blocks = w.raw.reshape(w.n_out, -1, block_bytes)
    return np.ascontiguousarray(blocks[..., offset : offset + 2]).view(np.float16)[..., 0].astype(np.float32)


def _to_int8(x: F32) -> NDArray[np.int8]:
    with np.errstate(invalid="ignore"):
        return np.asarray(x.astype(np.int8))
