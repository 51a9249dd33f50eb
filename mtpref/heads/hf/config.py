"""config.json of a Qwen3.5 text model, or the text part of a multimodal one, checked.

Owns defaults and refusals. Names are config.json's own. Read next: heads/convert/keys.py, which makes GGUF keys of it.
Source: transformers' Qwen3_5TextConfig; llama.cpp conversion/base.py and conversion/qwen.py for the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mtpref.architectures import ARCHITECTURES as SHEETS
from mtpref.architectures import Architecture
from mtpref.base.errors import MtprefError
from mtpref.base.typed import Sized, Within, describe, read_fields
from mtpref.files.gguf import printable

MAX_COUNT = 1 << 24
MAX_LAYERS = 4096


@dataclass(frozen=True)
class TextConfig:
    """What a conversion reads.

    sheet    the data sheet of the architecture that the checkpoint is of
    found    config.json's fields by name, those of rope_parameters among them, as far as a conversion reads them; what
             is absent is not there. n_embd_head: the width of one head
    n_heads  the MTP blocks that it declares; None where it declares nothing
    """

    sheet: Architecture
    found: dict[str, Any]
    rope: Rope
    n_heads: int | None

    @property
    def n_layer(self) -> int:
        """Trunk layers."""
        return int(self.found["num_hidden_layers"])

    @property
    def vocab_size(self) -> int | None:
        return self.found.get("vocab_size")

    @property
    def values(self) -> dict[str, int]:
        """Counts by the data sheet's names, n_layer and n_vocab beside them."""
        counts = {h.name: h.of_checkpoint(self.found) for h in self.sheet.hypers if h.type.startswith("u32")}
        counts |= {"n_layer": self.n_layer, "n_vocab": self.vocab_size, "n_embd_head": self.found["n_embd_head"]}
        return {name: value for name, value in counts.items() if value is not None}


Size = Annotated[int, Within(1, MAX_COUNT)]
Positive = Annotated[float, Within(1e-38, 1e38)]  # what float32 holds
U32 = (1 << 32) - 1


@dataclass(frozen=True)
class Rope:
    """rope_parameters, as far as a conversion reads them."""

    rope_type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Annotated[float, Within(1e-6, 1)] | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Annotated[int, Within(1, U32)] | None = None
    mrope_section: Annotated[list[Annotated[int, Within(0, (1 << 16) - 1)]], Sized(1, 4)] | None = None
    extrapolation_factor: Annotated[float, Within(-1e38, 1e38)] | None = None
    attention_factor: Annotated[float, Within(-1e38, 1e38)] | None = None
    attn_factor: Annotated[float, Within(-1e38, 1e38)] | None = None
    beta_fast: Annotated[float, Within(-1e38, 1e38)] | None = None
    beta_slow: Annotated[float, Within(-1e38, 1e38)] | None = None


@dataclass(frozen=True)
class _Fields:
    """The fields of the text part, as they stand."""

    num_hidden_layers: Annotated[int, Within(1, MAX_LAYERS)]
    hidden_size: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    linear_conv_kernel_dim: Size
    linear_key_head_dim: Size
    linear_num_key_heads: Size
    linear_num_value_heads: Size
    linear_value_head_dim: Size
    mtp_num_hidden_layers: Annotated[int, Within(0, MAX_COUNT)] | None = None
    max_position_embeddings: Annotated[int, Within(0, U32)] | None = None
    head_dim: Annotated[int, Within(0, MAX_COUNT)] | None = None
    rms_norm_eps: Positive = 1e-6
    full_attention_interval: Annotated[int, Within(0, MAX_COUNT)] = 4
    vocab_size: Annotated[int, Within(0, MAX_COUNT)] | None = None
    layer_types: list[Literal["linear_attention", "full_attention"]] | None = None


def text_config(config: dict[str, Any], label: str) -> TextConfig:
    """The text model's configuration. A null stands for a field that is not there.

    label    what a refusal names: the folder
    Errors   MtprefError: another architecture, a quantised checkpoint, a number that is missing or out of range
    """
    sheet = _sheet_of(config, label)
    inner = config.get("text_config")
    found = {**config, **inner} if isinstance(inner, dict) else config
    taken: _Fields = read_fields(_Fields, _without_null(found), f"{label}: config.json")
    _check_widths(taken, f"{label}: config.json")
    kinds = taken.layer_types
    n_layer = taken.num_hidden_layers
    if kinds is not None and len(kinds) != n_layer:
        raise MtprefError(
            f"{label}: config.json: layer_types has {len(kinds)} entries, expected {n_layer} of "
            "linear_attention, full_attention"
        )
    rope = _rope(found, f"{label}: config.json: rope_parameters")
    given = _without_null({**vars(rope), **vars(taken)})
    given["n_embd_head"] = taken.head_dim or taken.hidden_size // taken.num_attention_heads
    return TextConfig(sheet, given, rope, taken.mtp_num_hidden_layers)


def _without_null(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _sheet_of(config: dict[str, Any], label: str) -> Architecture:
    """The data sheet of a float checkpoint's architecture. Errors: MtprefError for any other"""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = config.get("model_type")
    known = {sheet: sheet.hf for sheet in SHEETS.values() if sheet.hf}
    fits = [s for s, hf in known.items() if (name in hf.classes if name is not None else kind in hf.model_types)]
    if not fits:
        found = printable(repr(name if name is not None else kind))
        classes = ", ".join(name for hf in known.values() for name in hf.classes)
        raise MtprefError(
            f"{label}: config.json names the architecture {found}, expected one of {classes}; llama.cpp's converter "
            "may know it"
        )
    for key in ("quantization_config", "compression_config"):
        quantised = config.get(key)
        if quantised:
            told = quantised.get("quant_method", quantised.get("quant_algo")) if type(quantised) is dict else quantised
            method = describe(told)
            raise MtprefError(f"{label}: config.json has {key} ({method}), expected a checkpoint of float tensors; "
                              "convert the original one and quantise the GGUF")  # fmt: skip
    return fits[0]


def _check_widths(taken: _Fields, where: str) -> None:
    """Refuse heads that are wider together than any model: they size what is planned."""
    for heads, width in (
        ("num_attention_heads", taken.head_dim),
        ("num_key_value_heads", taken.head_dim),
        ("linear_num_key_heads", taken.linear_key_head_dim),
        ("linear_num_value_heads", taken.linear_value_head_dim),
    ):
        n = getattr(taken, heads)
        if n * (width or 1) > MAX_COUNT:
            raise MtprefError(f"{where}: {n} {heads} of {width} values, expected at most {MAX_COUNT} values together")


def _rope(found: dict[str, Any], where: str) -> Rope:
    """rope_parameters (or rope_scaling of older files), with what stands beside it in the same file."""
    given = found.get("rope_parameters", found.get("rope_scaling")) or {}
    if not isinstance(given, dict):
        raise MtprefError(f"{where} is {describe(given)}, expected an object")
    beside = {
        key: found.get(key) for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    }
    rope = _without_null({**beside, **given})
    rope.setdefault("rope_type", rope.get("type"))
    read_rope: Rope = read_fields(Rope, rope, where)
    return read_rope
