"""The parts of a block by its data sheet: what each is called, its tensors, and the block without it.

Owns the words. Nothing here knows an architecture: tensors are told apart by what the graph makes with them
(`Tensor.cb`), and a part is left out where its kind stands, so that no kind can go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtpref.architectures import Block, Tensor
from mtpref.architectures.transforms import ZERO_CENTRED
from mtpref.engine.model.model import Layer, Part
from mtpref.spec.kinds import LayerKind

PARTS: tuple[Part, Part] = ("mixer", "ffn")
_WORDS = {"gated_delta_net": "DeltaNet", "ssm": "Mamba-2", "kda": "Kimi delta attention"} | dict.fromkeys(
    (
        "attention",
        "gated_attention",
        "latent_attention",
        "indexed_latent_attention",
        "sharing_latent_attention",
        "compressed_attention",
        "window_attention",
        "windowed_attention",
        "unscaled_attention",
    ),
    "attention",
)


def kind_of(block: Block, part: Part) -> LayerKind:
    return block.mixer if part == "mixer" else block.ffn


def word(block: Block, part: Part) -> str:
    """attention, DeltaNet, feed-forward"""
    return "feed-forward" if part == "ffn" else _WORDS.get(block.mixer.name, block.mixer.name)


def said(block: Block, part: Part) -> str:
    """The word and the tensors' names, the norm before it among them: `feed-forward (post_attention_norm, ffn_*)`."""
    own = [tensor.name for tensor in tensors(block, part)]
    norm = getattr(block.residual, f"{part}_norm", "")
    listed = ", ".join(dict.fromkeys(_short(name, own) for name in ([norm] if norm else []) + own))
    return f"{word(block, part)} ({listed})" if listed else word(block, part)


def shifted_norms(block: Block) -> list[str]:
    """The norms to which a converter adds 1; where it adds it to none, all of them, to which one may have added it."""
    norms = [t for t in block.all_tensors() if len(t.shape) == 1 and t.name.endswith("norm.weight")]
    return [t.name for t in norms if t.change == ZERO_CENTRED] or [t.name for t in norms]


def tensors(block: Block, part: Part) -> list[Tensor]:
    """What its kind makes something with; none of a kind that does not say what it makes."""
    return [tensor for tensor in block.all_tensors() if tensor.cb in kind_of(block, part).graph]


def _short(name: str, own: Sequence[str]) -> str:
    """attn_q.weight -> attn_*, where others begin so; indexer.proj.weight -> indexer.*"""
    whole, _, part = name.rpartition(".")[0].partition(".")
    if part:
        return f"{whole}.*"
    first = name.split("_")[0]
    is_one_of = sum(other.startswith(f"{first}_") for other in own) > 1
    return f"{first}_*" if is_one_of and "_" in name else name.removesuffix(".weight")


def without(layer: Layer, part: Part) -> Layer:
    """The layer with a part of it adding zero. It runs, so that its state goes on as ever."""
    kind = kind_of(layer.block, part)

    def forward(*args: Any) -> Any:
        return np.zeros_like(kind.forward(*args))

    return layer.with_forward(part, forward)
