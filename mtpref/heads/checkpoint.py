"""The head of a checkpoint folder for `graft` and `extract`: what `mtpref convert --mtp` would write."""

from functools import partial
from typing import Any

import numpy as np

from mtpref.files.gguf import tensor_bytes
from mtpref.heads.contents import Array, Contents, Item, Source
from mtpref.heads.convert import Plan, Settings, plan
from mtpref.heads.hf import Checkpoint, Part


def checkpoint_source(checkpoint: Checkpoint, outtype: str) -> tuple[Source, list[str]]:
    """The head of an open checkpoint, and what the conversion says about it.

    outtype   of the head's matrices: f32, f16, bf16 or q8_0
    Errors    MtprefError as `convert`: no head among the tensors, not all of it, a damaged checkpoint
    """
    # Tensors without a place in a GGUF are the trunk's business: it is taken from elsewhere.
    made = plan(checkpoint, Settings(outtype=outtype, which="mtp", allow_unmapped=True), needs_shared=False)
    items = {item.name: item for item in _items(made)}
    parts = {part.name: part for part in made.found.parts}  # in the order of a conversion of trunk and head
    source = Source(checkpoint.label, list(made.keys), items, list(parts), partial(_rows, checkpoint, parts))
    return source, made.notes


def head_contents(checkpoint: Checkpoint, outtype: str) -> tuple[Contents, list[str]]:
    """The head of an open checkpoint as a file of its own, and what the conversion says about it. Errors: as `plan`"""
    made = plan(checkpoint, Settings(outtype=outtype, which="mtp"))
    return Contents(list(made.keys), _items(made)), made.notes


def _items(made: Plan) -> list[Item]:
    return [
        Item(name, type_name, shape, tensor_bytes(type_name, shape), pieces)
        for name, type_name, shape, pieces in made.tensors
    ]


def _rows(checkpoint: Checkpoint, parts: dict[str, Part], name: str, rows: Array) -> Any:
    """Some rows of a tensor of the head's file, decoded."""
    part = parts[name]
    if part.rows is not None or part.columns is not None or len(part.shape) != 2:
        return None
    return checkpoint.rows(part.source, rows).astype(np.float64)
