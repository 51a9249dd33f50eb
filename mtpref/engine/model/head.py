"""The MTP head: of the model's own file, or of a stand-alone file that must match the trunk.

Owns what stands in for a tensor that a head does not bring, and the checks between two files. A stand-alone head is
read as llama.cpp reads it, as a draft model: its own token_embd, output_norm and output serve it, and its token_embd
stands in for an output that it lacks. Only what such a file does not hold at all is borrowed from the trunk (llama.cpp
refuses those files, and a note says so).
Source: llama.cpp common/speculative.cpp, src/models/qwen35.cpp, conversion/qwen.py (--mtp, --no-mtp).
"""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import (
    ARCHITECTURES,
    OUTPUT,
    OUTPUT_NORM,
    SHARED,
    TOKEN_EMBD,
    Architecture,
    Block,
    HeadSheet,
)
from mtpref.base.errors import MtprefError
from mtpref.engine.model.assistant import read_assistant
from mtpref.engine.model.blocks import read_block, read_layer, read_tensor
from mtpref.engine.model.model import Head, Layer
from mtpref.engine.weights import MtpWeights, TensorFinder, Weights, take_rows
from mtpref.files.draft_vocab import D2T, check_draft_ids, d2t_length, d2t_rows
from mtpref.files.gguf import GgufArray, GgufFile, listed, open_gguf, printable
from mtpref.files.identify import check_counts, describe_kind, has_trunk
from mtpref.spec.config import Metadata, ModelConfig, Values, read_model_config
from mtpref.spec.kinds import rope_constants, rotary_of

# What stands in for a part of a head for which its data sheet has no tensor.
SHARED_PARTS = {
    "embed_tokens": (TOKEN_EMBD,),
    "shared_head_norm": (OUTPUT_NORM,),
    "shared_head_head": (OUTPUT, TOKEN_EMBD),
}
INPUT_PARTS = ("enorm", "hnorm", "eh_proj")  # what embedding and hidden row go through before the block
MAX_TEXT = 1000  # bytes of a name that is compared
# Hyper-parameters that turn positions into angles, beside rope.scaling.*.
ROPE_NAMES = ("n_rot", "rope_sections", "freq_base")
REMAKE = "make both files from one checkpoint with one converter (convert_hf_to_gguf.py --mtp and --no-mtp)"


@dataclass(frozen=True)
class Trunk:
    """What a head is fitted to."""

    file: GgufFile
    values: Values
    arch: Architecture
    config: ModelConfig
    finder: TensorFinder
    weights: Weights
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class LoadedHead:
    """status: "none" (there is none), "own" (in the model's file), "file" (stand-alone) or "off" (there, not loaded).

    finder: of a stand-alone file
    """

    status: str
    heads: tuple[Head, ...] = ()
    finder: TensorFinder | None = None
    notes: tuple[str, ...] = ()


def load_head(trunk: Trunk, path: str | Path | None, *, is_on: bool) -> LoadedHead:
    """The head to draft with.

    path    a stand-alone head (-md); it goes before one of the model's own
    is_on   False: the head stays in the file. Its tensors are checked by the header; none is read, none takes memory
    Errors  MtprefError, one line for each way in which the two files can disagree
    """
    own = _own_head(trunk, is_read=is_on and path is None)
    if not is_on:
        notes = (f"-md {printable(str(path), 400)}: not read, drafting is off",) if path is not None else ()
        return LoadedHead("none" if own is None else "off", notes=notes)
    lacking = _lacking(trunk)
    if path is None and lacking:
        note = (
            f"the keys count an MTP head, and the file does not hold it ({lacking} is missing): it runs as a "
            "trunk; to draft, give -md the head's file"
        )
        return LoadedHead("none", notes=(note,))
    if path is None:
        return own or LoadedHead("none")
    head = _head_of_file(trunk, path)
    if own is None:
        return head
    note = f"{trunk.file.label} has an MTP head of its own; that of {_name(head.finder)} is used (-md)"
    return LoadedHead("file", head.heads, head.finder, (note, *head.notes))


def _own_head(trunk: Trunk, *, is_read: bool) -> LoadedHead | None:
    n_nextn = trunk.config.n_layer_nextn
    if n_nextn == 0 or _lacking(trunk):
        return None
    if not is_read and n_nextn > trunk.arch.n_heads:
        return LoadedHead("off")  # blocks that cannot be run, nor checked; their tensors are named as not read
    finder = trunk.finder if is_read else TensorFinder(trunk.file, trunk.finder.taken, is_header_only=True)
    heads = _read_heads(trunk, finder, trunk.values)
    return LoadedHead("own", heads) if is_read else LoadedHead("off")


def _lacking(trunk: Trunk) -> str | None:
    """The tensor that tells that a head which the keys count is not in the file, where its sheet allows that."""
    name = f"blk.{trunk.config.n_layer}.nextn.eh_proj.weight"
    is_counted = trunk.config.n_layer_nextn > 0 and trunk.arch.head is not None and trunk.arch.head.may_lack
    return name if is_counted and not trunk.finder.has(name) else None


def _sheet(arch: Architecture, values: Values, n_nextn: int) -> HeadSheet:
    if arch.head is None or n_nextn > arch.n_heads:
        most = "0" if arch.head is None else "0 or 1" if arch.n_heads == 1 else f"0 .. {arch.n_heads}"
        raise MtprefError(
            f"{values.meta.source}: {values.meta.arch}.nextn_predict_layers is {n_nextn}, expected {most}: chains of "
            "several MTP blocks are not supported"
        )
    return arch.head


def _read_heads(trunk: Trunk, finder: TensorFinder, values: Values) -> tuple[Head, ...]:
    """Every head of a file, in the order of the chain."""
    n_layer, n_nextn = trunk.config.n_layer, values.meta.u32("nextn_predict_layers", 0, low=0)
    sheet = _sheet(trunk.arch, values, n_nextn)
    heads = []
    for il in range(n_layer, n_layer + n_nextn):
        layer = read_layer(sheet.block_at(il, finder.file.tensors), values.at(il))
        weights = _read_head(trunk, finder, sheet, layer.block, values.at(il), il)
        n_hidden = sheet.n_hidden.value(values) or trunk.config.n_embd
        heads.append(Head(sheet, layer, weights, n_hidden))
    return tuple(heads)


def _read_head(
    trunk: Trunk, finder: TensorFinder, sheet: HeadSheet, block: Block, values: Values, il: int
) -> MtpWeights:
    """The head's tensors, its own or those that stand in for them."""
    n_embd = trunk.config.n_embd
    is_alone = finder.file is not trunk.file
    borrowed = {
        "embed_tokens": trunk.weights.token_embd,
        "shared_head_norm": trunk.weights.output_norm,
        "shared_head_head": trunk.weights.output,
    }
    d2t, n_rows = _draft_vocabulary(trunk, finder)
    parts: dict[str, Any] = {}
    origin = {
        "embed_tokens": TOKEN_EMBD,
        "shared_head_norm": OUTPUT_NORM,
        "shared_head_head": trunk.weights.output.name,
    }
    tensors = {tensor.name.split(".")[1]: tensor for tensor in sheet.tensors if tensor.name.startswith("nextn.")}
    for part in borrowed:
        tensor = tensors.get(part)
        fallback = SHARED_PARTS[part] if tensor is None else tensor.fallback
        instead = [one for one in sheet.tensors if one.name == sheet.norm_instead and part == "shared_head_norm"]
        own = [one.at(il).name for one in (tensor, *instead) if one is not None]
        needed = next((one for one in (tensor, *instead) if one is not None and one.required), None)
        names = [*own, *(fallback if is_alone and needed is None else ())]
        is_trimmed = d2t is not None and part == "shared_head_head"
        name = _present(finder, names, n_rows if is_trimmed else None)
        if name is None and needed is not None:
            name = needed.at(il).name  # which is missing, and is said to be
        if name is None:
            parts[part] = borrowed[part]
            continue
        origin[part] = name
        is_norm = part == "shared_head_norm"
        shape = (n_rows if part == "shared_head_head" else trunk.weights.token_embd.n_out, n_embd)
        parts[part] = finder.array(name, (n_embd,)) if is_norm else finder.matrix(name, shape)
    if d2t is not None and (d2t[1:] < d2t[:-1]).any():
        order = np.argsort(d2t)
        d2t, parts["shared_head_head"] = d2t[order], take_rows(parts["shared_head_head"], order)
    return MtpWeights(
        **{part: read_tensor(finder, tensors[part], values, tensors[part].at(il).name) for part in INPUT_PARTS},
        block=read_block(finder, block, values, il),
        roots=_roots(trunk, finder, values),
        **parts,
        origin=origin,
        borrowed=tuple(part for part in parts if parts[part] is borrowed[part]),
        file=finder.file.label if is_alone else "",
        d2t=d2t,
    )


def _roots(trunk: Trunk, finder: TensorFinder, values: Values) -> dict[str, Any]:
    """What else stands outside of blocks, of the file that holds the block."""
    if finder.file is trunk.file:
        return trunk.weights.roots
    others = (tensor for tensor in trunk.arch.tensors if tensor.name not in SHARED)
    return {t.name: read_tensor(finder, t, values, t.name) for t in others if t.required or finder.has(t.name)}


def _present(finder: TensorFinder, names: list[str], n_trimmed: int | None) -> str | None:
    """The first of these tensors that the file has. n_trimmed: it must be a head of so many rows, no token_embd."""
    if n_trimmed is not None:
        names = [name for name in names if name != TOKEN_EMBD]
    name = next((name for name in names if finder.has(name)), None)
    if name is None and n_trimmed is not None:
        raise MtprefError(
            f"{finder.file.label}: tensor {names[0]} is missing beside {D2T}, expected a trimmed head of "
            f"{n_trimmed} rows; the full head is no substitute, its rows are other ids"
        )
    return name


def _draft_vocabulary(trunk: Trunk, finder: TensorFinder) -> tuple[NDArray[np.int64] | None, int]:
    """The token id of each row of a head that the file itself has trimmed (None: all ids), and the number of rows."""
    n_vocab = trunk.weights.token_embd.n_out
    if not finder.has(D2T):
        return None, n_vocab
    finder.taken.add(D2T)
    n_rows = d2t_length(finder.file, n_vocab)
    if finder.is_header_only:
        return np.empty(0, np.int64), n_rows
    rows = d2t_rows(finder.file, n_vocab)
    check_draft_ids(rows.tolist(), n_vocab, f"{finder.file.label}: tensor {D2T}")
    return rows, n_rows


# STAND-ALONE


def _head_of_file(trunk: Trunk, path: str | Path) -> LoadedHead:
    file = open_gguf(path)
    what = describe_kind(file)
    if what is not None:
        raise MtprefError(f"{file.label}: this is {what} (`model_draft` takes an MTP head)")
    arch = ARCHITECTURES.get(str(file.get("general.architecture")))
    if arch is not None and arch.target:
        return _assistant_of_file(trunk, file, arch)
    check_counts(file, trunk.arch.name)
    values = trunk.arch.values(Metadata(file.kv, file.label, trunk.values.meta.rope))
    check_match(trunk, file, values)
    finder = TensorFinder(file)
    heads = _read_heads(trunk, finder, values)
    return LoadedHead("file", heads, finder, _notes(trunk, finder, heads[0].weights))


def _assistant_of_file(trunk: Trunk, file: GgufFile, arch: Architecture) -> LoadedHead:
    if trunk.arch.name != arch.target:
        raise MtprefError(
            f"{file.label}: this is an assistant of {arch.target} models, and {trunk.file.label} is {trunk.arch.name}, "
            f"expected a target of {arch.target}: it reads that one's cells"
        )
    differs = partial(_differs, trunk, file)
    head, finder = read_assistant(trunk, file, arch, differs)
    _check_vocabulary(trunk, file, differs)
    unused = finder.unused()
    notes = (f"{len(unused)} tensors of {_name(finder)} are not read: {listed(unused)}",) if unused else ()
    return LoadedHead("file", (head,), finder, notes)


def _differs(trunk: Trunk, file: GgufFile, what: str, found: object, expected: object) -> MtprefError:
    return MtprefError(
        f"{file.label}: {what} is {_shown(found)}, expected {_shown(expected)} as in "
        f"{trunk.file.label}; the head belongs to another model: {REMAKE}"
    )


def check_match(trunk: Trunk, file: GgufFile, values: Values) -> None:
    """Whether a stand-alone head belongs to a trunk.

    Errors  MtprefError naming the first of these that differs: architecture, the presence of a head,
            embedding_length, number of trunk layers, layer_norm_rms_epsilon, a RoPE parameter, tokenizer model, pre,
            number of tokens, a token, rows of token_embd
    """

    differs = partial(_differs, trunk, file)
    meta = values.meta
    arch = meta.arch
    if arch != trunk.arch.name:
        raise differs("key general.architecture", arch, trunk.arch.name)
    if not meta.u32("nextn_predict_layers", 0, low=0):
        raise MtprefError(
            f"{file.label}: no MTP head (key {arch}.nextn_predict_layers is absent or 0), expected one; "
            "give `model_draft` a file made with mtpref extract, or convert_hf_to_gguf.py "
            "--mtp"
        )
    config, own = read_model_config(values), trunk.config
    if config.n_embd != own.n_embd:
        raise differs(f"key {arch}.embedding_length", config.n_embd, own.n_embd)
    if config.n_layer != own.n_layer:
        what = f"the number of trunk layers ({arch}.block_count - {arch}.nextn_predict_layers)"
        raise differs(what, config.n_layer, own.n_layer)
    if (config.has_layer_norms, config.rms_eps) != (own.has_layer_norms, own.rms_eps):
        key = "layer_norm_epsilon" if own.has_layer_norms else "layer_norm_rms_epsilon"
        raise differs(f"key {arch}.attention.{key}", config.rms_eps, own.rms_eps)
    _check_rope(trunk, values, differs)
    _check_vocabulary(trunk, file, differs)


def _check_rope(trunk: Trunk, values: Values, differs: Any) -> None:
    """Same angles for same positions. Keys may differ where that changes nothing."""
    if trunk.arch.head is None:
        return
    configure, il = trunk.arch.head.block.mixer.configure, trunk.config.n_layer
    found, expected = configure(values.at(il)), configure(trunk.values.at(il, values))
    if not hasattr(found, "rope_scaling"):
        return
    pairs = zip(rope_constants(rotary_of(found)), rope_constants(rotary_of(expected)), strict=True)
    if all(_same(a, b) for a, b in pairs) and all(
        getattr(found, name, None) == getattr(expected, name, None) for name in ("scale", "is_interleaved")
    ):
        return
    keys = {hyper.name: hyper.key for hyper in trunk.arch.hypers}
    for name in ROPE_NAMES:
        a, b = getattr(found, name, None), getattr(expected, name, None)
        if a != b:
            raise differs(f"key {trunk.arch.name}.{keys[name]}", a, b)
    a, b = asdict(found.rope_scaling), asdict(expected.rope_scaling)
    names = [name for name in a if a[name] != b[name]]
    texts = [", ".join(f"{name} {values[name]}" for name in names) for values in (a, b)]
    raise differs(f"RoPE scaling ({trunk.arch.name}.rope.scaling.*)", *texts)


def _same(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and (a == b).all()) if hasattr(a, "shape") else bool(a == b)


def _check_vocabulary(trunk: Trunk, file: GgufFile, differs: Any) -> None:
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        a, b = _text(file, key), _text(trunk.file, key)
        if a != b:
            raise differs(f"key {key}", a, b)
    found, expected = (f.require("tokenizer.ggml.tokens", "arr:str") for f in (file, trunk.file))
    if len(found) != len(expected):
        raise differs("the number of tokens (tokenizer.ggml.tokens)", len(found), len(expected))
    i = _first_difference(found, expected)
    if i is not None:
        raise differs(f"token {i} (tokenizer.ggml.tokens)", found[i], expected[i])
    n_rows = trunk.weights.token_embd.n_out
    for name in ("token_embd.weight",) if D2T in file.tensors else ("token_embd.weight", "output.weight"):
        info = file.tensors.get(name)
        if info is not None and info.shape[0] != n_rows:
            raise differs(f"the number of rows of {name}", info.shape[0], n_rows)


def _text(file: GgufFile, key: str) -> str | None:
    """A short text, or a word on what is there in its place."""
    kind = file.kv.kind(key)
    if kind is None:
        return None
    is_text = kind == "str" and file.kv.size(key) <= MAX_TEXT
    return str(file.kv[key]) if is_text else f"{kind} of size {file.kv.size(key)}"


def _first_difference(a: GgufArray, b: GgufArray) -> int | None:
    pairs = zip_longest(a.to_bytes_list(), b.to_bytes_list())
    return next((i for i, (x, y) in enumerate(pairs) if x != y), None)


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    return repr(printable(value, 40)) if isinstance(value, str) else printable(str(value), 100)


def _name(finder: TensorFinder | None) -> str:
    return "" if finder is None else printable(finder.file.path.name)


def _notes(trunk: Trunk, finder: TensorFinder, weights: MtpWeights) -> tuple[str, ...]:
    notes, name = [], _name(finder)
    missing = [t for t in ("token_embd.weight", "output_norm.weight") if not finder.has(t)]
    if missing:
        notes.append(f"{name} has no {' and no '.join(missing)}: what it lacks is the trunk's; llama.cpp refuses it")
    is_tied = weights.origin["shared_head_head"] == "token_embd.weight" and "shared_head_head" not in weights.borrowed
    if is_tied and trunk.finder.has("output.weight"):
        notes.append(
            f"{name} has no output.weight: its token_embd.weight gives the head's logits, as in llama.cpp, "
            "though the trunk has an output.weight; was lm_head left out?"
        )
    unused = finder.unused()
    if has_trunk(finder.file.tensors):
        notes.append(f"{name} holds a whole model; only its MTP head is read, {len(unused)} tensors are not")
    elif set(unused) - {"token_embd.weight", "output_norm.weight"}:
        notes.append(f"{len(unused)} tensors of {name} are not read: {listed(unused)}")
    return tuple(notes)
