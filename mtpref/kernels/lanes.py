"""S1 and S2 as vector code: the fused multiply-add and the 32 lanes of a sum of products.

Owns the only places where LLVM instructions are written by hand. A value of 32 lanes is one LLVM vector; the code
generator splits it into the registers that the target has, and the order of operations in a lane does not depend on
how. Read with `mtpref.spec.arith.lane_sum_products`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from mtpref.kernels.compile import HAS_FMA, helper

N_LANES = 32

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


class LaneType(types.Type):
    """32 lanes of float32 or float64, as a Numba type."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.vector = ir.VectorType(element, N_LANES)
        super().__init__(name=name)


@register_default(LaneType)
class _LaneModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: LaneType) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


LANES32 = LaneType("lanes32", FLOAT)
LANES64 = LaneType("lanes64", DOUBLE)


def _like(value: ir.Value, element: ir.Type) -> ir.Type:
    """`element`, or the vector of it that has as many lanes as the value."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _splat(value: Any, kind: ir.Type) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _intrinsic_call(builder: ir.IRBuilder, name: str, kind: ir.Type, args: list[ir.Value]) -> ir.Value:
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
        return _intrinsic_call(builder, "fma", a.type, [a, b, c])
    wide, integer = _like(a, DOUBLE), _like(a, I64)
    product = builder.fmul(builder.fpext(a, wide), builder.fpext(b, wide))
    addend = builder.fpext(c, wide)
    total = builder.fadd(product, addend)
    back = builder.fsub(total, product)
    error = builder.fadd(builder.fsub(product, builder.fsub(total, back)), builder.fsub(addend, back))
    bits = builder.bitcast(total, integer)
    # An infinite sum has an infinite or NaN error; the ordered comparisons below leave it as it is.
    magnitude = builder.and_(bits, _splat(0x7FFFFFFFFFFFFFFF, integer))
    is_finite = builder.icmp_unsigned("<", magnitude, _splat(0x7FF0000000000000, integer))
    is_even = builder.icmp_unsigned("==", builder.and_(bits, _splat(1, integer)), _splat(0, integer))
    is_inexact = builder.fcmp_unordered("!=", error, _splat(0.0, wide))
    is_inexact = builder.and_(builder.and_(is_inexact, is_even), is_finite)
    opposite = builder.ashr(builder.xor(builder.bitcast(error, integer), bits), _splat(63, integer))
    step = builder.or_(opposite, _splat(1, integer))
    odd = builder.add(bits, builder.select(is_inexact, step, _splat(0, integer)))
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


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to flat element `index` of a contiguous array, without bounds or wraparound."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def at(typingctx: Any, array: Any, index: Any) -> Any:
    """array.flat[index] of a contiguous array for index >= 0: what array[index] costs without the sign test."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], *args))

    return array.dtype(array, types.intp), codegen


@intrinsic
def f32_of_f16(typingctx: Any, half: Any) -> Any:
    """S5. The float32 value of the 16 bits of a float16, exact.

    A normal number moves its exponent by 112; infinity and NaN by as much again. A subnormal number is put below
    the hidden bit of 2**-14, which is then subtracted. Written in 32-bit integers, since Numba's own are 64-bit.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        half32 = builder.zext(args[0], I32)
        magnitude = builder.shl(builder.and_(half32, I32(0x7FFF)), I32(13))
        exponent = builder.and_(magnitude, I32(0x0F800000))
        bits = builder.add(magnitude, I32(0x38000000))
        is_special = builder.icmp_unsigned("==", exponent, I32(0x0F800000))
        special = builder.add(bits, I32(0x38000000))
        small = builder.bitcast(builder.add(bits, I32(0x00800000)), FLOAT)
        small = builder.bitcast(builder.fsub(small, FLOAT(2.0**-14)), I32)
        is_small = builder.icmp_unsigned("==", exponent, I32(0))
        bits = builder.select(is_small, small, builder.select(is_special, special, bits))
        sign = builder.shl(builder.and_(half32, I32(0x8000)), I32(16))
        return builder.bitcast(builder.or_(bits, sign), FLOAT)

    return types.float32(types.uint16), codegen


def _load_bytes(result: Any, ir_type: ir.Type) -> Any:
    @intrinsic
    def load(typingctx: Any, raw: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, sig.args[0], *args)
            return builder.load(builder.bitcast(pointer, ir_type.as_pointer()), align=1)

        return result(raw, types.intp), codegen

    return load


# The little-endian value at byte i of a uint8 array, at any alignment.
u16_in = _load_bytes(types.uint16, I16)
f32_in = _load_bytes(types.float32, FLOAT)


@intrinsic
def never_inline(typingctx: Any) -> Any:
    """Keeps LLVM from copying the function that calls this into its callers: it bounds the time to compile."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def zeros32(typingctx: Any) -> Any:
    """32 float32 lanes of +0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(0.0, LANES32.vector)

    return LANES32(), codegen


@intrinsic
def zeros64(typingctx: Any) -> Any:
    """32 float64 lanes of +0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(0.0, LANES64.vector)

    return LANES64(), codegen


def _load_at(builder: Any, address: Any, kind: ir.Type, align: int) -> ir.Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


@intrinsic
def f32_at(typingctx: Any, address: Any) -> Any:
    """The float32 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load_at(builder, args[0], FLOAT, 4)

    return types.float32(types.intp), codegen


@intrinsic
def add_products32(typingctx: Any, lanes: Any, a: Any, b: Any) -> Any:
    """Lane l becomes fma32(a[l], b[l], lane l), l = 0 .. 31; a, b: addresses of float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y = (_load_at(builder, address, LANES32.vector, 4) for address in args[1:])
        return emit_fma32(builder, x, y, args[0])

    return LANES32(LANES32, types.intp, types.intp), codegen


@intrinsic
def add_products64(typingctx: Any, lanes: Any, a: Any, b: Any) -> Any:
    """Lane l becomes lane l + a[l] * b[l] in float64, l = 0 .. 31; a, b: addresses of float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        parts = (_load_at(builder, address, LANES32.vector, 4) for address in args[1:])
        x, y = (builder.fpext(part, LANES64.vector) for part in parts)
        if HAS_FMA:  # the product is exact, so fusing changes no bit
            return _intrinsic_call(builder, "fma", LANES64.vector, [x, y, args[0]])
        return builder.fadd(args[0], builder.fmul(x, y))

    return LANES64(LANES64, types.intp, types.intp), codegen


@intrinsic
def lane_of(typingctx: Any, lanes: Any, l: Any) -> Any:  # noqa: E741
    """The value of lane l."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], I32))

    return (types.float32 if lanes == LANES32 else types.float64)(lanes, types.intp), codegen


@intrinsic
def with_lane(typingctx: Any, lanes: Any, l: Any, value: Any) -> Any:  # noqa: E741
    """The lanes, with lane l replaced by the value."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.insert_element(args[0], args[2], builder.trunc(args[1], I32))

    return lanes(lanes, types.intp, types.float32 if lanes == LANES32 else types.float64), codegen


@intrinsic
def add_lanes(typingctx: Any, lanes: Any) -> Any:
    """The final tree: lanes l and l + 16 are added, then l and l + 8, 4, 2, 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, half = args[0], N_LANES // 2
        while half:
            picks = [ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half)]
            parts = [builder.shuffle_vector(value, value, pick) for pick in picks]
            value = builder.fadd(*parts)
            half //= 2
        return builder.extract_element(value, I32(0))

    return (types.float32 if lanes == LANES32 else types.float64)(lanes), codegen


def _int_dot(n: int) -> Any:
    @intrinsic
    def dot(typingctx: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            # LLVM turns this sum of widened products into pmaddwd and its kin where the target has them.
            wide, narrow = ir.VectorType(I32, n), ir.VectorType(I8, n)
            pointers = (_pointer(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 2))
            loads = [builder.load(builder.bitcast(p, narrow.as_pointer()), align=1) for p in pointers]
            product = builder.mul(*(builder.sext(value, wide) for value in loads))
            name = f"llvm.vector.reduce.add.v{n}i32"
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [wide]), name)
            return builder.call(function, [product])

        return types.int32(a, types.intp, b, types.intp), codegen

    return dot


# sum of a[i + l] * b[j + l] over 32 or 16 elements of 8-bit arrays, both read as int8; exact in int32.
int_dot_32 = _int_dot(32)
int_dot_16 = _int_dot(16)


def _dot32_at(a, b, n):  # type: ignore[no-untyped-def]
    lanes = zeros32()
    n_whole = n // N_LANES * N_LANES
    for k in range(0, n_whole, N_LANES):
        lanes = add_products32(lanes, a + 4 * k, b + 4 * k)
    for l in range(n - n_whole):  # noqa: E741
        k = n_whole + l
        lanes = with_lane(lanes, l, fma32(f32_at(a + 4 * k), f32_at(b + 4 * k), lane_of(lanes, l)))
    return add_lanes(lanes)


def _lane_sum_at(a, b, n):  # type: ignore[no-untyped-def]
    lanes = zeros64()
    n_whole = n // N_LANES * N_LANES
    for k in range(0, n_whole, N_LANES):
        lanes = add_products64(lanes, a + 4 * k, b + 4 * k)
    for l in range(n - n_whole):  # noqa: E741
        k = n_whole + l
        product = np.float64(f32_at(a + 4 * k)) * np.float64(f32_at(b + 4 * k))
        lanes = with_lane(lanes, l, lane_of(lanes, l) + product)
    return add_lanes(lanes)


def _on_addresses(body: Any, result: Any) -> Any:
    """An intrinsic (a, i, b, j, n) that calls body(address of a.flat[i], address of b.flat[j], n).

    One body serves all array types, and the arrays live until the call returns.
    """

    @intrinsic
    def call(typingctx: Any, a: Any, i: Any, b: Any, j: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointers = (_pointer(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 2))
            addresses = [builder.ptrtoint(p, I64) for p in pointers]
            body_sig = result(types.intp, types.intp, types.intp)
            return context.compile_internal(builder, body, body_sig, [*addresses, args[4]])

        if not all(array.dtype == types.float32 and array.layout == "C" for array in (a, b)):
            raise TypeError(f"expected contiguous float32 arrays, found {a}, {b}")
        return result(a, types.intp, b, types.intp, types.intp), codegen

    return call


# S2. `spec.dot32` and `spec.lane_sum_products` of a.flat[i : i + n] and b.flat[j : j + n].
dot32 = _on_addresses(_dot32_at, types.float32)
lane_sum_products = _on_addresses(_lane_sum_at, types.float64)


@helper
def dot(a, i, b, j, n, wide):  # type: ignore[no-untyped-def]
    """S2. `dot64` if wide (exact numerics), else `dot32` (ggml numerics)."""
    if wide:
        return np.float32(lane_sum_products(a, i, b, j, n))
    return dot32(a, i, b, j, n)
