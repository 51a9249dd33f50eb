"""The recipe: numerics, steps and contract in one frozen object, the only indirection of the project.

Owns the choice between the readable spec and the Numba twins. Nothing else chooses kernels.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from mtpref import kernels
from mtpref.contract import MtpContract
from mtpref.errors import MtprefError
from mtpref.ops import Op, Ops, spec_ops
from mtpref.steps import Step, Steps

NUMERICS = ("ggml", "exact")


@dataclass(frozen=True)
class Recipe:
    """How to run a model: `ops` computes, `steps` hands over, `contract` says what the head is fed with."""

    numerics: str
    ops: Ops
    steps: Steps = field(default_factory=Steps)
    contract: MtpContract = field(default_factory=MtpContract)

    def with_ops(self, **entries: Op) -> "Recipe":
        return replace(self, ops=self.ops.replaced(**entries))

    def with_steps(self, **entries: Step) -> "Recipe":
        return replace(self, steps=replace(self.steps, **entries))


def make_recipe(
    numerics: str = "ggml", contract: MtpContract | None = None, *, use_kernels: bool | None = None
) -> Recipe:
    """The recipe of `exact` or `ggml` numerics; kernels where Numba can compile, unless told otherwise.

    Errors  MtprefError for other numerics, or for kernels asked for with JIT off
    """
    if numerics not in NUMERICS:
        raise MtprefError(f"--numerics: {numerics!r} is unknown, expected one of {', '.join(NUMERICS)}")
    if use_kernels is None:
        use_kernels = kernels.available()
    if use_kernels and not kernels.available():
        raise MtprefError("kernels: Numba's JIT is off (NUMBA_DISABLE_JIT), expected it on; unset the variable")
    ops = kernel_ops(numerics) if use_kernels else spec_ops(numerics)
    return Recipe(numerics, ops, contract=contract or MtpContract())


def kernel_ops(numerics: str) -> Ops:
    """The spec's table with every entry that has a Numba twin replaced by it."""
    from mtpref.kernels import twins

    wide = numerics == "exact"
    return spec_ops(numerics).replaced(
        mul_mat=twins.mul_mat_exact if wide else twins.mul_mat_ggml,
        rms_norm=twins.rms_norm,
        l2_norm=twins.l2_norm,
        rope_table=twins.rope_table,
        rope=twins.rope,
        conv_silu=partial(twins.conv_silu, wide=wide),
        delta_gates=twins.delta_gates,
        delta_rule=partial(twins.delta_rule, wide=wide),
        gated_norm=twins.gated_norm,
        attention=partial(twins.attention, wide=wide),
        attn_gate=twins.attn_gate,
        swiglu=twins.swiglu,
        argmax=twins.argmax,
        top_candidates=twins.top_candidates,
    )
