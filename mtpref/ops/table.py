"""The table of numerics: every operation of the model by name, each entry replaceable.

Owns the list of operations and the rule that ties fused entries to their parts. Entries of the reference
table are the functions of mtpref/spec; mtpref/recipe.py puts the Numba twins in their place. It must not
choose between them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Op = Callable[..., Any]


@dataclass(frozen=True)
class Ops:
    """Fine entries are the spec's functions; coarse entries compose the fine ones unless a fused twin
    replaces them.

    A coarse entry takes the table itself as its first argument. `replaced` is the only way to change
    entries: it drops every fused twin that would hide a replaced part.
    """

    mul_mat: Op  # S6
    get_rows: Op  # S7
    rms_norm: Op  # S8
    l2_norm: Op  # S9
    rope_table: Op  # S10
    rope: Op  # S10
    conv_silu: Op  # S11
    delta_gates: Op  # S12
    delta_rule: Op  # S13
    gated_norm: Op  # S14
    split_q_gate: Op  # S15
    store_kv: Op  # S15
    attention: Op  # S16
    attn_gate: Op  # S17
    swiglu: Op  # S18
    mtp_concat: Op  # S19
    argmax: Op  # S21
    top_candidates: Op  # S22
    delta_layer: Op  # compose.py, as the next five
    attn_layer: Op
    ffn: Op
    head: Op
    mtp_input: Op
    mtp_norm: Op
    composed: Mapping[str, Op]  # what each coarse entry is when no fused twin stands in for it

    def replaced(self, **entries: Op) -> "Ops":
        """A table with other entries; fused twins whose parts are among them fall back to the composition."""
        for coarse, parts in PARTS.items():
            if coarse not in entries and not parts.isdisjoint(entries):
                entries[coarse] = self.composed[coarse]
        return replace(self, **entries)  # type: ignore[arg-type]


PARTS: dict[str, frozenset[str]] = {
    "delta_layer": frozenset({"mul_mat", "conv_silu", "l2_norm", "delta_gates", "delta_rule", "gated_norm"}),
    "attn_layer": frozenset({"mul_mat", "split_q_gate", "rms_norm", "rope", "store_kv", "attention", "attn_gate"}),
    "ffn": frozenset({"mul_mat", "swiglu"}),
    "head": frozenset({"mul_mat"}),
    "mtp_input": frozenset({"rms_norm", "mtp_concat", "mul_mat"}),
    "mtp_norm": frozenset({"rms_norm"}),
}

FINE = tuple(f.name for f in fields(Ops) if f.name not in PARTS and f.name != "composed")
