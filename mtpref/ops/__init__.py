"""The numerics as a table of replaceable entries: table.py is the table, compose.py the coarse entries, reference.py
the table that runs the readable specification.
"""

from mtpref.ops.compose import LayerTap, LayerWeights, discard
from mtpref.ops.reference import spec_ops
from mtpref.ops.table import FINE, PARTS, Op, Ops

__all__ = ["FINE", "PARTS", "LayerTap", "LayerWeights", "Op", "Ops", "discard", "spec_ops"]
