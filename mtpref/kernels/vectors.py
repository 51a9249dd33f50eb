"""The steps of the panel kernels as vector code: exact integer products of codes, one matrix row in each lane.

Owns the choice of instructions by target. A step takes and gives the 16 rows of a panel as a list of vectors that the
target's registers hold (`PIECES` of them); integers are exact, so that choice changes no bit. Read next: tiles.py.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from mtpref.kernels.scalars import FLOAT, I8, I16, I32, I64, emit_f32_of_f16, splat
from mtpref.kernels.target import target_has, target_is_x86

ROWS = 16  # of a panel

# Codes that lie beside each other in a lane: 4 where one instruction adds four products of bytes to an int32, else 2.
HAS_DOT4 = target_has("avx512bw") and target_has("avx512vnni")
GROUP = 4 if HAS_DOT4 else 2
LANES = 16 if target_has("avx512bw") else 8 if target_has("avx2") else 4
PIECES = ROWS // LANES

BYTE_POINTER = I8.as_pointer()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(FLOAT, LANES)
SHORTS = ir.VectorType(I16, 2 * LANES)

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
    shorts = builder.bitcast(word, SHORTS)
    parts = [load(builder, offset(builder, rows, 2 * LANES * n), narrow) for n in range(PIECES)]
    products = [add_pairs(builder, builder.sext(part, SHORTS), shorts) for part in parts]
    return [builder.add(total, product) for total, product in zip(totals, products, strict=True)]


def floats_of_halves(builder: ir.IRBuilder, pointer: ir.Value) -> Pieces:
    """The 16 float16 at a pointer as float32."""
    kind = ir.VectorType(I16, LANES)
    return [_to_floats(builder, load(builder, offset(builder, pointer, 2 * LANES * n), kind)) for n in range(PIECES)]


def _to_floats(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    if target_has("f16c"):
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
    return emit_f32_of_f16(builder, builder.zext(bits, INTS))


def zeros(kind: ir.VectorType) -> Pieces:
    return [splat(0.0 if kind == FLOATS else 0, kind)] * PIECES
