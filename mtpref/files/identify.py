"""What a GGUF file is, where it is no language model: projectors, adapters, statistics, vocabularies, dumps.

Owns the marks by which such files are told. Reads keys and tensor names only.
"""

from collections.abc import Collection, Container

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, printable

# general.type -> what the file is and what to do. Values are those of gguf-py's GGUFType.
_TYPES = {
    "mmproj": "a vision or audio projector (mmproj); give the language model's own GGUF file, text needs no projector",
    "adapter": "an adapter (LoRA), not a model; merge it into its model first (llama-export-lora) and give the result",
    "imatrix": "an importance matrix for llama-quantize, not a model; give the model's GGUF file",
}
# general.architecture -> the same, for files that are no network of any kind.
_ARCHITECTURES = {
    "clip": _TYPES["mmproj"],
    "mmproj": _TYPES["mmproj"],
    "controlvector": "a control vector, not a model; give the model's GGUF file",
    "imatrix": _TYPES["imatrix"],
    "mtpref-dump": "a dump of activations made by mtpref dump, not a model; read it with mtpref compare",
}
# A key that only such files have -> the same. (llama-results writes no general.* key at all.)
_KEYS = {
    "adapter.type": _TYPES["adapter"],
    "adapter.lora.alpha": _TYPES["adapter"],
    "imatrix.chunk_count": _TYPES["imatrix"],
    "clip.has_vision_encoder": _TYPES["mmproj"],
    "clip.projector_type": _TYPES["mmproj"],
    "path_model": "recorded logits made by llama-results, not a model; give the model's GGUF file",
}
VOCAB_ONLY = "a vocabulary without weights (vocab-only), not a model; give the model's GGUF file"
HEAD_ONLY = "an MTP head without its trunk (mtp-*.gguf); give the trunk with -m and this file with -md"

REDECLARE = "mtpref graft FILE FILE -o OUT.gguf (FILE twice) declares it"


def describe_kind(file: GgufFile) -> str | None:
    """What the file is and what to give instead, or None where nothing says that it is no language model."""
    kind = _text(file, "general.type")
    if kind in _TYPES:
        return _TYPES[kind]
    arch = _text(file, "general.architecture")
    if arch in _ARCHITECTURES:
        return _ARCHITECTURES[arch]
    for key, what in _KEYS.items():
        if key in file.kv:
            return what
    if not file.tensors and "tokenizer.ggml.model" in file.kv:
        return VOCAB_ONLY
    if kind not in (None, "model"):
        return f"of general.type {printable(str(kind), 40)!r}, expected 'model'; give the model's GGUF file"
    return None


def is_head_only(file: GgufFile) -> bool:
    """Whether it holds an MTP block and nothing of block 0. (llama.cpp looks for blk.0.attn_norm.weight.)"""
    names = file.tensors
    return any(name.endswith(".nextn.eh_proj.weight") for name in names) and not any(
        name.startswith("blk.0.") for name in names
    )


def has_trunk(names: Container[str]) -> bool:
    """Whether these tensors are a trunk's, too: by what llama.cpp looks for."""
    return "blk.0.attn_norm.weight" in names


def miscounted(file: GgufFile, arch: str) -> str | None:
    """What is wrong with block_count, where a head that is counted lies at the end of the file's blocks, and the key
    says another number of blocks. None where that is not so, or nothing tells."""
    n_blocks, n_nextn = (file.get(f"{arch}.{key}") for key in ("block_count", "nextn_predict_layers"))
    if not isinstance(n_blocks, int) or n_blocks < 1 or not isinstance(n_nextn, int) or not n_nextn:
        return None
    blocks, heads = set(), set()
    for name in file.tensors:
        parts = name.split(".", 3)
        if len(parts) > 2 and parts[0] == "blk" and parts[1].isdecimal() and len(parts[1]) < 9:
            blocks.add(int(parts[1]))
            heads |= {int(parts[1])} if parts[2] == "nextn" else set()
    # Counted, not listed: the key may say 2^31.
    are_last = len(heads) == n_nextn and min(heads) == max(blocks) + 1 - n_nextn and max(heads) == max(blocks)
    if not are_last or max(blocks) + 1 == n_blocks:
        return None
    found = f"blk.0 to blk.{max(blocks)}" if 0 in blocks else f"blocks up to blk.{max(blocks)}"
    return (
        f"key {arch}.block_count is {n_blocks}, and the file has {found}, the last {n_nextn} of them with nextn "
        f"tensors: expected {max(blocks) + 1}; convert the model again, or correct the key"
    )


def check_counts(file: GgufFile, arch: str) -> None:
    """Refuse a file whose block_count is not the number of its blocks, before another key is taken for the wrong."""
    wrong = miscounted(file, arch)
    if wrong is not None:
        raise MtprefError(f"{file.label}: {wrong}")


def head_in_trunk(file: GgufFile, n_trunk: int) -> str | None:
    """The first nextn tensor of a block below n_trunk: an MTP head that the keys count as a trunk layer."""
    for name in file.tensors:
        block = name.split(".", 2)
        if name.startswith("blk.") and ".nextn." in name and block[1].isdecimal() and int(block[1][:9]) < n_trunk:
            return name
    return None


def trunk_in_head(names: Collection[str], il: int) -> bool:
    """Whether block il, which the keys count as the head, is a trunk layer, and the file has no head at all."""
    return f"blk.{il}.attn_norm.weight" in names and not any(".nextn." in name for name in names)


# What becomes of that layer.
LOST_LAYER = (
    "llama.cpp takes that trunk layer for the head and leaves it out, and the text is ruined without a word; "
    "mtpref strip takes the key away"
)


def _text(file: GgufFile, key: str) -> str | None:
    if file.kv.kind(key) != "str" or file.kv.size(key) > 100:
        return None
    return file.kv.raw(key).decode("utf-8", "replace")
