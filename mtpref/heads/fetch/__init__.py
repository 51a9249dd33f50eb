"""A model on a server: what it holds, and its head alone. Nothing but headers and the head's own bytes is read.

`look` opens what a name stands for and judges it by its headers (gguf.py, checkpoint.py); `Found.take` writes the head.
HTTP is mtpref/files/remote's; docs/keeping-the-head.md, "From afar", says what is promised.
"""

from mtpref.heads.fetch.found import SCHEMA, Found, look

__all__ = ["SCHEMA", "Found", "look"]
