"""The numerics as a table of replaceable entries. See table.py for the table, compose.py for the coarse
entries."""

from mtpref.ops.compose import LayerTap, LayerWeights
from mtpref.ops.table import FINE, PARTS, Op, Ops, spec_ops

__all__ = ["FINE", "PARTS", "LayerTap", "LayerWeights", "Op", "Ops", "spec_ops"]
