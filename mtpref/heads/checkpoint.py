"""The head of a checkpoint folder as a source for `graft`: what `mtpref convert --mtp` would write, never written."""

from functools import partial
from typing import Any

import numpy as np

from mtpref.convert import Settings, plan
from mtpref.heads.contents import Array, Item, Source
from mtpref.hf import Checkpoint, Part, gguf_tensors, text_config
from mtpref.quants import row_bytes


def checkpoint_source(checkpoint: Checkpoint, outtype: str) -> tuple[Source, list[str]]:
    """The head of an open checkpoint, and what the conversion says about it.

    outtype   of the head's matrices: f32, f16, bf16 or q8_0
    Errors    MtprefError as `convert`: no head among the tensors, not all of it, a damaged checkpoint
    """
    # Tensors without a place in a GGUF are the trunk's business: it is taken from elsewhere.
    made = plan(checkpoint, Settings(outtype=outtype, which="mtp", allow_unmapped=True))
    items = {}
    for name, type_name, shape, pieces in made.tensors:
        n_bytes = int(np.prod(shape[:-1], dtype=np.int64)) * row_bytes(type_name, shape[-1])
        items[name] = Item(name, type_name, shape, n_bytes, pieces)
    order = [part.name for part in _parts(checkpoint)]  # of a conversion of trunk and head
    return Source(checkpoint.label, list(made.keys), items, order, partial(_rows, checkpoint)), made.notes


def _parts(checkpoint: Checkpoint) -> list[Part]:
    return gguf_tensors(checkpoint, text_config(checkpoint.config, checkpoint.label)).parts


def _rows(checkpoint: Checkpoint, name: str, rows: Array) -> Any:
    """Some rows of a tensor of the head's file, decoded."""
    part = next(part for part in _parts(checkpoint) if part.name == name)
    if part.rows is not None or part.columns is not None:
        return None
    return np.stack([checkpoint.rows(part.source, slice(int(r), int(r) + 1))[0] for r in rows]).astype(np.float64)
