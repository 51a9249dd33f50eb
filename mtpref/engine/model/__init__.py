"""The model: loading and running. Start with model.py; load.py reads one from a file."""

from mtpref.engine.model.load import load
from mtpref.engine.model.model import Head, Layer, Model, Output, Tap, refuse_assistant
from mtpref.engine.model.text_cells import TextCells, layers_read
from mtpref.engine.model.walk import Pairs, first_step, pair, run_both, run_heads

__all__ = [
    "Head",
    "Layer",
    "Model",
    "Output",
    "Pairs",
    "Tap",
    "TextCells",
    "first_step",
    "layers_read",
    "load",
    "pair",
    "refuse_assistant",
    "run_both",
    "run_heads",
]
