"""Taking a model's MTP head out, off, or putting one in: `extract`, `strip`, `graft`.

layout.py says what of a file is the head, pairs.py what its keys become, contents.py is a file to be read or written,
split.py and graft.py make it, checkpoint.py takes a head from a checkpoint folder, match.py asks whether a head fits a
trunk, proof.py measures it. Tensor data of a GGUF file is copied as it is, never decoded.
"""

from mtpref.heads.contents import Contents, Item, write_contents
from mtpref.heads.graft import Graft, graft
from mtpref.heads.layout import HeadLayout, layout_of
from mtpref.heads.split import extract, strip

__all__ = ["Contents", "Graft", "HeadLayout", "Item", "extract", "graft", "layout_of", "strip", "write_contents"]
