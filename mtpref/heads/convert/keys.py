"""GGUF keys of the hyper-parameters, in the order in which llama.cpp's converter writes them.

Facts: llama.cpp conversion/base.py (set_gguf_parameters), conversion/qwen.py, glm.py, hunyuan.py and deepseek.py.
"""

from collections.abc import Mapping
from typing import Any

from mtpref.architectures import Architecture, Hyper
from mtpref.base.errors import MtprefError
from mtpref.base.typed import describe
from mtpref.heads.hf import TextConfig
from mtpref.heads.hf.config import Rope

Keys = list[tuple[str, Any, str]]
# What the converter writes for every architecture, in its order (conversion/base.py).
FIRST = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "rope.freq_base", "rope.freq_base_swa", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count", "expert_gating_func",
    "attention.key_length", "attention.value_length",
)  # fmt: skip
FILE_TYPE = "general.file_type"
# Written there only where config.json names it; converters of single architectures write it later.
WIDTHS = ("attention.key_length", "attention.value_length")
GATING = "expert_gating_func"
# rope_parameters key -> GGUF key of YaRN's own settings
_YARN = (
    (("extrapolation_factor",), "rope.scaling.yarn_ext_factor"),
    (("attention_factor", "attn_factor"), "rope.scaling.yarn_attn_factor"),
    (("beta_fast",), "rope.scaling.yarn_beta_fast"),
    (("beta_slow",), "rope.scaling.yarn_beta_slow"),
)


def hyper_parameters(config: TextConfig, n_mtp: int, file_type: int) -> Keys:
    """The keys below the architecture's prefix, and general.file_type among them as llama.cpp has it.

    n_mtp   MTP blocks of the file, or of the trunk that a stand-alone head belongs to
    Order   FIRST, RoPE before its base; file_type; the sheet's own, with those of layers and of heads where it says
    """
    sheet, found = config.sheet, {**config.found, "n_written_heads": n_mtp}
    by_key = {hyper.key: hyper for hyper in sheet.hypers}
    keys: Keys = []
    is_late = sheet.hf is not None and config.name in sheet.hf.without_head_dim and "head_dim" not in found
    late = {GATING: sheet.hf is None or sheet.hf.gating_field not in found} | dict.fromkeys(WIDTHS, is_late)
    late |= dict.fromkeys(sheet.hf.late if sheet.hf else (), True)
    first = [key for key in FIRST if not late.get(key)]
    for key in first:
        if key == "rope.freq_base":
            keys += [*_rope_scaling(config.rope, sheet), *_sections(config.rope)]
        keys += _written(by_key[key], found, n_mtp) if key in by_key else []
    keys.append((FILE_TYPE, file_type, "u32"))
    keys += _of_heads(sheet, FILE_TYPE, n_mtp)
    for hyper in sheet.hypers:
        if hyper.key not in (*first, *(key for key, _, _ in keys)):
            keys += _written(hyper, found, n_mtp)
        if sheet.hf is not None and hyper.key == sheet.hf.layers_after:
            keys += sheet.layers.keys_of(found, config.n_layer, n_mtp)
        keys += _of_heads(sheet, hyper.key, n_mtp)
    prefix = f"{sheet.name}."
    return [(key if key == FILE_TYPE else prefix + key, value, kind) for key, value, kind in keys]


def _written(hyper: Hyper, found: Mapping[str, Any], n_mtp: int) -> Keys:
    value = hyper.of_checkpoint(found)
    if value is None:
        return []
    value = value + n_mtp if hyper.key == "block_count" else list(value) if isinstance(value, tuple) else value
    if hyper.type == "f32/layer" and not isinstance(value, list):
        return [(hyper.key, [value] * (found["num_hidden_layers"] + n_mtp), "arr:f32")]
    if hyper.type == "i32/layer":
        n_lacking = max(0, found["num_hidden_layers"] + n_mtp - len(value))  # a head's, which is 0
        value = [*value, *[0] * min(n_lacking, n_mtp)]
    return [(hyper.key, value, _kind(hyper.type, value))]


def _kind(kind: str, value: Any) -> str:
    """The kind of a key that may be an array with an item for each block."""
    base, _, is_each = kind.partition("/")
    if not is_each or not isinstance(value, list):
        return base
    return "arr:f32" if kind == "f32/layer" else "arr:bool" if all(isinstance(x, bool) for x in value) else "arr:i32"


def _of_heads(sheet: Architecture, key: str, n_mtp: int) -> Keys:
    is_due = sheet.hf is not None and key == sheet.hf.heads_after and n_mtp > 0
    return [("nextn_predict_layers", n_mtp, "u32")] if is_due else []


def _sections(rope: Rope) -> Keys:
    """M-RoPE's sections where the checkpoint has them; a default of the sheet's comes later."""
    sections = rope.mrope_section
    return [] if sections is None else [("rope.dimension_sections", [*sections, 0, 0, 0][:4], "arr:i32")]


def _rope_scaling(rope: Rope, sheet: Architecture) -> Keys:
    kind = rope.rope_type
    if kind in (None, "default") or (
        kind in ("llama3", "proportional") and sheet.hf is not None and sheet.hf.factors is not None
    ):
        return []  # a tensor of factors, no keys
    if kind not in ("linear", "yarn") or rope.factor is None:
        raise MtprefError(
            f"config.json: rope_type is {describe(kind)} with factor {describe(rope.factor)}, expected "
            "default, or linear or yarn with a factor"
        )
    keys: Keys = [("rope.scaling.type", kind, "str"), ("rope.scaling.factor", rope.factor, "f32")]
    if kind == "linear":
        return keys
    original = rope.original_max_position_embeddings
    if original is None:
        raise MtprefError(
            "config.json: original_max_position_embeddings is missing, expected a count (rope_type yarn needs it)"
        )
    keys.append(("rope.scaling.original_context_length", original, "u32"))
    for names, key in _YARN:
        value = next((x for x in (getattr(rope, name) for name in names) if x is not None), None)
        if value is not None:
            keys.append((key, value, "f32"))
    return keys
