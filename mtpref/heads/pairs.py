"""The keys of a model with and without its head, as llama.cpp's converter writes them.

Three kinds of keys say how many blocks there are: block_count counts all, nextn_predict_layers those of the head
(absent without one), arrays that the data sheet says are per block have an entry for each. general.size_label, basename
and finetune depend on the number of values in the file; they are made anew where the file's own are what that rule
gives.
Source: llama.cpp conversion/qwen.py, conversion/base.py (prepare_metadata), gguf-py metadata.py and gguf_writer.py
(get_total_parameter_count).
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES
from mtpref.files.gguf import GgufArray, GgufFile
from mtpref.heads.layout import BLOCK_COUNT, NEXTN

Pair = tuple[str, Any, str]
Shapes = Iterable[tuple[str, tuple[int, ...]]]
SIZE_LABEL = "general.size_label"
NAMED = ("general.finetune", "general.basename", SIZE_LABEL)
ORDER = (
    "general.name", "general.author", "general.version", "general.organization", "general.finetune",
    "general.basename", "general.description", "general.quantized_by", SIZE_LABEL,
)  # fmt: skip


def pairs_of(file: GgufFile) -> list[Pair]:
    """All keys of a model as the writer takes them, without those that say how it is split into files."""
    return [
        (key, file.kv.raw(key) if file.kv.kind(key) == "str" else file.kv[key], str(file.kv.kind(key)))
        for key in file.kv
        if not key.startswith("split.")
    ]


def without_head(pairs: list[Pair], arch: str, n_trunk: int) -> list[Pair]:
    """The keys as --no-mtp writes them."""
    out = []
    for key, value, kind in pairs:
        name = key.removeprefix(f"{arch}.")
        if name == NEXTN:
            continue
        if name == BLOCK_COUNT:
            value = n_trunk
        elif kind.startswith("arr:") and name in ARCHITECTURES[arch].per_block:
            value = _array(value)[:n_trunk]
        out.append((key, value, kind))
    return out


def with_head(trunk: list[Pair], head: list[Pair], arch: str, n_trunk: int, n_nextn: int) -> list[Pair]:
    """The keys of a trunk that gets a head.

    trunk   keys of the trunk's file, whether they speak of a head or not
    head    keys of the head's file, for the kinds, the head's entries of arrays, and where the new key stands
    """
    theirs = {key: (value, kind) for key, value, kind in head}
    out = []
    for key, value, kind in without_head(trunk, arch, n_trunk):
        name = key.removeprefix(f"{arch}.")
        if name == BLOCK_COUNT:
            value = n_trunk + n_nextn
        elif kind.startswith("arr:") and name in ARCHITECTURES[arch].per_block:
            array, found = _array(value), theirs.get(key)
            of_heads = found if found is not None and found[1].startswith("arr:") else None
            is_whole = of_heads is not None and len(_array(of_heads[0])) == n_trunk + n_nextn
            if is_whole or name not in ARCHITECTURES[arch].of_trunk:
                value = np.concatenate([array, _tail(of_heads, n_trunk, n_nextn, array)])
        out.append((key, value, kind))
    key = f"{arch}.{NEXTN}"
    own = [k for k, _, _ in trunk]
    order = own if key in own else list(theirs)
    before = set(order[: order.index(key)]) if key in order else set()
    at = max((i + 1 for i, (k, _, _) in enumerate(out) if k in before), default=len(out))
    out.insert(at, (key, n_nextn, "u32"))
    return out


def _tail(theirs: tuple[Any, str] | None, n_trunk: int, n_nextn: int, own: Any) -> Any:
    """The head's entries of a per-block array: the trunk's last value (false, or 0 without any) where it has none."""
    if theirs is not None and len(_array(theirs[0])) == n_trunk + n_nextn:
        return _array(theirs[0])[n_trunk:].astype(own.dtype)
    last = own[-1:] if len(own) and own.dtype != bool else [0]
    return np.full(n_nextn, last[0], own.dtype)


def _array(value: Any) -> Any:
    return value.to_numpy() if isinstance(value, GgufArray) else np.asarray(value)


# SIZE LABEL


def relabelled(pairs: list[Pair], before: Shapes, after: Shapes) -> list[Pair]:
    """The keys with the label of other tensors, where they are what the converter's rule gives for those before.

    Rule   a size in the model's name is the label where it is near the number of values, else a part of the fine-tune's
           name; without one the label is the number. So the file of a head alone may have other keys than its model
    """
    found = {key: _text(value) for key, value, _ in pairs if key in (*NAMED, "general.name")}
    name = found.pop("general.name", "").replace(" ", "-")
    before, after = list(before), list(after)
    for model_id in (name, name.lower()):
        if found == _labels(model_id, before):
            return _with_labels(pairs, _labels(model_id, after))
    if found.get(SIZE_LABEL) == size_label(before):
        return _with_labels(pairs, {**found, SIZE_LABEL: size_label(after)})
    return pairs


def _labels(model_id: str, tensors: Shapes) -> dict[str, str]:
    """basename, finetune and size_label as the converter makes them of a name and a number of values."""
    from gguf import Metadata

    total = sum(math.prod(shape) for _, shape in tensors)
    _, _, basename, finetune, _, label = Metadata.get_model_id_components(model_id, total)
    made = {"general.finetune": finetune, "general.basename": basename, SIZE_LABEL: label or size_label(tensors)}
    return {key: value for key, value in made.items() if value is not None}


def _with_labels(pairs: list[Pair], labels: dict[str, str]) -> list[Pair]:
    """The keys with these labels in place of their own, each where the converter writes it."""
    out = [pair for pair in pairs if pair[0] not in NAMED]
    for key in NAMED:
        if key in labels:
            before = ORDER[: ORDER.index(key)]
            at = max((i + 1 for i, (k, _, _) in enumerate(out) if k in before), default=0)
            out.insert(at, (key, labels[key], "str"))
    return out


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def size_label(tensors: Shapes) -> str:
    """gguf-py's label of a number of values: 752M; 512x12B for experts."""
    from gguf.utility import size_label as label

    total = shared = expert = n_experts = n_expert_tensors = 0
    for name, shape in tensors:
        size = math.prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            count = shape[-2 if ".bias" in name else -3]
            expert += size // count
            n_experts += count
            n_expert_tensors += 1
        else:
            shared += size
    return label(total, shared, expert, n_experts // n_expert_tensors if n_expert_tensors else 0)
