"""S6: the matrix product, `spec.mul_mat_exact` and `spec.mul_mat_ggml`.

Owns the choice of the row kernel, the preparation of activations and the split over threads. Rows are independent,
so the split cannot change a bit. A small product runs in the calling thread: a parallel region costs microseconds on
an idle machine and milliseconds on a busy one.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mtpref.errors import MtprefError
from mtpref.kernels import activations, compile, rows
from mtpref.kernels.compile import INT, kernel
from mtpref.spec.quant import GGML_PRODUCTS, Matrix

F32 = NDArray[np.float32]

# Multiplications and additions below which one thread does the whole product: a third of a millisecond or so.
PARALLEL_FROM = 3 << 20

_rows_float, _rows_blocks = rows.rows_float.dispatcher, rows.rows_blocks.dispatcher
_rows_q8_0 = rows.rows_q8_0.dispatcher
_rows_q4_k, _rows_q6_k = rows.rows_q4_k.dispatcher, rows.rows_q6_k.dispatcher


@kernel(*rows.FLOAT_ARGS, INT, parallel=True)
def _all_rows_float(type_code, raw, row_bytes, x, wide, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _rows_float(type_code, raw, row_bytes, x, wide, y, p * n // n_parts, (p + 1) * n // n_parts)


@kernel(*rows.BLOCKS_ARGS, INT, parallel=True)
def _all_rows_blocks(type_code, raw, row_bytes, x, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _rows_blocks(type_code, raw, row_bytes, x, y, p * n // n_parts, (p + 1) * n // n_parts)


@kernel(*rows.Q8_0_ARGS, INT, parallel=True)
def _all_rows_q8_0(raw, row_bytes, codes_x, d_x, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _rows_q8_0(raw, row_bytes, codes_x, d_x, y, p * n // n_parts, (p + 1) * n // n_parts)


@kernel(*rows.Q4_K_ARGS, INT, parallel=True)
def _all_rows_q4_k(raw, row_bytes, codes_x, d_x, sums, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _rows_q4_k(raw, row_bytes, codes_x, d_x, sums, y, p * n // n_parts, (p + 1) * n // n_parts)


@kernel(*rows.Q6_K_ARGS, INT, parallel=True)
def _all_rows_q6_k(raw, row_bytes, codes_x, d_x, y, n_parts):
    n = y.shape[1]
    for p in prange(n_parts):
        _rows_q6_k(raw, row_bytes, codes_x, d_x, y, p * n // n_parts, (p + 1) * n // n_parts)


_SERIAL = (rows.rows_float, rows.rows_blocks, rows.rows_q8_0, rows.rows_q4_k, rows.rows_q6_k)
_PARALLEL = (_all_rows_float, _all_rows_blocks, _all_rows_q8_0, _all_rows_q4_k, _all_rows_q6_k)
_FLOAT, _BLOCKS, _Q8_0, _Q4_K, _Q6_K = range(5)


def _run(family: int, w: Matrix, n_tokens: int, *args: Any) -> None:
    """Run a family's row kernel over all rows. The last argument is the output."""
    if compile.n_threads() == 1 or w.n_out * w.n_in * n_tokens < PARALLEL_FROM:
        _SERIAL[family](*args, 0, w.n_out)
    else:
        _PARALLEL[family](*args, compile.start_threads())


def _mul_mat_float(w: Matrix, x: F32, wide: bool) -> F32:
    y = np.empty((x.shape[0], w.n_out), np.float32)
    _run(_FLOAT, w, x.shape[0], rows.TYPE_CODES[w.type_name], w.raw, w.row_bytes, x, wide, y)
    return y


def mul_mat_exact(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `exact` numerics, (T, n_in) -> (T, n_out): the bits of `spec.mul_mat_exact`.

    Errors   MtprefError for a weight type without a decoder
    """
    if w.type_name not in rows.TYPE_CODES:
        raise _unknown_type(w)
    x = np.ascontiguousarray(x)
    if w.type_name in ("F32", "F16", "BF16"):
        return _mul_mat_float(w, x, True)
    y = np.empty((x.shape[0], w.n_out), np.float32)
    _run(_BLOCKS, w, x.shape[0], rows.TYPE_CODES[w.type_name], w.raw, w.row_bytes, x, y)
    return y


def mul_mat_ggml(w: Matrix, x: F32) -> F32:
    """S6. y = W x in `ggml` numerics, (T, n_in) -> (T, n_out): the bits of `spec.mul_mat_ggml`.

    Errors   MtprefError for a weight type without a rule
    """
    x = np.ascontiguousarray(x)
    kind = w.type_name
    if kind == "Q8_0":
        return _mul_mat_q8_0(w, x)
    if kind == "F32":
        return _mul_mat_float(w, x, False)
    if kind == "F16" or kind == "BF16":
        rounded = np.empty_like(x)
        to = activations.TO_F16 if kind == "F16" else activations.TO_BF16
        activations.round_to(x.reshape(-1), to, rounded.reshape(-1))
        return _mul_mat_float(w, rounded, False)
    if kind == "Q4_K" or kind == "Q6_K":
        return _mul_mat_k(w, x)
    raise _unknown_type(w)


def _mul_mat_q8_0(w: Matrix, x: F32) -> F32:
    codes, scales = quantize_q8_0(x)
    y = np.empty((x.shape[0], w.n_out), np.float32)
    _run(_Q8_0, w, x.shape[0], w.raw, w.row_bytes, codes, scales, y)
    return y


def _mul_mat_k(w: Matrix, x: F32) -> F32:
    codes, scales, sums = quantize_q8_k(x)
    y = np.empty((x.shape[0], w.n_out), np.float32)
    if w.type_name == "Q4_K":
        pairs = sums[:, 0::2] + sums[:, 1::2]
        _run(_Q4_K, w, x.shape[0], w.raw, w.row_bytes, codes, scales, pairs, y)
    else:
        _run(_Q6_K, w, x.shape[0], w.raw, w.row_bytes, codes, scales, y)
    return y


def quantize_q8_0(x: F32) -> tuple[NDArray[np.int8], F32]:
    """S5. The bits of `spec.quantize_q8_0`, for x of (T, n)."""
    codes, scales = np.empty(x.shape, np.int8), np.empty((x.shape[0], x.shape[1] // 32), np.float32)
    activations.quantize_q8_0(x.reshape(-1), codes.reshape(-1), scales.reshape(-1))
    return codes, scales


def quantize_q8_k(x: F32) -> tuple[NDArray[np.int8], F32, NDArray[np.int32]]:
    """S5. The bits of `spec.quantize_q8_k`, for x of (T, n)."""
    n_tokens, n = x.shape
    codes, scales = np.empty(x.shape, np.int8), np.empty((n_tokens, n // 256), np.float32)
    sums = np.empty((n_tokens, n // 16), np.int32)
    activations.quantize_q8_k(x.reshape(-1), codes.reshape(-1), scales.reshape(-1), sums.reshape(-1))
    return codes, scales, sums


def _unknown_type(w: Matrix) -> MtprefError:
    known = ", ".join(GGML_PRODUCTS)
    return MtprefError(f"{w.name}: no matrix product for type {w.type_name}, expected one of {known}; "
                       "requantise the file to one of them")  # fmt: skip
