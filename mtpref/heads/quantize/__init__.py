"""Quantising a GGUF model, its MTP head kept: `quantize_file`.

mixture.py says which type each tensor gets, encode.py makes the bytes, importance.py reads and writes importance
matrices and collect.py measures them, run.py puts it together. docs/keeping-the-head.md explains.
"""

from mtpref.heads.quantize.encode import ENCODABLE, encode
from mtpref.heads.quantize.mixture import MIXTURES, Wanted, head_layers, plan_types
from mtpref.heads.quantize.run import Quantized, Settings, quantize_file

__all__ = [
    "ENCODABLE",
    "MIXTURES",
    "Quantized",
    "Settings",
    "Wanted",
    "encode",
    "head_layers",
    "plan_types",
    "quantize_file",
]
