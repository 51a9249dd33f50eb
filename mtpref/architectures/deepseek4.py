"""deepseek4: DeepSeek-V4 and V4-Flash. Four residual streams; attention over a window and, in most layers, compressed
rows; experts, in the first layers by token id; one MTP block.

The data sheet. Source: llama.cpp src/models/deepseek4.cpp, conversion/deepseek.py; transformers' DeepseekV4Config.
"""

from dataclasses import replace
from typing import Any

from mtpref.architectures.by_ratio import ByRatio
from mtpref.architectures.common import (
    N_VOCAB,
    OUTPUT,
    OUTPUT_NORM,
    TOKEN_EMBD,
    base_hypers,
    n_embd,
    n_embd_head,
    n_head,
)
from mtpref.architectures.dims import ONE, Dim, Share
from mtpref.architectures.experts import n_expert, n_expert_used, n_ff_exp
from mtpref.architectures.sheet import Architecture, Block, HeadSheet, HuggingFace, Hyper, Joined, Streams, Tensor
from mtpref.spec.kinds import (
    CLAMPED_MOE_FFN,
    COMPRESSED_ATTENTION,
    HASHED_MOE_FFN,
    WINDOW_ATTENTION,
    HyperConnected,
)
from mtpref.spec.kinds.clamped_moe import SQRT_SOFTPLUS
from mtpref.spec.ops.compose_streams import enter_streams

# HYPER-PARAMETERS

n_rot = Hyper("n_rot", "rope.dimension_count", high=4096, hf="qk_rope_head_dim")
n_q_latent = Hyper("n_q_latent", "attention.q_lora_rank", hf="q_lora_rank")
n_window = Hyper("n_window", "attention.sliding_window", hf="sliding_window")
n_expert_shared = Hyper("n_expert_shared", "expert_shared_count", high=4096, hf="n_shared_experts")
weights_scale = Hyper("expert_weights_scale", "expert_weights_scale", "f32", low=0.0, high=1e6,
                      hf="routed_scaling_factor")  # fmt: skip
weights_norm = Hyper("expert_weights_norm", "expert_weights_norm", "bool", hf="norm_topk_prob")
_GATINGS = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": SQRT_SOFTPLUS}
gating = Hyper("expert_gating_func", "expert_gating_func", low=0, high=16, hf_fields=("scoring_func",),
               hf=lambda c: _GATINGS[c["scoring_func"]])  # fmt: skip


clamp_exp = Hyper("clamp_exp", "swiglu_clamp_exp", "f32/layer", low=0.0, high=1e6, hf="swiglu_limit")
clamp_shexp = Hyper("clamp_shexp", "swiglu_clamp_shexp", "f32/layer", default=lambda v: v.whole("clamp_exp"), low=0.0,
                    high=1e6, hf="swiglu_limit")  # fmt: skip
n_index_head = Hyper("n_index_head", "attention.indexer.head_count", high=4096, hf="index_n_heads")
n_index = Hyper("n_index", "attention.indexer.key_length", high=1 << 16, hf="index_head_dim")
n_best = Hyper("n_best", "attention.indexer.top_k", hf="index_topk")
n_output_group = Hyper("n_output_group", "attention.output_group_count", high=4096, hf="o_groups")
n_output_latent = Hyper("n_output_latent", "attention.output_lora_rank", hf="o_lora_rank")
compress_ratio = Hyper("compress_ratio", "attention.compress_ratios", "i32/layer", low=0, high=1 << 16,
                       hf="compress_ratios")  # fmt: skip
compress_freq_base = Hyper("compress_freq_base", "attention.compress_rope_freq_base", "f32", low=1.0, high=1e12,
                           hf="compress_rope_theta")  # fmt: skip
n_streams = Hyper("n_streams", "hyper_connection.count", low=4, high=4, hf="hc_mult")
n_sinkhorn = Hyper("n_sinkhorn", "hyper_connection.sinkhorn_iterations", high=1024, hf="hc_sinkhorn_iters")
streams_eps = Hyper("streams_eps", "hyper_connection.epsilon", "f32", low=0.0, high=1.0, hf="hc_eps")
n_hashed = Hyper("n_hashed", "hash_layer_count", low=0, high=4096, hf="num_hash_layers")
n_hidden = Hyper("n_hidden", "embedding_length_out", default=lambda v: v["n_embd"] * v["n_streams"],
                 hf=lambda c: c["hidden_size"] * c["hc_mult"])  # fmt: skip
_n_mix = 24 * ONE  # n_streams * (n_streams + 2), of four

# TENSORS

EH_PROJ = "eh_proj.weight"  # no checkpoint has it: it is e_proj and h_proj, side by side


def _connection(name: str) -> tuple[Tensor, ...]:
    """Checkpoints have them in float32, as compressors' ape, and llama.cpp's converter leaves them so."""
    fn = (_n_mix, n_streams * n_embd)
    return (
        Tensor(f"hc_{name}_fn.weight", fn, f"hc_{name}_fn", cb=f"hc_{name}_pre", converts_f32=True),
        Tensor(f"hc_{name}_base.weight", (_n_mix,), f"hc_{name}_base", cb=f"hc_{name}_pre"),
        Tensor(f"hc_{name}_scale.weight", (3 * ONE,), f"hc_{name}_scale", cb=f"hc_{name}_pre"),
    )


_around = (
    Tensor("attn_norm.weight", (n_embd,), "attn_norm.weight", cb="attn_norm"),
    Tensor("ffn_norm.weight", (n_embd,), "ffn_norm.weight", cb="attn_post_norm"),
    *_connection("attn"),
    *_connection("ffn"),
)
_group, _output = n_head * n_embd_head, n_output_group * n_output_latent
_window = (
    Tensor("attn_sinks.weight", (n_head,), "attn.attn_sink", cb="kqv_out"),
    Tensor("attn_q_a.weight", (n_q_latent, n_embd), "attn.wq_a.weight", cb="qr_norm"),
    Tensor("attn_q_a_norm.weight", (n_q_latent,), "attn.q_norm.weight", cb="qr_norm"),
    Tensor("attn_q_b.weight", (_group, n_q_latent), "attn.wq_b.weight", cb="Qcur"),
    Tensor("attn_kv.weight", (n_embd_head, n_embd), "attn.wkv.weight", cb="Kcur"),
    Tensor("attn_kv_a_norm.weight", (n_embd_head,), "attn.kv_norm.weight", cb="Kcur"),
    Tensor("attn_output_a.weight", (_output, Share(_group, n_output_group)), "attn.wo_a.weight", cb="attn_wo_a"),
    Tensor("attn_output_b.weight", (n_embd, _output), "attn.wo_b.weight", cb="attn_output"),
)  # fmt: skip


def _compressor(name: str, hf: str, width: Dim, ratio: int, cb: str) -> tuple[Tensor, ...]:
    wide = 2 * width if ratio == 4 else width
    return (
        Tensor(f"{name}_kv.weight", (wide, n_embd), f"{hf}.wkv.weight", cb=cb),
        Tensor(f"{name}_gate.weight", (wide, n_embd), f"{hf}.wgate.weight", cb=cb),
        Tensor(f"{name}_ape.weight", (ratio * ONE, wide), f"{hf}.ape", cb=cb, converts_f32=True),
        Tensor(f"{name}_norm.weight", (width,), f"{hf}.norm.weight", cb=cb),
    )


_indexer = (
    Tensor("indexer.proj.weight", (n_index_head, n_embd), "attn.indexer.weights_proj.weight", cb="lid_weights"),
    Tensor("indexer.attn_q_b.weight", (n_index_head * n_index, n_q_latent), "attn.indexer.wq_b.weight",
           cb="lid_q_rope"),
    *_compressor("indexer_compressor", "attn.indexer.compressor", n_index, 4, "indexer_compressor_row"),
)  # fmt: skip
_rows = {
    0: (),
    4: (*_compressor("attn_compressor", "attn.compressor", n_embd_head, 4, "attn_compressor_row"), *_indexer),
    128: _compressor("attn_compressor", "attn.compressor", n_embd_head, 128, "attn_compressor_row"),
}
_shared_width = n_ff_exp * n_expert_shared
_experts = (
    Tensor("ffn_gate_inp.weight", (n_expert, n_embd), "ffn.gate.weight", cb="ffn_moe_logits", stays_f32=True),
    Tensor("ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd), "ffn.experts.{e}.w1.weight", cb="ffn_moe_gate"),
    Tensor("ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp), "ffn.experts.{e}.w2.weight", role="ffn_down",
           cb="ffn_moe_down"),
    Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd), "ffn.experts.{e}.w3.weight", cb="ffn_moe_up"),
    Tensor("ffn_gate_shexp.weight", (_shared_width, n_embd), "ffn.shared_experts.w1.weight", cb="ffn_shexp"),
    Tensor("ffn_down_shexp.weight", (n_embd, _shared_width), "ffn.shared_experts.w2.weight", role="ffn_down",
           cb="ffn_shexp"),
    Tensor("ffn_up_shexp.weight", (_shared_width, n_embd), "ffn.shared_experts.w3.weight", cb="ffn_shexp"),
)  # fmt: skip
_by_score = Tensor("exp_probs_b.bias", (n_expert,), "ffn.gate.bias", cb="ffn_moe_probs_biased")
_by_token = Tensor("ffn_gate_tid2eid.weight", (N_VOCAB, n_expert_used), "ffn.gate.tid2eid", cb="ffn_moe_topk",
                   below=n_expert)  # fmt: skip
_roots = (
    Tensor("output_hc_fn.weight", (n_streams, n_streams * n_embd), "hc_head_fn", cb="hc_head", converts_f32=True),
    Tensor("output_hc_base.weight", (n_streams,), "hc_head_base", cb="hc_head"),
    Tensor("output_hc_scale.weight", (ONE,), "hc_head_scale", cb="hc_head"),
)

# BLOCKS

_residual = HyperConnected("attn_norm.weight", "ffn_norm.weight")
_NAMES = {0: "window", 4: "selected", 128: "compressed"}
ROUTED = {
    ratio: Block(name, COMPRESSED_ATTENTION, CLAMPED_MOE_FFN, (*_around, *_window, *_rows[ratio], *_experts, _by_score),
                 _residual)
    for ratio, name in _NAMES.items()
}  # fmt: skip
HASHED = {
    ratio: Block(f"{name}, hashed", COMPRESSED_ATTENTION, HASHED_MOE_FFN,
                 (*_around, *_window, *_rows[ratio], *_experts, _by_token), _residual)
    for ratio, name in _NAMES.items()
}  # fmt: skip
MTP = Block("mtp", WINDOW_ATTENTION, CLAMPED_MOE_FFN, (*_around, *_window, *_experts, _by_score), _residual,
            marks=("nextn.",))  # fmt: skip


def _enter(ops: Any, *rest: Any) -> Any:
    return ops.streams_input(ops, *rest)


def _leave(ops: Any, *rest: Any) -> Any:
    return ops.leave_streams(ops, *rest)


_names = {"attn_residual": "hc_attn_post", "attn_post_norm": "ffn_norm", "Qcur": "q", "Kcur": "kv",
          "attn_output": "attn_out", "l_out": "l_last"}  # fmt: skip
_head_names = {name: other for name, other in _names.items() if name != "l_out"}

DEEPSEEK4 = Architecture(
    name="deepseek4",
    hypers=(
        *(h for h in base_hypers if h.key not in ("feed_forward_length",)),
        replace(n_expert, hf="n_routed_experts"),
        n_expert_used,
        gating,
        n_rot,
        n_q_latent,
        n_window,
        n_ff_exp,
        n_expert_shared,
        weights_scale,
        weights_norm,
        clamp_exp,
        clamp_shexp,
        n_index_head,
        n_index,
        n_best,
        n_output_group,
        n_output_latent,
        compress_ratio,
        compress_freq_base,
        n_streams,
        n_sinkhorn,
        streams_eps,
        n_hashed,
        n_hidden,
    ),
    tensors=(
        Tensor(TOKEN_EMBD, (N_VOCAB, n_embd), "embed.weight", role="token_embd", cb="model.input_embed"),
        Tensor(OUTPUT_NORM, (n_embd,), "model.norm.weight", cb="result_norm"),
        Tensor(OUTPUT, (N_VOCAB, n_embd), "head.weight", role="output", cb="result_output"),
        *_roots,
    ),
    layers=ByRatio(ROUTED, HASHED, compress_ratio.key, n_hashed.key, "compress_ratios", "num_hash_layers"),
    head=HeadSheet(
        MTP,
        (
            Tensor("nextn.eh_proj.weight", (n_embd, 2 * n_embd), EH_PROJ, cb="eh_proj"),
            Tensor("nextn.enorm.weight", (n_embd,), "enorm.weight", cb="enorm"),
            Tensor("nextn.hnorm.weight", (n_embd,), "hnorm.weight", cb="hnorm"),
            Tensor("nextn.shared_head_norm.weight", (n_embd,), "norm.weight", fallback=(OUTPUT_NORM,),
                   cb="shared_head_norm"),
            Tensor("nextn.embed_tokens.weight", (N_VOCAB, n_embd), "embed_tokens.weight", fallback=(TOKEN_EMBD,),
                   cb="tok_embd"),
            Tensor("nextn.shared_head_head.weight", (N_VOCAB, n_embd), "shared_head_head.weight", fallback=(OUTPUT,),
                   cb="result_output"),
        ),
        hidden="pre",
        chain="pre",
        n_hidden=n_streams * n_embd,
        enter=_enter,
        is_probed=True,
    ),
    hf=HuggingFace(
        classes=("DeepseekV4ForCausalLM",),
        model_types=("deepseek_v4",),
        layer="model.layers.{il}.",
        head="mtp.{i}.",
        head_block="mtp.{i}.",
        n_heads="num_nextn_predict_layers",
        joined=(Joined(EH_PROJ, ("e_proj.weight", "h_proj.weight")),),
        idle=("ffn.gate.bias",),
        heads_after="embedding_length_out",
    ),
    streams=Streams(enter_streams, _leave, tuple(tensor.name for tensor in _roots)),
    cb=_names,
    cb_head=_head_names,
)  # fmt: skip
