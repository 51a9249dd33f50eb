"""config.json of a text model, or the text part of a multimodal one, checked.

Owns kinds, limits and refusals; which fields an architecture cannot do without, and what stands for those that it can,
its data sheet says. Names are config.json's own. Read next: heads/convert/keys.py, which makes GGUF keys of it.
Source: transformers' configurations; llama.cpp conversion/base.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_type_hints

from mtpref.architectures import ARCHITECTURES as SHEETS
from mtpref.architectures import Architecture, Block, assistant_of
from mtpref.base.errors import MtprefError
from mtpref.base.typed import Sized, Within, describe, name_of, read_fields
from mtpref.files.gguf import printable

MAX_COUNT = 1 << 24
MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16


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
    name: str = ""  # config.json's class

    @property
    def n_layer(self) -> int:
        """Trunk layers."""
        return int(self.found["num_hidden_layers"])

    @cached_property
    def blocks(self) -> tuple[Block, ...] | None:
        """The trunk's blocks, where config.json alone says which they are."""
        return self.sheet.layers.of_checkpoint(self.found, self.n_layer)

    @property
    def vocab_size(self) -> int | None:
        return self.found.get("vocab_size")

    @property
    def values(self) -> dict[str, int]:
        """Counts by the data sheet's names, n_layer and n_vocab beside them."""
        counts = {h.name: h.of_checkpoint(self.found) for h in self.sheet.hypers if h.type.startswith("u32")}
        counts |= {"n_layer": self.n_layer, "n_vocab": self.vocab_size, "n_embd_head": self.found["n_embd_head"]}
        return {name: value for name, value in counts.items() if value is not None}

    def values_at(self, il: int) -> dict[str, int]:
        """`values`, each as block il has it, which may be a head's."""
        found = {**self.found, "n_written_heads": max(0, il - self.n_layer + 1)}
        counts = {h.name: h.of_checkpoint(found) for h in self.sheet.hypers if h.type.startswith("u32")}
        return self.values | {name: x[il] for name, x in counts.items() if isinstance(x, list) and il < len(x)}


Size = Annotated[int, Within(1, MAX_COUNT)]
Count = Annotated[int, Within(0, MAX_COUNT)]
Experts = Annotated[int, Within(1, MAX_EXPERTS)]
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
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    rope_theta_windowed: Positive | None = None  # the second of a list of bases: that of layers with a window
    mscale: Annotated[float, Within(0, 1e6)] | None = None
    mscale_all_dim: Annotated[float, Within(0, 1e6)] | None = None


@dataclass(frozen=True)
class _Fields:
    """The fields of the text part, as they stand, of every architecture."""

    num_hidden_layers: Annotated[int, Within(1, MAX_LAYERS)] | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    linear_conv_kernel_dim: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_value_head_dim: Size | None = None
    mtp_num_hidden_layers: Count | None = None
    num_nextn_predict_layers: Count | None = None
    max_position_embeddings: Annotated[int, Within(0, U32)] | None = None
    head_dim: Count | None = None
    rms_norm_eps: Positive | None = None
    layer_norm_eps: Positive | None = None
    logit_scale: Annotated[float, Within(-1e6, 1e6)] | None = None
    expert_selection_fn: Literal["sigmoid", "softmax"] | None = None
    prefix_dense_intermediate_size: Size | None = None
    hybrid_override_pattern: str | None = None
    layers_block_type: list[str] | None = None
    conv_kernel: Annotated[int, Within(2, 64)] | None = None
    ssm_state_size: Size | None = None
    n_groups: Size | None = None
    mamba_num_heads: Size | None = None
    mamba_head_dim: Size | None = None
    moe_shared_expert_intermediate_size: Size | None = None
    moe_latent_size: Size | None = None
    layer_norm_epsilon: Positive | None = None
    layer_group_size: Annotated[int, Within(1, MAX_LAYERS)] | None = None
    short_conv_kernel_size: Annotated[int, Within(2, 64)] | None = None
    no_kda_lora: bool | None = None
    kda_safe_gate: bool | None = None
    kda_lower_bound: Annotated[float, Within(-1e4, -1e-6)] | None = None
    gated_attention_proj_granularity_type: str | None = None
    score_function: Literal["sigmoid", "softmax", "sqrtsoftplus"] | None = None
    expert_swiglu_limit_list: list[Annotated[float, Within(0, 1e6)] | None] | None = None
    share_expert_swiglu_limit_list: list[Annotated[float, Within(0, 1e6)] | None] | None = None
    full_attention_interval: Count | None = None
    vocab_size: Count | None = None
    layer_types: list[Literal["linear_attention", "full_attention"]] | None = None
    num_experts: Experts | None = None
    n_routed_experts: Experts | None = None
    num_experts_per_tok: Experts | None = None
    n_group: Experts | None = None
    topk_group: Experts | None = None
    moe_intermediate_size: Size | None = None
    shared_expert_intermediate_size: Size | None = None
    n_shared_experts: Experts | None = None
    num_shared_experts: Experts | None = None
    first_k_dense_replace: Annotated[int, Within(0, MAX_LAYERS)] | None = None
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    routed_scaling_factor: Positive | None = None
    router_scaling_factor: Positive | None = None
    norm_topk_prob: bool | None = None
    route_norm: bool | None = None
    scoring_func: Literal["sigmoid", "softmax", "sqrtsoftplus"] | None = None
    q_lora_rank: Size | None = None
    kv_lora_rank: Size | None = None
    qk_rope_head_dim: Size | None = None
    qk_nope_head_dim: Size | None = None
    v_head_dim: Size | None = None
    sliding_window: Size | None = None
    swiglu_limit: Annotated[float, Within(0, 1e6)] | None = None
    index_n_heads: Size | None = None
    index_head_dim: Size | None = None
    index_topk: Size | None = None
    o_groups: Size | None = None
    o_lora_rank: Size | None = None
    compress_ratios: list[Annotated[int, Within(0, 1 << 16)]] | None = None
    compress_rope_theta: Positive | None = None
    hc_mult: Annotated[int, Within(1, 64)] | None = None
    hc_sinkhorn_iters: Annotated[int, Within(1, 1024)] | None = None
    hc_eps: Annotated[float, Within(0, 1)] | None = None
    num_hash_layers: Annotated[int, Within(0, MAX_LAYERS)] | None = None
    indexer_types: list[Literal["full", "shared"]] | None = None
    index_topk_pattern: str | None = None
    index_topk_freq: Count | None = None
    index_skip_topk_offset: Count | None = None


@dataclass(frozen=True)
class _WindowFields(_Fields):
    """The same of architectures whose layers may have windows. Lists of layers may count MTP blocks too."""

    layer_types: list[Literal["sliding_attention", "full_attention"]] | None = None  # type: ignore[assignment]
    hybrid_layer_pattern: list[Annotated[int, Within(0, 1)]] | None = None
    sliding_window: Size | None = None
    sliding_window_size: Size | None = None
    num_attention_groups: Size | None = None
    swa_num_key_value_heads: Size | None = None
    swa_num_attention_heads: Size | None = None
    swa_head_dim: Size | None = None
    swa_v_head_dim: Size | None = None
    swa_rope_theta: Positive | None = None
    layernorm_epsilon: Positive | None = None
    attention_value_scale: Annotated[float, Within(-1e6, 1e6)] | None = None
    moe_layer_freq: list[Annotated[int, Within(0, 1)]] | None = None
    moe_num_experts: Experts | None = None
    moe_top_k: Experts | None = None
    share_expert_dim: Size | None = None
    moe_layers_enum: str | None = None
    moe_every_n_layer: Size | None = None
    moe_router_scaling_factor: Positive | None = None
    norm_expert_weight: bool | None = None
    partial_rotary_factors: list[Annotated[float, Within(1e-6, 1)]] | None = None
    swiglu_limits: list[Annotated[float, Within(0, 1e6)] | None] | None = None
    swiglu_limits_shared: list[Annotated[float, Within(0, 1e6)] | None] | None = None
    attention_other_setting: dict[str, Any] | None = None
    global_head_dim: Size | None = None
    num_global_key_value_heads: Size | None = None
    num_kv_shared_layers: Annotated[int, Within(0, MAX_LAYERS)] | None = None
    hidden_size_per_layer_input: Count | None = None
    use_double_wide_mlp: bool | None = None
    enable_moe_block: bool | None = None
    top_k_experts: Experts | None = None
    final_logit_softcapping: Positive | None = None
    backbone_hidden_size: Size | None = None


_PER_LAYER = ("layer_types", "mlp_layer_types", "indexer_types")


def text_config(config: dict[str, Any], label: str) -> TextConfig:
    """The text model's configuration. A null stands for a field that is not there.

    label    what a refusal names: the folder
    Errors   MtprefError: another architecture, a number that is missing or out of range
    """
    sheet = _sheet_of(config, label)
    inner = config.get("text_config")
    found = {**config, **inner} if isinstance(inner, dict) else config
    where = f"{label}: config.json"
    has_windows = sheet.hf is not None and sheet.hf.has_windows
    fields_of: type[_Fields] = _WindowFields if has_windows else _Fields
    taken: _Fields = read_fields(fields_of, _without_null(found), where)
    rope = _rope(found, f"{where}: rope_parameters")
    given = _without_null({**vars(rope), **vars(taken)})
    if sheet.hf is not None and sheet.hf.n_layer is not None and (n_layer := sheet.hf.n_layer(given)):
        given["num_hidden_layers"] = n_layer
    _check_required(sheet, given, where)
    _check_widths(taken, where)
    _check_fixed(sheet, found, where)
    counts_heads = has_windows and sheet.head is not None and not sheet.target  # in lists of layers
    for name in _PER_LAYER:
        kinds = given.get(name)
        if kinds is not None and len(kinds) != taken.num_hidden_layers and not counts_heads:
            expected = get_args(get_args(_kind_of(fields_of, name))[0])
            raise MtprefError(
                f"{where}: {name} has {len(kinds)} entries, expected {taken.num_hidden_layers} of {', '.join(expected)}"
            )
    given["n_embd_head"] = taken.head_dim or given["hidden_size"] // given["num_attention_heads"]
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return TextConfig(sheet, given, rope, given.get(sheet.hf.n_heads) if sheet.hf else None, name)


def refuse_apart(config: TextConfig, label: str) -> None:
    """Refuse a checkpoint whose trunk and head are two, where both are needed in one: nothing can be said of either.

    Errors   MtprefError for an assistant, and for a model that assistants draft for
    """
    sheet = config.sheet
    own = assistant_of(sheet.name)
    if sheet.target or own is not None:
        is_one = f"an assistant of {sheet.target} models" if own is None else f"its head is another one's ({own.name})"
        raise MtprefError(
            f"{label}: {is_one}, expected a checkpoint that holds trunk and head; convert both, then try: mtpref check "
            "TARGET -md ASSISTANT"
        )


def _kind_of(fields_of: type[_Fields], name: str) -> Any:
    """The kind of a field, without the null that may stand for it."""
    return get_args(get_type_hints(fields_of, include_extras=True)[name])[0]


def _check_required(sheet: Architecture, given: dict[str, Any], where: str) -> None:
    """Refuse a configuration without a field that the data sheet cannot do without."""
    kinds = get_type_hints(_WindowFields, include_extras=True)
    needed = {h.hf for h in sheet.hypers if isinstance(h.hf, str) and h.hf and h.hf_default is None}
    needed |= {name for h in sheet.hypers for name in h.hf_fields}
    for field in fields(_WindowFields):
        if field.name in needed and field.name not in given:
            kind = get_args(kinds[field.name])[0]
            raise MtprefError(f"{where}.{field.name} is missing, expected {name_of(kind)}")


def _check_fixed(sheet: Architecture, found: dict[str, Any], where: str) -> None:
    """Refuse what a GGUF cannot tell: every engine would run the model by another rule."""
    for name, values in (sheet.hf.fixed if sheet.hf else {}).items():
        value = found.get(name)
        if value is not None and value not in values:
            raise MtprefError(
                f"{where}.{name} is {describe(value)}, expected {describe(values[0])}: a GGUF of {sheet.name} has no "
                "key for it, and engines run no other"
            )


def _without_null(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _sheet_of(config: dict[str, Any], label: str) -> Architecture:
    """The data sheet of a checkpoint's architecture. Errors: MtprefError for any other"""
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
    return fits[0]


def _check_widths(taken: _Fields, where: str) -> None:
    """Refuse heads that are wider together than any model: they size what is planned."""
    for heads, width in (
        ("num_attention_heads", taken.head_dim),
        ("num_key_value_heads", taken.head_dim),
        ("linear_num_key_heads", taken.linear_key_head_dim),
        ("linear_num_value_heads", taken.linear_value_head_dim),
        ("num_attention_heads", taken.qk_nope_head_dim),
        ("num_attention_heads", taken.qk_rope_head_dim),
        ("num_attention_heads", taken.v_head_dim),
        ("num_attention_heads", getattr(taken, "global_head_dim", None)),
        ("index_n_heads", taken.index_head_dim),
    ):
        n = getattr(taken, heads)
        if n is not None and n * (width or 1) > MAX_COUNT:
            raise MtprefError(f"{where}: {n} {heads} of {width} values, expected at most {MAX_COUNT} values together")


def _rope(found: dict[str, Any], where: str) -> Rope:
    """rope_parameters (or rope_scaling of older files), with what stands beside it in the same file."""
    given = found.get("rope_parameters", found.get("rope_scaling")) or {}
    if not isinstance(given, dict):
        raise MtprefError(f"{where} is {describe(given)}, expected an object")
    if isinstance(full := given.get("full_attention"), dict):  # Gemma has one for each kind of layer
        windowed = given.get("sliding_attention")
        given = {**full, "rope_theta_windowed": windowed.get("rope_theta") if isinstance(windowed, dict) else None}
    beside = {
        key: found.get(key) for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    }
    bases = beside["rope_theta"]
    if isinstance(bases, list):  # one for each layer: the first is that of layers without a window
        beside |= dict(zip(("rope_theta", "rope_theta_windowed"), [*bases, *bases][:2], strict=True))
    rope = _without_null({**beside, **given})
    rope.setdefault("rope_type", rope.get("type"))
    read_rope: Rope = read_fields(Rope, rope, where)
    return read_rope
