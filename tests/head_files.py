"""A trunk without head and a stand-alone head from one model, as a converter makes them (--no-mtp, --mtp)."""

from pathlib import Path

import numpy as np

from mtpref.files.gguf import write_gguf
from tests.gguf_copy import Pairs, Tensors, copy_of

SHARED = ("token_embd.weight", "output_norm.weight", "output.weight")


def n_trunk_layers(kv: Pairs) -> int:
    values = {key.split(".", 1)[1]: value for key, value, _ in kv if key.startswith("qwen35.")}
    return values["block_count"] - values["nextn_predict_layers"]


def trunk_of(kv: Pairs, tensors: Tensors) -> tuple[Pairs, Tensors]:
    """--no-mtp: block_count counts the trunk alone, nothing speaks of the head."""
    n = n_trunk_layers(kv)
    out = []
    for key, value, kind in kv:
        if key == "qwen35.nextn_predict_layers":
            continue
        if key == "qwen35.block_count":
            value = n
        if key == "qwen35.attention.recurrent_layers":
            value = np.asarray(value)[:n]
        out.append((key, value, kind))
    return out, [t for t in tensors if not t[0].startswith(f"blk.{n}.")]


def head_of(kv: Pairs, tensors: Tensors) -> tuple[Pairs, Tensors]:
    """--mtp: all keys as in the whole model; the MTP block and the shared tensors."""
    prefix = f"blk.{n_trunk_layers(kv)}."
    return kv, [t for t in tensors if t[0] in SHARED or t[0].startswith(prefix)]


def write_pair(model: Path, folder: Path) -> tuple[Path, Path]:
    """trunk.gguf and mtp-head.gguf of a model that has both in one file."""
    parts = copy_of(model)
    paths = folder / "trunk.gguf", folder / "mtp-head.gguf"
    write_gguf(paths[0], *trunk_of(*parts))
    write_gguf(paths[1], *head_of(*parts))
    return paths
