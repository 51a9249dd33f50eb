"""gemma4: Gemma 4. Norms before and behind each part, attention without a scale, with a window in most layers; dense
networks, in 26B experts beside them; in E2B and E4B inputs of each layer's own and layers that share cells. It has no
MTP block: its assistant is a model of its own (gemma4_assistant.py).

The data sheet. Source: llama.cpp src/models/gemma4.cpp, conversion/gemma.py; transformers' models/gemma4.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from mtpref.architectures.common import (
    N_VOCAB,
    base_hypers,
    n_embd,
    n_embd_head,
    n_head,
    n_head_kv,
    root_tensors,
)
from mtpref.architectures.dims import ONE, Dim, Named, Share
from mtpref.architectures.experts import n_expert, n_expert_used, n_ff_exp, router
from mtpref.architectures.sheet import (
    OPTIONAL,
    Architecture,
    Block,
    Either,
    HuggingFace,
    Hyper,
    Keys,
    Tensor,
)
from mtpref.architectures.transforms import AS_IS
from mtpref.architectures.windows import freq_base_windowed, n_window
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import InputsConfig, Metadata, Values
from mtpref.spec.kinds import (
    DENSE_BESIDE_EXPERTS,
    GEGLU_FFN,
    SHARING_ATTENTION,
    SHARING_WINDOW,
    UNSCALED_ATTENTION,
    UNSCALED_WINDOW,
    NormedBehind,
    Span,
)
from mtpref.spec.kinds.windowed import FACTORS

# HYPER-PARAMETERS


def _n_ff(c: Mapping[str, Any]) -> int | list[int]:
    """Twice as wide in layers that share cells, where config.json says so."""
    n, n_ff = c["num_hidden_layers"], c["intermediate_size"]
    if not c.get("use_double_wide_mlp"):
        return int(n_ff)
    first = n - (c.get("num_kv_shared_layers") or 0)
    return [n_ff if il < first else 2 * n_ff for il in range(n)]


def _n_head_kv(c: Mapping[str, Any]) -> int | list[int]:
    """Those of layers without a window may be fewer."""
    n, n_full = c["num_key_value_heads"], c.get("num_global_key_value_heads")
    return int(n) if n_full is None else [n if windowed else n_full for windowed in _windowed(c)]


def _windowed(c: Mapping[str, Any]) -> list[bool]:
    return [kind == "sliding_attention" for kind in c["layer_types"]]


def factors(c: Mapping[str, Any]) -> list[float]:
    """Of the pairs that a layer without a window turns: 1 for the first, and for the rest what keeps them in place."""
    if c.get("rope_type") != "proportional" or not {"partial_rotary_factor", "rope_theta_windowed"} <= set(c):
        raise MtprefError(
            "config.json: rope_parameters, expected full_attention (rope_type proportional, partial_rotary_factor, "
            "rope_theta) and sliding_attention (rope_theta)"
        )
    n, n_turned = int(c["global_head_dim"]) // 2, int(c["global_head_dim"] * c["partial_rotary_factor"] / 2)
    return [1.0] * n_turned + [1e30] * (n - n_turned)


n_ff = Hyper("n_ff", "feed_forward_length", "u32/layer", hf=_n_ff, hf_fields=("intermediate_size",))
n_key_windowed = Hyper("n_key_windowed", "attention.key_length_swa", high=4096, hf="head_dim")
n_value_windowed = Hyper("n_value_windowed", "attention.value_length_swa", high=4096, hf="head_dim")
n_rot = Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096, hf="global_head_dim")
n_rot_windowed = Hyper("n_rot_windowed", "rope.dimension_count_swa", default=lambda v: v["n_rot"], high=4096,
                       hf="head_dim")  # fmt: skip
n_shared = Hyper("n_shared", "attention.shared_kv_layers", default=0, low=0, high=4096, hf="num_kv_shared_layers")
n_own = Hyper("n_own", "embedding_length_per_layer_input", low=0, high=1 << 16,
              hf=lambda c: c.get("hidden_size_per_layer_input") or 0)  # fmt: skip
is_windowed = Hyper("is_windowed", "attention.sliding_window_pattern", "i32/layer", low=0, high=1, hf=_windowed,
                    hf_fields=("layer_types",))  # fmt: skip
# llama.cpp caps logits at 30 where a file has no key, and not at all where it is 0.
softcap = Hyper("softcap", "final_logit_softcapping", "f32", default=30.0, low=0.0, high=1e6,
                hf="final_logit_softcapping")  # fmt: skip


def _or_none(hyper: Hyper, **more: str) -> Hyper:
    """A count that is 0 where a file has no such key."""
    return replace(hyper, default=0, low=0, hf=more.get("hf", hyper.hf), hf_default=OPTIONAL)


# Where Gemma has other fields of config.json than most, or another default.
_OWN_FIELDS: dict[str, dict[str, Any]] = {
    "n_ctx": {"hf_default": 131072},
    "n_head": {"type": "u32/layer"},
    "n_head_kv": {"type": "u32/layer", "hf": _n_head_kv, "hf_fields": ("num_key_value_heads",)},
    "n_embd_head": {"hf": "global_head_dim", "hf_default": None},
    "n_embd_head_v": {"hf": "global_head_dim", "hf_default": None},
}


def gemma_hypers(softcap: Hyper, *, has_experts: bool) -> tuple[Hyper, ...]:
    """What target and assistant have both, in the order in which a converter writes them. softcap: of logits"""
    base = (n_ff if h.name == "n_ff" else replace(h, **_OWN_FIELDS.get(h.name, {})) for h in base_hypers)
    experts = (_or_none(n_expert), _or_none(n_expert_used, hf="top_k_experts")) if has_experts else ()
    return (
        *base,
        replace(freq_base_windowed, hf="rope_theta_windowed", hf_default=OPTIONAL),
        *experts,
        softcap,
        n_window,
        n_shared,
        _or_none(n_own),
        is_windowed,
        n_key_windowed,
        n_value_windowed,
        *((_or_none(n_ff_exp),) if has_experts else ()),
        n_rot,
        n_rot_windowed,
    )


# TENSORS


def attention_tensors(width: Dim, n_in: Dim = n_embd) -> tuple[Tensor, ...]:
    """What every layer has of attention: queries, output, and the norms around. width: of a head"""
    return (
        Tensor("attn_norm.weight", (n_in,), "input_layernorm.weight", cb="attn_norm"),
        Tensor("attn_q.weight", (n_head * width, n_in), "self_attn.q_proj.weight", cb="Qcur"),
        Tensor("attn_q_norm.weight", (width,), "self_attn.q_norm.weight", cb="Qcur_normed"),
        Tensor("attn_output.weight", (n_in, n_head * width), "self_attn.o_proj.weight", role="attn_output",
               cb="attn_output"),
        Tensor("post_attention_norm.weight", (n_in,), "post_attention_layernorm.weight", cb="attn_post_norm"),
    )  # fmt: skip


def cell_tensors(width: Dim, *, optional: bool) -> tuple[Tensor, ...]:
    """What makes keys and values. optional: a layer that shares cells does not read them"""
    return (
        Tensor("attn_k.weight", (n_head_kv * width, n_embd), "self_attn.k_proj.weight", role="attn_k", cb="Kcur",
               optional=optional),
        Tensor("attn_k_norm.weight", (width,), "self_attn.k_norm.weight", cb="Kcur_normed", optional=optional),
        Tensor("attn_v.weight", (n_head_kv * width, n_embd), "self_attn.v_proj.weight", role="attn_v", cb="Vcur",
               optional=True),
    )  # fmt: skip


def network_tensors() -> tuple[Tensor, ...]:
    """The dense network and the norms around it."""
    return (
        Tensor("ffn_norm.weight", (n_embd,), "pre_feedforward_layernorm.weight", cb="ffn_norm"),
        Tensor("ffn_gate.weight", (n_ff, n_embd), "mlp.gate_proj.weight", cb="ffn_gate"),
        Tensor("ffn_up.weight", (n_ff, n_embd), "mlp.up_proj.weight", cb="ffn_up"),
        Tensor("ffn_down.weight", (n_embd, n_ff), "mlp.down_proj.weight", role="ffn_down", cb="ffn_out"),
        Tensor("post_ffw_norm.weight", (n_embd,), "post_feedforward_layernorm.weight", cb="ffn_post_norm"),
    )


def output_scale(*, optional: bool) -> Tensor:
    return Tensor("layer_output_scale.weight", (ONE,), "layer_scalar", optional=optional, cb="out_scaled")


_inputs = (
    Tensor("inp_gate.weight", (n_own, n_embd), "per_layer_input_gate.weight", cb="per_layer_embd_out"),
    Tensor("proj.weight", (n_embd, n_own), "per_layer_projection.weight", cb="per_layer_embd_out"),
    Tensor("post_norm.weight", (n_embd,), "post_per_layer_input_norm.weight", cb="per_layer_embd_out"),
)
_experts = (
    router("router.proj.weight"),
    Tensor("ffn_gate_inp.scale", (n_embd,), "router.scale", cb="ffn_moe_logits"),
    Tensor("pre_ffw_norm_2.weight", (n_embd,), "pre_feedforward_layernorm_2.weight", cb="ffn_norm_2"),
    Tensor("post_ffw_norm_1.weight", (n_embd,), "post_feedforward_layernorm_1.weight", cb="ffn_mlp"),
    Tensor("post_ffw_norm_2.weight", (n_embd,), "post_feedforward_layernorm_2.weight", cb="ffn_moe"),
    Either((
        (Tensor("ffn_gate_up_exps.weight", (n_expert, 2 * n_ff_exp, n_embd), "experts.gate_up_proj",
                parts=(("ffn_gate_exps.weight", n_ff_exp), ("ffn_up_exps.weight", n_ff_exp)), cb="ffn_moe_gate_up"),),
        (Tensor("ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd), cb="ffn_moe_gate"),
         Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd), cb="ffn_moe_up")),
    )),
    Tensor("ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp), "experts.down_proj", role="ffn_down",
           cb="ffn_moe_down"),
    Tensor("ffn_down_exps.scale", (n_expert,), "router.per_expert_scale", role="ffn_down", optional=True,
           cb="ffn_moe_weights_scaled"),
)  # fmt: skip

# BLOCKS

FULL, WINDOW = "full", "window"
_WIDTHS: dict[str, Dim] = {FULL: n_embd_head, WINDOW: n_key_windowed}
_MIXERS = {
    (FULL, False): UNSCALED_ATTENTION,
    (FULL, True): SHARING_ATTENTION,
    (WINDOW, False): UNSCALED_WINDOW,
    (WINDOW, True): SHARING_WINDOW,
}
_MOE_MARK = "ffn_gate_inp.weight"


def _block(name: str, *, shares: bool, has_experts: bool, has_inputs: bool) -> Block:
    width = _WIDTHS[name]
    tensors = (
        *attention_tensors(width),
        *cell_tensors(width, optional=shares),
        *network_tensors(),
        *(_experts if has_experts else ()),
        *(_inputs if has_inputs else ()),
        output_scale(optional=True),
    )
    kind = "_moe" * has_experts + "_inputs" * has_inputs
    whole = name + "_sharing" * shares + kind
    return Block(
        whole,
        _MIXERS[name, shares],
        DENSE_BESIDE_EXPERTS if has_experts else GEGLU_FFN,
        tensors,
        NormedBehind("" if has_experts else "ffn_norm.weight"),
        looks_like="" if whole == FULL + kind else FULL + kind,
    )


_BOTH = (False, True)
_BLOCKS = {
    (name, *flags): _block(name, shares=flags[0], has_experts=flags[1], has_inputs=flags[2])
    for name in (FULL, WINDOW)
    for flags in product(_BOTH, repeat=3)
}


@dataclass(frozen=True)
class Gemma4Layers:
    """By the array of windows, the number of last layers that share cells, and the router's tensor."""

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        flags = meta.counts(is_windowed.key, n_layer, low=0, high=1)
        n = meta.u32(n_shared.key, 0, low=0, high=4096)
        if n:
            _check_shared(meta, flags, n_layer - n)
        has_experts = [f"blk.{il}.{_MOE_MARK}" in names for il in range(n_layer)]
        return self._of(flags, n, has_experts, bool(meta.u32(n_own.key, 0, low=0)))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        flags = keys.flags(is_windowed.key, n_blocks)
        if not isinstance(flags, list):
            found = "is missing" if flags is None else flags
            problems.append(f"key {is_windowed.key} {found}, expected one bool for each of {n_blocks} blocks")
            flags = [False] * n_blocks
        n = keys.integer(n_shared.key) or 0
        has_experts = [keys.has_tensor(f"blk.{il}.{_MOE_MARK}") for il in range(n_trunk)]
        has_inputs = bool(keys.integer(n_own.key))
        return self._of([int(x) for x in flags[:n_trunk]], n, has_experts, has_inputs), is_windowed.key

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return []

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        kinds = found.get("layer_types")
        if kinds is None:
            return None
        flags = [int(kind == "sliding_attention") for kind in kinds]
        has_experts = bool(found.get("enable_moe_block"))
        has_inputs = bool(found.get("hidden_size_per_layer_input"))
        return self._of(flags, int(found.get("num_kv_shared_layers") or 0), [has_experts] * n_layer, has_inputs)

    def of_tensors(self, names: Iterable[str]) -> Block | None:
        """The block without a window that has tensors of these names (without "blk.N."); None: they are another's."""
        found = set(names)
        if "post_ffw_norm.weight" not in found:
            return None
        return _BLOCKS[FULL, False, _MOE_MARK in found, "inp_gate.weight" in found]

    def all_blocks(self) -> tuple[Block, ...]:
        return tuple(_BLOCKS.values())

    def _of(
        self, flags: Sequence[int], n_sharing: int, has_experts: Sequence[bool], has_inputs: bool
    ) -> tuple[Block, ...]:
        n = len(has_experts)
        return tuple(
            _BLOCKS[WINDOW if flags[il] else FULL, il >= n - n_sharing, has_experts[il], has_inputs] for il in range(n)
        )


def _check_shared(meta: Metadata, flags: Sequence[int], n_from: int) -> None:
    """Whether the two layers whose cells are shared are a window's and then one without: the only order that
    llama.cpp's graph reads right."""
    if n_from < 2 or tuple(flags[n_from - 2 : n_from]) != (1, 0):
        raise UnsupportedError(
            f"{meta.source}: key {meta.arch}.{n_shared.key} makes layer {n_from} the first that shares cells, "
            "expected a layer with a window and one without just before it; try: mtpref inspect FILE"
        )


# ENDS

_n_layer = Named("n_block")
INPUT_TENSORS = (
    Tensor("per_layer_token_embd.weight", (N_VOCAB, n_own * _n_layer), "model.embed_tokens_per_layer.weight",
           optional=True, role="token_embd", cb="inp_per_layer_selected"),
    Tensor("per_layer_model_proj.weight", (n_own * _n_layer, n_embd), "model.per_layer_model_projection.weight",
           optional=True, cb="per_layer_proj", stays_f32=True, converts_typed=True),
    Tensor("per_layer_proj_norm.weight", (n_own,), "model.per_layer_projection_norm.weight", optional=True,
           cb="per_layer_proj"),
)  # fmt: skip


@dataclass(frozen=True)
class EndsConfig:
    """inputs: None where layers are given none of their own; softcap: 0 none."""

    inputs: InputsConfig | None
    softcap: float


class GemmaEnds:
    """Embeddings are scaled (S103) and layers given inputs (S105) in front; logits are capped (S102)."""

    def configure(self, v: Values) -> EndsConfig:
        """Of the file's keys."""
        n = v["n_own"]
        return EndsConfig(InputsConfig(v["n_block"], n, v["rms_eps"]) if n else None, v["softcap"])

    def enter(self, span: Span, x: Any, cfg: EndsConfig, tap: Any) -> Any:
        """Rows of the embedding -> rows of the stream."""
        x = span.ops.scaled_embedding(x)
        tap("inp_scaled", x)
        if cfg.inputs is not None:
            assert span.tokens is not None
            span.inputs = span.ops.layer_inputs(span.ops, span.roots, cfg.inputs, span.tokens, x, tap)
        return x

    def needed(self, cfg: EndsConfig) -> tuple[str, ...]:
        """The tensors of the layers' own inputs."""
        return tuple(t.name for t in INPUT_TENSORS) if cfg.inputs is not None else ()

    def logits(self, ops: Any, logits: Any, cfg: EndsConfig) -> Any:
        """What the output gives -> the model's logits."""
        return ops.soft_cap(logits, cfg.softcap)


NAMES = {"attn_residual": "attn_out", "ffn_swiglu": "ffn_geglu", "ffn_moe_swiglu": "ffn_moe_geglu"}

# The product of attention has no name of its own in an assistant either.
HEAD_NAMES = {"attn_output": "attn_output"}


def hugging_face(**more: Any) -> HuggingFace:
    """What checkpoints of target and assistant have both."""
    return HuggingFace(
        layer="model.layers.{il}.", head="", head_block="", n_heads="", has_windows=True, factors=factors,
        plain_bpe="gemma4", fixed={"hidden_activation": ("gelu_pytorch_tanh",)}, **more,
    )  # fmt: skip


GEMMA4 = Architecture(
    name="gemma4",
    hypers=gemma_hypers(softcap, has_experts=True),
    tensors=(*root_tensors(AS_IS), *INPUT_TENSORS, Tensor(FACTORS, (Share(n_embd_head, 2 * ONE),), cb="Qcur_pos")),
    layers=Gemma4Layers(),
    head=None,
    hf=hugging_face(
        classes=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"), model_types=("gemma4", "gemma4_text")
    ),
    cb=NAMES,
    cb_head=NAMES | HEAD_NAMES,
    ends=GemmaEnds(),
)
