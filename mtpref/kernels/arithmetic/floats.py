"""Vectors of float32 as values in kernels: loads, stores, lane-wise arithmetic, and S3 and S4 on 16 lanes.

Owns what the kernels of delta_mixer.py, delta.py, attend.py and norms.py are written in. A lane is computed as the
scalar functions of arith.py compute it, operation by operation, so where a vector ends and single values begin changes
no bit.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.arith import (
    EXP_DEGREE,
    EXP_LIMIT,
    INV_FACTORIAL,
    LN2_HI,
    LN2_LO,
    LOG2_E,
    ROUND_MAGIC,
    ROUND_MAGIC_BITS,
)
from mtpref.kernels.arithmetic.lanes import LANES32, LANES64, LaneType, emit_add_product64, emit_tree
from mtpref.kernels.arithmetic.scalars import (
    DOUBLE,
    FLOAT,
    I16,
    I32,
    I64,
    emit_bf16s,
    emit_f16s,
    emit_fma32,
    pointer_to,
    splat,
)

N_FLOATS = 16
N_SCANNED = 64

FLOATS16 = LaneType("floats16", FLOAT, N_FLOATS)
DOUBLES16 = ir.VectorType(DOUBLE, N_FLOATS)


def _vector_pointer(context: Any, builder: Any, sig: Any, args: Any, kind: ir.Type) -> ir.Value:
    return builder.bitcast(pointer_to(context, builder, sig.args[0], args[0], args[1]), kind.as_pointer())


def _load(kind: LaneType) -> Any:
    @intrinsic
    def load(typingctx: Any, array: Any, i: Any) -> Any:
        """The vector at array.flat[i] of a contiguous float32 array."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(_vector_pointer(context, builder, sig, args, kind.vector), align=4)

        if array.dtype != types.float32:
            raise TypeError(f"load takes a float32 array, found {array}")
        return kind(array, types.intp), codegen

    return load


load32, load16 = _load(LANES32), _load(FLOATS16)


@intrinsic
def store(typingctx: Any, array: Any, i: Any, lanes: Any) -> Any:
    """array.flat[i], array.flat[i + 1], ... = the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _vector_pointer(context, builder, sig, args, args[2].type), align=4)
        return context.get_dummy_value()

    if array.dtype != types.float32:
        raise TypeError(f"store takes a float32 array, found {array}")
    return types.void(array, types.intp, lanes), codegen


@intrinsic
def address(typingctx: Any, array: Any, i: Any) -> Any:
    """The address of array.flat[i]. The array must be an argument of the kernel, so that it outlives the address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(pointer_to(context, builder, sig.args[0], args[0], args[1]), I64)

    return types.intp(array, types.intp), codegen


def _load_at(kind: LaneType) -> Any:
    @intrinsic
    def load(typingctx: Any, start: Any) -> Any:
        """The vector at an address."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], kind.vector.as_pointer()), align=4)

        return kind(types.intp), codegen

    return load


load32_at, load16_at = _load_at(LANES32), _load_at(FLOATS16)


@intrinsic
def store_at(typingctx: Any, start: Any, lanes: Any) -> Any:
    """The float32 at an address and after it = the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, lanes), codegen


@intrinsic
def set_f32_at(typingctx: Any, start: Any, value: Any) -> Any:
    """The float32 at an address = value."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), codegen


def _is_vector(kind: Any) -> bool:
    return isinstance(kind, LaneType)


def _lanewise(emit: Callable[..., ir.Value]) -> Any:
    """An intrinsic of two operands, vectors or float32 numbers that stand for a vector of themselves."""

    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *_broadcast(builder, args))

        return (a if _is_vector(a) else b)(a, b), codegen

    return apply


def _broadcast(builder: Any, values: Any) -> list[ir.Value]:
    """The values, numbers among them spread to vectors."""
    vector = next(value.type for value in values if isinstance(value.type, ir.VectorType))
    zeros = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    spread = []
    for value in values:
        if not isinstance(value.type, ir.VectorType):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
            value = builder.shuffle_vector(first, first, zeros)
        spread.append(value)
    return spread


plus = _lanewise(lambda builder, a, b: builder.fadd(a, b))
times = _lanewise(lambda builder, a, b: builder.fmul(a, b))
divided = _lanewise(lambda builder, a, b: builder.fdiv(a, b))
# The lesser (the greater) of a and b; a NaN in a stays.
at_most = _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a))
at_least = _lanewise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a))


@intrinsic
def fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """fma32 of each lane: a * b + c; a number stands for a vector of itself."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_fma32(builder, *_broadcast(builder, args))

    return c(a, b, c), codegen


@intrinsic
def zeros16(typingctx: Any) -> Any:
    """16 float32 lanes of +0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat(0.0, FLOATS16.vector)

    return FLOATS16(), codegen


@intrinsic
def add_16(typingctx: Any, lanes: Any) -> Any:
    """The rest of S2's tree, once lanes l and l + 16 have been added: l and l + 8, 4, 2, 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_tree(builder, args[0])

    return types.float32(FLOATS16), codegen


@intrinsic
def fused64(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """c + a * b of 32 lanes in float64; a, b: float32, so that the product is exact."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_add_product64(builder, *args)

    return LANES64(LANES32, LANES32, LANES64), codegen


@intrinsic
def any_above(typingctx: Any, array: Any, i: Any, bound: Any) -> Any:
    """Whether one of the 64 float32 at array.flat[i] is greater than the bound. A NaN is not."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(FLOAT, N_SCANNED)
        values = builder.load(_vector_pointer(context, builder, sig, args, kind), align=4)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), args[2], I32(0))
        bounds = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, N_SCANNED), [0] * N_SCANNED))
        bits = builder.bitcast(builder.fcmp_ordered(">", values, bounds), I64)
        return builder.icmp_unsigned("!=", bits, I64(0))

    return types.boolean(array, types.intp, types.float32), codegen


# S3, S4


def emit_exp64(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """`arith.exp64` of a vector of float64."""
    kind, integer = x.type, ir.VectorType(I64, x.type.count)
    for sign, limit in (("<", -EXP_LIMIT), (">", EXP_LIMIT)):
        bound = splat(limit, kind)
        x = builder.select(builder.fcmp_ordered(sign, x, bound), bound, x)
    magic = splat(ROUND_MAGIC, kind)
    shifted = builder.fadd(builder.fmul(x, splat(LOG2_E, kind)), magic)
    k = builder.fsub(shifted, magic)
    r = builder.fsub(x, builder.fmul(k, splat(LN2_HI, kind)))
    r = builder.fsub(r, builder.fmul(k, splat(LN2_LO, kind)))
    poly = splat(INV_FACTORIAL[EXP_DEGREE], kind)
    for i in range(EXP_DEGREE - 1, -1, -1):
        poly = builder.fadd(builder.fmul(poly, r), splat(INV_FACTORIAL[i], kind))
    power = builder.sub(builder.bitcast(shifted, integer), splat(ROUND_MAGIC_BITS - 1023, integer))
    return builder.fmul(poly, builder.bitcast(builder.shl(power, splat(52, integer)), kind))


def _emit_sigmoid_times(builder: ir.IRBuilder, numerator: ir.Value, x: ir.Value) -> ir.Value:
    """numerator / (1 + exp64(-x)), in float64, rounded to float32."""
    one = splat(1.0, x.type)
    quotient = builder.fdiv(numerator, builder.fadd(one, emit_exp64(builder, builder.fneg(x))))
    return builder.fptrunc(quotient, FLOATS16.vector)


def _curve(emit: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def curve(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, builder.fpext(args[0], DOUBLES16))

        return FLOATS16(FLOATS16), codegen

    return curve


silu16 = _curve(lambda builder, x: _emit_sigmoid_times(builder, x, x))
sigmoid16 = _curve(lambda builder, x: _emit_sigmoid_times(builder, splat(1.0, x.type), x))
exp16 = _curve(lambda builder, x: builder.fptrunc(emit_exp64(builder, x), FLOATS16.vector))


# S11


@intrinsic
def four_taps(typingctx: Any, x0: Any, x1: Any, x2: Any, x3: Any, weight: Any, channel: Any, wide: Any) -> Any:
    """The dot products of 16 channels' four rows with weight[channel], weight[channel + 1], ..: (C, 4), S2.

    Lanes 0 to 3 hold one product each. Adding 0 is not idle: it turns -0 into the +0 of the tree.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.mul(args[5], I64(4))
        start = builder.bitcast(pointer_to(context, builder, sig.args[4], args[4], at), I32.as_pointer())
        every = ir.VectorType(FLOAT, 4 * N_FLOATS)
        weights = builder.load(builder.bitcast(start, every.as_pointer()), align=4)
        lanes = [ir.Constant(ir.VectorType(I32, N_FLOATS), [4 * n + j for n in range(N_FLOATS)]) for j in range(4)]
        columns = [builder.shuffle_vector(weights, weights, lane) for lane in lanes]
        rows = args[:4]
        zero32, zero64 = splat(0.0, FLOATS16.vector), splat(0.0, DOUBLES16)
        with builder.if_else(args[6]) as (then, otherwise):
            with then:
                p = []
                for x, w in zip(rows, columns, strict=True):
                    product = builder.fmul(builder.fpext(x, DOUBLES16), builder.fpext(w, DOUBLES16))
                    p.append(builder.fadd(product, zero64))
                total = builder.fadd(builder.fadd(p[0], p[2]), builder.fadd(p[1], p[3]))
                exact = builder.fptrunc(total, FLOATS16.vector)
                exact_block = builder.block
            with otherwise:
                p = [builder.fadd(builder.fmul(x, w), zero32) for x, w in zip(rows, columns, strict=True)]
                ggml = builder.fadd(builder.fadd(p[0], p[2]), builder.fadd(p[1], p[3]))
                ggml_block = builder.block
        result = builder.phi(FLOATS16.vector)
        result.add_incoming(exact, exact_block)
        result.add_incoming(ggml, ggml_block)
        return result

    v = FLOATS16
    return v(v, v, v, v, weight, types.intp, types.boolean), codegen


# S5


def _load_halves(emit: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def load(typingctx: Any, array: Any, i: Any) -> Any:
        """16 float32 from the 16-bit floats at array.flat[i] of a contiguous uint16 array."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _vector_pointer(context, builder, sig, args, ir.VectorType(I16, N_FLOATS))
            return emit(builder, builder.load(pointer, align=2))

        return FLOATS16(array, types.intp), codegen

    return load


load_f16, load_bf16 = _load_halves(emit_f16s), _load_halves(emit_bf16s)
