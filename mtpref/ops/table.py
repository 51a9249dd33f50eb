"""The table of numerics: every operation of the model by name, each entry replaceable.

Owns the list of operations and the rule that ties fused entries to their parts. Entries of the reference
table are the functions of mtpref/spec; mtpref/recipe.py puts the Numba twins in their place. It must not
choose between them.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from mtpref import spec
from mtpref.ops import compose

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
    delta_layer: Op = compose.delta_layer
    attn_layer: Op = compose.attn_layer
    ffn: Op = compose.ffn
    head: Op = compose.head

    def replaced(self, **entries: Op) -> "Ops":
        """A table with other entries; fused twins whose parts are among them fall back to the composition."""
        for coarse, parts in PARTS.items():
            if coarse not in entries and not parts.isdisjoint(entries):
                entries[coarse] = getattr(compose, coarse)
        return replace(self, **entries)


PARTS: dict[str, frozenset[str]] = {
    "delta_layer": frozenset({"mul_mat", "conv_silu", "l2_norm", "delta_gates", "delta_rule", "gated_norm"}),
    "attn_layer": frozenset({"mul_mat", "split_q_gate", "rms_norm", "rope", "store_kv", "attention", "attn_gate"}),
    "ffn": frozenset({"mul_mat", "swiglu"}),
    "head": frozenset({"mul_mat"}),
}

FINE = tuple(f.name for f in fields(Ops) if f.name not in PARTS)


def spec_ops(numerics: str) -> Ops:
    """The reference table of `exact` or `ggml` numerics: functions of mtpref/spec only."""
    dot = spec.dot64 if numerics == "exact" else spec.dot32
    return Ops(
        mul_mat=spec.mul_mat_exact if numerics == "exact" else spec.mul_mat_ggml,
        get_rows=spec.get_rows,
        rms_norm=spec.rms_norm,
        l2_norm=spec.l2_norm,
        rope_table=spec.rope_table,
        rope=spec.rope,
        conv_silu=partial(spec.conv_silu, dot=dot),
        delta_gates=spec.delta_gates,
        delta_rule=partial(spec.delta_rule, dot=dot),
        gated_norm=spec.gated_norm,
        split_q_gate=spec.split_q_gate,
        store_kv=spec.store_kv,
        attention=partial(spec.attention, dot=dot),
        attn_gate=spec.attn_gate,
        swiglu=spec.swiglu,
        mtp_concat=spec.mtp_concat,
        argmax=spec.argmax,
        top_candidates=spec.top_candidates,
    )
