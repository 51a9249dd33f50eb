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

from mtpref.kernels.arithmetic import vectors
from mtpref.kernels.arithmetic.scalars import I64, emit_fma32, pointer_to
from mtpref.kernels.arithmetic.vectors import FLOATS, INTS, LANES, PIECES, Pieces, broadcast, load, offset, zeros
from mtpref.kernels.compiling import compile

WIDTHS = (4, 2, 1)  # tokens of a tile
UNROLLED = 2  # words of an activation in one round of a loop
# A tile reads its panels in one stream, but the fields of a block by turns, which no hardware follows: it asks for what
# lies so many bytes ahead, a share in each round of a block's loop.
AHEAD = 4096
LINE = 64


class Sums:
    """Vectors of each token that a loop changes, 0 at first; LLVM keeps them in registers."""

    def __init__(self, builder: ir.IRBuilder, kind: ir.VectorType, n_tokens: int, n_pieces: int = PIECES) -> None:
        self.builder = builder
        self.slots = [[cgutils.alloca_once(builder, kind) for _ in range(n_pieces)] for _ in range(n_tokens)]
        self.put([zeros(kind, n_pieces)] * n_tokens)

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

    block_bytes   of a panel
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
    block_bytes: int

    def prefetch(self, block: ir.Value, i: ir.Value, n_rounds: int) -> None:
        """Ask for the share of round i in as many bytes as a block has, AHEAD of this one."""
        n_lines = -(-self.block_bytes // (LINE * n_rounds))
        step = self.block_bytes // (n_rounds * n_lines)
        share = offset(self.builder, block, self.builder.mul(i, I64(step * n_lines)))
        for line in range(n_lines):
            vectors.prefetch(self.builder, offset(self.builder, share, AHEAD + line * step))

    def word(self, t: int, i: ir.Value, kind: ir.VectorType = INTS) -> ir.Value:
        """Word i of the block, of token t, in every lane."""
        return self._broadcast(self.words, t, self.n_words, i, kind)

    def scale(self, t: int) -> ir.Value:
        return self._broadcast(self.scales, t, I64(1), I64(0), FLOATS)

    def sum(self, t: int, i: ir.Value) -> ir.Value:
        return self._broadcast(self.sums, t, self.n_sums, i, INTS)

    def _broadcast(self, start: ir.Value, t: int, n: ir.Value, i: ir.Value, kind: ir.VectorType) -> ir.Value:
        builder = self.builder
        at = builder.add(builder.mul(builder.add(builder.mul(self.n_blocks, I64(t)), self.block), n), i)
        value = load(builder, offset(builder, start, builder.mul(at, I64(4))), kind.element)
        return broadcast(builder, value, kind)

    def rounds(self, n_words: int) -> ir.Value:
        """How many times n_words go into the words of a block, as a number that LLVM does not know."""
        return self.builder.udiv(self.n_words, I64(n_words))

    @contextmanager
    def loop(self, n: ir.Value) -> Iterator[ir.Value]:
        """A loop over 0 .. n - 1; its body gets the number."""
        with cgutils.for_range(self.builder, n) as loop:
            yield loop.index

    @contextmanager
    def each_of(self, n: ir.Value) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
        """A loop over 0 .. n - 1; its body gets the number of the round, and UNROLLED numbers at once."""
        with self.loop(self.builder.udiv(n, I64(UNROLLED))) as i:
            first = self.builder.mul(i, I64(UNROLLED))
            yield i, [self.builder.add(first, I64(u)) for u in range(UNROLLED)]


# (tile, pointer to the block, sums so far) -> the sums after it.
Step = Callable[[Tile, ir.Value, list[Pieces]], list[Pieces]]


def tile_of(name: str, step: Step, block_bytes: int, n_tokens: int) -> Any:
    """An intrinsic (panels, at, words, scales, sums, t, y, k, y_step): a panel's rows times n_tokens tokens from t on.

    panels   its blocks, of block_bytes, begin at panels.flat[at]; scales (T, n_blocks) says how many there are
    y        row r of token t + i goes to y.flat[k + i y_step + r]
    """

    @intrinsic
    def emitted(
        typingctx: Any, panels: Any, at: Any, words: Any, scales: Any, sums: Any, t: Any, y: Any, k: Any, y_step: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.function.attributes.add("noinline")
            n_blocks, n_words, n_sums = _sizes(context, builder, sig, args)
            firsts = (builder.mul(args[5], builder.mul(n_blocks, n)) for n in (n_words, I64(1), n_sums))
            indices = {0: args[1], 2: next(firsts), 3: next(firsts), 4: next(firsts), 6: args[7]}
            starts = {
                n: builder.bitcast(pointer_to(context, builder, sig.args[n], args[n], i), vectors.BYTE_POINTER)
                for n, i in indices.items()
            }
            totals = Sums(builder, FLOATS, n_tokens)
            with cgutils.for_range(builder, n_blocks) as loop:
                block = offset(builder, starts[0], builder.mul(loop.index, I64(block_bytes)))
                reads = starts[2], starts[3], starts[4], loop.index, n_blocks, n_words, n_sums
                one = Tile(builder, n_tokens, *reads, block_bytes)
                totals.put(step(one, block, totals.get()))
            for i, pieces in enumerate(totals.get()):
                row = offset(builder, starts[6], builder.mul(args[8], I64(4 * i)))
                for n, piece in enumerate(pieces):
                    vectors.store(builder, piece, offset(builder, row, 4 * LANES * n))
            return context.get_dummy_value()

        return _tile_signature(panels, words, scales, sums, y), codegen

    def function(panels, at, words, scales, sums, t, y, k, y_step):  # type: ignore[no-untyped-def]
        emitted(panels, at, words, scales, sums, t, y, k, y_step)

    compile.name_symbol(function, f"tile_{name}_{n_tokens}")

    @intrinsic
    def tile(
        typingctx: Any, panels: Any, at: Any, words: Any, scales: Any, sums: Any, t: Any, y: Any, k: Any, y_step: Any
    ) -> Any:
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
