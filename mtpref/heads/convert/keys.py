"""GGUF keys of the hyper-parameters, in the order in which llama.cpp's converter writes them.

Facts: llama.cpp conversion/base.py (set_gguf_parameters) and conversion/qwen.py.
"""

from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import describe
from mtpref.heads.hf import TextConfig
from mtpref.heads.hf.config import Rope

Keys = list[tuple[str, Any, str]]
ARCH = "qwen35"
DEFAULT_SECTIONS = (11, 11, 10, 0)
DEFAULT_ROTARY = 0.25
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
    """
    keys: Keys = [("block_count", config.num_hidden_layers + n_mtp, "u32")]
    if config.max_position_embeddings is not None:
        keys.append(("context_length", config.max_position_embeddings, "u32"))
    keys += [
        ("embedding_length", config.hidden_size, "u32"),
        ("feed_forward_length", config.intermediate_size, "u32"),
        ("attention.head_count", config.num_attention_heads, "u32"),
        ("attention.head_count_kv", config.num_key_value_heads, "u32"),
    ]
    keys += _rope_scaling(config.rope)
    sections = config.rope.mrope_section
    if sections is not None:
        keys.append(("rope.dimension_sections", [*sections, 0, 0, 0][:4], "arr:i32"))
    if config.rope.rope_theta is not None:
        keys.append(("rope.freq_base", config.rope.rope_theta, "f32"))
    keys.append(("attention.layer_norm_rms_epsilon", config.rms_norm_eps, "f32"))
    if config.head_dim is not None:
        keys += [("attention.key_length", config.head_dim, "u32"), ("attention.value_length", config.head_dim, "u32")]
    prefixed: Keys = [(f"{ARCH}.{key}", value, kind) for key, value, kind in keys]
    prefixed.append(("general.file_type", file_type, "u32"))
    return prefixed + [(f"{ARCH}.{key}", value, kind) for key, value, kind in _hybrid(config, n_mtp)]


def _hybrid(config: TextConfig, n_mtp: int) -> Keys:
    keys: Keys = [("nextn_predict_layers", n_mtp, "u32")] if n_mtp else []
    keys += [
        ("ssm.conv_kernel", config.linear_conv_kernel_dim, "u32"),
        ("ssm.state_size", config.linear_key_head_dim, "u32"),
        ("ssm.group_count", config.linear_num_key_heads, "u32"),
        ("ssm.time_step_rank", config.linear_num_value_heads, "u32"),
        ("ssm.inner_size", config.linear_value_head_dim * config.linear_num_value_heads, "u32"),
    ]
    if config.recurrent is not None:
        keys.append(("attention.recurrent_layers", [*config.recurrent, *[False] * n_mtp], "arr:bool"))
    keys.append(("full_attention_interval", config.full_attention_interval, "u32"))
    factor = config.rope.partial_rotary_factor or DEFAULT_ROTARY
    keys.append(("rope.dimension_count", int(config.rope_dim * factor), "u32"))
    if config.rope.mrope_section is None:
        keys.append(("rope.dimension_sections", list(DEFAULT_SECTIONS), "arr:i32"))
    return keys


def _rope_scaling(rope: Rope) -> Keys:
    kind = rope.rope_type
    if kind in (None, "default"):
        return []
    if kind not in ("linear", "yarn") or rope.factor is None:
        raise MtprefError(f"config.json: rope_type is {describe(kind)} with factor {describe(rope.factor)}, expected "
                          "default, or linear or yarn with a factor")  # fmt: skip
    keys: Keys = [("rope.scaling.type", kind, "str"), ("rope.scaling.factor", rope.factor, "f32")]
    if kind == "linear":
        return keys
    original = rope.original_max_position_embeddings
    if original is None:
        raise MtprefError("config.json: original_max_position_embeddings is missing, expected a count (rope_type yarn "
                          "needs it)")  # fmt: skip
    keys.append(("rope.scaling.original_context_length", original, "u32"))
    for names, key in _YARN:
        value = next((x for x in (getattr(rope, name) for name in names) if x is not None), None)
        if value is not None:
            keys.append((key, value, "f32"))
    return keys
