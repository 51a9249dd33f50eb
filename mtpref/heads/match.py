"""Whether a head fits a trunk: what makes it impossible, and what makes it doubtful.

Impossible is what the two files' keys, tokens and shapes show. Doubtful is what equal weights would show and different
quantisation hides; it proves nothing, which is what the probe is for (proof.py).
"""

import math
from itertools import zip_longest
from typing import Any

import numpy as np

from mtpref.errors import MtprefError
from mtpref.gguf import GgufArray, GgufFile, TensorInfo, printable
from mtpref.heads.layout import HeadLayout
from mtpref.quants import dequantize, row_bytes
from mtpref.tensor_names import D2T, MTP_BLOCK, SYMBOLS, dims, trimmed

# Keys that set shapes or arithmetic of an MTP block, below the architecture's prefix; None of both files is equal.
KEYS = (
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
)
TOKENIZER_KEYS = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
TOKENS = "tokenizer.ggml.tokens"
N_ROWS = 64  # of token_embd that are compared
MAX_ERROR = 0.3  # relative; 2-bit types stay below, rows of unrelated models are at sqrt(2)


def check_match(trunk: GgufFile, own: HeadLayout, source: GgufFile, theirs: HeadLayout) -> None:
    """MtprefError naming the first thing in which a head cannot serve a trunk."""

    def differs(what: str, found: object, expected: object) -> MtprefError:
        return MtprefError(f"{source.label}: {what} is {_shown(found)}, expected {_shown(expected)} as in "
                           f"{trunk.label}; the head belongs to another model")  # fmt: skip

    if own.arch != theirs.arch:
        raise differs("key general.architecture", theirs.arch, own.arch)
    if not theirs.n_nextn:
        raise MtprefError(f"{source.label}: no MTP head, expected one; give an mtp-*.gguf or a model that has one")
    for key in KEYS:
        name = f"{own.arch}.{key}"
        a, b = _value(source, name), _value(trunk, name)
        if a != b:
            raise differs(f"key {name}", a, b)
    if theirs.n_trunk != own.n_trunk:
        what = f"the number of trunk layers ({own.arch}.block_count - {own.arch}.nextn_predict_layers)"
        raise differs(what, theirs.n_trunk, own.n_trunk)
    if theirs.missing:
        raise MtprefError(f"{source.label}: an MTP head without {theirs.missing[0]} ({len(theirs.missing)} tensors are "
                          "missing), expected a whole one")  # fmt: skip
    _check_tokenizer(trunk, source, differs)
    _check_shapes(trunk, source, theirs)


def _check_tokenizer(trunk: GgufFile, source: GgufFile, differs: Any) -> None:
    for key in TOKENIZER_KEYS:
        a, b = _value(source, key), _value(trunk, key)
        if a != b:
            raise differs(f"key {key}", a, b)
    found, expected = (f.require(TOKENS, "arr:str") for f in (source, trunk))
    if len(found) != len(expected):
        raise differs(f"the number of tokens ({TOKENS})", len(found), len(expected))
    pairs = zip_longest(found.to_bytes_list(), expected.to_bytes_list())
    i = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if i is not None:
        raise differs(f"token {i} ({TOKENS})", found[i], expected[i])


def _check_shapes(trunk: GgufFile, source: GgufFile, layout: HeadLayout) -> None:
    """The head's tensors against the trunk's keys, for the architecture whose table is known."""
    values = {
        symbol: v for symbol, key in SYMBOLS.items() if isinstance(v := _value(trunk, f"{layout.arch}.{key}"), int)
    }
    values["n_vocab"] = _rows(trunk, "token_embd.weight")
    if D2T.name in source.tensors:
        values["n_draft_vocab"] = _rows(source, D2T.name)
    specs = [s for s in MTP_BLOCK if layout.arch == "qwen35" or ".ffn_" not in s.name]
    for spec in trimmed(specs, has_trunk=True) if D2T.name in source.tensors else specs:
        info = source.tensors.get(spec.name.format(i=layout.n_trunk))
        expected = dims(spec.shape, values)
        if info is not None and expected is not None and info.shape != expected:
            raise MtprefError(f"{source.label}: tensor {info.name} has shape {info.shape}, expected {expected} for the "
                              f"trunk {trunk.label}")  # fmt: skip


def _rows(file: GgufFile, name: str) -> int:
    info = file.tensors.get(name)
    if info is None:
        raise MtprefError(f"{file.label}: tensor {name} is missing; try: mtpref inspect {file.label}")
    return info.shape[0]


def _value(file: GgufFile, key: str) -> Any:
    value = file.get(key)
    return list(value) if isinstance(value, GgufArray) else value


def _shown(value: object) -> str:
    return "absent" if value is None else printable(repr(value), 100)


# DOUBTS


def doubts(trunk: GgufFile, source: GgufFile) -> list[str]:
    """Signs that the head was trained with another trunk. None of them is proof, and their absence is none.

    Norms are F32 in every quantisation, so one checkpoint gives equal bits; embeddings are compared as values.
    """
    out = []
    for name in ("output_norm.weight", *(n for n in trunk.tensors if n.endswith(".attn_norm.weight"))):
        a, b = trunk.tensors.get(name), source.tensors.get(name)
        if a is not None and b is not None and a.type_name == b.type_name == "F32" and a.shape == b.shape:
            n = int((trunk.data(a) != source.data(b)).reshape(-1, 4).any(-1).sum())
            if n:
                out.append(f"{name} differs from that of the head's file in {n} of {math.prod(a.shape)} values")
                break
    error = _embedding_error(trunk, source)
    if error is not None and error > MAX_ERROR:
        out.append(f"token_embd.weight differs from that of the head's file by {100 * error:.0f} % in {N_ROWS} rows")
    return out


def _embedding_error(trunk: GgufFile, source: GgufFile) -> float | None:
    """The relative difference of a sample of embedding rows, of values; None where one file has none to compare."""
    a, b = (f.tensors.get("token_embd.weight") for f in (trunk, source))
    if a is None or b is None or a.shape != b.shape or len(a.shape) != 2:
        return None
    rows = np.unique(np.linspace(0, a.shape[0] - 1, N_ROWS).astype(np.int64))
    x, y = _decoded(trunk, a, rows), _decoded(source, b, rows)
    if x is None or y is None:
        return None
    scale = float(np.linalg.norm(x))
    return float(np.linalg.norm(x - y)) / scale if scale > 0 else None


def _decoded(file: GgufFile, info: TensorInfo, rows: Any) -> Any:
    """Some rows as float64, or None for a type that cannot be decoded."""
    if info.n_bytes is None:
        return None
    n = row_bytes(info.type_name, info.shape[1])
    raw = file.data(info).reshape(-1, n)[rows]
    try:
        return dequantize(info.type_name, np.ascontiguousarray(raw).reshape(-1), (len(rows), info.shape[1])).astype(
            float
        )
    except MtprefError:
        return None
