"""The report on one model: keys, tokenizer, layers, tensors, quantisation mix, MTP head, problems.

Owns the report's schema. Every value is a plain JSON type; strings are as the file has them (render.py and
JSON escape them). Long arrays and strings stand as {"kind", "count" or "bytes"}.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, describe_assistant
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufArray, GgufFile, TensorInfo, is_shard, open_gguf, open_one, other_counts, printable
from mtpref.files.identify import HEAD_ONLY, describe_kind, is_head_only
from mtpref.heads.inspect.layers import Problem, check_keys, check_tensors, describe_head, describe_layers, read_layout
from mtpref.heads.inspect.memory import head_memory

SCHEMA = "mtpref-inspect-1"
MAX_TEXT = 1000  # bytes of a string shown whole
MAX_NUMBERS = 512  # numbers of an array shown whole: one for each layer of any real model
MAX_TEXTS = 16  # strings of an array shown whole, such as general.tags
_TOKENIZER = "tokenizer."
_SPECIAL_ID = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")


def inspect_file(path: str | Path) -> dict[str, Any]:
    """The report on a file; MtprefError when it cannot be opened or its header is malformed.

    schema            "mtpref-inspect-1"
    file              path, bytes, version, alignment, data_offset, n_keys, n_tensors; shards: for each file of a
                      split model its path, bytes and n_tensors, empty for a model in one file; note: where later
                      files of it count other files than the first, else None
    what              what the file is where it is no whole language model (a projector, a LoRA, ...), else None
    architecture      general.architecture or None    supported: whether mtpref knows its layers and head
    general, hyper_parameters, tokenizer, other_keys
    layers            declared_by, counts by kind, blocks of (index, kind, found, n_tensors, bytes)
    mtp               see layers.describe_head    mtp_memory: see memory.head_memory
    fallbacks         tensors that are absent and what stands in for them
    quantisation      tensors, elements and bytes by type, most bytes first
    tensors           name, type, shape (NumPy order), bytes (of an unknown type: up to the next tensor),
                      offset in its file, shard (the file's number from 0)
    problems          one line each; empty when nothing is wrong

    A file of a split model that cannot be opened with the others is described alone, and `problems` says why.
    """
    f, alone = open_to_inspect(path)
    with f:
        return describe_file(f, alone)[0]


def open_to_inspect(path: str | Path) -> tuple[GgufFile, str | None]:
    """The file, and why it stands alone where the other files of its model cannot be opened with it."""
    try:
        return open_gguf(path), None
    except MtprefError as error:
        f = open_one(path)
        if not is_shard(f):
            f.close()
            raise
        return f, str(error)


def describe_file(f: GgufFile, alone: str | None) -> tuple[dict[str, Any], list[Problem]]:
    """The report on an open file, as `inspect_file` gives it, and its problems as what they are."""
    arch = _text(f, "general.architecture")
    supported = arch in ARCHITECTURES
    problems = _container_problems(f, arch)
    layout = read_layout(f, arch or "", supported, problems)
    if alone is not None:
        layout.partial = True
        problems.append(Problem("shards", "", f"one file of a split model, described alone: {alone}"))
    check_keys(f, layout, problems)
    head = describe_head(f, layout, supported, problems)
    fallbacks = check_tensors(f, layout, problems) if supported else []
    prefix = f"{arch}." if arch else None
    report = {
        "schema": SCHEMA,
        "file": {
            "path": str(f.path),
            "bytes": f.n_bytes,
            "version": f.version,
            "alignment": f.alignment,
            "data_offset": f.data_offset,
            "n_keys": len(f.kv),
            "n_tensors": len(f.tensors),
            "shards": _shards(f),
            "note": other_counts(f),
        },
        "what": describe_kind(f)
        or describe_assistant(arch)
        or (HEAD_ONLY if is_head_only(f) and alone is None else None),
        "architecture": arch,
        "supported": supported,
        "general": _section(f, (k for k in f.kv if k.startswith("general."))),
        "hyper_parameters": _section(f, (k for k in f.kv if prefix and k.startswith(prefix))),
        "tokenizer": _tokenizer(f),
        "other_keys": _section(
            f, (k for k in f.kv if not k.startswith(("general.", _TOKENIZER)) and not (prefix and k.startswith(prefix)))
        ),
        "layers": describe_layers(f, layout),
        "mtp": head,
        "mtp_memory": head_memory(f, layout, head),
        "fallbacks": fallbacks,
        "quantisation": _quantisation(f.tensors.values()),
        "tensors": [_tensor(t) for t in f.tensors.values()],
        "problems": [problem.text for problem in problems],
    }
    return report, problems


def _container_problems(f: GgufFile, arch: str | None) -> list[Problem]:
    out = [] if arch is not None else [Problem("key", "", "key general.architecture is missing or no text")]
    for t in f.tensors.values():
        if not t.is_known:
            name = printable(t.name)
            text = f"has type id {t.type_id}, which mtpref does not know: its {t.n_bytes} bytes can be copied, not read"
            out.append(Problem("type", name, f"tensor {name} {text}"))
    return out


def _section(f: GgufFile, keys: Iterable[str]) -> dict[str, Any]:
    return {key: describe_value(f, key) for key in keys}


def describe_value(f: GgufFile, key: str) -> Any:
    """A key's value as plain JSON data; long or unreadable values as a dict that says what they are."""
    kind, size = f.kv.kind(key), f.kv.size(key)
    if kind == "str" and size > MAX_TEXT:
        return {"kind": kind, "bytes": size}
    try:
        value = f.kv[key]
        if isinstance(value, GgufArray):
            return _describe_array(value, str(kind))
    except MtprefError as e:
        return {"kind": kind, "bytes" if kind == "str" else "count": size, "error": str(e)}
    return _number(value, kind) if isinstance(value, float) else value


def _describe_array(value: GgufArray, kind: str) -> Any:
    if value.element_type == "str":
        raw = value.to_bytes_list() if len(value) <= MAX_TEXTS else []
        if len(value) <= MAX_TEXTS and sum(map(len, raw)) <= MAX_TEXT:
            return value.to_strings()
    elif value.element_type != "arr" and len(value) <= MAX_NUMBERS:
        return [_number(v, value.element_type) if isinstance(v, float) else v for v in value]
    return {"kind": kind, "count": len(value)}


def _number(value: float, kind: str | None) -> float | str:
    """A float as the shortest decimal that gives the same stored value; "nan" and "inf" as text (JSON has none)."""
    if not math.isfinite(value):
        return str(value)
    return float(str(np.float32(value))) if kind in ("f32", "arr:f32") else value


def _text(f: GgufFile, key: str) -> str | None:
    if f.kv.kind(key) != "str" or f.kv.size(key) > MAX_TEXT:
        return None
    try:
        return str(f.kv[key])
    except MtprefError:
        return None


def _tokenizer(f: GgufFile) -> dict[str, Any]:
    """model, pre, counts, special token ids by name, the chat template's size, and the other tokenizer keys."""
    count = {name: f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "scores", "token_type")}
    special = {m[1]: describe_value(f, k) for k in f.kv if (m := _SPECIAL_ID.fullmatch(k))}
    template = "tokenizer.chat_template"
    shown = {"tokenizer.ggml.model", "tokenizer.ggml.pre", template, *count.values()}
    rest = (k for k in f.kv if k.startswith(_TOKENIZER) and k not in shown and not _SPECIAL_ID.fullmatch(k))
    return {
        "model": _text(f, "tokenizer.ggml.model"),
        "pre": _text(f, "tokenizer.ggml.pre"),
        **{f"n_{name}": f.kv.size(key) if key in f.kv else None for name, key in count.items()},
        "special": special,
        "chat_template_bytes": f.kv.size(template) if template in f.kv else None,
        "other": _section(f, rest),
    }


def _tensor(t: TensorInfo) -> dict[str, Any]:
    return {
        "name": t.name, "type": t.type_name, "shape": list(t.shape), "bytes": t.n_bytes, "offset": t.offset,
        "shard": t.shard,
    }  # fmt: skip


def _shards(f: GgufFile) -> list[dict[str, Any]]:
    """The files of a split model. The first one's n_bytes is that of all files."""
    if not f.others:
        return []
    counts = Counter(t.shard for t in f.tensors.values())
    sizes = [f.n_bytes - sum(other.n_bytes for other in f.others), *(other.n_bytes for other in f.others)]
    return [
        {"path": str(part.path), "bytes": n_bytes, "n_tensors": counts[no]}
        for no, (part, n_bytes) in enumerate(zip((f, *f.others), sizes, strict=True))
    ]


def _quantisation(tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    mix: dict[str, dict[str, Any]] = {}
    for t in tensors:
        row = mix.setdefault(t.type_name, {"type": t.type_name, "tensors": 0, "elements": 0, "bytes": 0})
        row["tensors"] += 1
        row["elements"] += math.prod(t.shape)
        row["bytes"] = row["bytes"] + t.n_bytes
    return sorted(mix.values(), key=lambda row: (-row["bytes"], row["type"]))
