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

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
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


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: ir.Type) -> Any:
    """Pointer to flat element `index` of a contiguous array, without bounds or wraparound."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _load(context: Any, builder: Any, sig: Any, args: Any, at: int, kind: ir.Type) -> ir.Value:
    pointer = _element_pointer(context, builder, sig.args[at], args[at], args[at + 1], kind)
    return builder.load(pointer, align=context.get_abi_sizeof(context.get_data_type(sig.args[at].dtype)))


@intrinsic
def at(typingctx: Any, array: Any, index: Any) -> Any:
    """array.flat[index] of a contiguous array for index >= 0: what array[index] costs without the sign test."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), codegen


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


@intrinsic
def add_products32(typingctx: Any, lanes: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
    """Lane l becomes fma32(a[i + l], b[j + l], lane l), l = 0 .. 31; float32 arrays by flat index."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x = _load(context, builder, sig, args, 1, LANES32.vector)
        y = _load(context, builder, sig, args, 3, LANES32.vector)
        return emit_fma32(builder, x, y, args[0])

    return LANES32(LANES32, a, types.intp, b, types.intp), codegen


@intrinsic
def add_products64(typingctx: Any, lanes: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
    """Lane l becomes lane l + a[i + l] * b[j + l] in float64, l = 0 .. 31; float32 arrays by flat index."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x = builder.fpext(_load(context, builder, sig, args, 1, LANES32.vector), LANES64.vector)
        y = builder.fpext(_load(context, builder, sig, args, 3, LANES32.vector), LANES64.vector)
        if HAS_FMA:  # the product is exact, so fusing changes no bit
            return _intrinsic_call(builder, "fma", LANES64.vector, [x, y, args[0]])
        return builder.fadd(args[0], builder.fmul(x, y))

    return LANES64(LANES64, a, types.intp, b, types.intp), codegen


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
            wide = ir.VectorType(I16, n)
            x, y = (builder.sext(_load(context, builder, sig, args, k, ir.VectorType(I8, n)), wide) for k in (0, 2))
            # Even and odd elements apart, widened, multiplied and added: the shape that pmaddwd has.
            half = ir.VectorType(I32, n // 2)
            products = []
            for first in (0, 1):
                pick = ir.Constant(half, list(range(first, n, 2)))
                factors = [builder.sext(builder.shuffle_vector(v, v, pick), half) for v in (x, y)]
                products.append(builder.mul(*factors))
            name = f"llvm.vector.reduce.add.v{n // 2}i32"
            reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, [half]), name)
            return builder.call(reduce, [builder.add(*products)])

        return types.int32(a, types.intp, b, types.intp), codegen

    return dot


# sum of a[i + l] * b[j + l] over 32 or 16 elements of 8-bit arrays, both read as int8; exact in int32.
int_dot_32 = _int_dot(32)
int_dot_16 = _int_dot(16)


@helper
def dot32(a, i, b, j, n):  # type: ignore[no-untyped-def]
    """S2. `spec.dot32` of a[i : i + n] and b[j : j + n], flat indices."""
    lanes = zeros32()
    n_whole = n // N_LANES * N_LANES
    for k in range(0, n_whole, N_LANES):
        lanes = add_products32(lanes, a, i + k, b, j + k)
    for l in range(n - n_whole):  # noqa: E741
        k = n_whole + l
        lanes = with_lane(lanes, l, fma32(at(a, i + k), at(b, j + k), lane_of(lanes, l)))
    return add_lanes(lanes)


@helper
def lane_sum_products(a, i, b, j, n):  # type: ignore[no-untyped-def]
    """S2. `spec.lane_sum_products` of a[i : i + n] and b[j : j + n], flat indices."""
    lanes = zeros64()
    n_whole = n // N_LANES * N_LANES
    for k in range(0, n_whole, N_LANES):
        lanes = add_products64(lanes, a, i + k, b, j + k)
    for l in range(n - n_whole):  # noqa: E741
        k = n_whole + l
        product = np.float64(at(a, i + k)) * np.float64(at(b, j + k))
        lanes = with_lane(lanes, l, lane_of(lanes, l) + product)
    return add_lanes(lanes)


@helper
def dot(a, i, b, j, n, wide):  # type: ignore[no-untyped-def]
    """S2. `dot64` if wide (exact numerics), else `dot32` (ggml numerics)."""
    if wide:
        return np.float32(lane_sum_products(a, i, b, j, n))
    return dot32(a, i, b, j, n)
