"""qwen3next: Qwen3-Next. qwen35moe with key heads in groups, beta and alpha in one projection, and plain RoPE.

The data sheet. Source: llama.cpp src/models/qwen3next.cpp, conversion/qwen.py; transformers' Qwen3NextConfig.
"""

from dataclasses import replace

from mtpref.architectures.common import eh_proj_tensors, n_embd, root_tensors
from mtpref.architectures.experts import FUSED_STACKS
from mtpref.architectures.qwen35 import (
    ATTENTION,
    DELTA,
    FUSED,
    NORMS,
    alternating,
    d_conv,
    d_inner,
    d_state,
    n_k_head,
    n_rot,
    n_v_head,
)
from mtpref.architectures.qwen35moe import MOE, QWEN35MOE, expert_hypers, moe_base_hypers
from mtpref.architectures.sheet import SILU, Architecture, Block, Either, HeadSheet, HuggingFace, Tensor
from mtpref.architectures.transforms import AS_IS, NEGATIVE_EXP, ZERO_CENTRED, Change
from mtpref.spec.kinds import GATED_ATTENTION, GROUPED_DELTA_NET, SOFTMAX_MOE_FFN, Sequential

# TENSORS

# qwen35's, in the checkpoint's order of heads. Older files have q, k, v and z in one tensor, as the checkpoint has.
_changes = {"ssm_a": NEGATIVE_EXP, "ssm_conv1d.weight": Change(squeeze=True)}
_delta = {t.name: replace(t, change=_changes.get(t.name, AS_IS)) for t in DELTA}
_qkv, _z = _delta.pop("attn_qkv.weight"), _delta.pop("attn_gate.weight")
del _delta["ssm_beta.weight"], _delta["ssm_alpha.weight"]
_all = Tensor("ssm_in.weight", (2 * n_k_head * d_state + 2 * n_v_head * d_state, n_embd), cb="linear_attn_mixed_qkvz")
# per key head: beta, then alpha
_beta_alpha = Tensor(
    "ssm_ba.weight", (2 * n_v_head, n_embd), "linear_attn.in_proj_ba.weight", cb="linear_attn_mixed_ba"
)
_mixer: tuple[Tensor | Either, ...] = (Either(((_qkv, _z), (_all,))), _beta_alpha, *_delta.values())

# BLOCKS

_residual = Sequential("attn_norm.weight", "post_attention_norm.weight")
DELTA_NET = Block("delta_net", GROUPED_DELTA_NET, SOFTMAX_MOE_FFN, NORMS + _mixer + MOE, _residual, marks=("ssm_",))
ATTENDING = Block("attention", GATED_ATTENTION, SOFTMAX_MOE_FFN, NORMS + ATTENTION + MOE, _residual, marks=("attn_q.",))
MTP = replace(ATTENDING, name="mtp", marks=("nextn.",))

QWEN3NEXT = Architecture(
    name="qwen3next",
    pre="qwen2",
    hypers=(*moe_base_hypers, *expert_hypers, d_conv, d_state, n_k_head, n_v_head, d_inner, n_rot),
    tensors=root_tensors(norm=ZERO_CENTRED),
    layers=alternating(DELTA_NET, ATTENDING),
    head=HeadSheet(MTP, eh_proj_tensors(norm=ZERO_CENTRED), hidden="post", chain="post"),
    hf=HuggingFace(
        classes=("Qwen3NextForCausalLM",),
        model_types=("qwen3_next",),
        layer="model.layers.{il}.",
        head="mtp.",
        head_block="mtp.layers.{i}.",
        n_heads="mtp_num_hidden_layers",
        says_heads=False,
        layers_after="ssm.inner_size",
        heads_after="expert_shared_feed_forward_length",
        fused=tuple(one for one in FUSED if one.hf.endswith(("in_proj_qkvz.weight", "qkv_proj.weight"))),
        stacks=FUSED_STACKS,
        fixed={**SILU, "norm_topk_prob": (True,)},
    ),
    cb=QWEN35MOE.cb,
)
