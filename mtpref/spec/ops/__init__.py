"""The numerics as a table of replaceable entries: types.py says what an entry takes, table.py is the table,
compose.py the coarse entries, reference.py the table that runs the readable specification.
"""

from mtpref.spec.ops.compose import discard
from mtpref.spec.ops.reference import spec_ops
from mtpref.spec.ops.table import FINE, PARTS, Ops
from mtpref.spec.ops.types import CoarseEntries, LayerTap, LayerWeights, OpEntries

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
