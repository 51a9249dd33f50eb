"""bailingmoe3: Ling 3 and Ring 3. Kimi delta attention in most layers, attention through a latent row with a gate for
each head in the last of every group; dense layers in front, then experts; one MTP block with a norm after it.

The data sheet. Source: llama.cpp src/models/bailingmoe3.cpp, conversion/bailingmoe3.py; transformers'
BailingHybridConfig.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtpref.architectures.common import (
    OUTPUT,
    OUTPUT_NORM,
    TOKEN_EMBD,
    base_hypers,
    n_embd,
    n_head,
    n_head_kv,
    root_tensors,
)
from mtpref.architectures.deepseek2 import n_key, n_latent, n_q_latent, n_rot, n_value, n_vocab_key
from mtpref.architectures.dims import ONE
from mtpref.architectures.experts import (
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
    OPTIONAL,
    SILU,
    Architecture,
    Block,
    Either,
    Fused,
    HeadSheet,
    HuggingFace,
    Hyper,
    Keys,
    Rows,
    Tensor,
    by_group,
)
from mtpref.architectures.transforms import AS_IS, BY_HEAD, BY_HEAD_TRANSPOSED, EXP, Change
from mtpref.spec.config import Metadata
from mtpref.spec.kinds import GATED_LATENT_ATTENTION, KDA, LIMITED_FFN, LIMITED_MOE_FFN, Sequential

# WHICH LAYER IS WHICH


def _attends(c: Mapping[str, Any]) -> list[bool]:
    """Whether each layer has attention: the last of every group, and what is left over behind the last whole one."""
    n_layer, size = c["num_hidden_layers"], c["layer_group_size"]
    return [(il + 1) % size == 0 or il >= n_layer // size * size for il in range(n_layer)]


def _rows_of_layers(c: Mapping[str, Any]) -> list[int]:
    """head_count_kv of each block that is written: 1 with attention, a head's among it, 0 without."""
    return [*map(int, _attends(c)), *[1] * c.get("n_written_heads", 0)]


@dataclass(frozen=True)
class ByHeadCount:
    """A layer without key heads is of Kimi delta attention, another of attention; the first so many are dense.

    blocks by (whether it attends, whether it is dense); n_kv, n_dense: the keys
    """

    kinds: Mapping[tuple[bool, bool], Block]
    n_kv: str
    n_dense: str

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        most = int(n_head_kv.high)
        counts = (
            meta.counts(self.n_kv, n_layer, low=0, high=most)
            if meta.is_array(self.n_kv)
            else [meta.u32(self.n_kv, low=0, high=most)] * n_layer
        )
        return self._of(counts, meta.u32(self.n_dense, low=0))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        one = keys.integer(self.n_kv)
        found = [one] * n_blocks if one is not None else keys.integers(self.n_kv, n_blocks)
        if not isinstance(found, list):
            problems.append(f"key {self.n_kv} {found or 'is missing'}, expected a count for each of {n_blocks} blocks")
            found = [0] * n_blocks
        n_dense = keys.integer(self.n_dense)
        if n_dense is None or n_dense < 0:
            problems.append(f"key {self.n_dense} is {'missing' if n_dense is None else n_dense}, expected 0 or more")
        return self._of(found[:n_trunk], max(0, n_dense or 0)), f"{self.n_kv} and {self.n_dense}"

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return [(self.n_dense, found["first_k_dense_replace"], "u32")]

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        if "layer_group_size" not in found:
            return None
        return self._of(list(map(int, _attends(found))), found.get("first_k_dense_replace") or 0)

    def of_tensors(self, names: Iterable[str]) -> Block | None:
        """The block that has tensors of these names (without "blk.N."); None where they are another's."""
        found = set(names)
        attends, is_delta = "attn_kv_a_mqa.weight" in found, "ssm_a" in found
        is_moe, is_dense = "ffn_gate_inp.weight" in found, "ffn_gate.weight" in found
        return self.kinds[attends, is_dense] if attends != is_delta and is_moe != is_dense else None

    def _of(self, n_kv: Sequence[int], n_dense: int) -> tuple[Block, ...]:
        return tuple(self.kinds[count > 0, il < n_dense] for il, count in enumerate(n_kv))

    def all_blocks(self) -> tuple[Block, ...]:
        return tuple(self.kinds.values())


# HYPER-PARAMETERS

SOFTMAX, SIGMOID, OTHER = 1, 2, 4  # numbers of expert_gating_func; the last one no file of it runs with


def _gating(c: Mapping[str, Any]) -> int | None:
    named = c.get("score_function", c.get("scoring_func"))
    return None if named is None else {"softmax": SOFTMAX, "sigmoid": SIGMOID}.get(named, OTHER)


def _limits(name: str) -> Any:
    """One limit for each block that is written; 0 where config.json has none, and for a head that it does not name."""

    def of(c: Mapping[str, Any]) -> list[float] | None:
        n_block = c["num_hidden_layers"] + c.get("n_written_heads", 0)
        found = None if c.get(name) is None else [float(x or 0.0) for x in c[name]][:n_block]
        return None if found is None else found + [0.0] * (n_block - len(found))

    return of


d_conv = Hyper("d_conv", "ssm.conv_kernel", low=2, high=64, hf="short_conv_kernel_size")
n_kda = Hyper("n_kda", "kda.head_dim", high=1 << 12, hf="head_dim")
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", hf="moe_shared_expert_intermediate_size",
                   default=lambda v: v["n_ff_exp"] * max(1, v["n_expert_shared"]))  # fmt: skip
_own: dict[str, dict[str, Any]] = {
    "n_head_kv": {"type": "u32/layer", "low": 0, "default": lambda v: v["n_head"], "hf": _rows_of_layers,
                  "hf_fields": ("layer_group_size", "first_k_dense_replace")},
    "n_embd_head": {"hf": lambda c: c["kv_lora_rank"] + c["qk_rope_head_dim"], "default": None, "hf_default": None,
                    "hf_fields": ("kv_lora_rank", "qk_rope_head_dim")},
    # Read by nothing: one row serves as key and value, and converters leave the width of the other layers here.
    "n_embd_head_v": {"hf_default": None},
}  # fmt: skip

# TENSORS

_inner = n_head * n_kda
_norms = (
    Tensor("attn_norm.weight", (n_embd,), "input_layernorm.weight", cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "post_attention_layernorm.weight", cb="attn_post_norm"),
)
_ROLES = {"q": "", "k": "attn_k", "v": "attn_v"}
_delta = (
    *(
        Tensor(f"attn_{x}.weight", (_inner, n_embd), f"attention.{x}_proj.weight", role=role, cb=f"{x}_conv_predelta")
        for x, role in _ROLES.items()
    ),
    *(
        Tensor(f"ssm_conv1d_{x}.weight", (ONE, _inner, ONE, d_conv), f"attention.{x}_conv1d.weight",
               Change(as_taps=True), cb=f"{x}_conv_predelta", keep_f32=True)
        for x in _ROLES
    ),
    Tensor("ssm_f_a.weight", (_inner, n_embd), "attention.f_proj.weight", cb="kda_gate"),
    Tensor("ssm_dt.bias", (_inner,), "attention.dt_bias", cb="kda_gate"),
    Tensor("ssm_a", (n_head, ONE), "attention.A_log", replace(EXP, as_column=True), cb="kda_gate", keep_f32=True),
    Tensor("ssm_beta.weight", (n_head, n_embd), "attention.b_proj.weight", cb="beta_sigmoid"),
    Tensor("ssm_g_a.weight", (_inner, n_embd), "attention.g_proj.weight", cb="kda_g2"),
    Tensor("ssm_norm.weight", (n_kda,), "attention.o_norm.weight", cb="kda_normed"),
    Tensor("attn_output.weight", (n_embd, _inner), "attention.o_proj.weight", role="attn_output", cb="kda_out"),
)  # fmt: skip

# No checkpoint has these: they are kv_b_proj, each head's rows of keys, then of values.
_K_B, _V_B = "attention.k_b_proj.weight", "attention.v_b_proj.weight"


def _kv_b_rows(v: Mapping[str, int]) -> list[Rows]:
    return by_group(v["n_head"], (v["n_key"] - v["n_rot"], v["n_value"]))


_query = (
    Tensor("attn_q_a.weight", (n_q_latent, n_embd), "attention.q_a_proj.weight", cb="q"),
    Tensor("attn_q_a_norm.weight", (n_q_latent,), "attention.q_a_layernorm.weight", cb="q"),
    Tensor("attn_q_b.weight", (n_head * n_key, n_q_latent), "attention.q_b_proj.weight", cb="q"),
)
_query_at_once = (Tensor("attn_q.weight", (n_head * n_key, n_embd), "attention.q_proj.weight", cb="q"),)
_latent: tuple[Tensor | Either, ...] = (
    Either((_query, _query_at_once)),
    Tensor("attn_kv_a_mqa.weight", (n_latent + n_rot, n_embd), "attention.kv_a_proj_with_mqa.weight", cb="kv_cmpr_pe"),
    Tensor("attn_kv_a_norm.weight", (n_latent,), "attention.kv_a_layernorm.weight", cb="kv_cmpr"),
    Tensor("attn_k_b.weight", (n_head, n_latent, n_key - n_rot), _K_B, BY_HEAD_TRANSPOSED, cb="q_nope_absorbed_perm"),
    Tensor("attn_v_b.weight", (n_head, n_value, n_latent), _V_B, BY_HEAD, cb="kqv_out"),
    Tensor("attn_gate.weight", (n_head, n_embd), "attention.g_proj.weight", cb="attn_gate"),
    Tensor("attn_output.weight", (n_embd, n_head * n_value), "attention.dense.weight", role="attn_output",
           cb="attn_output"),
)  # fmt: skip
_moe = (
    router("mlp.gate.weight"),
    Tensor("exp_probs_b.bias", (n_expert,), "mlp.gate.expert_bias", cb="ffn_moe_probs_biased"),
    *expert_stacks(has_fused=False),
    *shared_expert(n_ff_shexp, "mlp.shared_experts", is_gated=False),
)

# BLOCKS

_residual = Sequential("attn_norm.weight", "ffn_norm.weight")
_KINDS = {
    (False, True): Block("kda_dense", KDA, LIMITED_FFN, (*_norms, *_delta, *FFN), _residual),
    (False, False): Block("kda_moe", KDA, LIMITED_MOE_FFN, (*_norms, *_delta, *_moe), _residual),
    (True, True): Block("mla_dense", GATED_LATENT_ATTENTION, LIMITED_FFN, (*_norms, *_latent, *FFN), _residual),
    (True, False): Block("mla_moe", GATED_LATENT_ATTENTION, LIMITED_MOE_FFN, (*_norms, *_latent, *_moe), _residual),
}
MTP = replace(_KINDS[True, False], name="mtp", marks=("nextn.",))
# Without it no file loads: llama.cpp has no other norm for the head. Embedding and output are the trunk's.
_OUT_NORM = Tensor("layer_output_norm.weight", (n_embd,), "final_layernorm.weight", cb="shared_head_norm")
_NEXTN = (
    # columns: embedding, then hidden
    Tensor("nextn.eh_proj.weight", (n_embd, 2 * n_embd), "eh_proj.weight", cb="eh_proj"),
    Tensor("nextn.enorm.weight", (n_embd,), "enorm.weight", cb="enorm"),
    Tensor("nextn.hnorm.weight", (n_embd,), "hnorm.weight", cb="hnorm"),
    _OUT_NORM,
)
_ROOTS = {TOKEN_EMBD: "model.word_embeddings.weight", OUTPUT_NORM: "model.norm.weight", OUTPUT: "lm_head.weight"}

_names = {"kda_scan_out": "attn_output", "attn_output": "mla_out"}


BAILINGMOE3 = Architecture(
    name="bailingmoe3",
    pre="bailingmoe2",
    mxfp4_of_experts=True,
    hypers=(
        *(replace(h, **_own.get(h.name, {})) for h in base_hypers),
        n_expert,
        n_expert_used,
        n_expert_group,
        n_expert_group_used,
        replace(expert_gating_func, default=None, low=1, hf=_gating),
        n_vocab_key,
        d_conv,
        n_kda,
        Hyper("has_safe_gate", "kda.safe_gate", "bool", default=True, hf="kda_safe_gate",
              hf_fields=("no_kda_lora", "gated_attention_proj_granularity_type")),
        Hyper("lower_bound", "kda.gate_lower_bound", "f32", low=-1e4, high=-1e-6, hf="kda_lower_bound"),
        n_q_latent,
        replace(n_latent, hf_default=None),
        n_rot,
        replace(n_key, default=None),
        replace(n_value, default=None),
        n_ff_exp,
        n_ff_shexp,
        Hyper("n_expert_shared", "expert_shared_count", low=0, high=4096, hf="num_shared_experts", hf_default=1),
        replace(expert_weights_scale, hf_default=None),
        replace(expert_weights_norm, hf_default=None),
        Hyper("clamp_exp", "swiglu_clamp_exp", "f32/layer", default=0.0, low=0.0, high=1e6,
              hf=_limits("expert_swiglu_limit_list")),
        Hyper("clamp_shexp", "swiglu_clamp_shexp", "f32/layer", default=0.0, low=0.0, high=1e6,
              hf=_limits("share_expert_swiglu_limit_list")),
        # Of models for pictures: pairs of time, height, width and the rest.
        Hyper("rope_sections", "rope.dimension_sections", "arr:i32", default=[0, 0, 0, 0], hf="mrope_section",
              hf_default=OPTIONAL),
    ),
    tensors=tuple(replace(t, hf=_ROOTS[t.name]) for t in root_tensors(norm=AS_IS)),
    layers=ByHeadCount(_KINDS, "attention.head_count_kv", "leading_dense_block_count"),
    head=HeadSheet(MTP, _NEXTN, hidden="post", chain="post", norm_instead=_OUT_NORM.name, may_lack=True),
    hf=HuggingFace(
        classes=("BailingMoeV3ForCausalLM",),
        model_types=("bailing_moe_v3",),
        layer="model.layers.{il}.",
        head="model.layers.{il}.",
        head_block="model.layers.{il}.",
        n_heads="num_nextn_predict_layers",
        fused=(Fused("attention.kv_b_proj.weight", (_K_B, _V_B), _kv_b_rows),),
        layers_after="expert_shared_count",
        heads_after="swiglu_clamp_shexp",
        gating_field="score_function",
        fixed={
            **SILU,
            "no_kda_lora": (True,),
            "kda_safe_gate": (True,),
            "gated_attention_proj_granularity_type": ("head_wise",),
        },
    ),
    cb=_names,
    cb_head=_names,
)  # fmt: skip
