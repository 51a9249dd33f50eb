"""Loading: from an open GGUF file to a Model.

Owns the order of a load; head.py finds the MTP head. Every tensor that nobody reads is reported, never dropped
silently.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mtpref.architectures import (
    OUTPUT,
    OUTPUT_NORM,
    SHARED,
    TOKEN_EMBD,
    Architecture,
    describe_assistant,
    find_architecture,
)
from mtpref.base.errors import MtprefError
from mtpref.base.settings import check_arguments
from mtpref.engine.model.blocks import read_block, read_layer, read_tensor
from mtpref.engine.model.head import LoadedHead, Trunk, load_head
from mtpref.engine.model.model import Layer, Model
from mtpref.engine.recipe import Recipe, make_recipe
from mtpref.engine.weights import TensorFinder, Weights, packed
from mtpref.files.finite_weights import check_tensors as check_tensors_of
from mtpref.files.gguf import GgufFile, listed, open_gguf, printable
from mtpref.files.identify import (
    HEAD_ONLY,
    LOST_LAYER,
    REDECLARE,
    check_counts,
    describe_kind,
    head_in_trunk,
    is_head_only,
    trunk_in_head,
)
from mtpref.files.vocab import load_vocab
from mtpref.spec import Matrix, Stack
from mtpref.spec.config import Metadata, ModelConfig, Values, read_model_config, rope_notes
from mtpref.spec.rope_scaling import RopeOverrides
from mtpref.spec.state import KvType

TOKENS = "tokenizer.ggml.tokens"


def load(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    kv_type: KvType | None = None,
    kv_type_draft: KvType | None = None,
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
    check_arguments(load, locals())
    file = open_gguf(path)
    what = describe_kind(file) or (HEAD_ONLY if is_head_only(file) else None)
    if what is not None:
        raise MtprefError(f"{file.label}: this is {what}")
    meta = Metadata(file.kv, file.label, rope)
    arch = find_architecture(meta)
    if arch.target:
        raise MtprefError(f"{file.label}: this is {describe_assistant(arch.name)}")
    check_counts(file, arch.name)
    values = arch.values(meta)
    values = values.having(n_vocab=_n_rows(file)) if TOKEN_EMBD in file.tensors else values
    config, notes = _probed(file, arch, read_model_config(values))
    recipe = (recipe or make_recipe()).normed_as(config)
    _check_declared(file, config)
    blocks = arch.layers.blocks(meta, config.n_layer, frozenset(file.tensors))
    layers = tuple(read_layer(block, values.at(il)) for il, block in enumerate(blocks))
    finder = TensorFinder(file)
    ends_cfg = arch.ends.configure(values) if arch.ends else None
    needed = arch.ends.needed(ends_cfg) if arch.ends else ()
    weights = _read_trunk(finder, arch, values, layers, needed)
    _check_n_tokens(file, weights.token_embd.n_out)
    vocab = load_vocab(file.kv)
    head = load_head(Trunk(file, values, arch, config, finder, weights, layers), model_draft, is_on=mtp)
    heads = head.heads
    if check_tensors:
        _check(finder, head)
    if recipe.pack is not None:
        pack = partial(recipe.pack, done=partial(_release, finder, head))
        weights, made = packed(weights, [one.weights for one in heads], pack)
        heads = tuple(replace(one, weights=w) for one, w in zip(heads, made, strict=True))
    return Model(
        config=config,
        arch=arch,
        layers=layers,
        heads=heads,
        weights=weights,
        recipe=recipe,
        vocab=vocab,
        kv_type=kv_type or default_kv_type(recipe.numerics),
        kv_type_draft=kv_type_draft or default_kv_type(recipe.numerics),
        notes=(*notes, *_notes(finder, config, head), *head.notes, *_rope_notes(meta, layers)),
        kv=file.kv,
        mtp_status=head.status,
        ends_cfg=ends_cfg,
    )


def _probed(file: GgufFile, arch: Architecture, config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The counts of a file whose keys count a head that is not there, where every block is the trunk's then."""
    name = f"blk.{config.n_layer}.nextn.eh_proj.weight"
    if arch.head is None or not arch.head.is_probed or not config.n_layer_nextn or name in file.tensors:
        return config, ()
    note = (
        f"the keys count an MTP head, and the file does not hold it ({name} is missing): every block is taken for the "
        "trunk's, as in llama.cpp; to draft, give -md the head's file"
    )
    return replace(config, n_layer=config.n_layer + config.n_layer_nextn, n_layer_nextn=0), (note,)


def default_kv_type(numerics: str) -> str:
    """The type of KV cells where nobody asks for another."""
    return "F32" if numerics == "exact" else "F16"


def _check(finder: TensorFinder, head: LoadedHead) -> None:
    """Every tensor that was read, in the order of its file."""
    for one in (finder, head.finder):
        if one is not None:
            check_tensors_of(one.file, [name for name in one.file.tensors if name in one.read])


def _check_declared(file: GgufFile, config: ModelConfig) -> None:
    """Refuse a file whose keys count an MTP block among the trunk's layers: run as one, it gives other text."""
    if config.n_layer_nextn and trunk_in_head(file.tensors, config.n_layer):
        raise MtprefError(
            f"{file.label}: key {config.arch}.nextn_predict_layers is {config.n_layer_nextn}, and blk.{config.n_layer} "
            f"has no nextn tensor: {config.arch}.block_count counts no head; {LOST_LAYER}"
        )
    first = f"blk.{config.n_layer}."
    if config.n_layer_nextn and f"{first}attn_norm.weight" in file.tensors:
        heads = {name.split(".", 2)[1] for name in file.tensors if ".nextn." in name}
        if heads and not any(name.startswith(f"{first}nextn.") for name in file.tensors):
            raise MtprefError(
                f"{file.label}: key {config.arch}.nextn_predict_layers is {config.n_layer_nextn}, and {first[:-1]} has "
                f"no nextn tensor: it is a trunk layer, which then would not be run; expected {len(heads)}, as many as "
                "blocks with nextn tensors; convert the model again, or correct the key"
            )
    name = head_in_trunk(file, config.n_layer)
    if name is not None:
        key = f"{config.arch}.nextn_predict_layers"
        raise MtprefError(
            f"{file.label}: tensor {printable(name)} is there, and key {key} is {config.n_layer_nextn}: "
            f"its block would run as a trunk layer, expected it declared; {REDECLARE}"
        )


def _release(finder: TensorFinder, head: LoadedHead, w: Matrix | Stack) -> None:
    """Give back the mapped pages of a matrix, one of a stack, or a stack; what is still read in place comes back when
    it is used."""
    name = w.name.partition("[")[0].partition("/")[0]  # of experts and rows, the tensor that they are of
    for one in (finder, head.finder):
        if one is None or name not in one.read:
            continue
        info = one.file.tensors[name]
        if isinstance(w, Matrix):
            start = w.raw.ctypes.data - one.file.data(info).ctypes.data
            if not 0 <= start <= info.n_bytes - w.raw.nbytes:
                continue  # the other file's tensor of that name
            info = replace(info, offset=info.offset + start, n_bytes=w.raw.nbytes)
        one.file.release(info)


def _read_trunk(
    finder: TensorFinder, arch: Architecture, values: Values, layers: tuple[Layer, ...], needed: Sequence[str]
) -> Weights:
    n_embd = values["n_embd"]
    n_vocab = _n_rows(finder.file)
    token_embd = finder.matrix(TOKEN_EMBD, (n_vocab, n_embd))
    is_tied = not finder.has(OUTPUT) and any(t.name == OUTPUT and not t.required for t in arch.tensors)
    output = token_embd if is_tied else finder.matrix(OUTPUT, (n_vocab, n_embd))
    output_norm = finder.array(OUTPUT_NORM, (n_embd,))
    blocks = tuple(read_block(finder, layer.block, values.at(il), il) for il, layer in enumerate(layers))
    roots = {
        tensor.name: read_tensor(finder, tensor, values, tensor.name)
        for tensor in arch.tensors
        if tensor.name not in SHARED and (tensor.required or tensor.name in needed or finder.has(tensor.name))
    }
    return Weights(token_embd, output_norm, output, blocks, roots)


def _n_rows(file: GgufFile) -> int:
    info = file.tensors.get(TOKEN_EMBD)
    if info is None or len(info.shape) != 2:
        raise MtprefError(
            f"{file.label}: tensor token_embd.weight is missing or not a matrix; is this a GGUF of a "
            "language model? try: mtpref inspect FILE"
        )
    return info.shape[0]


def _check_n_tokens(file: GgufFile, n_rows: int) -> None:
    """Before the vocabulary is read, since reading a wrong one of any size takes long."""
    n_tokens = file.kv.size(TOKENS) if TOKENS in file.kv else 0
    if n_tokens > n_rows:
        raise MtprefError(
            f"{file.label}: the tokenizer has {n_tokens} tokens, token_embd.weight {n_rows} rows, "
            "expected at least as many rows; try: mtpref inspect FILE"
        )


def _notes(finder: TensorFinder, config: ModelConfig, head: LoadedHead) -> tuple[str, ...]:
    notes = []
    unused = finder.unused()
    if unused:
        notes.append(f"{len(unused)} tensors of the file are not read: {listed(unused)}")
    orphans = [name for name in unused if ".nextn." in name]
    if orphans and head.status in ("none", "file") and not config.n_layer_nextn:
        notes.append(
            f"the file holds {len(orphans)} MTP tensors but declares no MTP block "
            f"({config.arch}.nextn_predict_layers is 0 or missing); {REDECLARE}"
        )
    return tuple(notes)


def _rope_notes(meta: Metadata, layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """What is said of RoPE scaling: the keys are the file's, so any attention layer (without a window, where there is
    one) speaks for all, the head's too."""
    cfgs = [layer.cfg for layer in layers if hasattr(layer.cfg, "rope_scaling")]
    cfgs.sort(key=lambda cfg: bool(getattr(cfg, "n_window", 0)))
    return rope_notes(meta, cfgs[0].rope_scaling) if cfgs else ()
