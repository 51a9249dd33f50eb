"""Reading blocks: the tensors of one layer, found by the layer kind's own list.

Owns how a kind's tensor slots become a dict of weights; load.py reads the trunk with it, head.py the MTP block.
"""

from typing import Any

from mtpref.model.architectures import Architecture
from mtpref.model.kinds import LayerKind
from mtpref.weights import TensorFinder


def read_block(
    finder: TensorFinder, arch: Architecture, n_embd: int, il: int, kinds: tuple[tuple[LayerKind, Any], ...]
) -> dict[str, Any]:
    """The tensors of block il by their GGUF name without "blk.il.": both norms, and every slot of its kinds."""
    block: dict[str, Any] = {}
    for norm in (arch.mixer_norm, arch.ffn_norm):
        block[norm] = finder.array(f"blk.{il}.{norm}", (n_embd,))
    for kind, cfg in kinds:
        for slot in kind.tensors(cfg):
            name = f"blk.{il}.{slot.name}"
            if not slot.required and not finder.has(name):
                continue
            if slot.is_matrix:
                block[slot.name] = finder.matrix(name, (slot.shape[0], slot.shape[1]))
            else:
                block[slot.name] = finder.array(name, slot.shape)
    return block
