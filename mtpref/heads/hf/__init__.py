"""Checkpoint folders as Hugging Face lays them out: config.json, safetensors in one or several files, a tokenizer.

`open_checkpoint` opens one; `gguf_tensors` plans its tensors under GGUF names and conventions, row by row. Nothing
here writes. Read next: checkpoint.py, formats/ (quantised tensors as values), then names.py and tensors.py;
mtpref/heads/convert makes a GGUF file of it.
"""

from mtpref.heads.hf.checkpoint import Checkpoint, is_checkpoint, open_checkpoint
from mtpref.heads.hf.config import TextConfig, refuse_apart, text_config
from mtpref.heads.hf.names import canonical, is_multimodal
from mtpref.heads.hf.parts import Part
from mtpref.heads.hf.tensors import Inventory, gguf_tensors

__all__ = [
    "Checkpoint",
    "Inventory",
    "Part",
    "TextConfig",
    "canonical",
    "gguf_tensors",
    "is_checkpoint",
    "is_multimodal",
    "open_checkpoint",
    "refuse_apart",
    "text_config",
]
