"""The GGUF container: `open_gguf` reads one over mmap, `write_gguf` writes one. Limits: docs/gguf.md."""

from mtpref.gguf.parse import TensorInfo
from mtpref.gguf.reader import GgufFile, KeyValues, open_gguf
from mtpref.gguf.values import GgufArray, printable, without_leading_ones
from mtpref.gguf.writer import write_gguf

__all__ = [
    "GgufArray",
    "GgufFile",
    "KeyValues",
    "TensorInfo",
    "open_gguf",
    "printable",
    "without_leading_ones",
    "write_gguf",
]
