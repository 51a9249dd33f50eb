"""Layer kinds, architectures and the model. Start with model.py; load.py reads one from a file."""

from mtpref.model.architectures import ARCHITECTURES, Architecture
from mtpref.model.kinds import LayerKind, Span, TensorSlot
from mtpref.model.load import load
from mtpref.model.model import Layer, Model, MtpOut, Tap, TrunkOut

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Layer",
    "LayerKind",
    "Model",
    "MtpOut",
    "Span",
    "Tap",
    "TensorSlot",
    "TrunkOut",
    "load",
]
