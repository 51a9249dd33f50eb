"""What a file is that is not GGUF, by its first bytes; and what a directory is.

Owns the hints of refusals. It never reads more than names and a few bytes.
"""

import os
from itertools import islice
from pathlib import Path

from mtpref.files.gguf.values import printable

_CONVERT = "convert it with convert_hf_to_gguf.py"
_AGAIN = "convert the model again with a current converter"
_UNPACK = "unpack it first"

# First bytes -> what such a file is and what to do. ggml's own magics are little-endian words: "ggjt" reads "tjgg".
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"FUGG", "a byte-swapped (big-endian) GGUF; convert it with gguf-convert-endian"),
    (b"ggml", f"a pre-GGUF ggml file; {_AGAIN}"),
    (b"lmgg", f"a pre-GGUF ggml file; {_AGAIN}"),
    (b"fmgg", f"a pre-GGUF ggmf file; {_AGAIN}"),
    (b"tjgg", f"a pre-GGUF ggjt file; {_AGAIN}"),
    (b"algg", "a pre-GGUF LoRA adapter (ggla), not a model; give the model's GGUF file"),
    (b"nsgg", "a saved llama.cpp session, not a model; give the model's GGUF file"),
    (b"qsgg", "a saved llama.cpp sequence state, not a model; give the model's GGUF file"),
    (b"PK", f"a zip archive, perhaps a PyTorch checkpoint; {_CONVERT}"),
    (b"\x80\x02", f"a Python pickle, perhaps a PyTorch checkpoint; {_CONVERT}"),
    (b"\x93NUMPY", "a NumPy array, not a model; give the model's GGUF file"),
    (b"\x1f\x8b", f"a gzip archive; {_UNPACK} (gunzip)"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive; {_UNPACK} (unzstd)"),
    (b"\xfd7zXZ", f"an xz archive; {_UNPACK} (unxz)"),
    (b"BZh", f"a bzip2 archive; {_UNPACK} (bunzip2)"),
    (b"7z\xbc\xaf", f"a 7z archive; {_UNPACK}"),
    (b"\x7fELF", "a program or library, not a model; give the model's GGUF file"),
    (b"version https", "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"<", "perhaps an HTML page that a download saved; download the file again"),
    (b"Entry not found", "the error text of a download; check the file's name and download it again"),
    (b"Repository not", "the error text of a download; check the name and download it again"),
    (b"{", "a JSON text, perhaps a model's config.json; give the model's GGUF file"),
    (b"\0\0\0\0", "zeros, perhaps an unfinished download; download the file again"),
)
MAX_LISTED = 1000  # names of a directory that are looked at


def describe_start(start: bytes) -> str:
    """What a file with these first bytes (at least 16, unless it is shorter) is, and what to do about it."""
    if start[8:9] == b"{" and not start.startswith(b"{"):
        return f"perhaps a safetensors file; {_CONVERT}"
    return next((what for begin, what in STARTS if start.startswith(begin)), "not a GGUF file")


def describe_directory(path: Path) -> str:
    """What a directory seems to hold, and what to give instead. Looks at no more than MAX_LISTED names."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in islice(entries, MAX_LISTED))
    except OSError:
        names = []
    models = [name for name in names if name.endswith(".gguf")]
    if models:
        first = printable(str(path / models[0]), 400)
        return f"a directory with {len(models)} GGUF files, expected one file; give for example {first}"
    if "adapter_config.json" in names and "config.json" not in names:
        return "a directory with a LoRA adapter, not a model; merge it into its base model and give the result"
    if "config.json" in names or any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
        return (
            "a directory, perhaps a Hugging Face model, expected a GGUF file; convert it first: "
            f"mtpref convert {printable(str(path), 400)} -o OUT.gguf"
        )
    return "a directory without config.json, expected a GGUF file"
