"""S6: the matrix product, `spec.mul_mat_exact` and `spec.mul_mat_ggml`.

Owns the choice of the row kernel, the preparation of activations and the split over threads. Rows are independent,
so the split cannot change a bit. A small product runs in the calling thread: a parallel region costs microseconds on
an idle machine and milliseconds on a busy one.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, Kernel, kernel
from mtpref.kernels.products import float_rows, mul_mats, rows
from mtpref.kernels.quants import activations
from mtpref.kernels.quants.unpack import TYPE_CODES
from mtpref.spec.products import ACTIVATION_TYPES, TILE_TYPES, Matrix, check_type

F32 = NDArray[np.float32]

# Multiplications and additions below which one thread does the whole product: a third of a millisecond or so.
PARALLEL_FROM = 3 << 20

_call_exact, _call_q8_0 = caller(*rows.EXACT_ARGS, INT, INT), caller(*rows.Q8_0_ARGS, INT, INT)
_call_legacy, _call_k = caller(*rows.LEGACY_ARGS, INT, INT), caller(*rows.K_ARGS, INT, INT)


@kernel(INT, *rows.EXACT_ARGS, INT, parallel=True)
def _all_rows_exact(some, type_code, raw, row_bytes, x, y, n_parts):
    """All rows, as the next three: with the kernel at this address."""
    n = y.shape[1]
    for p in prange(n_parts):
        _call_exact(some, (type_code, raw, row_bytes, x, y, p * n // n_parts, (p + 1) * n // n_parts))


@kernel(INT, *rows.Q8_0_ARGS, INT, parallel=True)
def _all_rows_q8_0(some, raw, row_bytes, codes_x, d_x, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _call_q8_0(some, (raw, row_bytes, codes_x, d_x, y, p * n // n_parts, (p + 1) * n // n_parts))


@kernel(INT, *rows.LEGACY_ARGS, INT, parallel=True)
def _all_rows_legacy(some, type_code, raw, row_bytes, codes_x, d_x, s_x, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        part = p * n // n_parts, (p + 1) * n // n_parts
        _call_legacy(some, (type_code, raw, row_bytes, codes_x, d_x, s_x, y, part[0], part[1]))


@kernel(INT, *rows.K_ARGS, INT, parallel=True)
def _all_rows_k(some, type_code, raw, row_bytes, codes_x, d_x, sums, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        part = p * n // n_parts, (p + 1) * n // n_parts
        _call_k(some, (type_code, raw, row_bytes, codes_x, d_x, sums, y, part[0], part[1]))


def _run(rows_kernel: Kernel, all_rows: Kernel, w: Matrix, n_tokens: int, *args: Any) -> F32:
    """Run a row kernel over all rows, in the calling thread or by its parallel loop."""
    y = np.empty((n_tokens, w.n_out), np.float32)
    if compile.n_threads() == 1 or w.n_out * w.n_in * n_tokens < PARALLEL_FROM:
        rows_kernel(*args, y, 0, w.n_out)
    else:
        all_rows(rows_kernel.address(), *args, y, compile.start_threads())
    return y


def mul_mat_exact(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `exact` numerics, (T, n_in) -> (T, n_out): the bits of `spec.mul_mat_exact`.

    Errors   MtprefError for a weight type without a decoder
    """
    check_type(w)
    x = np.ascontiguousarray(x)
    if w.type_name in TILE_TYPES:
        return _mul_mat_tiles(mul_mat_exact, w, x)
    rows_kernel = rows.rows_float if w.type_name in float_rows.PRODUCTS else rows.rows_blocks
    return _run(rows_kernel, _all_rows_exact, w, x.shape[0], TYPE_CODES[w.type_name], w.raw, w.row_bytes, x)


def mul_mat_ggml(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `ggml` numerics, (T, n_in) -> (T, n_out): the bits of `spec.mul_mat_ggml`.

    Errors   MtprefError for a weight type without a rule
    """
    x = np.ascontiguousarray(x)
    y = mul_mats.mul_mat(w, x)
    if y is not None:
        return y
    check_type(w)
    kind = ACTIVATION_TYPES[w.type_name]
    if w.type_name in TILE_TYPES:
        codes, scales = quantize_q8_0(x) if kind == "Q8_0" else quantize_q8_k(x)[:2]
        # Beside an infinite or NaN scale this warns in NumPy only; the value is defined.
        with np.errstate(over="ignore", invalid="ignore"):
            x = codes.astype(np.float32) * np.repeat(scales, x.shape[1] // scales.shape[1], axis=1)
        return _mul_mat_tiles(mul_mat_ggml, w, x)
    return _mul_mat_k(w, x) if kind == "Q8_K" else _mul_mat_legacy(w, x)


def _mul_mat_tiles(mul_mat: Callable[[Matrix, F32], F32], w: Matrix, x: F32) -> F32:
    """One tile of rows after the other: dequantised to float32, multiplied, dropped."""
    y = np.empty((x.shape[0], w.n_out), np.float32)
    for first, tile in w.tiles():
        raw = tile.dequantize().reshape(-1).view(np.uint8)
        as_float = Matrix(w.name, "F32", tile.n_out, w.n_in, raw)
        y[:, first : first + tile.n_out] = mul_mat(as_float, x)
    return y


def _mul_mat_legacy(w: Matrix, x: F32) -> F32:
    if w.type_name == "Q8_0":
        codes, scales = quantize_q8_0(x)
        return _run(rows.rows_q8_0, _all_rows_q8_0, w, x.shape[0], w.raw, w.row_bytes, codes, scales)
    codes, scales, sums = quantize_q8_1(x)
    args = TYPE_CODES[w.type_name], w.raw, w.row_bytes, codes, scales, sums
    return _run(rows.rows_legacy, _all_rows_legacy, w, x.shape[0], *args)


def _mul_mat_k(w: Matrix, x: F32) -> F32:
    codes, scales, sums = quantize_q8_k(x)
    rows_kernel = rows.rows_k_16
    if w.type_name in ("Q4_K", "Q5_K"):
        rows_kernel, sums = rows.rows_k_32, sums[:, 0::2] + sums[:, 1::2]
    args = TYPE_CODES[w.type_name], w.raw, w.row_bytes, codes, scales, sums
    return _run(rows_kernel, _all_rows_k, w, x.shape[0], *args)


def quantize_q8_0(x: F32) -> tuple[NDArray[np.int8], F32]:
    """S5. The bits of `spec.quantize_q8_0`, for x of (T, n)."""
    codes, scales, _ = quantize_q8_1(x)
    return codes, scales


def quantize_q8_1(x: F32) -> tuple[NDArray[np.int8], F32, F32]:
    """S5. The bits of `spec.quantize_q8_1`, for x of (T, n)."""
    shape = x.shape[0], x.shape[1] // 32
    codes, scales, sums = np.empty(x.shape, np.int8), np.empty(shape, np.float32), np.empty(shape, np.float32)
    activations.quantize_q8_1(x.reshape(-1), codes.reshape(-1), scales.reshape(-1), sums.reshape(-1))
    return codes, scales, sums


def quantize_q8_k(x: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """S5. The bits of `spec.quantize_q8_k`, for x of (T, n)."""
    n_tokens, n = x.shape
    codes, scales = np.empty(x.shape, np.int8), np.empty((n_tokens, n // 256), np.float32)
    sums = np.empty((n_tokens, n // 16), np.int32)
    activations.quantize_q8_k(x.reshape(-1), codes.reshape(-1), scales.reshape(-1), sums.reshape(-1))
    return codes, scales, sums
