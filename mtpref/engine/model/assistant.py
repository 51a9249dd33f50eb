"""An assistant: a head that is a model of its own, in a file of another architecture than its target's.

Owns how its layers are fitted to the target whose cells they read, and the checks between the two files. Its tied
token_embd is its output alone: tokens come in by the target's. It keeps nothing of a sequence.
Source: llama.cpp src/models/gemma4-assistant.cpp; common/speculative.cpp (is_mem_shared).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mtpref.architectures import OUTPUT_NORM, TOKEN_EMBD, Architecture, Tensor
from mtpref.base.errors import MtprefError
from mtpref.engine.model.blocks import read_block, read_layer, read_tensor
from mtpref.engine.model.model import Head, Layer
from mtpref.engine.weights import MtpWeights, TensorFinder
from mtpref.files.gguf import GgufFile
from mtpref.spec.config import Metadata, UnscaledConfig, Values
from mtpref.spec.kinds import rope_constants
from mtpref.spec.kinds.windowed import FACTORS

PRE, POST = "nextn.pre_projection.weight", "nextn.post_projection.weight"
Differs = Callable[[str, object, object], MtprefError]


def read_assistant(trunk: Any, file: GgufFile, sheet: Architecture, differs: Differs) -> tuple[Head, TensorFinder]:
    """The assistant of a file as the head of a target.

    trunk     what it is fitted to (head.py)
    differs   (what, found, expected) -> the error of two files that do not belong together
    Errors    MtprefError naming the first thing that differs, or a tensor that is missing
    """
    values = _values(trunk, file, sheet)
    n_block = values["n_block"]
    _check_counts(trunk, values, n_block, differs)
    blocks = sheet.layers.blocks(values.meta, n_block, frozenset(file.tensors))
    finder = TensorFinder(file)
    layers = []
    for il, block in enumerate(blocks):
        layer = read_layer(block, values.at(il))
        layers.append(_fitted(trunk, sheet, layer, il, differs))
    tensors = {tensor.name: tensor for tensor in sheet.tensors}

    def read(name: str) -> Any:
        tensor: Tensor = tensors[name]
        return read_tensor(finder, tensor, values, name)

    _check_factors(trunk, read(FACTORS), differs)
    nothing = np.empty(0, np.float32)
    own = tuple(read_block(finder, layer.block, values.at(il), il) for il, layer in enumerate(layers))
    weights = MtpWeights(
        enorm=nothing,
        hnorm=nothing,
        eh_proj=read(PRE),
        block=own[-1],
        before=own[:-1],
        embed_tokens=trunk.weights.token_embd,
        shared_head_norm=read(OUTPUT_NORM),
        shared_head_head=read(TOKEN_EMBD),
        post_projection=read(POST),
        origin={"embed_tokens": TOKEN_EMBD, "shared_head_norm": OUTPUT_NORM, "shared_head_head": TOKEN_EMBD},
        borrowed=("embed_tokens",),
        file=file.label,
        roots={FACTORS: read(FACTORS)},
    )
    assert sheet.head is not None
    n_hidden = sheet.head.n_hidden.value(values) or 0
    head = Head(sheet.head, layers[-1], weights, n_hidden, tuple(layers[:-1]), 0, values["rms_eps"])
    return head, finder


def _values(trunk: Any, file: GgufFile, sheet: Architecture) -> Values:
    values = sheet.values(Metadata(file.kv, file.label, trunk.values.meta.rope))
    return values.having(n_vocab=trunk.weights.token_embd.n_out)


def _check_counts(trunk: Any, values: Values, n_block: int, differs: Differs) -> None:
    meta = values.meta
    n_nextn = meta.u32("nextn_predict_layers", 0, low=0)
    if n_nextn != n_block:
        raise MtprefError(
            f"{meta.source}: key {meta.arch}.nextn_predict_layers is {n_nextn}, expected {n_block} = block_count: all "
            "layers of an assistant are counted; convert it again"
        )
    if values["n_embd_target"] != trunk.config.n_embd:
        raise differs(f"key {meta.arch}.embedding_length_out", values["n_embd_target"], trunk.config.n_embd)
    if values["n_embd"] == values["n_embd_target"]:
        raise MtprefError(
            f"{meta.source}: key {meta.arch}.embedding_length is {values['n_embd']}, expected another number than "
            "embedding_length_out: llama.cpp tells an assistant's rows from its target's by that, and refuses the file"
        )


def _fitted(trunk: Any, sheet: Architecture, layer: Layer, il: int, differs: Differs) -> Layer:
    """The layer with the target's layer whose cells it reads, which must be as it takes them."""
    cfg: UnscaledConfig = layer.cfg
    target = [one.cfg for one in trunk.layers]
    assert sheet.layer_read is not None
    if [bool(one.n_window) for one in target[-2:]] != [True, False]:
        raise MtprefError(
            f"{trunk.file.label}: its last two layers are not one with a window and one without, expected these: an "
            "assistant's layers read the cells of the one or the other"
        )
    at = sheet.layer_read(cfg, target)
    read: UnscaledConfig = target[at]
    label = f"blk.{il}'s"
    for what, name in (("attention.head_count_kv", "n_head_kv"), ("width of keys", "n_key"), ("turned width", "n_rot"),
                       ("attention.sliding_window", "n_window"), ("RoPE base", "freq_base")):  # fmt: skip
        a, b = getattr(cfg, name), getattr(read, name)
        if a != b:
            raise differs(f"{label} {what}", a, f"{b} (of layer {at})")
    pairs = zip(rope_constants(cfg.rotary), rope_constants(read.rotary), strict=True)
    if not all(bool(np.all(a == b)) for a, b in pairs):
        raise differs(f"{label} RoPE scaling", cfg.rope_scaling, read.rope_scaling)
    return replace(layer, cfg=replace(cfg, source=at))


def _check_factors(trunk: Any, factors: Any, differs: Differs) -> None:
    own = trunk.weights.roots.get(FACTORS)
    if own is not None and not np.array_equal(own, factors):
        i = int(np.flatnonzero(own != factors)[0]) if own.shape == factors.shape else 0
        raise differs(f"factor {i} of {FACTORS}", float(factors[i]), float(own[i]))
