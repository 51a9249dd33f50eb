"""The blocks of every type that has panels: how a tile multiplies them.

Owns, for each type, the step from one block to the next (tiles.py: `Step`), whose float operations are those of
`spec.mul_mat_legacy` and `spec.mul_mat_k` in their order. The bytes that it reads are laid out by panels.py.

Unsigned codes are added up as int16 where a lane holds two of them (GROUP 2): as many words of the activation as cannot
overflow, whatever its codes are. Two such sums then become int32, multiplied by the scale of their sub-block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from mtpref.kernels.arithmetic import vectors
from mtpref.kernels.arithmetic.scalars import I64, splat
from mtpref.kernels.arithmetic.vectors import (
    CODE_BYTES,
    CODE_PIECES,
    CODE_SHORTS,
    GROUP,
    HAS_DOT4,
    INTS,
    ROWS,
    Pieces,
    offset,
)
from mtpref.kernels.products.tiles import UNROLLED, WIDTHS, Step, Sums, Tile, add_scaled, tile_of

UNIT_BYTES = ROWS * GROUP  # a group of codes of all rows
# What a total of unsigned products is held in, and the vector that a word of the activation fills for it.
TOTALS, N_TOTALS = (INTS, 1) if HAS_DOT4 else (CODE_SHORTS, CODE_PIECES)
N_SUMS = 1 if HAS_DOT4 else 2  # that are multiplied by a scale together
WORDS = ir.VectorType(ir.IntType(32), CODE_BYTES // 4)

Both = tuple[Pieces, Pieces]  # codes of the low and of the high halves of bytes
Runs = tuple[tuple[ir.Value, ir.Value, ir.Value], ...]


def _at(builder: ir.IRBuilder, block: ir.Value, i: ir.Value, size: int, start: int = 0) -> ir.Value:
    """Pointer to item i of `size` bytes, of those from byte `start` of the block on."""
    return offset(builder, offset(builder, block, builder.mul(i, I64(size))), start)


def _halves(builder: ir.IRBuilder, codes: Pieces) -> Both:
    high = vectors.masked(builder, vectors.shifted_right(builder, codes, 4), 15)
    return vectors.masked(builder, codes, 15), high


# BLOCKS OF 32


def _step_q8_0(tile: Tile, block: ir.Value, totals: list[Pieces]) -> list[Pieces]:
    """32 columns of int8, the float16 scales."""
    builder = tile.builder
    integers = Sums(builder, INTS, tile.n_tokens)
    if HAS_DOT4:
        integers.put([[builder.mul(tile.sum(t, I64(0)), splat(-128, INTS))] for t in range(tile.n_tokens)])
    with tile.each_of(tile.n_words) as (i_round, words):
        tile.prefetch(block, i_round, 32 // GROUP // UNROLLED)
        now = integers.get()
        for i in words:
            rows = _at(builder, block, i, UNIT_BYTES)
            now = [vectors.add_signed(builder, now[t], rows, tile.word(t, i)) for t in range(tile.n_tokens)]
        integers.put(now)
    return _scaled(tile, offset(builder, block, 32 * ROWS), integers.get(), totals)


def _step_q4_0(tile: Tile, block: ir.Value, totals: list[Pieces]) -> list[Pieces]:
    """16 bytes of which the low halves are columns 0 .. 15, codes 8 too great; the float16 scales."""
    builder = tile.builder
    first_high = 16 // GROUP
    sums = [Sums(builder, TOTALS, tile.n_tokens, N_TOTALS) for _ in range(2)]
    with tile.each_of(tile.rounds(2)) as (i_round, units):
        tile.prefetch(block, i_round, first_high // UNROLLED)
        for i in units:
            codes = _halves(builder, vectors.load_codes(builder, _at(builder, block, i, UNIT_BYTES)))
            _add(tile, sums, codes, (i, builder.add(i, I64(first_high))))
    low, high = (s.get() for s in sums)
    integers = []
    for t in range(tile.n_tokens):
        start = [builder.mul(tile.sum(t, I64(0)), splat(-8, INTS))] * vectors.PIECES
        if HAS_DOT4:
            integers.append([builder.add(builder.add(start[0], low[t][0]), high[t][0])])
        else:
            ones = [splat(1, vectors.PAIRS)] * vectors.PIECES
            integers.append(
                vectors.add_pair_products(builder, start, vectors.interleave(builder, low[t], high[t]), ones)
            )
    return _scaled(tile, offset(builder, block, 16 * ROWS), integers, totals)


def _scaled(tile: Tile, halves: ir.Value, integers: list[Pieces], totals: list[Pieces]) -> list[Pieces]:
    scales = vectors.floats_of_halves(tile.builder, halves)
    return [add_scaled(tile.builder, integers[t], scales, tile.scale(t), totals[t]) for t in range(tile.n_tokens)]


def _add(tile: Tile, sums: list[Sums], codes: Both, words: tuple[ir.Value, ir.Value]) -> None:
    """The products of a unit's codes, low and high, with their words."""
    for total, part, i in zip(sums, codes, words, strict=True):
        total.put(
            [
                vectors.add_unsigned(tile.builder, pieces, part, tile.word(t, i, WORDS))
                for t, pieces in enumerate(total.get())
            ]
        )


# BLOCKS OF 256


@dataclass(frozen=True)
class KQuant:
    """How a block of 256 is read: in rounds of two runs of n_columns, one in the low, one in the high halves of bytes.

    n_words    words whose products with codes fit an int16 (GROUP 2)
    codes      (builder, block, round, unit of the round) -> both codes
    runs       round -> the first columns of both runs / n_columns, and where their scales are: index of the pair, and
               which of it
    scales     first byte of the scales in a panel's block; mins: of the minima, or None
    d          first byte of the float16 scales of all rows, then of dmin
    is_signed  whether scales are; then codes are 32 too great
    """

    n_columns: int
    n_words: int
    codes: Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], Both]
    runs: Callable[[ir.IRBuilder, ir.Value], Runs]
    scales: int
    mins: int | None
    d: int
    is_signed: bool


def _step_k(k: KQuant, tile: Tile, block: ir.Value, totals: list[Pieces]) -> list[Pieces]:
    builder, tokens = tile.builder, range(tile.n_tokens)
    integers = Sums(builder, INTS, tile.n_tokens)
    with tile.loop(tile.rounds(2 * k.n_columns // GROUP)) as i:
        tile.prefetch(block, i, 256 // (2 * k.n_columns))
        runs = k.runs(builder, i)
        scales = []
        for _, pair, which in runs:
            pairs = vectors.pairs_at(builder, _at(builder, block, pair, 2 * ROWS, k.scales), is_signed=k.is_signed)
            scales.append(vectors.one_of_pair(builder, pairs, which))
        for part in _parts(k, tile, block, i, runs):
            now = integers.get()
            for sums, scale in zip(part, scales, strict=True):
                now = [_add_times_scale(builder, now[t], [s[t] for s in sums], scale) for t in tokens]
            integers.put(now)
    lows = Sums(builder, INTS, tile.n_tokens)
    with tile.loop(tile.n_sums) as i:
        at = _at(builder, block, i, 2 * ROWS, k.scales if k.mins is None else k.mins)
        pairs = vectors.pairs_at(builder, at, is_signed=k.is_signed)
        words = [[builder.bitcast(tile.sum(t, i), vectors.PAIRS)] * vectors.PIECES for t in tokens]
        now = lows.get()
        lows.put([vectors.add_pair_products(builder, now[t], pairs, words[t]) for t in tokens])
    found, low = integers.get(), lows.get()
    if k.mins is None:
        found = [
            [builder.sub(x, builder.shl(y, splat(5, INTS))) for x, y in zip(found[t], low[t], strict=True)]
            for t in tokens
        ]
        return _scaled(tile, offset(builder, block, k.d), found, totals)
    totals = _scaled(tile, offset(builder, block, k.d), found, totals)
    # -(d_x dmin) is exactly d_x (-dmin).
    dmin = vectors.floats_of_halves(builder, offset(builder, block, k.d + 2 * ROWS))
    negative = [builder.fneg(piece) for piece in dmin]
    return [add_scaled(builder, low[t], negative, tile.scale(t), totals[t]) for t in tokens]


def _parts(k: KQuant, tile: Tile, block: ir.Value, i: ir.Value, runs: Runs) -> Iterator[list[tuple[list[Pieces], ...]]]:
    """The sums of a round in parts: for each run, N_SUMS of them, of all tokens, to be multiplied by its scale."""
    builder = tile.builder
    n_units = k.n_columns // GROUP
    n_words = n_units if HAS_DOT4 else k.n_words
    firsts = [builder.mul(run[0], I64(n_units)) for run in runs]
    made: list[list[list[Pieces]]] = []
    for start in range(0, n_units, n_words):
        sums = [Sums(builder, TOTALS, tile.n_tokens, N_TOTALS) for _ in runs]

        def add(unit: ir.Value, sums: list[Sums] = sums) -> None:
            codes = k.codes(builder, block, i, unit)
            _add(tile, sums, codes, (builder.add(firsts[0], unit), builder.add(firsts[1], unit)))

        # Straight code where registers hold its sums: short loops cost more than their bodies.
        if n_words <= (4 if tile.n_tokens <= 2 else 2):
            for u in range(start, start + n_words):
                add(I64(u))
        else:
            with tile.each_of(tile.rounds(256 // GROUP // n_words)) as (_, units):
                for unit in units:
                    add(builder.add(unit, I64(start)))
        made.append([s.get() for s in sums])
        if len(made) == N_SUMS:
            yield list(zip(*made, strict=True))
            made = []


def _add_times_scale(builder: ir.IRBuilder, totals: Pieces, sums: list[Pieces], scale: Pieces) -> Pieces:
    """total + scale times all sums."""
    if HAS_DOT4:
        return [builder.add(totals[0], builder.mul(sums[0][0], scale[0]))]
    return vectors.add_pair_products(builder, totals, vectors.interleave(builder, *sums), scale)


def _codes_q4_k(builder: ir.IRBuilder, block: ir.Value, i: ir.Value, unit: ir.Value) -> Both:
    """Byte j of 32 of round i: column 64 i + j in its low, 64 i + 32 + j in its high half."""
    at = builder.add(builder.mul(i, I64(32 // GROUP)), unit)
    return _halves(builder, vectors.load_codes(builder, _at(builder, block, at, UNIT_BYTES)))


def _codes_q5_k(builder: ir.IRBuilder, block: ir.Value, i: ir.Value, unit: ir.Value) -> Both:
    """As Q4_K; the fifth bits of both are bits 2 i and 2 i + 1 of byte j of 32."""
    low, high = _codes_q4_k(builder, block, i, unit)
    fifth = vectors.load_codes(builder, _at(builder, block, unit, UNIT_BYTES, 128 * ROWS))
    fifth = vectors.shifted_right(builder, fifth, builder.shl(i, I64(1)))
    of_low, of_high = (vectors.masked(builder, vectors.shifted_left(builder, fifth, n), 16) for n in (4, 3))
    return vectors.joined(builder, low, of_low), vectors.joined(builder, high, of_high)


def _codes_q6_k(builder: ir.IRBuilder, block: ir.Value, i: ir.Value, unit: ir.Value) -> Both:
    """Round i = 4 h + 2 a + b: byte 16 i + j of ql has the low bits of columns 128 h + 32 a + 16 b + j and 64 more; the
    upper two are bits 2 a, 2 a + 1 and 4 + 2 a, 5 + 2 a of byte 32 h + 16 b + j of qh."""
    at = builder.add(builder.mul(i, I64(16 // GROUP)), unit)
    low, high = _halves(builder, vectors.load_codes(builder, _at(builder, block, at, UNIT_BYTES)))
    h, b = builder.lshr(i, I64(2)), builder.and_(i, I64(1))
    at = builder.add(builder.mul(builder.or_(builder.shl(h, I64(1)), b), I64(16 // GROUP)), unit)
    upper = vectors.load_codes(builder, _at(builder, block, at, UNIT_BYTES, 128 * ROWS))
    upper = vectors.shifted_right(builder, upper, builder.and_(i, I64(2)))
    of_low = vectors.masked(builder, vectors.shifted_left(builder, upper, 4), 48)
    return vectors.joined(builder, low, of_low), vectors.joined(builder, high, vectors.masked(builder, upper, 48))


def _runs_of_64(builder: ir.IRBuilder, i: ir.Value) -> Runs:
    """Sub-blocks 2 i and 2 i + 1."""
    first = builder.shl(i, I64(1))
    return (first, i, I64(0)), (builder.add(first, I64(1)), i, I64(1))


def _runs_q6_k(builder: ir.IRBuilder, i: ir.Value) -> Runs:
    """Sub-blocks 8 h + 2 a + b and 4 more, i = 4 h + 2 a + b."""
    first = builder.add(i, builder.and_(i, I64(4)))
    pair, which = builder.lshr(first, I64(1)), builder.and_(i, I64(1))
    return (first, pair, which), (builder.add(first, I64(4)), builder.add(pair, I64(2)), which)


_Q4_K = KQuant(32, 8, _codes_q4_k, _runs_of_64, 128 * ROWS, 136 * ROWS, 144 * ROWS, False)
_Q5_K = KQuant(32, 4, _codes_q5_k, _runs_of_64, 160 * ROWS, 168 * ROWS, 176 * ROWS, False)
_Q6_K = KQuant(16, 2, _codes_q6_k, _runs_q6_k, 192 * ROWS, None, 208 * ROWS, True)

# Type -> its step, and the bytes of a panel's block.
STEPS: dict[str, tuple[Step, int]] = {
    "Q8_0": (_step_q8_0, 34 * ROWS),
    "Q4_0": (_step_q4_0, 18 * ROWS),
    "Q4_K": (partial(_step_k, _Q4_K), 148 * ROWS),
    "Q5_K": (partial(_step_k, _Q5_K), 180 * ROWS),
    "Q6_K": (partial(_step_k, _Q6_K), 210 * ROWS),
}
# Type -> its tiles, in the order of WIDTHS.
TILES = {name: tuple(tile_of(name, step, n_bytes, n) for n in WIDTHS) for name, (step, n_bytes) in STEPS.items()}
