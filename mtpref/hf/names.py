"""Tensor names of Qwen3.5 checkpoints: prefixes taken off, fused tensors taken apart, others set aside.

Owns which names mean the same. A canonical name is one of transforms.py: `model.layers.3.mlp.up_proj.weight`,
`mtp.fc.weight`, `lm_head.weight`. Knows nothing of files.

Fused names, by who writes them:
in_proj_qkvz, in_proj_ba    Qwen3-Next: for each k head its q, k, r v heads and r z heads (r = H_v / H_k); b, then a
qkv_proj, gate_up_proj      engines that re-save what they run (vLLM, SGLang): the parts one behind the other
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mtpref.transforms import ConvertDims

# Parts of a multimodal checkpoint that a text model has no use for, by what their names start with or contain.
_OTHER_STARTS = ("visual.", "vision_tower.", "vision_model.", "audio_tower.", "talker.", "code2wav.", "merger.")
_OTHER_PARTS = (".visual.", ".vision_tower.", ".vision_model.", ".audio_tower.", ".talker.", ".code2wav.")
# Buffers that some versions save, which hold no weights.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_BARE = ("layers.", "embed_tokens.", "norm.")

FUSED = {
    "linear_attn.in_proj_qkvz.weight": ("linear_attn.in_proj_qkv.weight", "linear_attn.in_proj_z.weight"),
    "linear_attn.in_proj_ba.weight": ("linear_attn.in_proj_b.weight", "linear_attn.in_proj_a.weight"),
    "self_attn.qkv_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}  # fmt: skip


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


def is_head(name: str) -> bool:
    """Whether a canonical name belongs to the MTP head."""
    return name.startswith("mtp.")


def split_fused(name: str, dims: ConvertDims, head_rows: Sequence[int]) -> list[tuple[str, NDArray[np.intp] | None]]:
    """(canonical name, its rows in the fused tensor; None: all of them), more than one for a fused name.

    head_rows   rows of q (with its gate), k and v in a gated attention layer
    """
    parts = name.split(".", 3)
    fused = FUSED.get(parts[3]) if len(parts) == 4 and parts[1] == "layers" else None
    if fused is None:
        return [(name, None)]
    prefix = ".".join(parts[:3]) + "."
    rows = _rows_of(parts[3], dims, head_rows)
    return [(prefix + part, row) for part, row in zip(fused, rows, strict=True)]


def _rows_of(fused: str, dims: ConvertDims, head_rows: Sequence[int]) -> list[NDArray[np.intp] | None]:
    n_k, n_v, size = dims.ssm_group_count, dims.ssm_time_step_rank, dims.ssm_state_size
    r = n_v // n_k
    if fused.endswith("in_proj_qkvz.weight"):
        q, k, v, z = _columns(n_k, (size, size, r * size, r * size))
        return [np.concatenate([q, k, v]), z]
    if fused.endswith("in_proj_ba.weight"):
        return list(_columns(n_k, (r, r)))
    if fused.endswith("qkv_proj.weight"):
        edges = np.cumsum([0, *head_rows])
        return [np.arange(a, b) for a, b in pairwise(edges.tolist())]
    return [None, None]  # halves, of a size that the tensor's own shape gives: see tensors.py


def _columns(n_k: int, widths: tuple[int, ...]) -> list[NDArray[np.intp]]:
    """Rows laid out k head by k head, each with parts of these widths -> the rows of each part."""
    grid = np.arange(n_k * sum(widths)).reshape(n_k, sum(widths))
    edges = np.cumsum([0, *widths])
    return [grid[:, a:b].reshape(-1) for a, b in pairwise(edges.tolist())]
