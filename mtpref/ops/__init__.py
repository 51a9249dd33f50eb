"""The numerics as a table of replaceable entries: types.py says what an entry takes, table.py is the table,
compose.py the coarse entries, reference.py the table that runs the readable specification.
"""

from mtpref.ops.compose import discard
from mtpref.ops.reference import spec_ops
from mtpref.ops.table import FINE, PARTS, Ops
from mtpref.ops.types import CoarseEntries, LayerTap, LayerWeights, OpEntries

__all__ = [
    "FINE",
    "PARTS",
    "CoarseEntries",
    "LayerTap",
    "LayerWeights",
    "OpEntries",
    "Ops",
    "discard",
    "spec_ops",
]
