"""Loading: from an open GGUF file to a Model.

Owns the order of a load; head.py finds the MTP head. Every tensor that nobody reads is reported, never dropped
silently.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mtpref.check_tensors import check_tensors as check_tensors_of
from mtpref.config import AttnConfig, Metadata, ModelConfig, read_model_config, rope_notes
from mtpref.errors import MtprefError
from mtpref.gguf import GgufFile, open_gguf, printable
from mtpref.identify import HEAD_ONLY, REDECLARE, describe_kind, head_in_trunk, is_head_only
from mtpref.model.architectures import Architecture, find_architecture
from mtpref.model.head import MAX_UNUSED_NAMED, Head, Trunk, load_head
from mtpref.model.model import Layer, Model
from mtpref.model.read import read_block
from mtpref.recipe import Recipe, make_recipe
from mtpref.rope_scaling import RopeOverrides
from mtpref.spec import Matrix
from mtpref.state import KV_DTYPES
from mtpref.vocab import load_vocab
from mtpref.weights import TensorFinder, Weights

TOKENS = "tokenizer.ggml.tokens"


def load(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    kv_type: str | None = None,
    kv_type_draft: str | None = None,
    rope: RopeOverrides | None = None,
    model_draft: str | Path | None = None,
    mtp: bool = True,
    check_tensors: bool = False,
) -> Model:
    """Open a GGUF file and make a Model of it. Weights stay mapped; nothing is copied but small vectors, and the
    matrices that the recipe lays out anew (`Recipe.pack`), whose mapped pages are given back.

    path            a file, or the first of a split model
    recipe          numerics, steps and contract (default: ggml numerics, llama.cpp's contract)
    kv_type         type of the trunk's KV cells: F32, F16 or BF16 (default: F16 in `ggml`, F32 in `exact` numerics)
    kv_type_draft   type of the MTP block's KV cells (same default)
    rope            what to set in place of the file's RoPE keys, for trunk and head alike
    model_draft     a stand-alone MTP head (mtp-*.gguf); it goes before a head of the model's own
    mtp             False: the head is not loaded and takes no memory
    check_tensors   look for NaN and infinity in every weight that is read
    Errors          MtprefError, one line, for anything that is not a model of a supported architecture, and for a head
                    that does not belong to it
    """
    recipe = recipe or make_recipe()
    kv_types = _kv_types(recipe, kv_type, kv_type_draft)
    file = open_gguf(path)
    what = describe_kind(file) or (HEAD_ONLY if is_head_only(file) else None)
    if what is not None:
        raise MtprefError(f"{file.label}: this is {what}")
    meta = Metadata(file.kv, file.label, rope)
    arch = find_architecture(meta)
    config = read_model_config(meta)
    _check_declared(file, config)
    layers = tuple(Layer(kind, kind.read_config(meta)) for kind in arch.mixers(meta, config))
    ffn_cfg = arch.ffn.read_config(meta)
    finder = TensorFinder(file)
    weights = _read_trunk(finder, arch, config, layers, ffn_cfg)
    _check_n_tokens(file, weights.token_embd.n_out)
    vocab = load_vocab(file.kv)
    head = load_head(Trunk(file, meta, arch, config, ffn_cfg, finder, weights), model_draft, is_on=mtp)
    weights = replace(weights, mtp=head.weights)
    if check_tensors:
        _check(finder, head)
    if recipe.pack is not None:
        weights = weights.packed(partial(recipe.pack, done=partial(_release, finder, head)))
    return Model(
        config=config,
        arch=arch,
        layers=layers,
        ffn_cfg=ffn_cfg,
        mtp_layer=head.layer,
        weights=weights,
        recipe=recipe,
        vocab=vocab,
        kv_type=kv_types[0],
        kv_type_draft=kv_types[1],
        notes=(*_notes(finder, config, head), *head.notes, *_rope_notes(meta, layers)),
        kv=file.kv,
        mtp_status=head.status,
    )


def default_kv_type(numerics: str) -> str:
    """The type of KV cells where nobody asks for another."""
    return "F32" if numerics == "exact" else "F16"


def _kv_types(recipe: Recipe, *given: str | None) -> list[str]:
    kv_types = [t or default_kv_type(recipe.numerics) for t in given]
    for kind in kv_types:
        if kind not in KV_DTYPES:
            raise MtprefError(f"KV type {kind!r} is not supported, expected one of {', '.join(KV_DTYPES)}")
    return kv_types


def _check(finder: TensorFinder, head: Head) -> None:
    """Every tensor that was read, in the order of its file."""
    for one in (finder, head.finder):
        if one is not None:
            check_tensors_of(one.file, [name for name in one.file.tensors if name in one.read])


def _check_declared(file: GgufFile, config: ModelConfig) -> None:
    """Refuse a file whose keys count an MTP block among the trunk's layers: run as one, it gives other text."""
    name = head_in_trunk(file, config.n_layer)
    if name is not None:
        key = f"{config.arch}.nextn_predict_layers"
        raise MtprefError(f"{file.label}: tensor {printable(name)} is there, and key {key} is {config.n_layer_nextn}: "
                          f"its block would run as a trunk layer, expected it declared; {REDECLARE}")  # fmt: skip


def _release(finder: TensorFinder, head: Head, w: Matrix) -> None:
    """Give back the mapped pages of a matrix; what is still read in place comes back when it is used."""
    for one in (finder, head.finder):
        if one is not None and w.name in one.read:
            one.file.release(one.file.tensors[w.name])


def _read_trunk(
    finder: TensorFinder, arch: Architecture, config: ModelConfig, layers: tuple[Layer, ...], ffn_cfg: Any
) -> Weights:
    n_embd = config.n_embd
    n_vocab = _n_rows(finder.file)
    token_embd = finder.matrix("token_embd.weight", (n_vocab, n_embd))
    output = finder.matrix("output.weight", (n_vocab, n_embd)) if finder.has("output.weight") else token_embd
    output_norm = finder.array("output_norm.weight", (n_embd,))
    blocks = tuple(
        read_block(finder, arch, n_embd, il, ((layer.kind, layer.cfg), (arch.ffn, ffn_cfg)))
        for il, layer in enumerate(layers)
    )
    return Weights(token_embd, output_norm, output, blocks, None)


def _n_rows(file: GgufFile) -> int:
    info = file.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise MtprefError(f"{file.label}: tensor token_embd.weight is missing or not a matrix; is this a GGUF of a "
                          "language model? try: mtpref inspect FILE")  # fmt: skip
    return info.shape[0]


def _check_n_tokens(file: GgufFile, n_rows: int) -> None:
    """Before the vocabulary is read, since reading a wrong one of any size takes long."""
    n_tokens = file.kv.size(TOKENS) if TOKENS in file.kv else 0
    if n_tokens > n_rows:
        raise MtprefError(f"{file.label}: the tokenizer has {n_tokens} tokens, token_embd.weight {n_rows} rows, "
                          "expected at least as many rows; try: mtpref inspect FILE")  # fmt: skip


def _notes(finder: TensorFinder, config: ModelConfig, head: Head) -> tuple[str, ...]:
    notes = []
    unused = finder.unused()
    if unused:
        named = ", ".join(printable(name) for name in unused[:MAX_UNUSED_NAMED]) + (
            ", ..." if len(unused) > MAX_UNUSED_NAMED else ""
        )
        notes.append(f"{len(unused)} tensors of the file are not read: {named}")
    orphans = [name for name in unused if ".nextn." in name]
    if orphans and head.status in ("none", "file"):
        notes.append(f"the file holds {len(orphans)} MTP tensors but declares no MTP block "
                     f"({config.arch}.nextn_predict_layers is 0 or missing); {REDECLARE}")  # fmt: skip
    return tuple(notes)


def _rope_notes(meta: Metadata, layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """What is said of RoPE scaling: the keys are the file's, so any attention layer speaks for all, the head's too."""
    scalings = [layer.cfg.rope_scaling for layer in layers if isinstance(layer.cfg, AttnConfig)]
    return rope_notes(meta, scalings[0]) if scalings else ()
