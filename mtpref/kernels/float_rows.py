"""S6 for F32, F16 and BF16 in `ggml` numerics: a weight is decoded once, in registers, for up to 8 tokens.

Owns the order in which rows, columns and tokens are visited; sums are `spec.dot32`: 32 lanes, then the tree. The lanes
of 16 rows and 8 tokens wait in memory between pieces of a row, so that the activations of a piece stay in the
first-level cache. Those are copied first, block beside block: rows of tokens that are a power of two apart would drive
each other out of it. Weights are read in place.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels import compile
from mtpref.kernels.arith import f32_of_bf16
from mtpref.kernels.calls import caller
from mtpref.kernels.compile import INT, helper, kernel, source, target
from mtpref.kernels.floats import N_FLOATS, load16
from mtpref.kernels.floats import store as store_floats
from mtpref.kernels.lanes import N_LANES, add_lanes, lanes_of
from mtpref.kernels.scalars import (
    FLOAT,
    I16,
    I32,
    I64,
    at,
    emit_f32_of_f16,
    emit_fma32,
    f32_in,
    fma32,
    pointer_to,
    splat,
    u16_in,
)
from mtpref.kernels.target import target_has
from mtpref.kernels.tiles import LINE
from mtpref.kernels.unpack import half
from mtpref.kernels.vectors import BYTE_POINTER, LANES, load, offset, prefetch, store

N_ROWS = 16  # whose lanes wait at once
N_TOKENS = 8
N_SUMS = 8  # vectors that a tile adds to at once
AHEAD = 2048  # bytes that a tile asks for before it needs them
# Blocks of 32 columns of a piece: 16 KiB of activations of 8 tokens.
PIECE = 16

# Multiplications and additions below which one thread does the whole product: some tens of microseconds.
PARALLEL_FROM = 1 << 20

# Loads a vector of float32 at a byte pointer.
Load = Callable[[ir.IRBuilder, ir.Value, ir.VectorType], ir.Value]


def _load_f32(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    return load(builder, pointer, kind)


def _load_f16(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    bits = load(builder, pointer, ir.VectorType(I16, kind.count))
    if target_has("f16c"):
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), kind.count)), kind)
    return emit_f32_of_f16(builder, builder.zext(bits, ir.VectorType(I32, kind.count)))


def _load_bf16(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    wide = ir.VectorType(I32, kind.count)
    bits = builder.zext(load(builder, pointer, ir.VectorType(I16, kind.count)), wide)
    return builder.bitcast(builder.shl(bits, splat(16, wide)), kind)


def _tile(name: str, load_weights: Load, size: int, n_tokens: int) -> Any:
    """An intrinsic (raw, i, x, j, n_blocks, lanes, k): products of n_blocks blocks of 32 columns of a row, which begins
    at raw.flat[i], with those of n_tokens tokens, which lie block beside block from x.flat[j] on, added to the lanes at
    lanes.flat[k + 32 t].

    So few lanes are taken at once that their sums have registers.
    """
    n_lanes = min(N_LANES, N_SUMS // n_tokens * LANES)
    kind = ir.VectorType(FLOAT, n_lanes)

    @intrinsic
    def emitted(typingctx, raw, i, x, j, n_blocks, lanes, k):
        def codegen(context, builder, sig, args):
            builder.function.attributes.add("noinline")
            row, first, out = (
                builder.bitcast(pointer_to(context, builder, sig.args[n], args[n], args[n + 1]), BYTE_POINTER)
                for n in (0, 2, 5)
            )
            for start in range(0, N_LANES, n_lanes):
                slots, ends = [], []
                for t in range(n_tokens):
                    ends.append(offset(builder, out, 4 * (N_LANES * t + start)))
                    slots.append(cgutils.alloca_once(builder, kind))
                    builder.store(load(builder, ends[t], kind), slots[t])
                with cgutils.for_range(builder, args[4]) as loop:
                    column = builder.add(builder.mul(loop.index, I64(N_LANES)), I64(start))
                    place = offset(builder, row, builder.mul(column, I64(size)))
                    if start == 0:
                        for line in range(0, size * N_LANES, LINE):
                            prefetch(builder, offset(builder, place, AHEAD + line))
                    w = load_weights(builder, place, kind)
                    block = offset(builder, first, builder.mul(loop.index, I64(4 * N_LANES * n_tokens)))
                    for t, slot in enumerate(slots):
                        values = load(builder, offset(builder, block, 4 * (N_LANES * t + start)), kind)
                        builder.store(emit_fma32(builder, w, values, builder.load(slot)), slot)
                for slot, end in zip(slots, ends, strict=True):
                    store(builder, builder.load(slot), end)
            return context.get_dummy_value()

        return _signature(raw, x, lanes), codegen

    def function(raw, i, x, j, n_blocks, lanes, k):
        emitted(raw, i, x, j, n_blocks, lanes, k)

    compile.name_symbol(function, f"float_tile_{name}_{n_tokens}")

    @intrinsic
    def tile(typingctx, raw, i, x, j, n_blocks, lanes, k):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, function, sig, args)

        return _signature(raw, x, lanes), codegen

    return tile


def _signature(raw, x, lanes):
    n = types.intp
    return types.none(raw, n, x, n, n, lanes, n)


@helper
def _f32_at(raw, i):
    return f32_in(raw, i)


@helper
def _bf16_at(raw, i):
    return f32_of_bf16(u16_in(raw, i))


@helper
def _width(n_tokens):
    """Tokens of the next tile, of as many that are left."""
    return 8 if n_tokens >= 8 else 4 if n_tokens >= 4 else 2 if n_tokens >= 2 else 1


def _rows_of(name: str, load_weights: Load, value_at: Any, size: int) -> Any:
    """An intrinsic (raw, row_bytes, x, y, first, last): y[t, r] = dot32(row r, x[t]) for r in first .. last - 1."""
    tile_8, tile_4, tile_2, tile_1 = (_tile(name, load_weights, size, n) for n in (8, 4, 2, 1))

    def rows(raw, row_bytes, x, y, first, last):
        n_tokens, n = x.shape
        n_blocks = n // N_LANES
        piece = n_blocks if n_blocks > 0 and n_tokens * n_blocks <= N_TOKENS * PIECE else PIECE
        lanes = np.empty((N_ROWS * N_TOKENS, N_LANES), np.float32)
        packed = np.empty(n_tokens * n_blocks * N_LANES, np.float32)
        t = 0
        while t < n_tokens:
            width = _width(n_tokens - t)
            for b in range(n_blocks):
                for i in range(width):
                    for l in range(0, N_LANES, N_FLOATS):  # noqa: E741
                        k = N_LANES * (t * n_blocks + b * width + i) + l
                        store_floats(packed, k, load16(x, (t + i) * n + N_LANES * b + l))
            t += width
        for start in range(first, last, N_ROWS):
            end = start + N_ROWS if start + N_ROWS < last else last
            t = 0
            while t < n_tokens:
                width = _width(n_tokens - t)
                for r in range(end - start):
                    for i in range(r * N_TOKENS, r * N_TOKENS + width):
                        for l in range(N_LANES):  # noqa: E741
                            lanes[i, l] = np.float32(0)
                for b in range(0, n_blocks, piece):
                    n_now = piece if b + piece < n_blocks else n_blocks - b
                    for r in range(start, end):
                        i, j = r * row_bytes + b * N_LANES * size, N_LANES * (t * n_blocks + b * width)
                        k = (r - start) * N_TOKENS * N_LANES
                        if width == 8:
                            tile_8(raw, i, packed, j, n_now, lanes, k)
                        elif width == 4:
                            tile_4(raw, i, packed, j, n_now, lanes, k)
                        elif width == 2:
                            tile_2(raw, i, packed, j, n_now, lanes, k)
                        else:
                            tile_1(raw, i, packed, j, n_now, lanes, k)
                for r in range(start, end):
                    for i in range(width):
                        for l in range(n - N_LANES * n_blocks):  # noqa: E741
                            k = N_LANES * n_blocks + l
                            w, row = value_at(raw, r * row_bytes + size * k), N_TOKENS * (r - start) + i
                            lanes[row, l] = fma32(w, at(x, (t + i) * n + k), lanes[row, l])
                        y[t + i, r] = add_lanes(lanes_of(lanes, (N_TOKENS * (r - start) + i) * N_LANES))
                t += width

    compile.name_symbol(rows, f"float_rows_of_{name}")

    @intrinsic
    def call(typingctx, raw, row_bytes, x, y, first, last):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, rows, sig, args)

        n = types.intp
        return types.none(raw, n, x, y, n, n), codegen

    return call


_rows_of_f32 = _rows_of("f32", _load_f32, _f32_at, 4)
_rows_of_f16 = _rows_of("f16", _load_f16, half, 2)
_rows_of_bf16 = _rows_of("bf16", _load_bf16, _bf16_at, 2)

ARGS = (source(types.uint8, 1), INT, source(types.float32, 2), target(types.float32, 2))


@kernel(*ARGS, INT, INT)
def rows_f32(raw, row_bytes, x, y, first, last):
    """F32 rows first .. last - 1 times all tokens."""
    _rows_of_f32(raw, row_bytes, x, y, first, last)


@kernel(*ARGS, INT, INT)
def rows_f16(raw, row_bytes, x, y, first, last):
    """F16 rows first .. last - 1 times all tokens, which are rounded to float16 already."""
    _rows_of_f16(raw, row_bytes, x, y, first, last)


@kernel(*ARGS, INT, INT)
def rows_bf16(raw, row_bytes, x, y, first, last):
    """BF16 rows first .. last - 1 times all tokens, which are rounded to bfloat16 already."""
    _rows_of_bf16(raw, row_bytes, x, y, first, last)


_call_rows = caller(*ARGS, INT, INT)


@kernel(INT, *ARGS, INT, parallel=True)
def all_rows(rows, raw, row_bytes, x, y, n_parts):
    """All rows, with the kernel at this address."""
    n = y.shape[1]
    for p in prange(n_parts):
        _call_rows(rows, (raw, row_bytes, x, y, p * n // n_parts, (p + 1) * n // n_parts))


KERNELS = {"F32": rows_f32, "F16": rows_f16, "BF16": rows_bf16}
