"""S6 for the 16 rows of a panel and a few tokens at once: the inner loops, one emitted function for each width.

Owns the float arithmetic of a block, in the order of the specification: the exact integer of a block, then one fma32
(two where a type has minima). A row is a lane, so nothing is ever added across lanes. Layouts stand in panels.py.

Loops have bounds that LLVM cannot know. Unrolled as a whole, the sums of integers are reordered (which changes no bit)
until no register is free: half the speed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels import vectors
from mtpref.kernels.scalars import FLOAT, I32, I64, emit_fma32, pointer_to, splat
from mtpref.kernels.vectors import FLOATS, INTS, LANES, PIECES, ROWS, Pieces, broadcast, load, offset, zeros

WIDTHS = (4, 2, 1)  # tokens of a tile
UNROLLED = 2  # words of an activation in one round of a loop


class Sums:
    """A vector of each piece and token that a loop changes; LLVM keeps them in registers."""

    def __init__(self, builder: ir.IRBuilder, kind: ir.VectorType, n_tokens: int) -> None:
        self.builder = builder
        self.slots = [[cgutils.alloca_once(builder, kind) for _ in range(PIECES)] for _ in range(n_tokens)]
        self.put([zeros(kind)] * n_tokens)

    def get(self) -> list[Pieces]:
        return [[self.builder.load(slot) for slot in slots] for slots in self.slots]

    def put(self, values: list[Pieces]) -> None:
        for slots, pieces in zip(self.slots, values, strict=True):
            for slot, piece in zip(slots, pieces, strict=True):
                self.builder.store(piece, slot)


@dataclass(frozen=True)
class Tile:
    """What the code of a block reads: n_tokens tokens of the activation, and where in it the block is.

    words   codes, grouped as the target's instruction wants them, `n_words` int32 for a block
    scales  d_x, one float32 for a block
    sums    of the codes, `n_sums` int32 for a block
    """

    builder: ir.IRBuilder
    n_tokens: int
    words: ir.Value
    scales: ir.Value
    sums: ir.Value
    block: ir.Value
    n_blocks: ir.Value
    n_words: ir.Value
    n_sums: ir.Value

    def word(self, t: int, i: ir.Value) -> ir.Value:
        """Word i of the block, of token t, in every lane."""
        return self._broadcast(self.words, t, self.n_words, i, I32)

    def scale(self, t: int) -> ir.Value:
        return self._broadcast(self.scales, t, I64(1), I64(0), FLOAT)

    def sum(self, t: int, i: ir.Value) -> ir.Value:
        return self._broadcast(self.sums, t, self.n_sums, i, I32)

    def _broadcast(self, start: ir.Value, t: int, n: ir.Value, i: ir.Value, kind: ir.Type) -> ir.Value:
        builder = self.builder
        at = builder.add(builder.mul(builder.add(builder.mul(self.n_blocks, I64(t)), self.block), n), i)
        value = load(builder, offset(builder, start, builder.mul(at, I64(4))), kind)
        return broadcast(builder, value, INTS if kind == I32 else FLOATS)

    @contextmanager
    def each_word(self, n: ir.Value) -> Iterator[list[ir.Value]]:
        """A loop over n words; its body gets the numbers of UNROLLED of them."""
        builder = self.builder
        with cgutils.for_range(builder, builder.udiv(n, I64(UNROLLED))) as loop:
            first = builder.mul(loop.index, I64(UNROLLED))
            yield [builder.add(first, I64(u)) for u in range(UNROLLED)]


# (tile, pointer to the block, sums so far) -> the sums after it.
Step = Callable[[Tile, ir.Value, list[Pieces]], list[Pieces]]


def tile_of(step: Step, block_bytes: int, n_tokens: int) -> Any:
    """An intrinsic (panels, at, words, scales, sums, t, y, k, y_step): a panel's rows times n_tokens tokens from t on.

    panels   its blocks, of block_bytes, begin at panels.flat[at]; scales (T, n_blocks) says how many there are
    y        row r of token t + i goes to y.flat[k + i y_step + r]
    """

    @intrinsic
    def emitted(typingctx: Any, panels: Any, at: Any, words: Any, scales: Any, sums: Any, t: Any, y: Any, k: Any,
             y_step: Any) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.function.attributes.add("noinline")
            n_blocks, n_words, n_sums = _sizes(context, builder, sig, args)
            firsts = (builder.mul(args[5], builder.mul(n_blocks, n)) for n in (n_words, I64(1), n_sums))
            indices = {0: args[1], 2: next(firsts), 3: next(firsts), 4: next(firsts), 6: args[7]}
            starts = {n: builder.bitcast(pointer_to(context, builder, sig.args[n], args[n], i), vectors.BYTE_POINTER)
                      for n, i in indices.items()}  # fmt: skip
            totals = Sums(builder, FLOATS, n_tokens)
            with cgutils.for_range(builder, n_blocks) as loop:
                block = offset(builder, starts[0], builder.mul(loop.index, I64(block_bytes)))
                one = Tile(builder, n_tokens, starts[2], starts[3], starts[4], loop.index, n_blocks, n_words, n_sums)
                totals.put(step(one, block, totals.get()))
            for i, pieces in enumerate(totals.get()):
                row = offset(builder, starts[6], builder.mul(args[8], I64(4 * i)))
                for n, piece in enumerate(pieces):
                    vectors.store(builder, piece, offset(builder, row, 4 * LANES * n))
            return context.get_dummy_value()

        return _tile_signature(panels, words, scales, sums, y), codegen

    def function(panels, at, words, scales, sums, t, y, k, y_step):  # type: ignore[no-untyped-def]
        emitted(panels, at, words, scales, sums, t, y, k, y_step)

    @intrinsic
    def tile(typingctx: Any, panels: Any, at: Any, words: Any, scales: Any, sums: Any, t: Any, y: Any, k: Any,
             y_step: Any) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return context.compile_internal(builder, function, sig, args)

        return _tile_signature(panels, words, scales, sums, y), codegen

    return tile


def _tile_signature(panels: Any, words: Any, scales: Any, sums: Any, y: Any) -> Any:
    n = types.intp
    return types.none(panels, n, words, scales, sums, n, y, n, n)


def _sizes(context: Any, builder: Any, sig: Any, args: Any) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Blocks of a row; words and sums of a block."""
    columns = []
    for n in (3, 2, 4):
        shape = context.make_array(sig.args[n])(context, builder, args[n]).shape
        columns.append(builder.extract_value(shape, 1))
    n_blocks, words, sums = columns
    return n_blocks, builder.udiv(words, n_blocks), builder.udiv(sums, n_blocks)


def add_scaled(builder: ir.IRBuilder, integers: Pieces, scales: Pieces, scale_x: ir.Value, totals: Pieces) -> Pieces:
    """fma32(float32(integer), d_w d_x, total) in every lane."""
    return [
        emit_fma32(builder, builder.sitofp(integer, FLOATS), builder.fmul(scale, scale_x), total)
        for integer, scale, total in zip(integers, scales, totals, strict=True)
    ]


def step_q8_0(tile: Tile, block: ir.Value, totals: list[Pieces]) -> list[Pieces]:
    """The block's codes, 16 rows of one word after the other, then the float16 scales of the rows."""
    builder = tile.builder
    integers = Sums(builder, INTS, tile.n_tokens)
    if vectors.HAS_DOT4:
        integers.put([[builder.mul(tile.sum(t, I64(0)), splat(-128, INTS))] for t in range(tile.n_tokens)])
    with tile.each_word(tile.n_words) as words:
        now = integers.get()
        for i in words:
            rows = offset(builder, block, builder.mul(i, I64(vectors.GROUP * ROWS)))
            now = [vectors.add_signed(builder, now[t], rows, tile.word(t, i)) for t in range(tile.n_tokens)]
        integers.put(now)
    scales = vectors.floats_of_halves(builder, offset(builder, block, 32 * ROWS))
    return [add_scaled(builder, integer, scales, tile.scale(t), totals[t]) for t, integer in enumerate(integers.get())]


Q8_0_BYTES = 34 * ROWS
q8_0_4, q8_0_2, q8_0_1 = (tile_of(step_q8_0, Q8_0_BYTES, n) for n in WIDTHS)

# Type -> its tiles, in the order of WIDTHS.
TILES = {"Q8_0": (q8_0_4, q8_0_2, q8_0_1)}
