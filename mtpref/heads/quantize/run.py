"""A quantisation from end to end: a GGUF model in, one out, in bounded memory.

Owns what is refused and what is said. Tensors that keep their type are copied byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import ARCHITECTURES, describe_assistant
from mtpref.base.errors import MtprefError
from mtpref.base.settings import check_fields
from mtpref.files.gguf import (
    QUANTIZATION_VERSION,
    Data,
    GgufFile,
    TensorInfo,
    WriteOptions,
    open_gguf,
    printable,
    tensor_bytes,
    without_leading_ones,
    write_gguf,
)
from mtpref.files.identify import REDECLARE, check_counts, describe_kind, head_in_trunk
from mtpref.heads.contents import files_of, item_of
from mtpref.heads.pairs import pairs_of
from mtpref.heads.quantize.encode import WEIGHTED, encode, library, needs_library
from mtpref.heads.quantize.importance import Importance
from mtpref.heads.quantize.mixture import FLOATS, MIXTURES, Item, Wanted, head_layers, layer_order, plan_types
from mtpref.spec.quants import DEQUANTIZABLE

# What a head may have of its own and no importance is measured for, as of the trunk's.
OWN = ("embed_tokens", "shared_head_head")
# Already quantised bytes of a tensor: (type, uint8 bytes of the whole tensor).
Replacements = Mapping[str, tuple[str, NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """wanted, importance: see mixture.py and importance.py; allow_requantize: take quantised tensors apart again"""

    wanted: Wanted
    importance: Importance | None = None
    importance_name: str | None = None
    allow_requantize: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "quantize.Settings")

    def weights(self, info: TensorInfo) -> NDArray[np.float32] | None:
        """The importance of a tensor's columns, a row for each of its matrices, where there is one."""
        return None if self.importance is None else self.importance.of(info.name, info.shape)


@dataclass(frozen=True)
class _Counts:
    """What a file's keys say that types depend on: blocks, the head's among them, and experts."""

    n_blocks: int
    n_nextn: int
    n_expert: int
    experts_alone: bool  # the data sheet's `mxfp4_of_experts`

    def types(self, items: list[Item], wanted: Wanted) -> dict[str, str]:
        counts = self.n_blocks, self.n_nextn
        return plan_types(items, wanted, *counts, n_expert=self.n_expert, experts_alone=self.experts_alone)


@dataclass
class Quantized:
    """What was written. head: name -> type of the head's matrices; head_cost: bytes more than llama.cpp's types take"""

    n_bytes_before: int
    n_bytes: int
    types: dict[str, int]
    head: dict[str, str]
    head_cost: int
    notes: list[str] = field(default_factory=list)


def quantize_file(
    source: str | Path,
    target: str | Path,
    settings: Settings,
    *,
    replacements: Replacements | None = None,
    options: WriteOptions | None = None,
) -> Quantized:
    """Quantise a model.

    replacements   tensors that were quantised elsewhere, by name
    Errors         MtprefError for what is no model, for quantised tensors unless they may be taken apart, NaN or
                   infinity in a tensor, an encoder that is not installed
    """
    replacements = replacements or {}
    with open_gguf(source) as file:
        what = describe_kind(file)
        if what is not None:
            raise MtprefError(f"{file.label}: this is {what}")
        counts = _counts(file)
        items = [Item(t.name, t.type_name, t.shape) for t in file.tensors.values()]
        types = counts.types(items, settings.wanted)
        types |= {name: kind for name, (kind, _) in replacements.items()}
        _check(file, types, settings, replacements)
        tensors = []
        for item in layer_order(items):
            info, kind = file.tensors[item.name], types[item.name]
            shape = without_leading_ones(item.shape)  # as ggml writes them
            tensors.append((item.name, kind, shape, _data(file, info, kind, settings, replacements)))
        options = options or WriteOptions()
        options = replace(options, inputs=(*options.inputs, *files_of(file)))
        write_gguf(target, _keys(file, settings), tensors, options=options)
        return _report(file, items, types, settings, counts)


def _counts(file: GgufFile) -> _Counts:
    arch = str(file.require("general.architecture", "str"))
    n_blocks = file.get(f"{arch}.block_count")
    n_nextn = file.get(f"{arch}.nextn_predict_layers", 0)
    are_counts = isinstance(n_blocks, int) and isinstance(n_nextn, int)
    # All blocks of an assistant are the head's.
    if not are_counts or not 0 <= n_nextn < n_blocks + (describe_assistant(arch) is not None):
        raise MtprefError(
            f"{file.label}: block_count {n_blocks} and nextn_predict_layers {n_nextn}, expected counts; "
            "try: mtpref check"
        )
    check_counts(file, arch)
    name = head_in_trunk(file, n_blocks - n_nextn if n_nextn else 1 << 30)
    if name is not None:
        raise MtprefError(
            f"{file.label}: tensor {printable(name)} is there, and key {arch}.nextn_predict_layers is {n_nextn}, "
            f"expected the MTP head declared, since types depend on it; {REDECLARE}"
        )
    n_expert = file.get(f"{arch}.expert_count", 0)
    if not isinstance(n_expert, int) or n_expert < 0:
        raise MtprefError(f"{file.label}: key {arch}.expert_count is {n_expert}, expected a count; try: mtpref check")
    sheet = ARCHITECTURES.get(arch)
    return _Counts(n_blocks, n_nextn, n_expert, sheet is not None and sheet.mxfp4_of_experts)


def _check(file: GgufFile, types: dict[str, str], settings: Settings, replacements: Replacements) -> None:
    """Refuse what cannot be done before a byte is written."""
    for info in file.tensors.values():
        kind = types[info.name]
        if kind == info.type_name or info.name in replacements:
            continue
        if info.type_name not in DEQUANTIZABLE:
            raise MtprefError(
                f"{file.label}: tensor {printable(info.name)} has type {info.type_name}, expected one that can be read "
                f"({', '.join(DEQUANTIZABLE)}); quantise the file that it was made of"
            )
        if info.type_name not in FLOATS and not settings.allow_requantize:
            raise MtprefError(
                f"{file.label}: tensor {printable(info.name)} is {info.type_name} already, expected F32, "
                "F16 or BF16: quantising twice loses twice; say "
                "`quantize.Settings.allow_requantize` to do so"
            )
        if needs_library(kind, weighted=settings.weights(info) is not None):
            library()


def _keys(file: GgufFile, settings: Settings) -> list[tuple[str, Any, str]]:
    """The file's keys, then how it was quantised, in llama.cpp's order."""
    ours = {"general.quantization_version", "general.file_type"}
    keys = [pair for pair in pairs_of(file) if pair[0] not in ours and not pair[0].startswith("quantize.imatrix.")]
    keys.append(("general.quantization_version", QUANTIZATION_VERSION, "u32"))
    keys.append(("general.file_type", MIXTURES[settings.wanted.mixture][1], "u32"))
    found = settings.importance
    if found is not None:
        keys.append(("quantize.imatrix.file", settings.importance_name or "", "str"))
        if found.datasets:
            keys.append(("quantize.imatrix.dataset", found.datasets[0], "str"))
        keys.append(("quantize.imatrix.entries_count", len(found.columns), "u32"))
        if found.n_chunks:
            keys.append(("quantize.imatrix.chunks_count", found.n_chunks, "u32"))
    return keys


def _data(file: GgufFile, info: TensorInfo, kind: str, settings: Settings, replacements: Replacements) -> Data:
    if info.name in replacements:
        made = replacements[info.name][1]
        return lambda: iter([np.ascontiguousarray(made).reshape(-1).view(np.uint8)])
    if kind == info.type_name:
        return item_of(file, info.name).data
    return lambda: _encoded(file, info, kind, settings.weights(info))


def _encoded(
    file: GgufFile, info: TensorInfo, kind: str, weights: NDArray[np.float32] | None
) -> Iterator[NDArray[np.uint8]]:
    """Piece by piece; with weights no piece is of two matrices of a stack, since each has its own."""
    weighted, n_rows, first = weights is not None and kind in WEIGHTED, info.shape[-2], 0
    for x in file.decoded(info):
        if not np.all(np.isfinite(x)):
            raise MtprefError(
                f"{file.label}: tensor {printable(info.name)} holds NaN or infinity, expected finite "
                "weights; mtpref check says where"
            )
        if not weighted or weights is None:
            yield encode(kind, x).reshape(-1)
            continue
        while len(x):
            n = min(len(x), n_rows - first % n_rows)
            yield encode(kind, x[:n], weights[first // n_rows]).reshape(-1)
            x, first = x[n:], first + n


def _report(file: GgufFile, items: list[Item], types: dict[str, str], settings: Settings, counts: _Counts) -> Quantized:
    prefixes = tuple(f"blk.{i}." for i in head_layers(counts.n_blocks, counts.n_nextn))
    head = {i.name: types[i.name] for i in items if i.name.startswith(prefixes) and len(i.shape) > 1}
    llama = Wanted(mixture=settings.wanted.mixture, pure_llama=True, has_imatrix=settings.wanted.has_imatrix)
    pure = counts.types(items, llama)

    def size_of(item: Item, of: dict[str, str]) -> int:
        kind = of[item.name]
        return file.tensors[item.name].n_bytes if kind == item.type_name else tensor_bytes(kind, item.shape)

    cost = sum(size_of(i, types) - size_of(i, pure) for i in items if i.name in head)
    notes = []
    if settings.importance is not None:
        seen = settings.importance.columns
        shared = tuple(f".nextn.{name}.weight" for name in OWN)
        lacking = [name for name in head if name not in seen and types[name] in WEIGHTED and not name.endswith(shared)]
        if lacking:
            notes.append(
                f"the importance matrix lacks {len(lacking)} tensors of the head, {lacking[0]} first; "
                "it was made with the trunk alone: mtpref imatrix covers the head"
            )
        unseen = {name: n for name, n in settings.importance.unseen.items() if types.get(name) in WEIGHTED}
        if unseen:
            notes.append(
                f"the importance matrix has no row for {sum(unseen.values())} matrices of {len(unseen)} "
                f"tensors, {next(iter(unseen))} first: their columns count alike, as in llama-quantize; "
                "more text reaches more experts"
            )
    before = sum(t.n_bytes for t in file.tensors.values())
    n_bytes = sum(size_of(item, types) for item in items)
    return Quantized(before, n_bytes, dict(Counter(types.values())), head, cost, notes)
