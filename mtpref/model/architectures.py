"""The registry of architectures: each is a choice of layer kinds, in an order read from the metadata.

Owns which kinds an architecture is made of. Adding an architecture adds an entry (and kinds, in files of
their own), not a branch anywhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mtpref.config import Metadata, ModelConfig
from mtpref.errors import UnsupportedError
from mtpref.model.delta_net import GATED_DELTA_NET
from mtpref.model.ffn import SWIGLU_FFN
from mtpref.model.gated_attention import GATED_ATTENTION
from mtpref.model.kinds import LayerKind


@dataclass(frozen=True)
class Architecture:
    """A residual network of blocks x += mixer(norm(x)); x += ffn(norm(x)), and perhaps an MTP block.

    mixers(metadata, config) -> the kind of each trunk layer's mixer
    mtp_mixer                the MTP block's mixer, None where the architecture has no MTP block
    """

    name: str
    mixers: Callable[[Metadata, ModelConfig], tuple[LayerKind, ...]]
    ffn: LayerKind
    mtp_mixer: LayerKind | None
    mixer_norm: str = "attn_norm.weight"
    ffn_norm: str = "post_attention_norm.weight"


def _qwen35_mixers(meta: Metadata, cfg: ModelConfig) -> tuple[LayerKind, ...]:
    """attention.recurrent_layers where it is given, else every full_attention_interval-th layer attends."""
    if meta.has("attention.recurrent_layers"):
        recurrent = meta.integers("attention.recurrent_layers", cfg.n_layer)
    else:
        interval = meta.u32("full_attention_interval", 4, high=4096)
        recurrent = [int((il + 1) % interval != 0) for il in range(cfg.n_layer)]
    return tuple(GATED_DELTA_NET if is_recurrent else GATED_ATTENTION for is_recurrent in recurrent)


ARCHITECTURES: dict[str, Architecture] = {
    "qwen35": Architecture("qwen35", _qwen35_mixers, SWIGLU_FFN, GATED_ATTENTION),
}


def find_architecture(meta: Metadata) -> Architecture:
    if meta.arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"{meta.source}: architecture {meta.arch[:40]!r} is not supported, expected one of: "
                               f"{known}; try: mtpref inspect FILE")  # fmt: skip
    return ARCHITECTURES[meta.arch]
