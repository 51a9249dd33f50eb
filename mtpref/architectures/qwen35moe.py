"""qwen35moe: Qwen3.5 and 3.6 with experts. qwen35 with an experts' network in every layer and in the MTP block.

The data sheet; what it shares with the dense model is in qwen35.py.
Source: llama.cpp src/models/qwen35moe.cpp, conversion/qwen.py; transformers' Qwen3_5MoeTextConfig.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpref.architectures.common import base_hypers, eh_proj_tensors, n_ff, root_tensors
from mtpref.architectures.experts import (
    FUSED_STACKS,
    expert_stacks,
    n_expert,
    n_expert_group,
    n_expert_group_used,
    n_expert_used,
    router,
    shared_expert,
)
from mtpref.architectures.experts import n_ff_exp as _n_ff_exp
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
    rope_sections,
)
from mtpref.architectures.sheet import OPTIONAL, Architecture, Block, HeadSheet, HuggingFace, Hyper
from mtpref.architectures.transforms import ZERO_CENTRED
from mtpref.spec.kinds import GATED_ATTENTION, GATED_DELTA_NET, SOFTMAX_MOE_FFN, Sequential

# HYPER-PARAMETERS


def _shared_out(v: Mapping[str, Any]) -> int | None:
    """The width of an expert where no key has it: the dense width, shared out. None: neither key is there."""
    return v["n_ff"] // v["n_expert_used"] or None


# Converted files have no dense width: it is there for the defaults of the others.
dense_width = replace(n_ff, default=0, low=0, hf_default=OPTIONAL)
n_ff_exp = replace(_n_ff_exp, default=_shared_out)
n_ff_shexp = Hyper("n_ff_shexp", "expert_shared_feed_forward_length", default=lambda v: v["n_ff"] or None,
                   hf="shared_expert_intermediate_size", hf_default=OPTIONAL)  # fmt: skip
expert_hypers = (n_expert, n_expert_used, n_ff_exp, n_ff_shexp, n_expert_group, n_expert_group_used)
moe_base_hypers = tuple(dense_width if hyper is n_ff else hyper for hyper in base_hypers)

# TENSORS

MOE = (
    router("mlp.gate.weight"),
    *expert_stacks(has_fused=True),
    *shared_expert(n_ff_shexp, "mlp.shared_expert", is_gated=True),
)

# BLOCKS

_residual = Sequential("attn_norm.weight", "post_attention_norm.weight")
DELTA_NET = Block("delta_net", GATED_DELTA_NET, SOFTMAX_MOE_FFN, NORMS + DELTA + MOE, _residual, marks=("ssm_",))
ATTENDING = Block("attention", GATED_ATTENTION, SOFTMAX_MOE_FFN, NORMS + ATTENTION + MOE, _residual, marks=("attn_q.",))
MTP = replace(ATTENDING, name="mtp", marks=("nextn.",))

# Checkpoints fuse what the dense model's do, but for its feed-forward network.
EXPERT_FUSED = tuple(fused for fused in FUSED if not fused.hf.startswith("mlp."))

QWEN35MOE = Architecture(
    name="qwen35moe",
    pre="qwen35",
    hypers=(*moe_base_hypers, *expert_hypers, d_conv, d_state, n_k_head, n_v_head, d_inner, n_rot, rope_sections),
    tensors=root_tensors(norm=ZERO_CENTRED),
    layers=alternating(DELTA_NET, ATTENDING),
    head=HeadSheet(MTP, eh_proj_tensors(norm=ZERO_CENTRED), hidden="post", chain="post"),
    hf=HuggingFace(
        classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
        layer="model.layers.{il}.",
        head="mtp.",
        head_block="mtp.layers.{i}.",
        n_heads="mtp_num_hidden_layers",
        layers_after="ssm.inner_size",
        heads_after="expert_shared_feed_forward_length",
        fused=EXPERT_FUSED,
        stacks=FUSED_STACKS,
    ),
    cb={"post_ffn": "post_moe"},
)
