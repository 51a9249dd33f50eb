"""config.json of a Qwen3.5 text model, or the text part of a multimodal one, checked.

Owns defaults and refusals. Names are config.json's own. Read next: mtpref/convert/keys.py, which makes GGUF keys of it.
Source: transformers' Qwen3_5TextConfig; llama.cpp conversion/base.py and conversion/qwen.py for the defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mtpref.architectures import ARCHITECTURES as SHEETS
from mtpref.architectures import Architecture
from mtpref.errors import MtprefError
from mtpref.gguf import printable

KINDS = {"linear_attention": True, "full_attention": False}
MAX_COUNT = 1 << 24
MAX_LAYERS = 4096


@dataclass(frozen=True)
class TextConfig:
    """What a conversion reads. `recurrent` has a flag for each trunk layer, or is None where the config has no list."""

    num_hidden_layers: int
    mtp_num_hidden_layers: int | None
    max_position_embeddings: int | None
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None
    rms_norm_eps: float
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_value_head_dim: int
    recurrent: list[bool] | None
    full_attention_interval: int
    rope: dict[str, Any]
    vocab_size: int | None
    tie_word_embeddings: bool

    @property
    def sheet(self) -> Architecture:
        """The data sheet of the architecture that the checkpoint is of."""
        return SHEETS["qwen35"]

    @property
    def values(self) -> dict[str, int]:
        """Counts by the data sheet's names, n_layer and n_vocab beside them."""
        fields = {h.name: h.hf for h in self.sheet.hypers if isinstance(h.hf, str)}
        found = {name: getattr(self, field, None) for name, field in fields.items()}
        found |= {"n_layer": self.num_hidden_layers, "n_vocab": self.vocab_size, "n_embd_head": self.rope_dim}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def rope_dim(self) -> int:
        """The width of one head, as the rotation sees it."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def text_config(config: dict[str, Any], label: str) -> TextConfig:
    """The text model's configuration.

    label    what a refusal names: the folder
    Errors   MtprefError: another architecture, a quantised checkpoint, a number that is missing or out of range
    """
    _check_kind(config, label)
    inner = config.get("text_config")
    found = {**config, **inner} if isinstance(inner, dict) else config
    take = _Taker(found, f"{label}: config.json")
    take.widths()
    n_layer = take.count("num_hidden_layers", MAX_LAYERS)
    return TextConfig(
        num_hidden_layers=n_layer,
        mtp_num_hidden_layers=take.optional("mtp_num_hidden_layers"),
        max_position_embeddings=take.optional("max_position_embeddings", (1 << 32) - 1),
        hidden_size=take.count("hidden_size"),
        intermediate_size=take.count("intermediate_size"),
        num_attention_heads=take.count("num_attention_heads"),
        num_key_value_heads=take.count("num_key_value_heads"),
        head_dim=take.optional("head_dim"),
        rms_norm_eps=take.number("rms_norm_eps", 1e-6),
        linear_conv_kernel_dim=take.count("linear_conv_kernel_dim"),
        linear_key_head_dim=take.count("linear_key_head_dim"),
        linear_num_key_heads=take.count("linear_num_key_heads"),
        linear_num_value_heads=take.count("linear_num_value_heads"),
        linear_value_head_dim=take.count("linear_value_head_dim"),
        recurrent=_recurrent(found, n_layer, label),
        full_attention_interval=take.optional("full_attention_interval") or 4,
        rope=_rope(found, label),
        vocab_size=take.optional("vocab_size"),
        tie_word_embeddings=found.get("tie_word_embeddings") is True,
    )


def _check_kind(config: dict[str, Any], label: str) -> None:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = config.get("model_type")
    known = [sheet.hf for sheet in SHEETS.values() if sheet.hf]
    if not any(name in hf.classes if name is not None else kind in hf.model_types for hf in known):
        found = printable(repr(name if name is not None else kind))
        classes = ", ".join(name for hf in known for name in hf.classes)
        raise MtprefError(
            f"{label}: config.json names the architecture {found}, expected one of {classes}; llama.cpp's converter "
            "may know it"
        )
    for key in ("quantization_config", "compression_config"):
        quantised = config.get(key)
        if isinstance(quantised, dict):
            method = printable(repr(quantised.get("quant_method", quantised.get("quant_algo"))))
            raise MtprefError(f"{label}: config.json has {key} ({method}), expected a checkpoint of float tensors; "
                              "convert the original one and quantise the GGUF")  # fmt: skip


class _Taker:
    """Numbers out of a JSON object, each refused by its name."""

    def __init__(self, found: dict[str, Any], where: str) -> None:
        self.found, self.where = found, where

    def count(self, key: str, most: int = MAX_COUNT) -> int:
        value = self.optional(key, most)
        if not value:
            raise MtprefError(f"{self.where}: {key} is {printable(repr(self.found.get(key)))}, expected a count from 1")
        return value

    def optional(self, key: str, most: int = MAX_COUNT) -> int | None:
        value = self.found.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value <= most:
            raise MtprefError(f"{self.where}: {key} is {printable(repr(value))}, expected a count of at most {most}")
        return value

    def widths(self) -> None:
        """Refuse heads that are wider together than any model: they size what is planned."""
        for heads, width in (
            ("num_attention_heads", self.optional("head_dim")),
            ("num_key_value_heads", self.optional("head_dim")),
            ("linear_num_key_heads", self.count("linear_key_head_dim")),
            ("linear_num_value_heads", self.count("linear_value_head_dim")),
        ):
            if self.count(heads) * (width or 1) > MAX_COUNT:
                raise MtprefError(f"{self.where}: {self.found[heads]} {heads} of {width} values, expected at most "
                                  f"{MAX_COUNT} values together")  # fmt: skip

    def number(self, key: str, default: float) -> float:
        value = self.found.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise MtprefError(f"{self.where}: {key} is {printable(repr(value))}, expected a positive number")
        return float(value)


def _recurrent(found: dict[str, Any], n_layer: int, label: str) -> list[bool] | None:
    kinds = found.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != n_layer or not all(k in KINDS for k in kinds if isinstance(k, str)):
        raise MtprefError(f"{label}: config.json: layer_types is {printable(repr(kinds))}, expected {n_layer} of "
                          f"{', '.join(KINDS)}")  # fmt: skip
    if not all(isinstance(kind, str) for kind in kinds):
        raise MtprefError(f"{label}: config.json: layer_types holds what is no text, expected {', '.join(KINDS)}")
    return [KINDS[kind] for kind in kinds]


def _rope(found: dict[str, Any], label: str) -> dict[str, Any]:
    """rope_parameters (or rope_scaling of older files), with what stands beside it in the same file."""
    given = found.get("rope_parameters", found.get("rope_scaling")) or {}
    if not isinstance(given, dict):
        raise MtprefError(f"{label}: config.json: rope_parameters is {printable(repr(given))}, expected an object")
    rope = dict(given)
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if key not in rope and found.get(key) is not None:
            rope[key] = found[key]
    if "rope_type" not in rope and rope.get("type") is not None:
        rope["rope_type"] = rope["type"]
    take = _Taker(rope, f"{label}: config.json: rope_parameters")
    for key in ("rope_theta", "partial_rotary_factor", "factor"):
        if rope.get(key) is not None:
            rope[key] = take.number(key, 1.0)
    sections = rope.get("mrope_section")
    if sections is not None and not (
        isinstance(sections, list)
        and 1 <= len(sections) <= 4
        and all(type(n) is int and 0 <= n < 1 << 16 for n in sections)
    ):
        raise MtprefError(f"{label}: config.json: mrope_section is {printable(repr(sections))}, expected 1 to 4 counts")
    return rope
