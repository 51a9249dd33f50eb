"""The GGUF container: `open_gguf` reads one over mmap (all files of a split model), `write_gguf` and `write_shards`
write one. Limits: docs/gguf.md."""

from mtpref.files.gguf.folder import How, Kept, check_folder, how_kept, write_folder
from mtpref.files.gguf.parse import TensorInfo
from mtpref.files.gguf.reader import GgufFile, KeyValues, open_one
from mtpref.files.gguf.shards import is_shard, open_gguf, other_counts, write_shards
from mtpref.files.gguf.values import GgufArray, listed, printable, without_leading_ones
from mtpref.files.gguf.whole import WriteOptions, check_targets, human_bytes, write_whole
from mtpref.files.gguf.writer import QUANTIZATION_VERSION, Copied, Data, Verbatim, tensor_bytes, write_gguf

__all__ = [
    "QUANTIZATION_VERSION",
    "Copied",
    "Data",
    "GgufArray",
    "GgufFile",
    "How",
    "Kept",
    "KeyValues",
    "TensorInfo",
    "Verbatim",
    "WriteOptions",
    "check_folder",
    "check_targets",
    "how_kept",
    "human_bytes",
    "is_shard",
    "listed",
    "open_gguf",
    "open_one",
    "other_counts",
    "printable",
    "tensor_bytes",
    "without_leading_ones",
    "write_folder",
    "write_gguf",
    "write_shards",
    "write_whole",
]
