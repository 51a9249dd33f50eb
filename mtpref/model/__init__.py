"""Layer kinds, architectures and the model. Start with model.py; load.py reads one from a file."""

from mtpref.model.architectures import ARCHITECTURES, Architecture
from mtpref.model.kinds import LayerKind, Span, TensorSlot
from mtpref.model.load import load
from mtpref.model.model import Layer, Model, Output, Tap

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Layer",
    "LayerKind",
    "Model",
    "Output",
    "Span",
    "Tap",
    "TensorSlot",
    "load",
]
