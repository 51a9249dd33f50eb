"""Calling a compiled kernel by its address.

Owns the one way in which a kernel runs another that it was not compiled with: a parallel loop serves the kernels of all
weight types, and is compiled once. The caller keeps the kernel alive. Arguments that do not convert to its are refused.
Many arguments go as one address, since a parallel loop takes no records within records, and copies all that it takes.
"""

from typing import Any

from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic


def caller(*signature: types.Type) -> Any:
    """An intrinsic (address, (argument, ...)) that calls a kernel of this signature, found at `Kernel.address()`."""

    @intrinsic
    def call(typingctx: Any, address: Any, arguments: Any) -> Any:
        for given, wanted in zip(arguments, signature, strict=True):
            if typingctx.can_convert(given, wanted) is None:
                raise TypingError(f"call by address: {given} given, {wanted} wanted")

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = [
                context.cast(builder, value, given, wanted)
                for value, given, wanted in zip(
                    cgutils.unpack_tuple(builder, args[1]), sig.args[1], signature, strict=True
                )
            ]
            kind = context.call_conv.get_function_type(types.none, signature)
            function = builder.inttoptr(args[0], kind.as_pointer())
            context.call_conv.call_function(builder, function, types.none, signature, values)
            return context.get_dummy_value()

        return types.none(types.intp, arguments), codegen

    return call


def in_memory(kind: types.Type) -> tuple[Any, Any]:
    """Two intrinsics: (value) puts a value of this type on the stack of the kernel in which it stands, which must
    outlive all who read it, and gives its address; (address) reads it."""

    @intrinsic
    def address_of(typingctx: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            slot = cgutils.alloca_once(builder, context.get_value_type(kind))
            builder.store(context.cast(builder, args[0], sig.args[0], kind), slot)
            return builder.ptrtoint(slot, context.get_value_type(types.intp))

        if typingctx.can_convert(value, kind) is None:
            raise TypingError(f"value in memory: {value} given, {kind} wanted")
        return types.intp(value), codegen

    @intrinsic
    def value_at(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], context.get_value_type(kind).as_pointer()))
            return impl_ret_borrowed(context, builder, kind, value)

        return kind(types.intp), codegen

    return address_of, value_at
