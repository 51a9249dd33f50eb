"""S1 and what Numba lacks for single values: the fused multiply-add, bit views, float16, loads from raw bytes.

Owns short pieces of hand-written LLVM code, each behind a name that reads like Python. `emit_fma32` also takes vectors:
lanes.py builds on it. Read with `mtpref.spec.arith.fma32`.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels.compiling.compile import HAS_FMA
from mtpref.kernels.compiling.target import target_has

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


def _like(value: ir.Value, element: ir.Type) -> ir.Type:
    """`element`, or the vector of it that has as many lanes as the value."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def splat(value: Any, kind: ir.Type) -> ir.Constant:
    """The constant of a scalar type, or of a vector type with the value in every lane."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def intrinsic_call(builder: ir.IRBuilder, name: str, kind: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic such as llvm.fma.f32 on operands of one type."""
    suffix = {FLOAT: "f32", DOUBLE: "f64"}[kind.element if isinstance(kind, ir.VectorType) else kind]
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    function_type = ir.FunctionType(kind, [kind] * len(args))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.{lanes}{suffix}")
    return builder.call(function, args)


def emit_fma32(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c rounded once, for float32 scalars or vectors: the instruction, or `spec.fma32` step by step.

    The step towards the error e changes the bits of the sum s by +1 if e and s have the same sign, else by -1.
    """
    if HAS_FMA:
        return intrinsic_call(builder, "fma", a.type, [a, b, c])
    wide, integer = _like(a, DOUBLE), _like(a, I64)
    product = builder.fmul(builder.fpext(a, wide), builder.fpext(b, wide))
    addend = builder.fpext(c, wide)
    total = builder.fadd(product, addend)
    back = builder.fsub(total, product)
    error = builder.fadd(builder.fsub(product, builder.fsub(total, back)), builder.fsub(addend, back))
    bits = builder.bitcast(total, integer)
    # An infinite sum has an infinite or NaN error; the ordered comparisons below leave it as it is.
    magnitude = builder.and_(bits, splat(0x7FFFFFFFFFFFFFFF, integer))
    is_finite = builder.icmp_unsigned("<", magnitude, splat(0x7FF0000000000000, integer))
    is_even = builder.icmp_unsigned("==", builder.and_(bits, splat(1, integer)), splat(0, integer))
    is_inexact = builder.fcmp_unordered("!=", error, splat(0.0, wide))
    is_inexact = builder.and_(builder.and_(is_inexact, is_even), is_finite)
    opposite = builder.ashr(builder.xor(builder.bitcast(error, integer), bits), splat(63, integer))
    step = builder.or_(opposite, splat(1, integer))
    odd = builder.add(bits, builder.select(is_inexact, step, splat(0, integer)))
    return builder.fptrunc(builder.bitcast(odd, wide), a.type)


@intrinsic
def fma32(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """S1. round32(a * b + c) of three float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_fma32(builder, *args)

    if not all(t == types.float32 for t in (a, b, c)):
        raise TypeError(f"fma32 takes float32, found {a}, {b}, {c}")
    return types.float32(types.float32, types.float32, types.float32), codegen


def _bit_view(to: types.Type, source: types.Type, ir_type: ir.Type) -> Any:
    @intrinsic
    def view(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], ir_type)

        return to(source), codegen

    return view


bits_of_f32 = _bit_view(types.uint32, types.float32, I32)
f32_of_bits = _bit_view(types.float32, types.uint32, FLOAT)
bits_of_f64 = _bit_view(types.int64, types.float64, I64)
f64_of_bits = _bit_view(types.float64, types.int64, DOUBLE)


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to flat element `index` of a contiguous array, without bounds or wraparound."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def at(typingctx: Any, array: Any, index: Any) -> Any:
    """array.flat[index] of a contiguous array for index >= 0: what array[index] costs without the sign test."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(pointer_to(context, builder, sig.args[0], *args))

    return array.dtype(array, types.intp), codegen


def emit_f32_of_f16(builder: ir.IRBuilder, half32: ir.Value) -> ir.Value:
    """The float32 values of float16 bits in int32, exact; scalars or vectors.

    A normal number moves its exponent by 112; infinity and NaN by as much again. A subnormal number is put below
    the hidden bit of 2**-14, which is then subtracted.
    """
    integer, real = half32.type, _like(half32, FLOAT)

    def constant(value: int) -> ir.Constant:
        return splat(value, integer)

    magnitude = builder.shl(builder.and_(half32, constant(0x7FFF)), constant(13))
    exponent = builder.and_(magnitude, constant(0x0F800000))
    bits = builder.add(magnitude, constant(0x38000000))
    is_special = builder.icmp_unsigned("==", exponent, constant(0x0F800000))
    special = builder.add(bits, constant(0x38000000))
    small = builder.bitcast(builder.add(bits, constant(0x00800000)), real)
    small = builder.bitcast(builder.fsub(small, splat(2.0**-14, real)), integer)
    is_small = builder.icmp_unsigned("==", exponent, constant(0))
    bits = builder.select(is_small, small, builder.select(is_special, special, bits))
    sign = builder.shl(builder.and_(half32, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(bits, sign), real)


def emit_f16s(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The float32 values of a vector of float16 bits."""
    n = bits.type.count
    if target_has("f16c"):
        halves = builder.bitcast(bits, ir.VectorType(ir.HalfType(), n))
        return builder.fpext(halves, ir.VectorType(FLOAT, n))
    return emit_f32_of_f16(builder, builder.zext(bits, ir.VectorType(I32, n)))


def emit_bf16s(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The float32 values of a vector of bfloat16 bits."""
    wide = ir.VectorType(I32, bits.type.count)
    shifted = builder.shl(builder.zext(bits, wide), splat(16, wide))
    return builder.bitcast(shifted, ir.VectorType(FLOAT, wide.count))


@intrinsic
def f32_of_f16(typingctx: Any, half: Any) -> Any:
    """S5. The float32 value of the 16 bits of a float16, exact. In 32-bit integers, since Numba's own are 64-bit."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_f32_of_f16(builder, builder.zext(args[0], I32))

    return types.float32(types.uint16), codegen


def _load_bytes(result: Any, ir_type: ir.Type) -> Any:
    @intrinsic
    def load(typingctx: Any, raw: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = pointer_to(context, builder, sig.args[0], *args)
            return builder.load(builder.bitcast(pointer, ir_type.as_pointer()), align=1)

        return result(raw, types.intp), codegen

    return load


# The little-endian value at byte i of a uint8 array, at any alignment.
u16_in = _load_bytes(types.uint16, I16)
f32_in = _load_bytes(types.float32, FLOAT)


@intrinsic
def copy_unit(typingctx: Any, raw: Any, i: Any, out: Any, j: Any, n_bytes: Any, flip: Any) -> Any:
    """out.flat[j : j + n] = raw.flat[i : i + n] xor flip, of uint8 arrays, for n of 1, 2 or 4."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointers = [pointer_to(context, builder, sig.args[n], args[n], args[n + 1]) for n in (0, 2)]
        for n, kind in ((1, I8), (2, I16), (4, I32)):
            with builder.if_then(builder.icmp_unsigned("==", args[4], I64(n))):
                start, to = (builder.bitcast(p, kind.as_pointer()) for p in pointers)
                mask = builder.mul(builder.trunc(args[5], kind), kind(int("01" * n, 16)))
                builder.store(builder.xor(builder.load(start, align=1), mask), to, align=1)
        return context.get_dummy_value()

    n = types.intp
    return types.void(raw, n, out, n, n, n), codegen


@intrinsic
def never_inline(typingctx: Any) -> Any:
    """Keeps LLVM from copying the function that calls this into its callers: it bounds the time to compile."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def copy_bytes(typingctx: Any, source: Any, i: Any, out: Any, j: Any, n: Any) -> Any:
    """out.flat[j : j + n] = source.flat[i : i + n] of two contiguous arrays of bytes that do not overlap."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start, to = (pointer_to(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 2))
        cgutils.raw_memcpy(builder, to, start, args[4], 1)
        return context.get_dummy_value()

    if not all(array.dtype == types.uint8 and array.layout == "C" for array in (source, out)):
        raise TypeError(f"expected contiguous bytes, found {source}, {out}")
    return types.void(source, types.intp, out, types.intp, types.intp), codegen
