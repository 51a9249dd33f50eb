"""nemotron_h_moe: Nemotron 3 Nano and Super. Blocks of one part each: Mamba-2, attention without RoPE, or experts
without a gate, perhaps on narrower rows; one MTP block of attention and experts, with a layer norm after it.

The data sheet. Source: llama.cpp src/models/nemotron-h.cpp, nemotron-h-moe.cpp, conversion/nemotron.py, granite.py,
mamba.py; transformers' NemotronHConfig.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtpref.architectures.common import (
    OUTPUT,
    OUTPUT_NORM,
    TOKEN_EMBD,
    base_hypers,
    n_embd,
    n_embd_head,
    n_head,
    n_head_kv,
    root_tensors,
)
from mtpref.architectures.dims import ONE, OrElse, Share
from mtpref.architectures.experts import (
    expert_gating_func,
    expert_weights_norm,
    expert_weights_scale,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    n_ff_exp,
    router,
)
from mtpref.architectures.sheet import (
    OPTIONAL,
    Architecture,
    Block,
    Either,
    HeadSheet,
    HuggingFace,
    Hyper,
    Keys,
    Tensor,
)
from mtpref.architectures.transforms import AS_IS, NEGATIVE_EXP, Change, Pairs
from mtpref.spec.config import Metadata
from mtpref.spec.kinds import NOTHING, PLAIN_MOE_FFN, SSM, STILL_ATTENTION, Sequential, Single

# WHICH LAYER IS WHICH

_KINDS = {"M": "ssm", "mamba": "ssm", "linear_attention": "ssm", "*": "attention", "attention": "attention",
          "full_attention": "attention", "E": "moe", "moe": "moe"}  # fmt: skip


def _kinds(c: Mapping[str, Any]) -> list[str]:
    """The part of each layer, as config.json says it: a text of M, * and E, or a list of words."""
    pattern = c.get("hybrid_override_pattern") or c.get("layers_block_type") or c.get("layer_types") or ()
    return [_KINDS.get(one, "other") for one in pattern]


def _of_blocks(kind: str, value: str) -> Any:
    """A count of each block that is written, 0 where the block has no such part; an MTP block has both."""

    def of(c: Mapping[str, Any]) -> list[int]:
        return [c[value] if one == kind else 0 for one in _kinds(c)] + [c[value]] * c.get("n_written_heads", 0)

    return of


@dataclass(frozen=True)
class ByCounts:
    """A layer with a width of its network is `moe`; without one, but with key heads, `attention`; else `ssm`."""

    ssm: Block
    attention: Block
    moe: Block
    n_kv: str
    n_ff: str

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        counts = [
            meta.integers(key, n_layer) if meta.is_array(key) else [meta.u32(key, low=0)] * n_layer
            for key in (self.n_kv, self.n_ff)
        ]
        return self._of(*counts)

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        counts = []
        for key in (self.n_kv, self.n_ff):
            one = keys.integer(key)
            found = [one] * n_trunk if one is not None else keys.integers(key, n_trunk)
            if not isinstance(found, list):
                problems.append(f"key {key} {found or 'is missing'}, expected a count for each of {n_trunk} layers")
                found = [0] * n_trunk
            counts.append(found)
        return self._of(*counts), f"{self.n_kv} and {self.n_ff}"

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return []

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        return None

    def _of(self, n_kv: Sequence[int], n_ff: Sequence[int]) -> tuple[Block, ...]:
        return tuple(self.moe if ff else self.attention if kv else self.ssm for kv, ff in zip(n_kv, n_ff, strict=True))

    def all_blocks(self) -> tuple[Block, ...]:
        return self.ssm, self.attention, self.moe


# HYPER-PARAMETERS

d_conv = Hyper("d_conv", "ssm.conv_kernel", low=2, high=64, hf="conv_kernel", hf_default=4)
d_state = Hyper("d_state", "ssm.state_size", high=4096, hf="ssm_state_size")
n_group = Hyper("n_group", "ssm.group_count", high=4096, hf="n_groups")
d_inner = Hyper("d_inner", "ssm.inner_size", hf=lambda c: c["mamba_num_heads"] * c["mamba_head_dim"],
                hf_fields=("mamba_num_heads", "mamba_head_dim"))  # fmt: skip
n_ssm_head = Hyper("n_ssm_head", "ssm.time_step_rank", high=4096, hf="mamba_num_heads")
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", hf="moe_shared_expert_intermediate_size")
n_low = Hyper("n_low", "moe_latent_size", default=0, low=0, hf="moe_latent_size", hf_default=OPTIONAL)


_narrow = OrElse(n_low, n_embd)  # of the rows that experts work on
head_norm_eps = Hyper("head_norm_eps", "attention.layer_norm_epsilon", "f32", low=0.0, high=1.0,
                      hf="layer_norm_epsilon", hf_default=1e-5)  # fmt: skip
_own: dict[str, dict[str, Any]] = {
    "n_ff": {"type": "u32/layer", "low": 0, "default": None, "hf": _of_blocks("moe", "moe_intermediate_size"),
             "hf_fields": ("moe_intermediate_size",)},
    "n_head_kv": {"type": "u32/layer", "low": 0, "default": None,
                  "hf": _of_blocks("attention", "num_key_value_heads"), "hf_fields": ("num_key_value_heads",)},
    "n_head": {"type": "u32/layer"},
    "n_ctx": {"hf": lambda c: 1 << 20},
    "rms_eps": {"default": lambda v: v["head_norm_eps"], "hf": lambda c: None},
    "n_embd_head": {"hf_default": None},
    "n_embd_head_v": {"hf_default": None},
}  # fmt: skip

_base = [replace(h, **_own.get(h.name, {})) for h in base_hypers]
_LATE = ("attention.key_length", "attention.value_length")

# TENSORS

_query, _key = n_head * n_embd_head, n_head_kv * n_embd_head
_conv = d_inner + 2 * (n_group * d_state)
_A = replace(NEGATIVE_EXP, as_column=True)
_ssm = (
    Tensor("ssm_in.weight", (2 * d_inner + 2 * (n_group * d_state) + n_ssm_head, n_embd), "mixer.in_proj.weight",
           cb="conv_output_silu"),
    Tensor("ssm_conv1d.weight", (_conv, d_conv), "mixer.conv1d.weight", Change(squeeze=True), cb="conv_output_silu",
           keep_f32=True),
    Tensor("ssm_conv1d.bias", (_conv,), "mixer.conv1d.bias", cb="conv_output_silu"),
    Tensor("ssm_dt.bias", (n_ssm_head,), "mixer.dt_bias", cb="scan_output"),
    Tensor("ssm_a", (n_ssm_head, ONE), "mixer.A_log", _A, cb="scan_output", keep_f32=True),
    Tensor("ssm_d", (n_ssm_head, ONE), "mixer.D", Change(as_column=True), cb="final_output", keep_f32=True),
    Tensor("ssm_norm.weight", (n_group, Share(d_inner, n_group)), "mixer.norm.weight", Change(groups="n_group"),
           cb="final_output", keep_f32=True),
    Tensor("ssm_out.weight", (n_embd, d_inner), "mixer.out_proj.weight", cb="mamba_out"),
)  # fmt: skip


# Nothing turns, so that the order within a head means nothing; llama.cpp's converter has it all the same.
_PAIRS = Change(rows=Pairs("n_embd_head"))


def _attention(prefix: str) -> tuple[Tensor | Either, ...]:
    """prefix: of the mixer's names in a checkpoint"""
    parts = (("q", _query, "", "Qcur_normed"), ("k", _key, "attn_k", "Kcur_normed"), ("v", _key, "attn_v", "Vcur"))
    apart = tuple(
        Tensor(
            f"attn_{x}.weight",
            (rows, n_embd),
            f"{prefix}mixer.{x}_proj.weight",
            _PAIRS if x != "v" else AS_IS,
            role=role,
            cb=cb,
        )
        for x, rows, role, cb in parts
    )
    fused = Tensor("attn_qkv.weight", (_query + 2 * _key, n_embd), role="attn_v", cb="Vcur",
                   parts=tuple((f"attn_{x}.weight", rows) for x, rows, _, _ in parts))  # fmt: skip
    biases = tuple(Tensor(f"attn_{x}.bias", (rows,), optional=True, cb=cb) for x, rows, _, cb in parts)
    return (
        Either(((fused,), apart)),
        *biases,
        Tensor("attn_output.weight", (n_embd, _query), f"{prefix}mixer.o_proj.weight", role="attn_output",
               cb="attn_output"),
        Tensor("attn_output.bias", (n_embd,), optional=True, cb="attn_output"),
    )  # fmt: skip


def _moe(prefix: str) -> tuple[Tensor, ...]:
    """prefix: of the network's names in a checkpoint"""
    return (
        # llama.cpp's converter does not know the router of a head for one, and gives it the type of other matrices.
        replace(router(f"{prefix}mixer.gate.weight"), converts_typed=bool(prefix)),
        Tensor("exp_probs_b.bias", (n_expert,), f"{prefix}mixer.gate.e_score_correction_bias",
               cb="ffn_moe_probs_biased"),
        Tensor("ffn_latent_down.weight", (n_low, n_embd), f"{prefix}mixer.fc1_latent_proj.weight", optional=True,
               group="latent", cb="ffn_moe_up"),
        Tensor("ffn_latent_up.weight", (n_embd, n_low), f"{prefix}mixer.fc2_latent_proj.weight", optional=True,
               group="latent", cb="ffn_out"),
        Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, _narrow), f"{prefix}mixer.experts.{{e}}.up_proj.weight",
               cb="ffn_moe_up"),
        Tensor("ffn_down_exps.weight", (n_expert, _narrow, n_ff_exp), f"{prefix}mixer.experts.{{e}}.down_proj.weight",
               role="ffn_down", cb="ffn_moe_down"),
        Tensor("ffn_up_shexp.weight", (n_ff_shexp, n_embd), f"{prefix}mixer.shared_experts.up_proj.weight",
               cb="ffn_shexp"),
        Tensor("ffn_down_shexp.weight", (n_embd, n_ff_shexp), f"{prefix}mixer.shared_experts.down_proj.weight",
               role="ffn_down", cb="ffn_shexp"),
    )  # fmt: skip


_norm = Tensor("attn_norm.weight", (n_embd,), "norm.weight", cb="attn_norm")
_roots = {TOKEN_EMBD: "backbone.embeddings.weight", OUTPUT_NORM: "backbone.norm_f.weight", OUTPUT: "lm_head.weight"}

# BLOCKS

LAYERS = ByCounts(
    Block("ssm", SSM, NOTHING, (_norm, *_ssm), Single("attn_norm.weight", True), marks=("ssm_",)),
    Block("attention", STILL_ATTENTION, NOTHING, (_norm, *_attention("")), Single("attn_norm.weight", True),
          marks=("attn_q",)),
    Block("moe", NOTHING, PLAIN_MOE_FFN, (_norm, *_moe("")), Single("attn_norm.weight", False),
          marks=("ffn_gate_inp.",)),
    n_kv=n_head_kv.key, n_ff="feed_forward_length",
)  # fmt: skip
MTP = Block(
    "mtp", STILL_ATTENTION, PLAIN_MOE_FFN,
    (
        Tensor("attn_norm.weight", (n_embd,), "0.norm.weight", cb="attn_norm"),
        *_attention("0."),
        Tensor("post_attention_norm.weight", (n_embd,), "1.norm.weight", cb="attn_post_norm"),
        *_moe("1."),
    ),
    Sequential("attn_norm.weight", "post_attention_norm.weight"), marks=("nextn.",),
)  # fmt: skip
_NEXTN = (
    # columns: embedding, then hidden
    Tensor("nextn.eh_proj.weight", (n_embd, 2 * n_embd), "0.eh_proj.weight", cb="eh_proj"),
    Tensor("nextn.enorm.weight", (n_embd,), "0.enorm.weight", cb="enorm"),
    Tensor("nextn.hnorm.weight", (n_embd,), "0.hnorm.weight", cb="hnorm"),
    Tensor("nextn.shared_head_norm.weight", (n_embd,), "1.final_layernorm.weight", cb="shared_head_norm"),
)

_names = {"l_out": "nemotron_h_block_out", "attn_output": "attn_out"}

NEMOTRON_H_MOE = Architecture(
    name="nemotron_h_moe",
    hypers=(
        *(h for h in _base if h.key not in _LATE),
        head_norm_eps,
        replace(n_expert, hf="n_routed_experts"),
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        replace(expert_gating_func, hf=lambda c: None),
        Hyper("n_vocab_key", "vocab_size", default=1, hf="vocab_size"),
        # Written by the converter, and used by no graph: nothing turns.
        Hyper("width_of_rope", "rope.dimension_count", default=0, low=0,
              hf=lambda c: c["hidden_size"] // c["num_attention_heads"]),
        d_conv,
        d_state,
        n_group,
        d_inner,
        n_ssm_head,
        Hyper("is_finetuned", "rope.scaling.finetuned", "bool", default=False, hf=lambda c: False),
        *(h for h in _base if h.key in _LATE),
        n_ff_exp,
        n_ff_shexp,
        Hyper("n_expert_shared", "expert_shared_count", default=0, low=0, high=4096, hf="n_shared_experts"),
        replace(expert_weights_norm, hf_default=True),
        expert_weights_scale,
        n_low,
    ),
    tensors=tuple(replace(t, hf=_roots[t.name]) for t in root_tensors(norm=AS_IS)),
    layers=LAYERS,
    head=HeadSheet(MTP, _NEXTN, hidden="post", chain="post"),
    hf=HuggingFace(
        classes=("NemotronHForCausalLM",),
        model_types=("nemotron_h",),
        layer="backbone.layers.{il}.",
        head="mtp.layers.",
        head_block="mtp.layers.",
        n_heads="num_nextn_predict_layers",
        n_layer=lambda c: len(_kinds(c)),
        heads_after="moe_latent_size",
        late=_LATE,
        fixed={
            "mlp_hidden_act": ("relu2",),
            "mamba_hidden_act": ("silu",),
            "use_conv_bias": (True,),
            "use_bias": (False,),
            "mlp_bias": (False,),
        },
    ),
    cb=_names,
    cb_head={"attn_output": "attn_out"},
)  # fmt: skip
