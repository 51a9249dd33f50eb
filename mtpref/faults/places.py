"""Where a fault can be: what a model must have for it to do anything.

Owns the questions that are asked of a model, each with the words for a user who asks for a fault elsewhere.
"""

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import Any

from mtpref.engine.model import Model
from mtpref.engine.model.model import Layer
from mtpref.spec.config import AttnConfig, DeltaConfig, LatentConfig, MoeConfig
from mtpref.spec.ops import PARTS

Weights = Mapping[str, Any]


def blocks(model: Model) -> Iterator[tuple[Layer, Weights]]:
    """Every block with its weights: the trunk's, then the heads'."""
    yield from zip(model.layers, model.weights.layers, strict=True)
    yield from of_heads(model)


def of_heads(model: Model) -> Iterator[tuple[Layer, Weights]]:
    for head in model.heads:
        yield from head.stack


def _moe(model: Model, asked: Callable[[MoeConfig, Weights], bool] = lambda cfg, w: True) -> bool:
    return any(isinstance(layer.ffn_cfg, MoeConfig) and asked(layer.ffn_cfg, w) for layer, w in blocks(model))


def _delta(model: Model, asked: Callable[[DeltaConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, DeltaConfig) and asked(layer.cfg) for layer in model.layers)


def _latent(model: Model, asked: Callable[[LatentConfig], bool] = lambda cfg: True) -> bool:
    return any(isinstance(layer.cfg, LatentConfig) and asked(layer.cfg) for layer, _ in blocks(model))


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
    return any(_attends(layer) and layer.cfg.n_rot < layer.cfg.n_embd_head for layer, _ in of_heads(model))


# A place by its key: what an error names, and whether a model has it.
PLACES: dict[str, tuple[str, Callable[[Model], bool]]] = {
    "experts": ("an experts' network", _moe),
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
    "head rotary": ("a head that turns halves of its dimensions", lambda m: any(map(_attends, _heads(m)))),
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
        if any(name == entry or name in PARTS[entry] for kind in kinds for entry in kind.entries):
            return None
    return f"a layer that calls {found[0][1]}"


def _heads(model: Model) -> list[Layer]:
    return [layer for layer, _ in of_heads(model)]


def lacking(model: Model, places: tuple[str, ...]) -> str | None:
    """What the model lacks of these places, in words; None: nothing."""
    return next((words for words, is_there in (PLACES[place] for place in places) if not is_there(model)), None)
