"""S5 as vector code: one block of an activation to int8, at once.

Owns the elementwise part of ggml's quantisers, float operation by float operation as in `mtpref.spec.quant`; kernels
around it are in activations.py. Magnitudes are compared as integers: their order is that of the numbers, and a NaN is
greater than all of them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mtpref.kernels.arithmetic.scalars import FLOAT, I8, I32, I64, pointer_to, splat
from mtpref.kernels.arithmetic.vectors import BYTE_POINTER, broadcast, call, load, offset, store
from mtpref.spec.quant import MANTISSA_MASK, NEAREST_INT_BITS, NEAREST_INT_MAGIC

N = 32
FLOATS, INTS = ir.VectorType(FLOAT, N), ir.VectorType(I32, N)


def _pointer(context: Any, builder: Any, sig: Any, args: Any, n: int) -> Any:
    """Byte pointer to args[n].flat[args[n + 1]]."""
    return builder.bitcast(pointer_to(context, builder, sig.args[n], args[n], args[n + 1]), BYTE_POINTER)


def _magnitudes(builder: Any, x: Any) -> Any:
    """The bits of |x|."""
    return builder.and_(builder.bitcast(x, INTS), splat(0x7FFFFFFF, INTS))


def _sum_of(builder: Any, codes: Any) -> Any:
    """The int32 sum of int8."""
    kind = ir.VectorType(I32, codes.type.count)
    return call(builder, f"llvm.vector.reduce.add.v{codes.type.count}i32", I32, builder.sext(codes, kind))


@intrinsic
def greatest_of(typingctx, x, i, n):
    """The greatest magnitude of x.flat[i : i + n], n a multiple of 32; NaN if one of them is NaN."""

    def codegen(context, builder, sig, args):
        start = _pointer(context, builder, sig, args, 0)
        slot = cgutils.alloca_once_value(builder, splat(0, INTS))
        with cgutils.for_range(builder, builder.udiv(args[2], I64(N))) as loop:
            at = offset(builder, start, builder.mul(loop.index, I64(4 * N)))
            found, before = _magnitudes(builder, load(builder, at, FLOATS)), builder.load(slot)
            is_more = builder.icmp_unsigned(">", found, before)
            builder.store(builder.select(is_more, found, before), slot)
        most = call(builder, f"llvm.vector.reduce.umax.v{N}i32", I32, builder.load(slot))
        return builder.bitcast(most, FLOAT)

    return types.float32(x, types.intp, types.intp), codegen


@intrinsic
def places_of(typingctx, x, i, magnitude):
    """Bit l is set where |x.flat[i + l]| has the bits of `magnitude`, l = 0 .. 31."""

    def codegen(context, builder, sig, args):
        values = _magnitudes(builder, load(builder, _pointer(context, builder, sig, args, 0), FLOATS))
        wanted = broadcast(builder, builder.bitcast(args[2], I32), INTS)
        bits = builder.bitcast(builder.icmp_unsigned("==", values, wanted), I32)
        return builder.zext(bits, I64)

    return types.int64(x, types.intp, types.float32), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """The number of the lowest bit that is set; 64 where none is."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@intrinsic
def codes_rounded_away(typingctx, x, i, inv, codes, j):
    """codes.flat[j + l] = x.flat[i + l] * inv rounded to integers, halves away from zero, as its low byte, l = 0 .. 31;
    0 where it is not below 2**31 in magnitude. Returns the sum of the codes.
    """

    def codegen(context, builder, sig, args):
        x = load(builder, _pointer(context, builder, sig, args, 0), FLOATS)
        scaled = builder.fmul(x, broadcast(builder, args[2], FLOATS))
        limit = splat(0x4F000000, INTS)  # the bits of 2**31
        is_inside = builder.icmp_unsigned("<", _magnitudes(builder, scaled), limit)
        scaled = builder.select(is_inside, scaled, splat(0.0, FLOATS))
        whole = builder.fptosi(scaled, INTS)
        rest = builder.fsub(scaled, builder.sitofp(whole, FLOATS))
        is_half = builder.icmp_unsigned(">=", _magnitudes(builder, rest), splat(0x3F000000, INTS))  # 0.5
        sign = builder.or_(builder.ashr(builder.bitcast(scaled, INTS), splat(31, INTS)), splat(1, INTS))
        whole = builder.add(whole, builder.select(is_half, sign, splat(0, INTS)))
        made = builder.trunc(whole, ir.VectorType(I8, N))
        store(builder, made, _pointer(context, builder, sig, args, 3))
        return _sum_of(builder, made)

    return types.int32(x, types.intp, types.float32, codes, types.intp), codegen


@intrinsic
def codes_rounded_even(typingctx, x, i, inv, codes, j, sums, k):
    """codes.flat[j + l] = inv * x.flat[i + l] rounded to integers by ggml's nearest_int, at most 127, as its low byte,
    l = 0 .. 31; sums.flat[k] and [k + 1] = the sums of 16 codes.
    """

    def codegen(context, builder, sig, args):
        x = load(builder, _pointer(context, builder, sig, args, 0), FLOATS)
        scaled = builder.fmul(broadcast(builder, args[2], FLOATS), x)
        shifted = builder.bitcast(builder.fadd(scaled, splat(float(NEAREST_INT_MAGIC), FLOATS)), INTS)
        rounded = builder.sub(
            builder.and_(shifted, splat(int(MANTISSA_MASK), INTS)), splat(int(NEAREST_INT_BITS), INTS)
        )
        most = splat(127, INTS)
        rounded = builder.select(builder.icmp_signed("<", rounded, most), rounded, most)
        made = builder.trunc(rounded, ir.VectorType(I8, N))
        store(builder, made, _pointer(context, builder, sig, args, 3))
        out = _pointer(context, builder, sig, args, 5)
        for half in range(2):
            lanes = ir.Constant(ir.VectorType(I32, 16), list(range(16 * half, 16 * half + 16)))
            store(builder, _sum_of(builder, builder.shuffle_vector(made, made, lanes)), offset(builder, out, 4 * half))
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, types.float32, codes, n, sums, n), codegen
