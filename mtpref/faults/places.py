"""Where a fault can be: what a model must have for it to do anything.

Owns the questions that are asked of a model, each with the words for a user who asks for a fault elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np

from mtpref.engine.model import Model
from mtpref.engine.model.model import Layer
from mtpref.spec.config import (
    AttnConfig,
    CompressedConfig,
    DeltaConfig,
    IndexedConfig,
    LatentConfig,
    MoeConfig,
    SsmConfig,
    WindowedConfig,
)
from mtpref.spec.kinds import Parallel
from mtpref.spec.ops import PARTS
from mtpref.spec.windowed import LEAST_LIMIT

Weights = Mapping[str, Any]


def blocks(model: Model) -> Iterator[tuple[Layer, Weights]]:
    """Every block with its weights: the trunk's, then the heads'."""
    yield from zip(model.layers, model.weights.layers, strict=True)
    yield from of_heads(model)


def of_heads(model: Model) -> Iterator[tuple[Layer, Weights]]:
    for head in model.heads:
        yield from head.stack


def windowed_layers(model: Model) -> list[Layer]:
    """The layers of trunk and heads with a window, of those whose keys say of each layer what it has."""
    return [layer for layer, _ in blocks(model) if isinstance(layer.cfg, WindowedConfig) and layer.cfg.n_window]


def _full_layers(model: Model) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer.cfg, WindowedConfig) and not layer.cfg.n_window]


def _differ(model: Model, asked: Callable[[WindowedConfig], float]) -> bool:
    """Whether layers with a window and layers without have another value of something."""
    some, others = windowed_layers(model), _full_layers(model)
    return bool(some and others) and any(asked(a.cfg) != asked(b.cfg) for a in some for b in others)


def _limited(model: Model) -> bool:
    limits = [getattr(layer.ffn_cfg, name, 0.0) for layer, _ in blocks(model) for name in ("clamp", "clamp_shared")
              if "limited" in layer.block.ffn.name or isinstance(layer.cfg, WindowedConfig)]  # fmt: skip
    return max(limits, default=0.0) > LEAST_LIMIT


def _moe(model: Model, asked: Callable[[MoeConfig, Weights], bool] = lambda cfg, w: True) -> bool:
    return any(isinstance(layer.ffn_cfg, MoeConfig) and asked(layer.ffn_cfg, w) for layer, w in blocks(model))


def _delta(model: Model, asked: Callable[[DeltaConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, DeltaConfig) and asked(layer.cfg) for layer in model.layers)


def _latent(model: Model, asked: Callable[[LatentConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, LatentConfig) and asked(layer.cfg) for layer, _ in blocks(model))


def is_sharing(layer: Layer) -> bool:
    """Whether a layer sees the cells that an indexer before it chose."""
    return isinstance(layer.cfg, IndexedConfig) and not layer.cfg.has_indexer


def sources_by_depth(model: Model) -> list[int]:
    """For each layer of an assistant the target's of its kind as far from the end as it is itself, or, where that one
    shares the cells of another, the other."""
    found: list[int] = []
    own = [layer for layer, _ in of_heads(model)]
    for i, layer in enumerate(own):
        n_after = sum(bool(n_window(one)) == bool(n_window(layer)) for one in own[i + 1 :])
        alike = [il for il, one in enumerate(model.layers) if bool(n_window(one)) == bool(n_window(layer))]
        il = alike[-1 - n_after] if n_after < len(alike) else alike[0]
        found.append(il if model.layers[il].cfg.source is None else model.layers[il].cfg.source)
    return found


def n_window(layer: Layer) -> int:
    """Cells that a query of the layer sees, its own among them; 0: all."""
    return int(getattr(layer.cfg, "n_window", 0))


def _compressed(model: Model, asked: Callable[[CompressedConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, CompressedConfig) and asked(layer.cfg) for layer, _ in blocks(model))


def _indexed(model: Model) -> list[IndexedConfig]:
    return [layer.cfg for layer in model.layers if isinstance(layer.cfg, IndexedConfig) and layer.cfg.has_indexer]


def _n_chosen(model: Model) -> list[int]:
    """How many cells, or compressed rows, each indexer lets a token see."""
    chosen = [layer.cfg for layer in model.layers if isinstance(layer.cfg, CompressedConfig) and layer.cfg.has_overlap]
    return [cfg.n_top for cfg in _indexed(model)] + [cfg.n_best for cfg in chosen]


def _shares_later(model: Model) -> bool:
    """Whether a layer shares the choice of another indexer than the first."""
    has_own = [not is_sharing(layer) for layer in model.layers if isinstance(layer.cfg, IndexedConfig)]
    return any(not own and sum(has_own[:i]) > 1 for i, own in enumerate(has_own))


def _has_streams(model: Model) -> bool:
    return model.arch.streams is not None


def _has_own_roots(model: Model) -> bool:
    """Whether what a head reads outside of blocks differs from the trunk's."""

    def is_other(a: Any, b: Any) -> bool:
        return a is not b and not np.array_equal(getattr(a, "raw", a), getattr(b, "raw", b))

    trunk = model.weights.roots
    return any(is_other(w, trunk.get(name)) for head in model.heads for name, w in head.weights.roots.items())


def sharpness(cfg: LatentConfig) -> float:
    """What YaRN makes of a query and of a key: scores have its square (S54)."""
    return sqrt(cfg.scale * sqrt(cfg.n_key / cfg.n_row))


def _has(model: Model, *names: str) -> bool:
    return any(name in w for _, w in blocks(model) for name in names)


def _attends(layer: Layer) -> bool:
    return isinstance(layer.cfg, AttnConfig)


def _is_biased(cfg: MoeConfig, w: Weights) -> bool:
    return "exp_probs_b.bias" in w or "exp_probs_b" in w


def _is_scaled(cfg: MoeConfig) -> bool:
    return cfg.scale not in (0.0, 1.0)


def dense_in_front(model: Model) -> int:
    """How many layers in front are dense, where layers with experts follow; 0: none."""
    is_moe = [isinstance(layer.ffn_cfg, MoeConfig) for layer in model.layers]
    return is_moe.index(True) if any(is_moe) else 0


def _turns_part(model: Model) -> bool:
    return any(_attends(layer) and 0 < layer.cfg.n_rot < layer.cfg.n_embd_head for layer, _ in of_heads(model))


def is_parallel(layer: Layer) -> bool:
    """Whether its mixer and its network stand side by side."""
    return isinstance(layer.block.residual, Parallel)


def is_unturned(layer: Layer) -> bool:
    """Whether it is an attention layer that does not turn."""
    return isinstance(layer.cfg, AttnConfig | WindowedConfig) and not layer.cfg.n_rot


def widest_turn(model: Model) -> int:
    """The dimensions of a head that other layers turn, or its width where none does."""
    cfgs = [layer.cfg for layer, _ in blocks(model) if isinstance(layer.cfg, AttnConfig | WindowedConfig)]
    widths = [cfg.n_embd_head if isinstance(cfg, AttnConfig) else cfg.n_key for cfg in cfgs]
    return max(cfg.n_rot for cfg in cfgs) or min(widths)


def _scans(model: Model, asked: Callable[[SsmConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, SsmConfig) and asked(layer.cfg) for layer in model.layers)


def _is_gateless(cfg: MoeConfig, w: Weights) -> bool:
    return "ffn_up_exps.weight" in w and "ffn_gate_exps.weight" not in w


# A place by its key: what an error names, and whether a model has it.
PLACES: dict[str, tuple[str, Callable[[Model], bool]]] = {
    "experts with a gate": (
        "experts with a gate",
        lambda m: _moe(m, lambda cfg, w: not _is_gateless(cfg, w)),
    ),
    "head experts": (
        "experts in the head and in the trunk's last layer",
        lambda m: _moe(m) and all(isinstance(one.ffn_cfg, MoeConfig) for one in (m.layers[-1], *_heads(m))),
    ),
    "softmax router": ("a router by softmax", lambda m: _moe(m, lambda cfg, w: cfg.gating == "softmax")),
    "sigmoid router": ("a router by sigmoid", lambda m: _moe(m, lambda cfg, w: cfg.gating == "sigmoid")),
    "selection bias": ("a selection bias (exp_probs_b)", lambda m: _moe(m, _is_biased)),
    "groups": ("expert groups", lambda m: _moe(m, lambda cfg, w: cfg.n_group > 1)),
    "norm": ("experts' weights that are renormalised", lambda m: _moe(m, lambda cfg, w: cfg.normalise)),
    "no norm": ("experts' weights that are not renormalised", lambda m: _moe(m, lambda cfg, w: not cfg.normalise)),
    "scale": ("a scale of the experts' weights", lambda m: _moe(m, lambda cfg, w: _is_scaled(cfg))),
    "several experts": ("two experts or more a token", lambda m: _moe(m, lambda cfg, w: cfg.n_used > 1)),
    "shared expert": ("a shared expert", lambda m: _has(m, "ffn_up_shexp.weight")),
    "shared gate": ("a gate of the shared expert", lambda m: _has(m, "ffn_gate_inp_shexp.weight")),
    "dense in front": ("dense layers before those with experts", lambda m: dense_in_front(m) > 0),
    "recurrent state": (
        "recurrent state",
        lambda m: any(not spec.positional for layer in m.layers for spec in layer.state(m.kv_type)),
    ),
    "delta": ("a DeltaNet layer", _delta),
    "tiled heads": (
        "a DeltaNet layer whose value heads take key heads in turn",
        lambda m: _delta(m, lambda cfg: cfg.n_v_head > cfg.n_k_head and not cfg.is_grouped),
    ),
    "grouped heads": (
        "a DeltaNet layer whose key heads are in groups",
        lambda m: _delta(m, lambda cfg: cfg.n_v_head > cfg.n_k_head > 1 and cfg.is_grouped),
    ),
    "one beta and alpha": ("beta and alpha in one projection (ssm_ba)", lambda m: _has(m, "ssm_ba.weight")),
    "attention biases": ("biases of q and k", lambda m: _has(m, "attn_q.bias", "attn_k.bias")),
    "qk norms": ("norms of q and k", lambda m: _has(m, "attn_q_norm.weight")),
    "head qk norms": (
        "norms of q and k in the head",
        lambda m: any("attn_q_norm.weight" in w for _, w in of_heads(m)),
    ),
    "head gate": (
        "an attention gate in the head",
        lambda m: any(layer.kind.name == "gated_attention" for layer, _ in of_heads(m)),
    ),
    "normed rows": ("a head that takes rows after a norm", lambda m: m.own_rows == ("post", "post")),
    "partial rotary": ("a head that turns a part of its dimensions", _turns_part),
    "head rotary": (
        "a head that turns halves of its dimensions",
        lambda m: any(_attends(layer) and layer.cfg.n_rot for layer in _heads(m)),
    ),
    "raw rows": (
        "a head that takes rows before a norm, and can take them after it",
        lambda m: m.own_rows == ("pre", "pre") and m.can_take(replace(m.recipe.contract, hidden="post", chain="post")),
    ),
    "own cells": ("a head with cells of its own", lambda m: all(head.keeps_cells for head in m.heads)),
    "own rows": ("a head that hands on rows as its block makes them", lambda m: not m.has_assistant),
    "input norms": ("norms of what comes into the head", lambda m: all(head.weights.enorm.size for head in m.heads)),
    "assistant": ("an assistant", lambda m: m.has_assistant),
    "assistant of several layers": (
        "an assistant of two layers of a kind, and a target of as many with other cells",
        lambda m: m.has_assistant and sources_by_depth(m) != [layer.cfg.source for layer in _heads(m)],
    ),
    "assistant with a window": (
        "an assistant with a window",
        lambda m: m.has_assistant and any(map(n_window, _heads(m))),
    ),
    "several heads": ("several heads in a chain", lambda m: len(m.heads) > 1),
    "three heads": ("a chain of three heads or more", lambda m: len(m.heads) > 2),
    "sinks beside keys and values": (
        "sinks in layers that keep keys and values",
        lambda m: any("attn_sinks.weight" in w and isinstance(layer.cfg, WindowedConfig) for layer, w in blocks(m)),
    ),
    "gates of heads": (
        "a gate for each attention head",
        lambda m: any("attn_gate.weight" in w and isinstance(layer.cfg, WindowedConfig) for layer, w in blocks(m)),
    ),
    "half rotary": (
        "layers without a window that turn fewer dimensions than those with one",
        lambda m: _differ(m, lambda cfg: cfg.n_rot),
    ),
    "two bases": ("RoPE of another base in layers with a window", lambda m: _differ(m, lambda cfg: cfg.freq_base)),
    "value scale": (
        "a scale of attention's values",
        lambda m: any(isinstance(la.cfg, WindowedConfig) and la.cfg.value_scale not in (0, 1) for la, _ in blocks(m)),
    ),
    "limits": ("a limit of activations after silu", _limited),
    "attention": ("an attention layer", lambda m: _latent(m) or any(_attends(layer) for layer, _ in blocks(m))),
    "latent row": ("attention through a latent row", _latent),
    "absorbed": ("attention through a latent row that all heads share", lambda m: _latent(m, lambda c: c.is_absorbed)),
    "row of another width": (
        "a cached row that is not as wide as a key",
        lambda m: _latent(m, lambda cfg: cfg.n_row != cfg.n_key),
    ),
    "sharpened scores": (
        "attention through a latent row with scores that YaRN sharpens",
        lambda m: _latent(m, lambda cfg: abs(sharpness(cfg) - 1) > 1e-6),
    ),
    "indexer": ("an indexer", lambda m: bool(_n_chosen(m))),
    "indexer of cells": ("an indexer of cells", lambda m: bool(_indexed(m))),
    "several chosen": (
        "an indexer that chooses two cells or more",
        lambda m: any(n > 1 for n in _n_chosen(m)),
    ),
    "shared choice": (
        "layers that share what an indexer before them chose",
        lambda m: any(is_sharing(layer) for layer in m.layers),
    ),
    "later shared choice": ("layers that share what a later indexer than the first chose", _shares_later),
    "sinks": ("sinks", lambda m: _has(m, "attn_sinks.weight")),
    "window": ("a window of two cells or more", lambda m: any(n_window(layer) > 1 for layer, _ in blocks(m))),
    "head window": ("a window in the head", lambda m: any(map(n_window, _heads(m)))),
    "compressed rows": ("compressed rows", lambda m: _compressed(m, lambda cfg: cfg.ratio > 0)),
    "turned values": ("values that are turned by position", _compressed),
    "clamps": (
        "experts whose gate is clamped before silu",
        lambda m: any(
            "clamped_experts" in layer.block.ffn.entries and layer.ffn_cfg.clamp > LEAST_LIMIT for layer, _ in blocks(m)
        ),
    ),
    "layer norms": ("layer norms in place of RMS norms", lambda m: m.config.has_layer_norms),
    "head layer norm": (
        "a head whose last norm alone is a layer norm",
        lambda m: bool(m.heads) and m.config.head_norm_eps is not None,
    ),
    "layers without RoPE": ("attention layers that do not turn", lambda m: any(map(is_unturned, m.layers))),
    "head without RoPE": ("a head that does not turn", lambda m: any(map(is_unturned, _heads(m)))),
    "paired neighbours": (
        "layers that turn neighbours",
        lambda m: any(
            isinstance(la.cfg, WindowedConfig) and la.cfg.is_interleaved and la.cfg.n_rot for la, _ in blocks(m)
        ),
    ),
    "parallel blocks": ("attention and network side by side", lambda m: any(is_parallel(la) for la, _ in blocks(m))),
    "scaled logits": (
        "logits that are scaled, and a head",
        lambda m: bool(m.heads) and m.config.logit_scale not in (0, 1),
    ),
    "scan": ("a Mamba-2 layer", _scans),
    "several scan groups": (
        "a Mamba-2 layer with several groups of heads",
        lambda m: _scans(m, lambda cfg: 1 < cfg.n_group < cfg.n_head),
    ),
    "experts without a gate": ("experts without a gate", lambda m: _moe(m, _is_gateless)),
    "averaged experts": (
        "experts and a shared expert whose mean is taken",
        lambda m: _moe(m, lambda cfg, w: cfg.sum_scale not in (0, 1) and "ffn_up_shexp.weight" in w),
    ),
    "streams": ("several residual streams", _has_streams),
    "head streams": ("a head of several residual streams", lambda m: _has_streams(m) and bool(m.heads)),
    "own hc_head": ("an MTP block whose output_hc_* are not the trunk's", _has_own_roots),
    "log multiplier": (
        "attention through a latent row with rope.scaling.yarn_log_multiplier",
        lambda m: _latent(m, lambda cfg: bool(cfg.rope_scaling.ext_factor and cfg.rope_scaling.log_multiplier)),
    ),
}


# Entries that no layer calls but the model itself, or any.
_EVERYWHERE = frozenset(
    {"mul_mat", "get_rows", "rms_norm", "rope_table", "store_kv", "head", "mtp_norm", "mtp_concat", "argmax",
     "top_candidates"}
)  # fmt: skip
# Those that several residual streams call, around layers and at both ends of a head.
_OF_STREAMS = frozenset(
    {"connect", "leave_streams", "streams_input", "stream_weights", "head_weights", "read_streams", "write_streams"}
)  # fmt: skip
# Those at both ends of an assistant.
_OF_ASSISTANTS = frozenset({"assistant_input", "assistant_row", "scaled_embedding"})


def idle_entries(model: Model, replaces: tuple[str, ...]) -> str | None:
    """In words the first of these entries where the model calls none of them; None: it calls one, or nothing says it.

    replaces   "ops.x", "mtp_ops.x" (of the head alone), or what is no entry of the table
    """
    found = [name.split(".") for name in replaces if name.startswith(("ops.", "mtp_ops."))]
    if not found or len(found) < len(replaces):
        return None
    for table, name in found:
        layers = [layer for layer, _ in (of_heads(model) if table == "mtp_ops" else blocks(model))]
        kinds = [kind for layer in layers for kind in (layer.block.mixer, layer.block.ffn)]
        if name in _EVERYWHERE or any(not kind.entries for kind in kinds):
            return None
        if name == "mtp_input" and all(head.sheet.enter is None for head in model.heads):
            return None
        if (name in _OF_STREAMS and _has_streams(model)) or (name in _OF_ASSISTANTS and model.has_assistant):
            return None
        if any(name == entry or name in PARTS[entry] for kind in kinds for entry in kind.entries):
            return None
    return f"a layer that calls {found[0][1]}"


def _heads(model: Model) -> list[Layer]:
    return [layer for layer, _ in of_heads(model)]


def lacking(model: Model, places: tuple[str, ...]) -> str | None:
    """What the model lacks of these places, in words; None: nothing."""
    return next((words for words, is_there in (PLACES[place] for place in places) if not is_there(model)), None)
