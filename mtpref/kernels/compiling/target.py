"""What Numba compiles for: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES where set, else this machine.

Owns every question about the target. An instruction is used only where the feature string names it: one that the
processor lacks would end the process.
"""

from numba.core.registry import cpu_target


def effective_target() -> tuple[str, str, str]:
    """Triple, processor name and feature string of the code generator."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, cpu, features


def target_is_x86() -> bool:
    """Whether the target is x86-64, which always has SSE2."""
    return effective_target()[0].startswith(("x86_64", "amd64"))


def target_has(feature: str) -> bool:
    """Whether the target is x86-64 with a feature, by LLVM's name ("avx2")."""
    return target_is_x86() and f"+{feature}" in effective_target()[2].split(",")


def target_has_fma() -> bool:
    """Whether the target has a fused multiply-add instruction, so that `llvm.fma` never becomes a library call."""
    return effective_target()[0].startswith(("aarch64", "arm64")) or target_has("fma")
