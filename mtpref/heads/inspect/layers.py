"""Layer kinds and the MTP head of a file: what the keys declare against what the tensors show.

Owns the judgement (kinds, missing, unexpected and mis-shaped tensors, fallbacks); the names and shapes are
those of the architecture's data sheet. Never trusts a count from the file to loop by.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from mtpref.architectures import (
    ARCHITECTURES,
    D2T,
    Architecture,
    Either,
    Tensor,
    assistant_of,
    numbers,
    present_tensors,
    trimmed,
)
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufArray, GgufFile, TensorInfo, printable, without_leading_ones
from mtpref.files.identify import LOST_LAYER, REDECLARE, has_trunk, miscounted, trunk_in_head
from mtpref.spec.config import Metadata, read_model_config

MTP = "mtp"  # the name of every head's block
MAX_BLOCKS = 4096  # more than any model has; a larger count is not believed
DROPPED = (
    "the conversion or quantisation dropped the head; put one in with mtpref graft, drop the key with mtpref strip, or "
    "convert again from a checkpoint with mtp.* tensors"
)
_SOURCE = "file"  # what errors of keys begin with
DOES_NOT_LOAD = "llama.cpp does not load it"
_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    kind    what it is about: "key", a "block" of another kind, a tensor that is "missing", "misshapen" or "unused", a
            "type" that mtpref does not know, a "head" whose key and tensors disagree, other "shards" that are needed
    tensor  the tensor or block; empty where it is about a key or a file
    text    one line: found and expected
    """

    kind: Literal["key", "block", "missing", "misshapen", "unused", "type", "head", "shards"]
    tensor: str
    text: str


@dataclass
class Layout:
    """What the file says about its blocks. `kinds`: declared kind of block 0, 1, ...; empty when unknown."""

    arch: str
    blocks: dict[int, list[TensorInfo]]  # block -> its tensors, in file order
    kinds: list[str] = field(default_factory=list)
    declared_by: str | None = None
    n_mtp: int | None = None  # declared MTP blocks; None for architectures that mtpref does not know
    values: dict[str, int] = field(default_factory=dict)  # counts by the data sheet's names
    lists: dict[str, list[int]] = field(default_factory=dict)  # counts that are one for each block
    sheet: Architecture | None = None  # None for architectures that mtpref does not know
    partial: bool = False  # one file of a split model, alone: what is missing may be in another

    def at(self, name: str) -> dict[str, int]:
        """The counts that hold for a tensor: those of its block."""
        match = _BLOCK.fullmatch(name)
        own = {s: v[int(match[1])] for s, v in self.lists.items() if int(match[1]) < len(v)} if match else {}
        return self.values | own

    @property
    def has_trunk(self) -> bool:
        return has_trunk({t.name for t in self.blocks.get(0, ())})


def read_layout(f: GgufFile, arch: str, supported: bool, problems: list[Problem]) -> Layout:
    """Blocks by number, and for a supported architecture their declared kinds."""
    blocks: dict[int, list[TensorInfo]] = {}
    for t in f.tensors.values():
        if m := _BLOCK.fullmatch(t.name):
            blocks.setdefault(int(m[1]), []).append(t)
    layout = Layout(arch, blocks)
    if not supported:
        return layout
    sheet = layout.sheet = ARCHITECTURES[arch]
    n_blocks = _integer(f, f"{arch}.block_count")
    if n_blocks is None or not 1 <= n_blocks <= MAX_BLOCKS:
        try:
            Metadata(f.kv, _SOURCE).u32("block_count", high=MAX_BLOCKS)  # says what is there in its place
        except MtprefError as error:
            problems.append(Problem("key", "", _told(error)))
        return layout
    n_mtp = _integer(f, f"{arch}.nextn_predict_layers") or 0
    if sheet.target:
        if n_mtp != n_blocks:
            text = f"key {arch}.nextn_predict_layers is {n_mtp}, expected block_count = {n_blocks} in an assistant"
            problems.append(Problem("key", "", text))
        n_mtp = 0  # its blocks are as its rule of layers has them
    if not 0 <= n_mtp < n_blocks:
        text = f"key {arch}.nextn_predict_layers is {n_mtp}, expected less than block_count = {n_blocks}"
        problems.append(Problem("key", "", text))
        n_mtp = 0
    wrong = miscounted(f, arch)
    if wrong is not None:
        problems.append(Problem("key", "", wrong))
        return layout
    layout.n_mtp = n_mtp
    found: list[str] = []
    declared, layout.declared_by = sheet.layers.declared(_Keys(f, arch), n_blocks, n_blocks - n_mtp, found)
    problems += [Problem("key", "", text.replace("key ", f"key {arch}.", 1)) for text in found]
    layout.kinds = [block.name for block in declared] + [MTP] * n_mtp
    layout.values = _symbol_values(f, sheet)
    layout.lists = _symbol_lists(f, sheet, n_blocks)
    return layout


@dataclass(frozen=True)
class _Keys:
    """A file's keys as a data sheet asks for them."""

    f: GgufFile
    arch: str

    def integer(self, key: str) -> int | None:
        return _integer(self.f, f"{self.arch}.{key}")

    def integers(self, key: str, n: int) -> list[int] | str | None:
        key = f"{self.arch}.{key}"
        if key not in self.f.kv:
            return None
        try:
            value = self.f.kv[key]
            if not isinstance(value, GgufArray) or value.to_numpy().dtype.kind not in "iu":
                return f"is {self.f.kv.kind(key)}"
            return [int(v) for v in value.to_numpy()[:n]] if len(value) >= n else f"has {len(value)} elements"
        except MtprefError:
            return f"is {self.f.kv.kind(key)}"

    def flags(self, key: str, n: int) -> list[bool] | str | None:
        key = f"{self.arch}.{key}"
        if key not in self.f.kv:
            return None
        try:
            value = self.f.kv[key]
            if not isinstance(value, GgufArray):
                return [bool(value)] * n
            return [bool(v) for v in value.to_numpy()] if len(value) == n else f"has {len(value)} elements"
        except MtprefError:
            return f"is {self.f.kv.kind(key)}"

    def has_tensor(self, name: str) -> bool:
        return name in self.f.tensors


def _symbol_values(f: GgufFile, sheet: Architecture) -> dict[str, int]:
    arch = sheet.name
    found = {symbol: _integer(f, f"{arch}.{key}") for symbol, key in sheet.symbols.items()}
    tokens = "tokenizer.ggml.tokens"
    found["n_vocab"] = f.kv.size(tokens) if tokens in f.kv else _integer(f, f"{arch}.vocab_size")
    if D2T.name in f.tensors:
        found["n_draft_vocab"] = f.tensors[D2T.name].shape[0]
    return {symbol: value for symbol, value in found.items() if value is not None}


def _symbol_lists(f: GgufFile, sheet: Architecture, n_blocks: int) -> dict[str, list[int]]:
    """Counts whose key is an array with one for each block, whatever they are worth."""
    meta, found = Metadata(f.kv, _SOURCE), {}
    for symbol, key in sheet.symbols.items():
        if meta.is_array(key):
            with suppress(MtprefError):
                found[symbol] = meta.integers(key, n_blocks)
    return found


def check_keys(f: GgufFile, layout: Layout, problems: list[Problem]) -> None:
    """Read every hyper-parameter that a run of this file reads; add to `problems` what a load would refuse.

    A count that is absent and has a default joins `layout.values`.
    """
    sheet = layout.sheet
    if sheet is None or not layout.kinds or layout.partial:
        return
    meta = Metadata(f.kv, _SOURCE)
    values = sheet.values(meta)
    blocks = {block.name: block for block in sheet.layers.all_blocks()}
    steps: list[Callable[[], object]] = [lambda: read_model_config(values, is_assistant=bool(sheet.target))]
    if layout.has_trunk:
        n_trunk = len(layout.kinds) - layout.kinds.count(MTP)
        steps.append(lambda: sheet.layers.blocks(meta, n_trunk, frozenset(f.tensors)))
    first = {kind: il for il, kind in reversed(list(enumerate(layout.kinds)))}
    for il, kind in enumerate(layout.kinds):
        if il != first[kind] and not layout.lists:
            continue  # every block of a kind has the same counts
        head = sheet.head.block_at(il, f.tensors) if sheet.head and kind == MTP else None
        if head is None and not layout.has_trunk:
            continue
        block, own = head or blocks[kind], values.at(il)
        # a count is read with the shapes, and after it what holds of several of them
        names = {name for t in present_tensors(block.tensors, il, f.tensors) for dim in t.shape for name in dim.names}
        steps += [partial(own.__getitem__, name) for name in sorted(names & set(sheet.symbols))]
        steps += [partial(block.mixer.configure, own), partial(block.ffn.configure, own)]
        around = getattr(block.residual, "configure", None)
        steps += [partial(around, own)] if around else []
    told = {problem.text.split(" ")[1] for problem in problems if problem.kind == "key"}
    for step in steps:
        try:
            step()
        except MtprefError as error:
            text = _told(error)
            key = next((word for word in text.split() if word.startswith(f"{sheet.name}.")), text)
            if key not in told:
                told.add(key)
                problems.append(Problem("key", "", text))
    for name in sheet.symbols:
        if name not in layout.values:
            with suppress(MtprefError):
                count = values[name]
                layout.values |= {name: count} if isinstance(count, int) else {}


def _integer(f: GgufFile, key: str) -> int | None:
    value = f.get(key) if f.kv.kind(key) not in (None, "str") else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _told(error: MtprefError) -> str:
    """What a load says of a key, without the file and the advice to inspect it."""
    return str(error).removeprefix(f"{_SOURCE}: ").removesuffix("; try: mtpref inspect FILE")


def kind_found(tensors: list[TensorInfo], sheet: Architecture | None) -> str:
    """The block that its tensors show: a name of the data sheet's, "empty" or "unknown"."""
    names = {t.name.split(".", 2)[2] for t in tensors}
    blocks = sheet.blocks if sheet else [block for one in ARCHITECTURES.values() for block in one.blocks]
    for block in reversed(blocks):  # the head's first: it has a trunk layer's tensors too
        if not block.looks_like and any(name.startswith(block.marks) for name in names):
            return block.name
    of_tensors = getattr(sheet.layers, "of_tensors", None) if sheet else None
    block_found = of_tensors(names) if of_tensors else None
    if block_found is not None:
        return str(block_found.name)
    return "unknown" if names else "empty"


def describe_layers(f: GgufFile, layout: Layout) -> dict[str, Any]:
    """declared_by, counts by kind, and for each block its declared kind, the kind found, tensors and bytes."""
    indices = range(len(layout.kinds)) if layout.kinds else sorted(layout.blocks)
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for i in indices:
        tensors = layout.blocks.get(i, [])
        found = kind_found(tensors, layout.sheet)
        kind = layout.kinds[i] if layout.kinds else "unknown"
        found = kind if layout.sheet and found == _looks(layout.sheet).get(kind) else found
        counts[kind] = counts.get(kind, 0) + 1
        n_bytes = sum(t.n_bytes for t in tensors)
        rows.append({"index": i, "kind": kind, "found": found, "n_tensors": len(tensors), "bytes": n_bytes})
    return {"declared_by": layout.declared_by, "counts": counts, "blocks": rows}


def _tables(sheet: Architecture) -> dict[str, Sequence[Tensor | Either]]:
    """Name of a trunk block -> its tensors."""
    return {block.name: block.tensors for block in sheet.layers.all_blocks()}


def _looks(sheet: Architecture) -> dict[str, str]:
    """Name of a trunk block that keys alone tell -> the block whose tensors it has."""
    return {block.name: block.looks_like for block in sheet.layers.all_blocks() if block.looks_like}


def check_tensors(f: GgufFile, layout: Layout, problems: list[Problem]) -> list[dict[str, str]]:
    """Compare all tensors with the tables; add to `problems`; give the fallbacks that are in use."""
    sheet = layout.sheet
    if not layout.kinds or sheet is None:
        return []  # the blocks are not known, and `problems` says why
    specs = list(sheet.tensors)
    tables, looks = _tables(sheet), _looks(sheet)
    for i, kind in enumerate(layout.kinds):
        if kind != MTP and not layout.has_trunk:
            continue  # a head-only file holds no trunk block
        found = kind_found(layout.blocks.get(i, []), sheet)
        if found not in (kind, looks.get(kind), "empty") and not layout.partial:
            text = f"blk.{i} is declared {kind}, its tensors are those of kind {found}"
            if kind == MTP and found in tables:
                text += (
                    f": key {layout.arch}.nextn_predict_layers is {layout.n_mtp}, too many for the heads that are there"
                )
                if without_head(sheet) != DOES_NOT_LOAD and trunk_in_head(f.tensors, i):
                    text += f"; {LOST_LAYER}"
            problems.append(Problem("block", f"blk.{i}", text))
            kind = found if found in (*tables, MTP) else kind
        if kind == MTP:
            specs += [tensor.at(i) for tensor in sheet.head_tensors(i, f.tensors)]
        else:
            specs += [tensor.at(i) for tensor in present_tensors(tables[kind], i, f.tensors)]
    if D2T.name in f.tensors:
        specs = trimmed(specs, has_trunk=layout.has_trunk)
    fallbacks = []
    for spec in specs:
        info = f.tensors.get(spec.name)
        if info is not None:
            expected = numbers(spec.shape, layout.at(spec.name))
            if expected is not None and without_leading_ones(info.shape) != without_leading_ones(expected):
                formula = ", ".join(map(str, spec.shape))
                text = f"{spec.name}: shape {info.shape}, expected {expected} = ({formula})"
                problems.append(Problem("misshapen", spec.name, text))
            continue
        stand_in = next((name for name in spec.fallback if name in f.tensors), None)
        if layout.partial or spec.optional:
            continue
        if stand_in is not None:
            fallbacks.append({"tensor": spec.name, "from": stand_in})
        else:
            more = "" if spec.required else ", and so is what stands in for it"
            problems.append(Problem("missing", spec.name, f"{spec.name} is missing{more}"))
    known = {spec.name for spec in specs}
    unused = [printable(name) for name in f.tensors if name not in known]
    problems += [Problem("unused", name, f"tensor {name} is unexpected and not used") for name in unused]
    return fallbacks


def describe_head(f: GgufFile, layout: Layout, supported: bool, problems: list[Problem]) -> dict[str, Any]:
    """The MTP head.

    status      "present"; "assistant" (the file is one); "apart" (an assistant drafts for such models); "incomplete"
                (required tensors are missing); "missing" (declared, no tensor of it is
                there); "undeclared" (tensors without the key); "absent"; "partial" (not all of it is in this
                file of a split model); "unknown" (architecture not supported, or no usable block_count)
    declared    MTP blocks by the key nextn_predict_layers, None when unknown
    blocks      for each: index, missing, and its tensors with source "own", "fallback" or "missing"
    unexpected  tensors named nextn, or of an MTP block, that the head does not have
    """
    found = sorted(i for i, tensors in layout.blocks.items() if kind_found(tensors, layout.sheet) == MTP)
    declared = [i for i, kind in enumerate(layout.kinds) if kind == MTP]
    shown = declared or found
    heads = {i: layout.sheet.head_tensors(i, f.tensors) if layout.sheet else [] for i in shown}
    known = {tensor.at(i).name for i, tensors in heads.items() for tensor in tensors}
    unexpected = [
        t.name
        for i, tensors in layout.blocks.items()
        for t in tensors
        if t.name not in known and (i in declared or ".nextn." in t.name)
    ]
    if not supported:
        names = [t.name for i in found for t in layout.blocks[i] if ".nextn." in t.name]
        if not layout.partial:
            problems += _head_of_unknown(f, layout.arch, names)
        return {"status": "unknown", "declared": None, "trunk": None, "blocks": [], "unexpected": names}
    if layout.sheet is not None and layout.sheet.target:
        return {"status": "assistant", "declared": None, "trunk": False, "blocks": [], "unexpected": []}
    blocks = [_describe_mtp_block(f, heads[i], i) for i in shown]
    status = _head_status(layout, declared, found, blocks)
    if status == "undeclared":
        text = (
            f"blk.{found[0]} holds nextn tensors, but key {layout.arch}.nextn_predict_layers is absent or 0: the head "
            f"is not used; {REDECLARE}, or convert the model again with its MTP layers counted"
        )
        problems.append(Problem("head", f"blk.{found[0]}", text))
    if status == "missing":
        text = (
            f"key {layout.arch}.nextn_predict_layers is {len(declared)}, but blk.{declared[0]} has no nextn tensor: "
            f"{without_head(layout.sheet)}; {DROPPED}"
        )
        problems.append(Problem("head", f"blk.{declared[0]}", text))
    trunk = layout.has_trunk
    return {"status": status, "declared": layout.n_mtp, "trunk": trunk, "blocks": blocks, "unexpected": unexpected}


def without_head(sheet: Architecture | None) -> str:
    """What llama.cpp does with a file that counts a head and does not hold it."""
    if sheet is not None and sheet.head is not None and sheet.head.may_lack:
        return "llama.cpp runs it without drafting, and aborts with --spec-type draft-mtp"
    return DOES_NOT_LOAD


def _head_of_unknown(f: GgufFile, arch: str, names: list[str]) -> list[Problem]:
    """What keys and names alone say of the head of an architecture whose blocks are not known."""
    key = f"{arch}.nextn_predict_layers"
    declared = _integer(f, key) or 0
    if declared > 0 and not names:
        return [Problem("key", "", f"key {key} is {declared}, and no tensor is named nextn: {DROPPED}")]
    if names and declared <= 0:
        first = printable(names[0])
        text = (
            f"{first} and {len(names) - 1} more are there, and key {key} is absent or 0: the head is "
            f"not used; {REDECLARE}, or convert the model again"
        )
        return [Problem("key", first, text)]
    return []


def _head_status(layout: Layout, declared: list[int], found: list[int], blocks: list[dict[str, Any]]) -> str:
    if layout.n_mtp is None:
        return "unknown"
    if not declared:
        absent = "absent" if assistant_of(layout.arch) is None else "apart"
        return "undeclared" if found else absent
    if not any(block["missing"] for block in blocks):
        return "present"
    if layout.partial:
        return "partial"
    return "incomplete" if set(declared) & set(found) else "missing"


def _describe_mtp_block(f: GgufFile, head: Sequence[Tensor], i: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for spec in head:
        name = spec.at(i).name
        own = f.tensors.get(name)
        if own is None and spec.optional:
            continue
        info = own or next((f.tensors[n] for n in spec.fallback if n in f.tensors), None)
        rows.append(
            {
                "name": name,
                "required": spec.required,
                "source": "own" if own else "fallback" if info else "missing",
                "from": info.name if info else None,
                "type": info.type_name if info else None,
                "shape": list(info.shape) if info else None,
                "bytes": info.n_bytes if info else None,
            }
        )
    return {"index": i, "missing": [r["name"] for r in rows if r["source"] == "missing"], "tensors": rows}
