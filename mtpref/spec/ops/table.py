"""The table of numerics: every operation of the model by name, each entry replaceable.

Owns the list of operations and the rule that ties fused entries to their parts. Entries of the reference
table are the functions of mtpref/spec; mtpref/engine/recipe.py puts the Numba twins in their place. It must not
choose between them. What an entry takes and gives: types.py.
"""

from dataclasses import dataclass, fields, replace
from typing import Unpack

from mtpref.spec.ops import types
from mtpref.spec.ops.types import CoarseEntries, OpEntries


@dataclass(frozen=True)
class Ops:
    """Fine entries are the spec's functions; coarse entries compose the fine ones unless a fused twin
    replaces them.

    A coarse entry takes the table itself as its first argument. `replaced` is the only way to change
    entries: it drops every fused twin that would hide a replaced part.
    """

    mul_mat: types.MulMat  # S6
    get_rows: types.GetRows  # S7
    rms_norm: types.RmsNorm  # S8
    l2_norm: types.L2Norm  # S9
    rope_table: types.RopeTable  # S10
    rope: types.Rope  # S10
    conv_silu: types.ConvSilu  # S11
    delta_gates: types.DeltaGates  # S12
    delta_rule: types.DeltaRule  # S13
    gated_norm: types.GatedNorm  # S14
    split_q_gate: types.SplitQGate  # S15
    store_kv: types.StoreKv  # S15
    attention: types.Attention  # S16
    attn_gate: types.AttnGate  # S17
    swiglu: types.SwiGlu  # S18
    mtp_concat: types.MtpConcat  # S19
    argmax: types.Argmax  # S21
    top_candidates: types.TopCandidates  # S22
    delta_layer: types.DeltaLayer  # S30
    attn_layer: types.AttnLayer  # S30
    ffn: types.Ffn  # S30
    head: types.Head  # S31
    mtp_input: types.MtpInput  # S31
    mtp_norm: types.MtpNorm  # S31
    composed: CoarseEntries  # what each coarse entry is when no fused twin stands in for it

    def replaced(self, **entries: Unpack[OpEntries]) -> "Ops":
        """A table with other entries; fused twins whose parts are among them fall back to the composition."""
        fallen = {coarse: self.composed[coarse] for coarse, parts in PARTS.items()  # type: ignore[literal-required]
                  if coarse not in entries and not parts.isdisjoint(entries)}  # fmt: skip
        return replace(self, **{**fallen, **entries})


PARTS: dict[str, frozenset[str]] = {
    "delta_layer": frozenset({"mul_mat", "conv_silu", "l2_norm", "delta_gates", "delta_rule", "gated_norm"}),
    "attn_layer": frozenset({"mul_mat", "split_q_gate", "rms_norm", "rope", "store_kv", "attention", "attn_gate"}),
    "ffn": frozenset({"mul_mat", "swiglu"}),
    "head": frozenset({"mul_mat"}),
    "mtp_input": frozenset({"rms_norm", "mtp_concat", "mul_mat"}),
    "mtp_norm": frozenset({"rms_norm"}),
}

FINE = tuple(f.name for f in fields(Ops) if f.name not in PARTS and f.name != "composed")
