"""The keys of a model with and without its head, as llama.cpp's converter writes them.

Three keys say how many blocks there are: block_count counts all, nextn_predict_layers those of the head (absent without
one), attention.recurrent_layers has an entry for each. general.size_label is made from the number of values where the
checkpoint's name gives none; it is made anew here where the file's own is what that rule gives.
Source: llama.cpp conversion/qwen.py, conversion/base.py (prepare_metadata), gguf-py get_total_parameter_count.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mtpref.gguf import GgufArray, GgufFile
from mtpref.heads.layout import BLOCK_COUNT, NEXTN

Pair = tuple[str, Any, str]
Shapes = Iterable[tuple[str, tuple[int, ...]]]
SIZE_LABEL = "general.size_label"
PER_BLOCK = ("attention.recurrent_layers", "attention.head_count", "attention.head_count_kv", "feed_forward_length")


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
        elif name in PER_BLOCK and kind.startswith("arr:"):
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
        elif name in PER_BLOCK and kind.startswith("arr:"):
            value = np.concatenate([_array(value), _tail(theirs.get(key), n_trunk, n_nextn, _array(value))])
        out.append((key, value, kind))
    key = f"{arch}.{NEXTN}"
    own = [k for k, _, _ in trunk]
    order = own if key in own else list(theirs)
    before = set(order[: order.index(key)]) if key in order else set()
    at = max((i + 1 for i, (k, _, _) in enumerate(out) if k in before), default=len(out))
    out.insert(at, (key, n_nextn, "u32"))
    return out


def _tail(theirs: tuple[Any, str] | None, n_trunk: int, n_nextn: int, own: Any) -> Any:
    """The head's entries of a per-block array; false or the trunk's last value where its file has none."""
    if theirs is not None and theirs[1].startswith("arr:") and len(_array(theirs[0])) == n_trunk + n_nextn:
        return _array(theirs[0])[n_trunk:].astype(own.dtype)
    return np.full(n_nextn, False if own.dtype == bool else own[-1], own.dtype)


def _array(value: Any) -> Any:
    return value.to_numpy() if isinstance(value, GgufArray) else np.asarray(value)


# SIZE LABEL


def relabelled(pairs: list[Pair], before: Shapes, after: Shapes) -> list[Pair]:
    """The keys with general.size_label for other tensors, where it is what the tensors gave before."""
    old = size_label(before).encode()
    return [(k, size_label(after) if k == SIZE_LABEL and v in (old, old.decode()) else v, kind) for k, v, kind in pairs]


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
