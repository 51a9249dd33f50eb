"""cohere2moe: Command A+ and North. Attention and experts side by side in every layer, a window in most of them, and
position in those alone; layer norms, scaled logits; one MTP block.

The data sheet. Source: llama.cpp src/models/cohere2moe.cpp, conversion/command_r.py; transformers' Cohere2MoeConfig.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtpref.architectures.common import (
    LEAST_EPS,
    base_hypers,
    n_embd,
    n_embd_head,
    n_head,
    n_head_kv,
    numbered_head_tensors,
)
from mtpref.architectures.common import root_tensors as roots
from mtpref.architectures.experts import (
    FUSED_STACKS,
    expert_gating_func,
    expert_stacks,
    expert_weights_norm,
    expert_weights_scale,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    n_ff_exp,
    router,
    shared_expert,
)
from mtpref.architectures.qwen35 import FFN
from mtpref.architectures.sheet import (
    SILU,
    Architecture,
    Block,
    Either,
    HeadSheet,
    HuggingFace,
    Hyper,
    LeadingDense,
    Tensor,
)
from mtpref.architectures.transforms import AS_IS
from mtpref.architectures.windows import n_window
from mtpref.spec.config import Metadata, Values
from mtpref.spec.kinds import (
    AVERAGED_MOE_FFN,
    SWIGLU_FFN,
    TURNED_ATTENTION,
    TURNED_HEAD_ATTENTION,
    UNTURNED_ATTENTION,
    Parallel,
)

# HYPER-PARAMETERS

SOFTMAX, SIGMOID = 1, 2
EVERY_FOURTH = 4


@dataclass(frozen=True)
class _Windowed(Hyper):
    """Which blocks have a window: a flag for each, or a number n, and then all of the trunk's but 0, n, 2 n, ..."""

    def read(self, meta: Metadata, values: Values) -> list[int]:
        n_block = values["n_block"]
        n_layer = n_block - meta.u32("nextn_predict_layers", 0, low=0, high=n_block)
        if meta.is_array(self.key):
            n_flags = len(meta.kv[f"{meta.arch}.{self.key}"])  # type: ignore[arg-type]
            flags = meta.counts(self.key, min(n_flags, n_block), low=0, high=1)
            return (flags + [0] * n_block)[:n_block]
        every = meta.u32(self.key, EVERY_FOURTH, low=0)
        return [int(il < n_layer and (every == 0 or il % every != 0)) for il in range(n_block)]


def _gating_of_checkpoint(c: Mapping[str, Any]) -> int:
    """transformers' own is softmax, where config.json does not say it."""
    return SIGMOID if c.get("expert_selection_fn") == "sigmoid" else SOFTMAX


def _normalises(c: Mapping[str, Any]) -> bool:
    """By softmax transformers weighs the chosen experts alone: their weights add up to 1 whatever the field says."""
    named = c.get("norm_topk_prob")
    return _gating_of_checkpoint(c) == SOFTMAX or named is None or bool(named)


def _layer_eps(c: Mapping[str, Any]) -> float | None:
    """RMS norms are told by their own field; without it norms are layer norms."""
    own = c.get("layer_norm_eps")
    return 1e-5 if own is None and c.get("rms_norm_eps") is None else own


def _n_dense(c: Mapping[str, Any]) -> int:
    kinds = c.get("mlp_layer_types")
    if kinds is None:
        return int(c.get("first_k_dense_replace") or 0)
    return next((il for il, kind in enumerate(kinds) if kind != "dense"), len(kinds))


def _shared_width(c: Mapping[str, Any]) -> int | None:
    n = c.get("num_shared_experts")
    return c["intermediate_size"] * n if n else None


n_expert_shared = Hyper("n_expert_shared", "expert_shared_count", default=0, low=0, high=4096,
                        hf=lambda c: c.get("num_shared_experts") or None)  # fmt: skip
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", low=0, hf=_shared_width,
                   default=lambda v: v["n_ff_exp"] * v["n_expert_shared"])  # fmt: skip
norm_eps = Hyper("norm_eps", "attention.layer_norm_epsilon", "f32", default=0.0, low=0.0, high=1.0, hf=_layer_eps)
_rms_eps: dict[str, Any] = {"low": 0.0, "default": lambda v: _no_norms(v), "hf": lambda c: c.get("rms_norm_eps")}


def _no_norms(v: Values) -> float:
    """A file without the key of RMS norms has layer norms. Errors: MtprefError for a file with neither key"""
    v.meta.f32(norm_eps.key, low=LEAST_EPS, high=1.0)
    return 0.0


_own: dict[str, dict[str, Any]] = {
    "rms_eps": _rms_eps,
    "n_ff": {"hf": lambda c: c.get("prefix_dense_intermediate_size") or c["intermediate_size"],
             "hf_fields": ("intermediate_size",)},
}  # fmt: skip
_base = [replace(h, **_own.get(h.name, {})) for h in base_hypers]
_at = [h.name for h in _base].index("rms_eps") + 1

# TENSORS

_query, _key = n_head * n_embd_head, n_head_kv * n_embd_head
_attention: tuple[Tensor | Either, ...] = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Either((
        (
            Tensor("attn_qkv.weight", (_query + 2 * _key, n_embd), role="attn_v", cb="Vcur",
                   parts=(("attn_q.weight", _query), ("attn_k.weight", _key), ("attn_v.weight", _key))),
        ),
        (
            Tensor("attn_q.weight", (_query, n_embd), "self_attn.q_proj.weight", cb="Qcur_normed"),
            Tensor("attn_k.weight", (_key, n_embd), "self_attn.k_proj.weight", role="attn_k", cb="Kcur_normed"),
            Tensor("attn_v.weight", (_key, n_embd), "self_attn.v_proj.weight", role="attn_v", cb="Vcur"),
        ),
    )),
    Tensor("attn_output.weight", (n_embd, _query), "self_attn.o_proj.weight", role="attn_output", cb="attn_output"),
)  # fmt: skip
_moe = (
    router("mlp.gate.weight"),
    *expert_stacks(has_fused=True),
    *(
        replace(t, optional=True, group="shared expert")
        for t in shared_expert(n_ff_shexp, "mlp.shared_experts", is_gated=False)
    ),
)

# BLOCKS

_residual = Parallel("attn_norm.weight")
# llama.cpp's dense layers in front turn whether they have a window or not, and so does a head.
DENSE = Block("dense", TURNED_ATTENTION, SWIGLU_FFN, _attention + FFN, _residual, marks=("ffn_gate.",))
MOE = Block("moe", UNTURNED_ATTENTION, AVERAGED_MOE_FFN, _attention + _moe, _residual, marks=("ffn_gate_inp.",))
MTP = replace(MOE, name="mtp", mixer=TURNED_HEAD_ATTENTION, marks=("nextn.",))

_names = {"attn_output": "attn_out"}

COHERE2MOE = Architecture(
    name="cohere2moe",
    pre="cohere2moe",
    hypers=(
        *_base[:_at],
        norm_eps,
        *_base[_at:],
        n_expert,
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        replace(expert_gating_func, hf=_gating_of_checkpoint),
        Hyper("logit_scale", "logit_scale", "f32", low=-1e6, high=1e6, hf="logit_scale", hf_default=0.0625),
        replace(n_window, hf_default=4096),
        _Windowed("is_windowed", "attention.sliding_window_pattern", "i32/trunk", low=0, high=1,
                  hf=lambda c: [kind == "sliding_attention" for kind in c["layer_types"]], hf_fields=("layer_types",)),
        Hyper("n_vocab_key", "vocab_size", default=1, hf="vocab_size"),
        replace(n_ff_exp, hf="intermediate_size"),
        replace(expert_weights_norm, hf=_normalises),
        replace(expert_weights_scale, hf=lambda c: None),
        n_expert_shared,
        n_ff_shexp,
        Hyper("n_rot", "rope.dimension_count", default=lambda v: v["n_embd_head"], high=4096,
              hf=lambda c: c["n_embd_head"]),
        Hyper("rope_type", "rope.scaling.type", "str", default="none", hf=lambda c: "none"),
    ),
    tensors=roots(norm=AS_IS),
    layers=LeadingDense(DENSE, MOE, key="leading_dense_block_count", hf=_n_dense),
    head=HeadSheet(MTP, numbered_head_tensors("shared_head.norm"), hidden="post", chain="post", may_lack=True),
    hf=HuggingFace(
        classes=("Cohere2MoeForCausalLM",),
        model_types=("cohere2_moe",),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        stacks=FUSED_STACKS,
        layers_after="expert_feed_forward_length",
        heads_after="expert_shared_feed_forward_length",
        has_windows=True,
        gating_field="expert_selection_fn",
        fixed={
            **SILU,
            "shared_expert_combination_strategy": ("average",),
            "prefix_dense_sliding_window_pattern": (1,),
        },
    ),
    cb=_names,
    cb_head=_names,
)  # fmt: skip
