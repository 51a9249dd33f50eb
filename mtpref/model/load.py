"""Loading: from an open GGUF file to a Model.

Owns the order of a load and the fallbacks of the MTP head. Every fallback and every tensor that nobody
reads is reported, never dropped silently.
"""

from pathlib import Path
from typing import Any

from mtpref.config import AttnConfig, Metadata, ModelConfig, read_model_config, rope_notes
from mtpref.errors import MtprefError
from mtpref.gguf import GgufFile, open_gguf
from mtpref.model.architectures import Architecture, find_architecture
from mtpref.model.kinds import LayerKind
from mtpref.model.model import Layer, Model
from mtpref.recipe import Recipe, make_recipe
from mtpref.rope_scaling import RopeOverrides
from mtpref.state import KV_DTYPES
from mtpref.vocab import load_vocab
from mtpref.weights import MtpWeights, TensorFinder, Weights

MAX_UNUSED_NAMED = 4


def load(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    kv_type: str | None = None,
    kv_type_draft: str | None = None,
    rope: RopeOverrides | None = None,
) -> Model:
    """Open a GGUF file and make a Model of it. Weights stay mapped; nothing is copied but small vectors.

    recipe          numerics, steps and contract (default: ggml numerics, llama.cpp's contract)
    kv_type         type of the trunk's KV cells: F32, F16 or BF16 (default: F16 in `ggml`, F32 in `exact`
    numerics) kv_type_draft   type of the MTP block's KV cells (same default)
    rope            what to set in place of the file's RoPE keys, for trunk and head alike
    Errors          MtprefError, one line, for anything that is not a model of a supported architecture
    """
    recipe = recipe or make_recipe()
    default_kv = "F32" if recipe.numerics == "exact" else "F16"
    kv_types = [t or default_kv for t in (kv_type, kv_type_draft)]
    for kind in kv_types:
        if kind not in KV_DTYPES:
            raise MtprefError(f"KV type {kind!r} is not supported, expected one of {', '.join(KV_DTYPES)}")
    file = open_gguf(path)
    meta = Metadata(file.kv, file.label, rope)
    arch = find_architecture(meta)
    config = read_model_config(meta)
    layers = tuple(Layer(kind, kind.read_config(meta)) for kind in arch.mixers(meta, config))
    ffn_cfg = arch.ffn.read_config(meta)
    mtp_layer = _mtp_layer(arch, meta, config)
    finder = TensorFinder(file)
    weights = _read_weights(finder, arch, config, layers, ffn_cfg, mtp_layer)
    vocab = load_vocab(file.kv)
    if vocab.n_vocab > weights.token_embd.n_out:
        raise MtprefError(f"{file.label}: the tokenizer has {vocab.n_vocab} tokens, token_embd.weight "
                          f"{weights.token_embd.n_out} rows, expected at least as many rows; "
                          "try: mtpref inspect FILE")  # fmt: skip
    return Model(
        config=config,
        arch=arch,
        layers=layers,
        ffn_cfg=ffn_cfg,
        mtp_layer=mtp_layer,
        weights=weights,
        recipe=recipe,
        vocab=vocab,
        kv_type=kv_types[0],
        kv_type_draft=kv_types[1],
        notes=_notes(finder, config, weights) + _rope_notes(meta, layers),
        kv=file.kv,
    )


def _mtp_layer(arch: Architecture, meta: Metadata, config: ModelConfig) -> Layer | None:
    if config.n_layer_nextn == 0:
        return None
    if arch.mtp_mixer is None or config.n_layer_nextn > 1:
        raise MtprefError(f"{meta.source}: {meta.arch}.nextn_predict_layers is {config.n_layer_nextn}, expected 0 or "
                          "1: chains of several MTP blocks are not supported")  # fmt: skip
    return Layer(arch.mtp_mixer, arch.mtp_mixer.read_config(meta))


def _read_weights(
    finder: TensorFinder,
    arch: Architecture,
    config: ModelConfig,
    layers: tuple[Layer, ...],
    ffn_cfg: Any,
    mtp_layer: Layer | None,
) -> Weights:
    n_embd = config.n_embd
    n_vocab = _n_vocab(finder.file)
    token_embd = finder.matrix("token_embd.weight", (n_vocab, n_embd))
    output = finder.matrix("output.weight", (n_vocab, n_embd)) if finder.has("output.weight") else token_embd
    output_norm = finder.array("output_norm.weight", (n_embd,))
    blocks = tuple(
        _read_block(finder, arch, n_embd, il, ((layer.kind, layer.cfg), (arch.ffn, ffn_cfg)))
        for il, layer in enumerate(layers)
    )
    weights = Weights(token_embd, output_norm, output, blocks, None)
    if mtp_layer is None:
        return weights
    kinds = ((mtp_layer.kind, mtp_layer.cfg), (arch.ffn, ffn_cfg))
    mtp = _read_mtp(finder, weights, n_embd, config.n_layer, _read_block(finder, arch, n_embd, config.n_layer, kinds))
    return Weights(token_embd, output_norm, output, blocks, mtp)


def _n_vocab(file: GgufFile) -> int:
    info = file.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise MtprefError(f"{file.label}: tensor token_embd.weight is missing or not a matrix; is this a GGUF of a "
                          "language model? try: mtpref inspect FILE")  # fmt: skip
    return info.shape[0]


def _read_block(
    finder: TensorFinder, arch: Architecture, n_embd: int, il: int, kinds: tuple[tuple[LayerKind, Any], ...]
) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for norm in (arch.mixer_norm, arch.ffn_norm):
        block[norm] = finder.array(f"blk.{il}.{norm}", (n_embd,))
    for kind, cfg in kinds:
        for slot in kind.tensors(cfg):
            name = f"blk.{il}.{slot.name}"
            if not slot.required and not finder.has(name):
                continue
            if slot.is_matrix:
                block[slot.name] = finder.matrix(name, (slot.shape[0], slot.shape[1]))
            else:
                block[slot.name] = finder.array(name, slot.shape)
    return block


def _read_mtp(finder: TensorFinder, trunk: Weights, n_embd: int, il: int, block: dict[str, Any]) -> MtpWeights:
    """The head's tensors, with llama.cpp's fallbacks to the trunk's."""
    prefix = f"blk.{il}.nextn."
    origin: dict[str, str] = {}
    vocab_shape = (trunk.token_embd.n_out, n_embd)

    def own_or(part: str, fallback_name: str, fallback: Any) -> Any:
        name = f"{prefix}{part}.weight"
        if not finder.has(name):
            origin[part] = fallback_name
            return fallback
        origin[part] = name
        return finder.array(name, (n_embd,)) if part == "shared_head_norm" else finder.matrix(name, vocab_shape)

    return MtpWeights(
        enorm=finder.array(f"{prefix}enorm.weight", (n_embd,)),
        hnorm=finder.array(f"{prefix}hnorm.weight", (n_embd,)),
        eh_proj=finder.matrix(f"{prefix}eh_proj.weight", (n_embd, 2 * n_embd)),
        block=block,
        embed_tokens=own_or("embed_tokens", "token_embd.weight", trunk.token_embd),
        shared_head_norm=own_or("shared_head_norm", "output_norm.weight", trunk.output_norm),
        shared_head_head=own_or("shared_head_head", trunk.output.name, trunk.output),
        origin=origin,
    )


def _notes(finder: TensorFinder, config: ModelConfig, weights: Weights) -> tuple[str, ...]:
    notes = []
    unused = finder.unused()
    if unused:
        named = ", ".join(unused[:MAX_UNUSED_NAMED]) + (", ..." if len(unused) > MAX_UNUSED_NAMED else "")
        notes.append(f"{len(unused)} tensors of the file are not read: {named}")
    orphans = [name for name in unused if ".nextn." in name]
    if orphans and weights.mtp is None:
        notes.append(f"the file holds {len(orphans)} MTP tensors but declares no MTP block "
                     f"({config.arch}.nextn_predict_layers is 0 or missing)")  # fmt: skip
    return tuple(notes)


def _rope_notes(meta: Metadata, layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """What is said of RoPE scaling: the keys are the file's, so any attention layer speaks for all, the head's too."""
    scalings = [layer.cfg.rope_scaling for layer in layers if isinstance(layer.cfg, AttnConfig)]
    return rope_notes(meta, scalings[0]) if scalings else ()
