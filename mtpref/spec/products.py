"""S6 and S7: how weights meet activations: the matrix product by weight type, and the embedding.

Owns what `exact` and `ggml` numerics do with a weight matrix. It must not know which layer a matrix belongs to.
Read next: layers.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.spec import quants
from mtpref.spec.arith import F32, dot32, dot64, fma32
from mtpref.spec.quant import (
    Q8_0_BLOCK,
    Q8_K_BLOCK,
    quantize_q8_0,
    quantize_q8_1,
    quantize_q8_k,
    round_bf16,
    round_f16,
)

# Weights dequantised at a time: 1 MiB of float32, or one row where that is longer.
TILE_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Matrix:
    """A weight matrix as it lies in the file: never copied, never dequantised as a whole.

    name       "": of no file, made in a pass (cells, a rotation)
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

    def tiles(self) -> Iterator[tuple[int, "Matrix"]]:
        """All rows in groups of at most TILE_ELEMENTS weights: (index of the first row, view)."""
        n = max(1, TILE_ELEMENTS // self.n_in)
        for first in range(0, self.n_out, n):
            yield first, self.rows(first, min(first + n, self.n_out))

    def dequantize(self) -> F32:
        """All rows as float32. For a large matrix, take `tiles` of it."""
        return quants.dequantize(self.type_name, self.raw, (self.n_out, self.n_in))


@dataclass(frozen=True)
class Stack(Sequence[Matrix]):
    """Matrices of one type and shape one after the other (the experts of a layer), as they lie in the file.

    raw: uint8 (n, bytes of a matrix). stack[e] is a view of matrix e.
    """

    name: str
    type_name: str
    n_out: int
    n_in: int
    raw: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, e: Any) -> Any:
        if isinstance(e, slice):
            return [self[i] for i in range(*e.indices(len(self)))]
        return Matrix(f"{self.name}[{e}]", self.type_name, self.n_out, self.n_in, self.raw[e])

    def rows(self, first: int, last: int) -> "Stack":
        """The rows first to last - 1 of every matrix, as a view."""
        row_bytes = self.raw.shape[1] // self.n_out
        raw = self.raw[:, first * row_bytes : last * row_bytes]
        return Stack(self.name, self.type_name, last - first, self.n_in, raw)


def mul_mat_exact(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `exact` numerics.

    Rule     each weight is dequantised to float32, then y_r = dot64(W_r, x)
    Shapes   w: (n_out, n_in), x: (T, n_in) -> (T, n_out)
    Dtypes   float32 in and out, products accumulated in float64 in the lane order
    Errors   MtprefError for a weight type without a decoder
    """
    check_type(w)
    return _dot_rows(w, x, dot64)


def mul_mat_ggml(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `ggml` numerics: x is brought to the type that ggml pairs with the weight's type.

    Rule     by ACTIVATION_TYPES and GGML_PRODUCTS
    Shapes   w: (n_out, n_in), x: (T, n_in) -> (T, n_out)
    Dtypes   float32 in and out, accumulated in float32 as each product says
    Errors   MtprefError for a weight type without a rule
    Source   ggml-cpu.c, type_traits_cpu (vec_dot_type); the order of summation is this project's
    """
    check_type(w)
    return GGML_PRODUCTS[w.type_name](w, x)


def check_type(w: Matrix) -> None:
    """S6. MtprefError unless the weight's type has a matrix product."""
    if w.type_name not in GGML_PRODUCTS:
        known = ", ".join(GGML_PRODUCTS)
        raise MtprefError(
            f"{w.name}: no matrix product for type {w.type_name}, expected one of {known}; "
            "requantise the file to one of them"
        )


def mul_mat_f32(w: Matrix, x: F32) -> F32:
    """S6. F32 weights: dot32 of the row and the activation."""
    return _dot_rows(w, x, dot32)


def mul_mat_f16(w: Matrix, x: F32) -> F32:
    """S6. F16 weights: the activation is rounded to float16; products are exact in float32."""
    return _dot_rows(w, round_f16(x), dot32)


def mul_mat_bf16(w: Matrix, x: F32) -> F32:
    """S6. BF16 weights: the activation is rounded to bfloat16; products are exact in float32."""
    return _dot_rows(w, round_bf16(x), dot32)


def mul_mat_legacy(w: Matrix, x: F32) -> F32:
    """S6. Q4_0, Q5_0, Q8_0 weights (d_w, w_i) with Q8_0 activations (d_x, x_i); Q4_1, Q5_1 weights (d_w, m_w, w_i)
    with Q8_1 activations (d_x, s_x, x_i).

    Formula  for each block of 32 in order, from acc = 0:
             acc = fma32(float32(sum_i w_i x_i), d_w * d_x, acc)
             acc = fma32(m_w, s_x, acc)    where the type has minima
    Ranges   w_i: -8..7, 0..15, -16..15, 0..31, -128..127; the sum is an exact int32
    """
    blocks = quants.unpack_legacy(w.type_name, w.raw)
    d_w = blocks.d.reshape(w.n_out, -1)
    m_w = None if blocks.m is None else blocks.m.reshape(d_w.shape)
    codes_w = blocks.q.reshape(*d_w.shape, Q8_0_BLOCK).astype(np.int32)
    codes_x, d_x, s_x = quantize_q8_1(x)
    codes_x = codes_x.reshape(x.shape[0], -1, Q8_0_BLOCK).astype(np.int32)
    acc = np.zeros((x.shape[0], w.n_out), np.float32)
    for b in range(d_w.shape[1]):
        integer = codes_x[:, b] @ codes_w[:, b].T
        acc = fma32(integer.astype(np.float32), d_x[:, b, None] * d_w[None, :, b], acc)
        if m_w is not None:
            acc = fma32(m_w[None, :, b], s_x[:, b, None], acc)
    return acc


def mul_mat_k(w: Matrix, x: F32) -> F32:
    """S6. Q2_K .. Q6_K weights (d, dmin, integer scales s_j and minima m_j of sub-blocks, codes w_ji), Q8_K
    activation (d_x, x_i).

    Formula  for each block of 256 in order, from acc = 0:
             acc = fma32(float32(sum_j s_j sum_i w_ji x_ji), d * d_x, acc)
             acc = fma32(float32(sum_j m_j sum_i x_ji), -(dmin * d_x), acc)    where the type has minima
    Ranges   s_j: 0..15, -32..31, 0..63, 0..63, -128..127; m_j: 0..15, none, 0..63, 0..63, none;
             w_ji: 0..3, -4..3, 0..15, 0..31, -32..31; both sums are exact int32
    """
    blocks = quants.unpack_k(w.type_name, w.raw)
    d = blocks.d.reshape(w.n_out, -1)
    n_sub = blocks.scales.shape[1]
    scales = blocks.scales.reshape(*d.shape, n_sub).astype(np.int32)
    codes_w = blocks.q.reshape(*d.shape, n_sub, -1)
    codes_x, d_x, sums = quantize_q8_k(x)
    codes_x = codes_x.reshape(x.shape[0], -1, n_sub, Q8_K_BLOCK // n_sub).astype(np.int32)
    sums = sums.reshape(x.shape[0], -1, n_sub, 16 // n_sub).sum(axis=-1, dtype=np.int32)
    acc = np.zeros((x.shape[0], w.n_out), np.float32)
    for b in range(d.shape[1]):
        dots = np.einsum("rji,tji->trj", codes_w[:, b].astype(np.int32), codes_x[:, b])
        integer = (dots * scales[None, :, b]).sum(axis=-1, dtype=np.int32)
        acc = fma32(integer.astype(np.float32), d_x[:, b, None] * d[None, :, b], acc)
        if blocks.dmin is not None and blocks.mins is not None:
            dmin, mins = blocks.dmin.reshape(d.shape), blocks.mins.reshape(scales.shape)
            minimum = sums[:, b] @ mins[:, b].astype(np.int32).T
            acc = fma32(minimum.astype(np.float32), -(d_x[:, b, None] * dmin[None, :, b]), acc)
    return acc


def mul_mat_tiles(w: Matrix, x: F32) -> F32:
    """S6. All other quantised weights: dot32 of the dequantised row and the activation as its type holds it.

    Rule     x is quantised to ACTIVATION_TYPES[type] and dequantised again (`activation_after`); rows are
             dequantised to float32 a tile at a time (`Matrix.tiles`)
    """
    return _dot_rows(w, activation_after(ACTIVATION_TYPES[w.type_name], x), dot32)


def activation_after(type_name: str, x: F32) -> F32:
    """S6. x after quantising to Q8_0 or Q8_K: float32(code) * d, one float32 product.

    Shapes   x: (T, n), n a multiple of 32 or 256 -> (T, n)
    """
    codes, d = quantize_q8_0(x) if type_name == "Q8_0" else quantize_q8_k(x)[:2]
    with np.errstate(over="ignore", invalid="ignore"):
        return codes.astype(np.float32) * np.repeat(d, x.shape[-1] // d.shape[-1], axis=-1)


def _dot_rows(w: Matrix, x: F32, dot: Callable[[F32, F32], F32]) -> F32:
    """y[t, r] = dot(dequantised row r, x[t])."""
    parts = [dot(tile.dequantize()[None, :, :], x[:, None, :]) for _, tile in w.tiles()]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


# Weight type -> the type that ggml brings activations to before it multiplies (its vec_dot_type).
ACTIVATION_TYPES = {
    **{name: name for name in ("F32", "F16", "BF16")},
    **{name: "Q8_1" if name.endswith("_1") else "Q8_0" for name in quants.LEGACY_TYPES},
    **dict.fromkeys(quants.K_TYPES, "Q8_K"),
    **dict.fromkeys(("IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0"), "Q8_0"),
    **dict.fromkeys(("IQ4_XS", "TQ1_0", "TQ2_0"), "Q8_K"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "Q8_K"),
}

_BY_TYPE = {"F32": mul_mat_f32, "F16": mul_mat_f16, "BF16": mul_mat_bf16}
_BY_TYPE |= dict.fromkeys(quants.LEGACY_TYPES, mul_mat_legacy)
_BY_TYPE |= dict.fromkeys(quants.K_TYPES, mul_mat_k)
GGML_PRODUCTS = {name: _BY_TYPE.get(name, mul_mat_tiles) for name in ACTIVATION_TYPES}

# Types whose rows are dequantised a tile at a time, in both numerics; the others have integer products in `ggml`.
TILE_TYPES = tuple(name for name in GGML_PRODUCTS if name not in _BY_TYPE)


def get_rows(w: Matrix, ids: NDArray[np.int32]) -> F32:
    """S7. The embedding: rows `ids` of W, dequantised to float32.

    Shapes   w: (n_vocab, n_embd), ids: (T,) -> (T, n_embd)
    """
    raw = w.raw.reshape(w.n_out, w.row_bytes)[np.asarray(ids, np.int64)]
    return quants.dequantize(w.type_name, raw.reshape(-1), (len(ids), w.n_in))
