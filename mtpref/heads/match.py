"""Whether a head fits a trunk: what makes it impossible, and what makes it doubtful.

Impossible is what the two files' keys, tokens and shapes show. Doubtful is what equal weights would show and different
quantisation hides; it proves nothing, which is what the probe is for (proof.py).
"""

import math
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, D2T, OUTPUT_NORM, SHARED, TOKEN_EMBD, numbers, trimmed
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable, without_leading_ones
from mtpref.heads.contents import Item, Source
from mtpref.heads.layout import HeadLayout

# Keys beside an architecture's hyper-parameters that set an MTP block's arithmetic, or the shapes of experts.
MORE_KEYS = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
)
# Values of a key that mean the same to every architecture that has it.
ALIKE: dict[str, tuple[int | None, ...]] = {
    "expert_group_count": (None, 0, 1),
    "expert_group_used_count": (None, 0, 1),
    "expert_gating_func": (None, 0, 2),
}
TOKENIZER_KEYS = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
N_ROWS = 64  # of token_embd that are compared
MAX_ERROR = 0.3  # relative; 2-bit types stay below, rows of unrelated models are at sqrt(2)


def check_match(
    trunk: Source, own: HeadLayout, source: Source, theirs: HeadLayout, *, is_one_file: bool = True
) -> None:
    """MtprefError naming the first thing in which a head cannot serve a trunk.

    is_one_file   whether both go into one GGUF, which has some tensors once for both
    """

    def differs(what: str, found: object, expected: object) -> MtprefError:
        return MtprefError(
            f"{source.label}: {what} is {_shown(found)}, expected {_shown(expected)} as in "
            f"{trunk.label}; the head belongs to another model"
        )

    if own.arch != theirs.arch:
        raise differs("key general.architecture", theirs.arch, own.arch)
    if not theirs.n_nextn:
        raise MtprefError(f"{source.label}: no MTP head, expected one; give an mtp-*.gguf or a model that has one")
    defaults = {h.key: h.default for h in ARCHITECTURES[own.arch].hypers if not callable(h.default)}
    for key in keys_of(own.arch):
        name = f"{own.arch}.{key}"
        a, b = (defaults.get(key) if (found := file.get(name)) is None else found for file in (source, trunk))
        if isinstance(a, list) or isinstance(b, list):  # an entry for each block, of the trunk's own
            a, b = (value[: own.n_trunk] if isinstance(value, list) else value for value in (a, b))
        alike = ALIKE.get(key, ())
        if isinstance(a, list) and isinstance(b, list) and key in ARCHITECTURES[own.arch].per_block:
            n = min(len(a), len(b))  # a trunk's file has no entry for the head
            a, b = a[:n], b[:n]
        if a != b and not (a in alike and b in alike):
            raise differs(f"key {name}", a, b)
    if theirs.n_trunk != own.n_trunk:
        what = f"the number of trunk layers ({own.arch}.block_count - {own.arch}.nextn_predict_layers)"
        raise differs(what, theirs.n_trunk, own.n_trunk)
    if theirs.missing:
        raise MtprefError(
            f"{source.label}: an MTP head without {theirs.missing[0]} ({len(theirs.missing)} tensors are "
            "missing), expected a whole one"
        )
    _check_tokenizer(trunk, source, differs)
    _check_shapes(trunk, source, theirs)
    if is_one_file:
        _check_streams(trunk, source, own.arch)
        _check_roots(trunk, source)


def keys_of(arch: str) -> list[str]:
    """Keys that set shapes or arithmetic of an MTP block, below the prefix: not what the trunk's shapes alone name."""
    sheet = ARCHITECTURES[arch]
    head = sheet.head.all_tensors() if sheet.head else ()
    of_head, of_trunk = (
        {name for tensor in tensors for dim in tensor.shape for name in dim.names}
        for tensors in (head, [t for block in sheet.layers.all_blocks() for t in block.all_tensors()])
    )
    others = {"n_block", "n_ctx"} | (of_trunk - of_head)
    keys = [hyper.key for hyper in sheet.hypers if hyper.name not in others]
    return [*keys, *(key for key in MORE_KEYS if key not in keys)]


def _check_tokenizer(trunk: Source, source: Source, differs: Any) -> None:
    for key in TOKENIZER_KEYS:
        a, b = source.get(key), trunk.get(key)
        if a != b:
            raise differs(f"key {key}", a, b)
    for key in (TOKENS, MERGES):
        found, expected = source.array(key), trunk.array(key)
        if key == MERGES and (found is None or expected is None):
            continue  # the tokens alone decide what a row of the head means; other tools leave merges out
        if found is None or expected is None:
            label = (trunk if expected is None else source).label
            raise MtprefError(f"{label}: key {key} is missing or no array of texts, expected the vocabulary")
        if len(found) != len(expected):
            raise differs(f"the length of {key}", len(found), len(expected))
        i = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), None)
        if i is not None:
            raise differs(f"element {i} ({key})", *(t[i].decode("utf-8", "replace") for t in (found, expected)))


def _check_shapes(trunk: Source, source: Source, layout: HeadLayout) -> None:
    """The head's tensors against the trunk's keys, for the architecture whose table is known."""
    for il in range(layout.n_trunk, layout.n_trunk + layout.n_nextn):
        _check_shapes_at(il, trunk, source, layout)


def _check_shapes_at(il: int, trunk: Source, source: Source, layout: HeadLayout) -> None:
    """Counts that are one for each block are the head's own."""
    values: dict[str, int] = {}
    for symbol, key in ARCHITECTURES[layout.arch].symbols.items():
        found = [file.get(f"{layout.arch}.{key}") for file in (trunk, source)]
        lists = [value for value in found if isinstance(value, list) and il < len(value)]
        value = lists[-1][il] if lists else found[0]
        if isinstance(value, int):
            values[symbol] = value
    values["n_vocab"] = _rows(trunk, TOKEN_EMBD)
    if D2T.name in source.items:
        values["n_draft_vocab"] = _rows(source, D2T.name)
    specs = ARCHITECTURES[layout.arch].head_tensors(il, source.items)
    for spec in trimmed(specs, has_trunk=True) if D2T.name in source.items else specs:
        item = source.items.get(spec.at(il).name)
        expected = numbers(spec.shape, values)
        if (
            item is not None
            and expected is not None
            and without_leading_ones(item.shape) != without_leading_ones(expected)
        ):
            raise MtprefError(
                f"{source.label}: tensor {item.name} has shape {item.shape}, expected {expected} for the "
                f"trunk {trunk.label}"
            )


def _check_streams(trunk: Source, source: Source, arch: str) -> None:
    """What puts the streams together before a head's norm: in one file llama.cpp has one for trunk and head."""
    streams = ARCHITECTURES[arch].streams
    for name in streams.tensors if streams else ():
        a, b = (file.items.get(name) for file in (trunk, source))
        if a is None or b is None:
            label = (trunk if a is None else source).label
            raise MtprefError(f"{label}: tensor {name} is missing; try: mtpref inspect {label}")
        if (a.type_name, a.shape) != (b.type_name, b.shape) or not np.array_equal(_bytes(a), _bytes(b)):
            raise MtprefError(
                f"{source.label}: tensor {name} differs from that of {trunk.label}: the head puts its streams together "
                "in its own way, and in one file llama.cpp has the trunk's for both; keep two files, and give the "
                "head's as the draft model (-md)"
            )


def _check_roots(trunk: Source, source: Source) -> None:
    """What else stands outside of blocks (factors of RoPE): in one file the head reads the trunk's."""
    sheet = ARCHITECTURES[str(trunk.get("general.architecture"))]
    judged = (*SHARED, *(sheet.streams.tensors if sheet.streams else ()))
    for tensor in sheet.tensors:
        a, b = source.items.get(tensor.name), trunk.items.get(tensor.name)
        if tensor.name in judged or a is None:
            continue
        if b is None or (a.type_name, a.shape) != (b.type_name, b.shape) or not np.array_equal(_bytes(a), _bytes(b)):
            raise MtprefError(
                f"{source.label}: tensor {tensor.name} is not that of {trunk.label}, expected the same values: in one "
                "file the head reads the trunk's; keep the head in a file of its own"
            )


def _bytes(item: Item) -> Any:
    """A small tensor's bytes, in one piece."""
    return np.concatenate([np.ascontiguousarray(piece).reshape(-1).view(np.uint8) for piece in item.pieces()])


def _rows(source: Source, name: str) -> int:
    item = source.items.get(name)
    if item is None:
        raise MtprefError(f"{source.label}: tensor {name} is missing; try: mtpref inspect {source.label}")
    return item.shape[0]


def _shown(value: object) -> str:
    return "absent" if value is None else printable(repr(value), 100)


# DOUBTS


def doubts(trunk: Source, source: Source) -> list[str]:
    """Signs that the head was trained with another trunk. None of them is proof, and their absence is none.

    Norms are F32 in every quantisation, so one checkpoint gives equal bits; embeddings are compared as values.
    """
    out = []
    sheet = ARCHITECTURES[str(trunk.get("general.architecture"))]
    norms = {t.name for block in sheet.layers.all_blocks() for t in block.all_tensors() if len(t.shape) == 1}
    for name in (OUTPUT_NORM, *(n for n in trunk.items if n.startswith("blk.") and n.split(".", 2)[-1] in norms)):
        a, b = trunk.items.get(name), source.items.get(name)
        if a is not None and b is not None and a.type_name == b.type_name == "F32" and a.shape == b.shape:
            n = int((_values(a) != _values(b)).sum())
            if n:
                out.append(f"{name} differs from that of the head's file in {n} of {math.prod(a.shape)} values")
                break
    error = _embedding_error(trunk, source)
    if error is not None and error > MAX_ERROR:
        out.append(f"{TOKEN_EMBD} differs from that of the head's file by {100 * error:.0f} % in {N_ROWS} rows")
    return out


def _values(item: Item) -> Any:
    """A small F32 tensor's bits."""
    return _bytes(item).view(np.uint32)


def _embedding_error(trunk: Source, source: Source) -> float | None:
    """The relative difference of a sample of embedding rows, of values; None where one file has none to compare."""
    a, b = (s.items.get(TOKEN_EMBD) for s in (trunk, source))
    if a is None or b is None or a.shape != b.shape or len(a.shape) != 2:
        return None
    rows = np.unique(np.linspace(0, a.shape[0] - 1, N_ROWS).astype(np.int64))
    x, y = (s.rows(TOKEN_EMBD, rows) for s in (trunk, source))
    if x is None or y is None:
        return None
    scale = float(np.linalg.norm(x))
    return float(np.linalg.norm(x - y)) / scale if scale > 0 else None
