"""Attention with and without a window, where layers without one do not turn (NoPE); those that turn pair neighbours.

The windowed kinds (windowed.py) with another rule of what turns. Their numerics are
mtpref/spec/ops/compose_windowed.py's (S98, S120).
"""

from dataclasses import replace
from functools import partial

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import Values, WindowedConfig
from mtpref.spec.kinds import windowed
from mtpref.spec.kinds.kind import Graph


def turned_width(n_rot: int, n_window: int, turns_all: bool) -> int:
    """S120. How many dimensions of a head turn in a layer: n_rot where it has a window or always turns, else none.

    Source   Cohere2: position is told by layers with a window alone; dense layers in front and MTP blocks always turn
    """
    return n_rot if n_window or turns_all else 0


def _configure(v: Values, *, turns_all: bool) -> WindowedConfig:
    """Of the file's keys. Errors: MtprefError for a head that turns in part"""
    cfg = windowed.configure(v)
    if not cfg.n_rot == cfg.n_key == cfg.n_value:
        raise MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.rope.dimension_count is {cfg.n_rot}, attention.key_length "
            f"{cfg.n_key}, attention.value_length {cfg.n_value}, expected one number: heads of {v.meta.arch} turn as a "
            "whole; convert the model again"
        )
    return replace(cfg, n_rot=turned_width(cfg.n_rot, cfg.n_window, turns_all), is_interleaved=True)


_ROPE = "RoPE of the whole head, neighbours paired, in layers that turn; elsewhere as it is"
_turned = (spec.rope_interleaved,)
_TURNED: Graph = {
    name: replace(made, step=_ROPE, rules=_turned) if name in ("Qcur", "Kcur") else made
    for name, made in windowed.GRAPH.items()
    if name not in ("attn_gate", "attn_gated", "attn_scaled")
}
GRAPH: Graph = {**_TURNED, "attn_output": replace(_TURNED["attn_output"], inputs=("kqv_out",))}
# Layers with a window turn, others do not.
UNTURNED_ATTENTION = replace(windowed.WINDOWED_ATTENTION, configure=partial(_configure, turns_all=False), graph=GRAPH)
# The same where a layer turns whether it has a window or not.
TURNED_ATTENTION = replace(windowed.WINDOWED_ATTENTION, configure=partial(_configure, turns_all=True), graph=GRAPH)
TURNED_HEAD_ATTENTION = replace(
    windowed.WINDOWED_HEAD_ATTENTION, configure=partial(_configure, turns_all=True), graph=GRAPH
)
