"""Checkpoints as they come: the room between the safetensors files and all who read a checkpoint.

A tensor is had by its plain name, as float values, some rows at a time, however it is stored: plain, FP8, INT8, packed
integers, AWQ, GPTQ, MXFP4, NVFP4. Names such as `X.weight_scale_inv`, `X.weight_packed` or `X.qweight` go no further.
Where blocks of a ggml type hold the same values with the codes as they are, `keeps` names it and `blocks` makes them.

Read in this order: stored.py (what a reader is given), scaled, packed, transposed, fp4 (the formats), recognise.py and
words.py (which tensor is which), declared.py (what config.json says), foreign.py (what is not read).
"""

from mtpref.heads.hf.formats.declared import Declared, declared
from mtpref.heads.hf.formats.raw import Index, Raw
from mtpref.heads.hf.formats.recognise import recognise
from mtpref.heads.hf.formats.stored import Stored

__all__ = ["Declared", "Index", "Raw", "Stored", "declared", "recognise"]
