"""S6 for F32, F16 and BF16 in `ggml` numerics: a weight is decoded once, in registers, for up to 4 tokens.

Owns the order in which rows, columns and tokens are visited; sums are `spec.dot32`: 32 lanes, then the tree. The lanes
of 12 rows and 4 tokens wait in memory between pieces of a row, so that the activations of a piece stay in the
first-level cache. Those are rounded and copied first, block beside block: rows of tokens that are a power of two apart
would drive each other out of it. Weights are read in place.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.arith import f32_of_bf16
from mtpref.kernels.arithmetic.floats import N_FLOATS, address, load16
from mtpref.kernels.arithmetic.floats import store as store_floats
from mtpref.kernels.arithmetic.lanes import N_LANES, add_lanes, lanes_of
from mtpref.kernels.arithmetic.scalars import (
    FLOAT,
    I16,
    I64,
    at,
    emit_bf16s,
    emit_f16s,
    emit_fma32,
    f32_in,
    fma32,
    u16_in,
)
from mtpref.kernels.arithmetic.vectors import BYTE_POINTER, LANES, ROWS, load, offset, prefetch, store
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.compile import helper, kernel
from mtpref.kernels.products.product import PREPARE, ROWS_ARGS, Product
from mtpref.kernels.products.tiles import LINE
from mtpref.kernels.quants import activations
from mtpref.kernels.quants.unpack import half

N_TOKENS = 4  # of the widest tile
N_ROWS = 3  # of that tile: a value that is loaded serves all rows, or all tokens
N_WAITING = 12  # rows whose lanes wait at once
N_SUMS = 12  # vectors that a tile adds to at once
PIECE = 16  # blocks of 32 columns: 8 KiB of activations of 4 tokens
BLOCKS_IN_CACHE = 128  # of a tile, up to which its rows are not cut into pieces
AHEAD = 64  # blocks that a tile asks for before they are needed

_round_to = activations.round_to.dispatcher

# Loads a vector of float32 at a byte pointer.
Load = Callable[[ir.IRBuilder, ir.Value, ir.VectorType], ir.Value]


def _load_f32(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    return load(builder, pointer, kind)


def _load_f16(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    return emit_f16s(builder, load(builder, pointer, ir.VectorType(I16, kind.count)))


def _load_bf16(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType) -> ir.Value:
    return emit_bf16s(builder, load(builder, pointer, ir.VectorType(I16, kind.count)))


def _tile(name: str, load_weights: Load, size: int, n_rows: int, n_tokens: int) -> Any:
    """An intrinsic (row, row_bytes, ahead, shift, x, n_blocks, lanes): products of n_blocks blocks of 32 columns of
    n_rows rows with those of n_tokens tokens, added to their lanes.

    row     address of the first row; row_bytes: to the next
    x       address of the tokens, which lie block beside block
    lanes   address of the lanes of the first row and token: 128 bytes, N_TOKENS times as far to the next row
    ahead   bytes from each row to what is asked for: as much of that as the tile reads / 2^shift

    So few lanes are taken at once that their sums have registers.
    """
    n_lanes = min(N_LANES, LANES << (N_SUMS // (n_rows * n_tokens)).bit_length() - 1)
    kind = ir.VectorType(FLOAT, n_lanes)
    pairs = [(r, t) for t in range(n_tokens) for r in range(n_rows)]
    signature = types.none(*[types.intp] * 7)

    @intrinsic
    def emitted(typingctx, row, row_bytes, ahead, shift, x, n_blocks, lanes):
        def codegen(context, builder, sig, args):
            builder.function.attributes.add("noinline")
            row, first, out = (builder.inttoptr(args[n], BYTE_POINTER) for n in (0, 4, 6))
            rows = [offset(builder, row, builder.mul(args[1], I64(r))) for r in range(n_rows)]
            for start in range(0, N_LANES, n_lanes):
                ends = {(r, t): offset(builder, out, 4 * (N_LANES * (N_TOKENS * r + t) + start)) for r, t in pairs}
                slots = {pair: cgutils.alloca_once(builder, kind) for pair in pairs}
                for pair in pairs:
                    builder.store(load(builder, ends[pair], kind), slots[pair])
                with cgutils.for_range(builder, args[5]) as loop:
                    at_block = builder.mul(loop.index, I64(N_LANES * size))
                    share = builder.add(args[2], builder.lshr(at_block, args[3]))
                    for r in range(n_rows):
                        # A row is asked for in one of the passes over lanes, so that no pass asks for much.
                        if start == r * n_lanes % N_LANES:
                            for line in range(0, size * N_LANES, LINE):
                                prefetch(builder, offset(builder, offset(builder, rows[r], share), line))
                    place = builder.add(at_block, I64(start * size))
                    weights = [load_weights(builder, offset(builder, row, place), kind) for row in rows]
                    block = offset(builder, first, builder.mul(loop.index, I64(4 * N_LANES * n_tokens)))
                    values = [
                        load(builder, offset(builder, block, 4 * (N_LANES * t + start)), kind) for t in range(n_tokens)
                    ]
                    for r, t in pairs:
                        slot = slots[r, t]
                        builder.store(emit_fma32(builder, weights[r], values[t], builder.load(slot)), slot)
                for pair in pairs:
                    store(builder, builder.load(slots[pair]), ends[pair])
            return context.get_dummy_value()

        return signature, codegen

    def function(row, row_bytes, ahead, shift, x, n_blocks, lanes):
        emitted(row, row_bytes, ahead, shift, x, n_blocks, lanes)

    compile.name_symbol(function, f"float_tile_{name}_{n_rows}_{n_tokens}")

    @intrinsic
    def tile(typingctx, row, row_bytes, ahead, shift, x, n_blocks, lanes):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, function, sig, args)

        return signature, codegen

    return tile


@helper
def _f32_at(raw, i):
    return f32_in(raw, i)


@helper
def _bf16_at(raw, i):
    return f32_of_bf16(u16_in(raw, i))


@helper
def _width(n_tokens):
    """Tokens of the next tile, of as many that are left."""
    return 4 if n_tokens >= 4 else 2 if n_tokens >= 2 else 1


@helper
def _prepare(x, kind, packed, first, last):
    """Tokens first .. last - 1, rounded, as tiles read them: the blocks of 32 columns of a tile's tokens beside each
    other; columns that fill no block follow those of all tokens, by token."""
    n_tokens, n = x.shape
    n_blocks = n // N_LANES
    n_tail = n - N_LANES * n_blocks
    row, flat = np.empty(n, np.float32), packed.reshape(-1)
    for t in range(first, last):
        if kind == activations.KEEP:
            row[:] = x[t]
        else:
            _round_to(x[t], kind, row)
        start = t // N_TOKENS * N_TOKENS
        width = _width(n_tokens - start)
        while t >= start + width:
            start += width
            width = _width(n_tokens - start)
        for b in range(n_blocks):
            k = N_LANES * (start * n_blocks + b * width + t - start)
            for l in range(0, N_LANES, N_FLOATS):  # noqa: E741
                store_floats(flat, k + l, load16(row, N_LANES * b + l))
        for l in range(n_tail):  # noqa: E741
            flat[n_tokens * N_LANES * n_blocks + t * n_tail + l] = row[N_LANES * n_blocks + l]


def _rows_of(name: str, load_weights: Load, value_at: Any, size: int) -> Any:
    """An intrinsic (raw, x, y, first, last): y[t, r] = dot32(row r, x[t]) for rows of groups first .. last - 1; x is
    what `_prepare` has made."""
    tile_3_4 = _tile(name, load_weights, size, N_ROWS, N_TOKENS)
    tile_4, tile_2, tile_1 = (_tile(name, load_weights, size, 1, n) for n in (4, 2, 1))

    def rows(raw, x, y, first, last):
        n_tokens, n = x.shape
        n_out = y.shape[1]
        row_bytes = n * size
        n_blocks = n // N_LANES
        n_tail = n - N_LANES * n_blocks
        piece = n_blocks if n_blocks > 0 and min(n_tokens, N_TOKENS) * n_blocks <= BLOCKS_IN_CACHE else PIECE
        lanes = np.empty((N_WAITING * N_TOKENS, N_LANES), np.float32)
        shift = 0
        while N_TOKENS << shift < n_tokens:
            shift += 1
        for start in range(first * ROWS, min(last * ROWS, n_out), N_WAITING):
            end = min(start + N_WAITING, last * ROWS, n_out)
            waiting_bytes = (end - start) * row_bytes
            t = 0
            while t < n_tokens:
                width = _width(n_tokens - t)
                n_together = N_ROWS if width == N_TOKENS else 1
                n_next = n_together * max(1, AHEAD // (n_together * piece))
                lanes[: N_TOKENS * (end - start)] = np.float32(0)
                for b in range(0, n_blocks, piece):
                    n_now = min(piece, n_blocks - b)
                    columns = address(x, N_LANES * (t * n_blocks + b * width))
                    to_piece, piece_bytes = b * N_LANES * size, n_now * N_LANES * size
                    r = start
                    while r < end:
                        row = address(raw, r * row_bytes + to_piece)
                        out = address(lanes, (r - start) * N_TOKENS * N_LANES)
                        # Rows that several tiles read come from memory once: each of them asks for its share of the
                        # next rows. Otherwise a tile asks for what another one reads soon: the next rows, or after
                        # the last of them the next piece of the first.
                        if shift > 0:
                            ahead = waiting_bytes + t // N_TOKENS * (piece_bytes >> shift)
                        else:
                            ahead = n_next * row_bytes
                            if r + n_next >= end:
                                is_last = b + piece >= n_blocks
                                ahead += -to_piece if is_last else piece_bytes - waiting_bytes
                        if n_together == N_ROWS and r + N_ROWS <= end:
                            tile_3_4(row, row_bytes, ahead, shift, columns, n_now, out)
                            r += N_ROWS
                            continue
                        if width == N_TOKENS:
                            tile_4(row, row_bytes, ahead, shift, columns, n_now, out)
                        elif width == 2:
                            tile_2(row, row_bytes, ahead, shift, columns, n_now, out)
                        else:
                            tile_1(row, row_bytes, ahead, shift, columns, n_now, out)
                        r += 1
                for r in range(start, end):
                    for i in range(width):
                        row = N_TOKENS * (r - start) + i
                        for l in range(n_tail):  # noqa: E741
                            w = value_at(raw, r * row_bytes + size * (N_LANES * n_blocks + l))
                            value = at(x, n_tokens * N_LANES * n_blocks + (t + i) * n_tail + l)
                            lanes[row, l] = fma32(w, value, lanes[row, l])
                        y[t + i, r] = add_lanes(lanes_of(lanes, row * N_LANES))
                t += width

    compile.name_symbol(rows, f"float_rows_of_{name}")

    @intrinsic
    def call(typingctx, raw, x, y, first, last):
        def codegen(context, builder, sig, args):
            return context.compile_internal(builder, rows, sig, args)

        return types.none(raw, x, y, types.intp, types.intp), codegen

    return call


_rows_of_f32 = _rows_of("f32", _load_f32, _f32_at, 4)
_rows_of_f16 = _rows_of("f16", _load_f16, half, 2)
_rows_of_bf16 = _rows_of("bf16", _load_bf16, _bf16_at, 2)


@kernel(*PREPARE)
def prepare_f32(x, is_unsigned, words, packed, sums, first, last):
    """S5. Tokens first .. last - 1 as the tiles of F32 read them; words and sums are not used."""
    _prepare(x, activations.KEEP, packed, first, last)


@kernel(*PREPARE)
def prepare_f16(x, is_unsigned, words, packed, sums, first, last):
    """S5. Tokens first .. last - 1, rounded to float16, as tiles read them; words and sums are not used."""
    _prepare(x, activations.TO_F16, packed, first, last)


@kernel(*PREPARE)
def prepare_bf16(x, is_unsigned, words, packed, sums, first, last):
    """S5. Tokens first .. last - 1, rounded to bfloat16, as tiles read them; words and sums are not used."""
    _prepare(x, activations.TO_BF16, packed, first, last)


@kernel(*ROWS_ARGS)
def rows_f32(raw, words, packed, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of F32 times all tokens."""
    _rows_of_f32(raw, packed, y, first, last)


@kernel(*ROWS_ARGS)
def rows_f16(raw, words, packed, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of F16 times all tokens."""
    _rows_of_f16(raw, packed, y, first, last)


@kernel(*ROWS_ARGS)
def rows_bf16(raw, words, packed, sums, y, first, last):
    """Groups first .. last - 1 of 16 rows of BF16 times all tokens."""
    _rows_of_bf16(raw, packed, y, first, last)


PRODUCTS = {
    "F32": Product(0, 1, 0, False, prepare_f32, rows_f32),
    "F16": Product(0, 1, 0, False, prepare_f16, rows_f16),
    "BF16": Product(0, 1, 0, False, prepare_bf16, rows_bf16),
}
