"""What Numba compiles for: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES where set, else this machine."""

from numba.core.registry import cpu_target


def effective_target() -> tuple[str, str, str]:
    """Triple, processor name and feature string of the code generator."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, cpu, features


def target_has_fma() -> bool:
    """Whether the target has a fused multiply-add instruction, so that `llvm.fma` never becomes a library call."""
    triple, _, features = effective_target()
    return triple.startswith(("aarch64", "arm64")) or "+fma" in features.split(",")
