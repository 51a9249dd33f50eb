"""The recipe: numerics, steps and contract in one frozen object, the only indirection of the project.

Owns the choice between the readable spec and the Numba kernels. Nothing else chooses kernels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Unpack

from mtpref import kernels
from mtpref.base.errors import MtprefError
from mtpref.base.settings import SettingError
from mtpref.spec.config import ModelConfig
from mtpref.spec.contract import MtpContract
from mtpref.spec.ops import OpEntries, Ops, spec_ops
from mtpref.spec.ops.compose import layer_normed_ops
from mtpref.spec.ops.compose_ssm import head_normed_ops
from mtpref.spec.steps import StepEntries, Steps

NUMERICS = ("ggml", "exact")

Pack = Callable[..., list[Any]]  # kernels.pack


@dataclass(frozen=True)
class Recipe:
    """How to run a model: `ops` computes, `steps` hands over, `contract` says what the head is fed with.

    mtp_ops  the MTP block's own table, None: the trunk's. The reference has one table; a port may have written its
             head's layers anew.
    pack     lays the matrices of products out anew for the kernels, when a model is loaded; None: they stay in place
    clock    seconds, for statistics: without what the compiler takes
    """

    numerics: str
    ops: Ops
    steps: Steps = field(default_factory=Steps)
    contract: MtpContract = field(default_factory=MtpContract)
    mtp_ops: Ops | None = None
    pack: Pack | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def head_ops(self) -> Ops:
        """The table that the MTP block runs on."""
        return self.ops if self.mtp_ops is None else self.mtp_ops

    def with_ops(self, **entries: Unpack[OpEntries]) -> "Recipe":
        """Other entries for trunk and head."""
        mtp_ops = None if self.mtp_ops is None else self.mtp_ops.replaced(**entries)
        return replace(self, ops=self.ops.replaced(**entries), mtp_ops=mtp_ops)

    def normed_as(self, config: ModelConfig) -> "Recipe":
        """The recipe on which a model of this configuration runs: with its norms (S117, S127)."""
        if config.head_norm_eps is not None:
            return replace(self, mtp_ops=head_normed_ops(self.head_ops, config.head_norm_eps))
        if not config.has_layer_norms:
            return self
        mtp_ops = None if self.mtp_ops is None else layer_normed_ops(self.mtp_ops)
        return replace(self, ops=layer_normed_ops(self.ops), mtp_ops=mtp_ops)

    def with_steps(self, **entries: Unpack[StepEntries]) -> "Recipe":
        """Other steps."""
        return replace(self, steps=replace(self.steps, **entries))


def make_recipe(
    numerics: str = "ggml", contract: MtpContract | None = None, *, use_kernels: bool | None = None, repack: bool = True
) -> Recipe:
    """The recipe of `exact` or `ggml` numerics; kernels where Numba can compile, unless told otherwise.

    repack  lay weights out anew where a kernel has a faster layout: the same bits, a copy in memory
    Errors  MtprefError for other numerics, or for kernels asked for with JIT off
    """
    if numerics not in NUMERICS:
        raise SettingError("numerics", f"{numerics!r} is unknown, expected one of {', '.join(NUMERICS)}")
    if use_kernels is None:
        use_kernels = kernels.available()
    if use_kernels and not kernels.available():
        raise MtprefError("kernels: Numba's JIT is off (NUMBA_DISABLE_JIT), expected it on; unset the variable")
    ops = kernel_ops(numerics) if use_kernels else spec_ops(numerics)
    pack = kernels.pack if use_kernels and repack and numerics == "ggml" else None
    return Recipe(numerics, ops, contract=contract or MtpContract(), pack=pack, clock=kernels.clock)


def kernel_ops(numerics: str) -> Ops:
    """The spec's table with every entry that has a Numba twin replaced by it."""
    wide = numerics == "exact"
    return spec_ops(numerics).replaced(
        mul_mat=kernels.mul_mat_exact if wide else kernels.mul_mat_ggml,
        get_rows=kernels.get_rows,
        rms_norm=kernels.rms_norm,
        l2_norm=kernels.l2_norm,
        rope_table=kernels.rope_table,
        rope=kernels.rope,
        rope_interleaved=kernels.rope_interleaved,
        rope_last=kernels.rope_last,
        clamped_swiglu=kernels.clamped_swiglu,
        stream_weights=kernels.stream_weights,
        read_streams=kernels.read_streams,
        write_streams=kernels.write_streams,
        compress_rows=kernels.compress_rows,
        index_scores=kernels.index_scores,
        select_cells=kernels.select_cells,
        selection_gap=kernels.selection_gap,
        conv_silu=partial(kernels.conv_silu, wide=wide),
        delta_gates=kernels.delta_gates,
        delta_rule=partial(kernels.delta_rule, wide=wide),
        gated_norm=kernels.gated_norm,
        attention=partial(kernels.attention, wide=wide),
        attn_gate=kernels.attn_gate,
        swiglu=kernels.swiglu,
        argmax=kernels.argmax,
        top_candidates=kernels.top_candidates,
        delta_layer=partial(kernels.delta_layer, wide=wide),
        latent_attn_layer=partial(kernels.latent_attn_layer, wide=wide),
        indexed_attn_layer=partial(kernels.indexed_attn_layer, wide=wide),
        window_attention=partial(kernels.window_attention, wide=wide),
        chosen_rows=kernels.chosen_rows,
        ffn=partial(kernels.ffn, wide=wide),
        clamped_experts=partial(kernels.clamped_experts, wide=wide),
        moe_ffn=partial(kernels.moe_ffn, wide=wide),
    )
