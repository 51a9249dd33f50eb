"""Tensor names of checkpoints: prefixes that depend on the class taken off, others set aside.

Owns which names mean the same. A canonical name is one that a data sheet has (mtpref/architectures):
`model.layers.3.mlp.up_proj.weight`, `mtp.fc.weight`, `lm_head.weight`. Knows nothing of files.
"""

from __future__ import annotations

# Parts of a multimodal checkpoint that a text model has no use for, by what their names start with or contain.
_OTHER_STARTS = (
    "visual.",
    "vision_tower.",
    "vision_model.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "talker.",
    "code2wav.",
    "merger.",
    "mm_projector.",
    "multi_modal_projector.",
)
_OTHER_PARTS = (
    ".visual.",
    ".vision_tower.",
    ".vision_model.",
    ".audio_tower.",
    ".embed_vision.",
    ".embed_audio.",
    ".talker.",
    ".code2wav.",
)
# Buffers that some versions save, which hold no weights.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_BARE = ("layers.", "embed_tokens.", "norm.")


def canonical(name: str) -> str:
    """The name without the prefixes that depend on the class which saved it."""
    name = name.replace("language_model.", "", 1)
    if name.startswith("model.lm_head."):
        return name[len("model.") :]
    if name.startswith("model.model."):
        name = name[len("model.") :]
    if name.startswith("model.mtp."):
        return name[len("model.") :]
    return "model." + name if name.startswith(_BARE) else name


def is_multimodal(name: str) -> bool:
    """Whether the tensor belongs to a vision or audio part."""
    return name.startswith(_OTHER_STARTS) or any(part in name for part in _OTHER_PARTS)


def is_buffer(name: str) -> bool:
    return name.endswith(_BUFFERS)
