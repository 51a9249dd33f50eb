"""The steps of the panel kernels as vector code: exact integer products of codes, one matrix row in each lane.

Owns the choice of instructions by target. A step takes and gives the 16 rows of a panel as a list of vectors that the
target's registers hold (`PIECES` of them); integers are exact, so that choice changes no bit. Read next: tiles.py.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.scalars import FLOAT, I8, I16, I32, I64, emit_f16s, pointer_to, splat
from mtpref.kernels.compiling.target import target_has, target_is_x86

ROWS = 16  # of a panel

# Codes that lie beside each other in a lane: 4 where one instruction adds four products of bytes to an int32, else 2.
HAS_DOT4 = target_has("avx512bw") and target_has("avx512vnni")
GROUP = 4 if HAS_DOT4 else 2
LANES = 16 if target_has("avx512bw") else 8 if target_has("avx2") else 4
PIECES = ROWS // LANES

BYTE_POINTER = I8.as_pointer()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(FLOAT, LANES)
PAIRS = ir.VectorType(I16, 2 * LANES)  # two int16 in each int32 lane

# Unsigned codes of a group: 16 rows of GROUP bytes, in as many vectors as hold them.
CODE_BYTES = 16 * GROUP if LANES >= 8 else 16
CODE_PIECES = ROWS * GROUP // CODE_BYTES
CODES, CODE_SHORTS = ir.VectorType(I8, CODE_BYTES), ir.VectorType(I16, CODE_BYTES // 2)

# Rows lie in this order among unsigned codes: `interleave` of AVX2 works in halves of 128 bits and undoes it.
CODE_ORDER = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15) if LANES == 8 else tuple(range(ROWS))

Pieces = list[ir.Value]


def offset(builder: ir.IRBuilder, pointer: ir.Value, n: int | ir.Value) -> ir.Value:
    """The byte pointer n bytes on."""
    return builder.gep(pointer, [I64(n) if isinstance(n, int) else n])


def load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    """A value at a byte pointer of any alignment."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def broadcast(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A scalar in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return pick(builder, first, [0] * kind.count)


def pick(builder: ir.IRBuilder, value: ir.Value, lanes: list[int]) -> ir.Value:
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> Any:
    """Call an LLVM intrinsic by its whole name."""
    kind = ir.FunctionType(result, [value.type for value in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the cache line at a byte pointer; where no memory is, nothing happens."""
    for_reading, keep, data = I32(0), I32(3), I32(1)
    kind = ir.FunctionType(ir.VoidType(), [BYTE_POINTER, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, for_reading, keep, data])


def add_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a[2 l] b[2 l] + a[2 l + 1] b[2 l + 1] of int16 vectors, as int32 lane l."""
    if target_is_x86():
        name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[LANES]
        return call(builder, f"llvm.x86.{name}", INTS, a, b)
    parity = [[2 * lane + odd for lane in range(LANES)] for odd in (0, 1)]
    products = [builder.mul(*(builder.sext(pick(builder, v, lanes), INTS) for v in (a, b))) for lanes in parity]
    return builder.add(*products)


def add_signed(builder: ir.IRBuilder, totals: Pieces, rows: ir.Value, word: ir.Value) -> Pieces:
    """total + the products of a group of codes at byte pointer `rows` with one word of the activation.

    GROUP 2  int8 codes of the 16 rows, two of each; the word holds two int16
    GROUP 4  four codes of each row as uint8, 128 too great; the word holds four int8. The caller takes off 128 times
             the sum of the activation's codes.
    """
    if HAS_DOT4:
        codes = load(builder, rows, INTS)
        return [call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, totals[0], codes, word)]
    narrow = ir.VectorType(I8, 2 * LANES)
    shorts = builder.bitcast(word, PAIRS)
    parts = [load(builder, offset(builder, rows, 2 * LANES * n), narrow) for n in range(PIECES)]
    products = [add_pairs(builder, builder.sext(part, PAIRS), shorts) for part in parts]
    return [builder.add(total, product) for total, product in zip(totals, products, strict=True)]


def floats_of_halves(builder: ir.IRBuilder, pointer: ir.Value) -> Pieces:
    """The 16 float16 at a pointer as float32."""
    kind = ir.VectorType(I16, LANES)
    return [emit_f16s(builder, load(builder, offset(builder, pointer, 2 * LANES * n), kind)) for n in range(PIECES)]


def zeros(kind: ir.VectorType, n_pieces: int = PIECES) -> Pieces:
    return [splat(0.0 if kind == FLOATS else 0, kind)] * n_pieces


def _copy_units(n_bytes: int, places: tuple[int, ...]) -> Any:
    """An intrinsic (raw, i, row_bytes, out, j, flip): a unit of n_bytes of each of 16 rows, which begin at raw.flat[i]
    and row_bytes apart, to its place among the 16 units at out.flat[j], every byte xored with flip."""

    @intrinsic
    def copy(typingctx: Any, raw: Any, i: Any, row_bytes: Any, out: Any, j: Any, flip: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.IntType(8 * n_bytes)
            start, to = (pointer_to(context, builder, sig.args[n], args[n], args[n + 1]) for n in (0, 3))
            mask = builder.mul(builder.trunc(args[5], kind), kind(int("01" * n_bytes, 16)))
            for r, place in enumerate(places):
                unit = load(builder, offset(builder, start, builder.mul(args[2], I64(r))), kind)
                store(builder, builder.xor(unit, mask), offset(builder, to, n_bytes * place))
            return context.get_dummy_value()

        n = types.intp
        return types.void(raw, n, n, out, n, n), codegen

    return copy


# The place of each row among unsigned codes.
CODE_PLACES = tuple(CODE_ORDER.index(r) for r in range(ROWS))
copy_codes, copy_groups = _copy_units(GROUP, CODE_PLACES), _copy_units(GROUP, tuple(range(ROWS)))


# UNSIGNED CODES


def load_codes(builder: ir.IRBuilder, pointer: ir.Value) -> Pieces:
    """The uint8 of a group at a byte pointer."""
    return [load(builder, offset(builder, pointer, CODE_BYTES * n), CODES) for n in range(CODE_PIECES)]


def masked(builder: ir.IRBuilder, codes: Pieces, mask: int) -> Pieces:
    return [builder.and_(piece, splat(mask, CODES)) for piece in codes]


def shifted_right(builder: ir.IRBuilder, codes: Pieces, n: int | ir.Value) -> Pieces:
    """Codes shifted in pairs: of each byte only the bits that cannot come from its neighbour have a meaning."""
    by = splat(n, CODE_SHORTS) if isinstance(n, int) else broadcast(builder, builder.trunc(n, I16), CODE_SHORTS)
    return [builder.bitcast(builder.lshr(builder.bitcast(piece, CODE_SHORTS), by), CODES) for piece in codes]


def shifted_left(builder: ir.IRBuilder, codes: Pieces, n: int) -> Pieces:
    return [
        builder.bitcast(builder.shl(builder.bitcast(piece, CODE_SHORTS), splat(n, CODE_SHORTS)), CODES)
        for piece in codes
    ]


def joined(builder: ir.IRBuilder, a: Pieces, b: Pieces) -> Pieces:
    return [builder.or_(x, y) for x, y in zip(a, b, strict=True)]


def add_unsigned(builder: ir.IRBuilder, totals: Pieces, codes: Pieces, word: ir.Value) -> Pieces:
    """total + the products of a group of unsigned codes with one word of the activation.

    GROUP 2  int16 totals; the word holds x0, x1, x0, x1 as int8. A product of codes below 64 is exact.
    GROUP 4  int32 totals; the word holds four int8
    """
    if HAS_DOT4:
        bits = builder.bitcast(codes[0], INTS)
        return [call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, totals[0], bits, word)]
    products = [_products_of_bytes(builder, piece, builder.bitcast(word, CODES)) for piece in codes]
    return [builder.add(total, product) for total, product in zip(totals, products, strict=True)]


def _products_of_bytes(builder: ir.IRBuilder, codes: ir.Value, x: ir.Value) -> ir.Value:
    """codes[2 l] x[2 l] + codes[2 l + 1] x[2 l + 1], unsigned times signed, as int16 lane l."""
    if CODE_BYTES == 32:
        return call(builder, "llvm.x86.avx2.pmadd.ub.sw", CODE_SHORTS, codes, x)
    if target_has("ssse3"):
        return call(builder, "llvm.x86.ssse3.pmadd.ub.sw.128", CODE_SHORTS, codes, x)
    codes, x, eight = builder.bitcast(codes, CODE_SHORTS), builder.bitcast(x, CODE_SHORTS), splat(8, CODE_SHORTS)
    even = builder.mul(builder.and_(codes, splat(255, CODE_SHORTS)), builder.ashr(builder.shl(x, eight), eight))
    return builder.add(even, builder.mul(builder.lshr(codes, eight), builder.ashr(x, eight)))


def interleave(builder: ir.IRBuilder, a: Pieces, b: Pieces) -> Pieces:
    """(a, b) of each row as the two int16 of its lane; rows of a and b lie in CODE_ORDER."""
    if LANES == 16:
        lanes = [[lane + half for lane in range(16) for half in (0, 16)]]
    elif LANES == 8:
        lanes = [
            [lane + half for lane in first for half in (0, 16)]
            for first in ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
        ]
    else:
        lanes = [[lane + half for lane in range(start, start + 4) for half in (0, 8)] for start in (0, 4)]
    masks = [ir.Constant(ir.VectorType(I32, 2 * LANES), order) for order in lanes]
    return [builder.shuffle_vector(x, y, mask) for x, y in zip(a, b, strict=True) for mask in masks]


def pairs_at(builder: ir.IRBuilder, pointer: ir.Value, *, is_signed: bool) -> Pieces:
    """Two bytes of each of 16 rows at a byte pointer, widened to the two int16 of the row's lane."""
    kind = ir.VectorType(I8, 2 * LANES)
    parts = [load(builder, offset(builder, pointer, 2 * LANES * n), kind) for n in range(PIECES)]
    return [builder.sext(part, PAIRS) if is_signed else builder.zext(part, PAIRS) for part in parts]


def add_pair_products(builder: ir.IRBuilder, totals: Pieces, a: Pieces, b: Pieces) -> Pieces:
    """total + the products of both int16 of each lane."""
    return [builder.add(total, add_pairs(builder, x, y)) for total, x, y in zip(totals, a, b, strict=True)]


def one_of_pair(builder: ir.IRBuilder, pairs: Pieces, which: int | ir.Value) -> Pieces:
    """The first (0) or second (1) int16 of each lane: as both int16 of the lane, or as an int32 (GROUP 4)."""
    which = I32(which) if isinstance(which, int) else builder.trunc(which, I32)
    bits = [builder.bitcast(pair, INTS) for pair in pairs]
    sixteen = splat(16, INTS)
    up = broadcast(builder, builder.mul(builder.sub(I32(1), which), I32(16)), INTS)
    high = [builder.shl(value, up) for value in bits]  # the one meant, in the upper half
    if HAS_DOT4:
        return [builder.ashr(value, sixteen) for value in high]
    low = [builder.lshr(value, sixteen) for value in high]
    upper = [builder.and_(value, splat(-65536, INTS)) for value in high]
    return [builder.bitcast(builder.or_(x, y), PAIRS) for x, y in zip(low, upper, strict=True)]
