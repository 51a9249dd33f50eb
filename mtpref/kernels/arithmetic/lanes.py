"""S2 as vector code: the 32 lanes of a sum of products, and the exact integer dot products of quantised blocks.

Owns the vector values. A value of 32 lanes is one LLVM vector; the code generator splits it into the registers that
the target has, and the order of operations in a lane does not depend on how. Read with
`mtpref.spec.arith.lane_sum_products`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.scalars import (
    DOUBLE,
    FLOAT,
    I8,
    I32,
    I64,
    emit_fma32,
    fma32,
    intrinsic_call,
    pointer_to,
    splat,
)
from mtpref.kernels.compiling.compile import HAS_FMA, helper

N_LANES = 32


class LaneType(types.Type):
    """32 (or another number of) lanes of float32 or float64, as a Numba type."""

    def __init__(self, name: str, element: ir.Type, n_lanes: int = N_LANES) -> None:
        self.vector = ir.VectorType(element, n_lanes)
        super().__init__(name=name)


@register_default(LaneType)
class _LaneModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: LaneType) -> None:
        super().__init__(dmm, fe_type, fe_type.vector)


LANES32 = LaneType("lanes32", FLOAT)
LANES64 = LaneType("lanes64", DOUBLE)


@intrinsic
def zeros32(typingctx: Any) -> Any:
    """32 float32 lanes of +0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat(0.0, LANES32.vector)

    return LANES32(), codegen


@intrinsic
def zeros64(typingctx: Any) -> Any:
    """32 float64 lanes of +0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat(0.0, LANES64.vector)

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
def lanes_of(typingctx: Any, array: Any, i: Any) -> Any:
    """The 32 float32 lanes at array.flat[i]."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = pointer_to(context, builder, sig.args[0], *args)
        return builder.load(builder.bitcast(pointer, LANES32.vector.as_pointer()), align=4)

    return LANES32(array, types.intp), codegen


@intrinsic
def add_products32(typingctx: Any, lanes: Any, a: Any, b: Any) -> Any:
    """Lane l becomes fma32(a[l], b[l], lane l), l = 0 .. 31; a, b: addresses of float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y = (_load_at(builder, address, LANES32.vector, 4) for address in args[1:])
        return emit_fma32(builder, x, y, args[0])

    return LANES32(LANES32, types.intp, types.intp), codegen


def emit_add_product64(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
    """total + a * b of 32 lanes in float64; a, b: float32, so that the product is exact and fusing changes no bit."""
    x, y = (builder.fpext(value, LANES64.vector) for value in (a, b))
    if HAS_FMA:
        return intrinsic_call(builder, "fma", LANES64.vector, [x, y, total])
    return builder.fadd(total, builder.fmul(x, y))


def emit_tree(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """S2's tree over a power of two of lanes: each lane of the lower half and its fellow of the upper, and so on."""
    half = value.type.count // 2
    while half:
        picks = [ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half)]
        value = builder.fadd(*(builder.shuffle_vector(value, value, pick) for pick in picks))
        half //= 2
    return builder.extract_element(value, I32(0))


@intrinsic
def add_products64(typingctx: Any, lanes: Any, a: Any, b: Any) -> Any:
    """Lane l becomes lane l + a[l] * b[l] in float64, l = 0 .. 31; a, b: addresses of float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y = (_load_at(builder, address, LANES32.vector, 4) for address in args[1:])
        return emit_add_product64(builder, x, y, args[0])

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
        return emit_tree(builder, args[0])

    return (types.float32 if lanes == LANES32 else types.float64)(lanes), codegen


def _int_dot(n: int) -> Any:
    @intrinsic
    def dot(typingctx: Any, a: Any, i: Any, b: Any, j: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            # LLVM turns this sum of widened products into pmaddwd and its kin where the target has them.
            wide, narrow = ir.VectorType(I32, n), ir.VectorType(I8, n)
            pointers = (pointer_to(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 2))
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


def _on_bytes(n: int, change: Any) -> Any:
    """An intrinsic (raw, i, value, codes, j): `change` makes 32 codes at codes.flat[j] of n bytes at raw.flat[i]."""

    @intrinsic
    def call(typingctx: Any, raw: Any, i: Any, value: Any, codes: Any, j: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointers = (pointer_to(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 3))
            kinds = (ir.VectorType(I8, n), ir.VectorType(I8, 32))
            at, to = (builder.bitcast(p, kind.as_pointer()) for p, kind in zip(pointers, kinds, strict=True))
            codes32 = builder.insert_element(ir.Constant(kinds[1], ir.Undefined), args[2], I32(0))
            splatted = builder.shuffle_vector(codes32, codes32, ir.Constant(ir.VectorType(I32, 32), [0] * 32))
            builder.store(change(builder, builder.load(at, align=1), splatted, to), to, align=1)
            return context.get_dummy_value()

        return types.void(raw, types.intp, types.int8, codes, types.intp), codegen

    return call


def _pick(builder: Any, value: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, 32), lanes))


def _nibbles(builder: Any, packed: Any, offset: Any, to: Any) -> Any:
    low, high = builder.and_(packed, splat(15, packed.type)), builder.lshr(packed, splat(4, packed.type))
    both = builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 32), list(range(32))))
    return builder.sub(both, offset)


def _where_set(builder: Any, packed: Any, mask: Any, value: Any, to: Any) -> Any:
    is_set = builder.icmp_unsigned("!=", builder.and_(packed, mask), splat(0, packed.type))
    return builder.add(builder.load(to, align=1), builder.select(is_set, value, splat(0, value.type)))


def _fifth_bits(builder: Any, packed: Any, value: Any, to: Any) -> Any:
    mask = ir.Constant(ir.VectorType(I8, 32), [1 << l % 8 for l in range(32)])  # noqa: E741
    return _where_set(builder, _pick(builder, packed, [l // 8 for l in range(32)]), mask, value, to)  # noqa: E741


def _high_bits(g: int) -> Any:
    def change(builder: Any, packed: Any, value: Any, to: Any) -> Any:
        return _where_set(builder, packed, splat(1 << g, packed.type), value, to)

    return _on_bytes(32, change)


# 16 bytes to 32 codes: the low halves, then the high halves, each less `value`.
nibble_codes = _on_bytes(16, _nibbles)
# Adds `value` to code l where bit l of 4 bytes is set, l = 0 .. 31.
add_bits = _on_bytes(4, _fifth_bits)
# Adds `value` to code l where bit 0, 1, .. 7 of byte l of 32 is set.
add_bit_0, add_bit_1, add_bit_2, add_bit_3, add_bit_4, add_bit_5, add_bit_6, add_bit_7 = map(_high_bits, range(8))


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
            pointers = (pointer_to(context, builder, sig.args[k], args[k], args[k + 1]) for k in (0, 2))
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
