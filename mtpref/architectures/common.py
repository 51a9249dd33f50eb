"""What data sheets share: the hyper-parameters that every architecture has, the tensors outside of blocks, nextn.*."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mtpref.architectures.dims import Named
from mtpref.architectures.sheet import OPTIONAL, Hyper, Tensor
from mtpref.architectures.transforms import AS_IS, Change


def _half(v: Mapping[str, Any]) -> int:
    return int(v["n_embd"]) // int(v["n_head"])


n_block = Hyper("n_block", "block_count", high=4096, hf="num_hidden_layers")
n_ctx = Hyper("n_ctx", "context_length", hf="max_position_embeddings", hf_default=OPTIONAL)
n_embd = Hyper("n_embd", "embedding_length", hf="hidden_size")
n_ff = Hyper("n_ff", "feed_forward_length", hf="intermediate_size")
n_head = Hyper("n_head", "attention.head_count", high=4096, hf="num_attention_heads")
n_head_kv = Hyper(
    "n_head_kv", "attention.head_count_kv", default=lambda v: v["n_head"], high=4096, hf="num_key_value_heads"
)
# Without one a row of zeros is 0 / 0: the hidden row before the first position is such a row.
LEAST_EPS = 1e-30
rms_eps = Hyper(
    "rms_eps", "attention.layer_norm_rms_epsilon", "f32", low=LEAST_EPS, high=1.0, hf="rms_norm_eps", hf_default=1e-6
)
freq_base = Hyper(
    "freq_base", "rope.freq_base", "f32", default=10000.0, low=1.0, high=1e12, hf="rope_theta", hf_default=OPTIONAL
)
n_embd_head = Hyper("n_embd_head", "attention.key_length", default=_half, high=4096, hf="head_dim", hf_default=OPTIONAL)
n_embd_head_v = Hyper(
    "n_embd_head_v",
    "attention.value_length",
    default=lambda v: v["n_embd_head"],
    high=4096,
    hf="head_dim",
    hf_default=OPTIONAL,
)
# In the order in which llama.cpp's converter writes them for every architecture (conversion/base.py).
base_hypers = (n_block, n_ctx, n_embd, n_ff, n_head, n_head_kv, freq_base, rms_eps, n_embd_head, n_embd_head_v)

N_VOCAB = Named("n_vocab")  # the length of tokenizer.ggml.tokens
N_DRAFT_VOCAB = Named("n_draft_vocab")  # the length of d2t
# A head that its file has trimmed: d2t[row] is the token id of a row.
D2T = Tensor("d2t", (N_DRAFT_VOCAB,))
TOKEN_EMBD, OUTPUT_NORM, OUTPUT = "token_embd.weight", "output_norm.weight", "output.weight"
# What a stand-alone head's file has of the trunk.
SHARED = (TOKEN_EMBD, OUTPUT_NORM, OUTPUT)


def trimmed(tensors: Iterable[Tensor], *, has_trunk: bool) -> list[Tensor]:
    """The tensors of a file with d2t: the head, or the output of a stand-alone head, has a row for each of its ids."""
    shape = (N_DRAFT_VOCAB, n_embd)
    changed = [D2T]
    for one in tensors:
        if one.name.endswith("nextn.shared_head_head.weight"):
            one = replace(one, shape=shape, fallback=() if has_trunk else (OUTPUT,))
        elif one.name == OUTPUT and not has_trunk:
            one = replace(one, shape=shape)
        changed.append(one)
    return changed


def root_tensors(norm: Change) -> tuple[Tensor, ...]:
    """The tensors outside of blocks, the output tied to the embedding where it is absent. norm: of the final norm"""
    return (
        Tensor(TOKEN_EMBD, (N_VOCAB, n_embd), "model.embed_tokens.weight", role="token_embd", cb="model.input_embed"),
        Tensor(OUTPUT_NORM, (n_embd,), "model.norm.weight", norm, cb="result_norm"),
        Tensor(OUTPUT, (N_VOCAB, n_embd), "lm_head.weight", fallback=(TOKEN_EMBD,), role="output", cb="result_output"),
    )


def numbered_head_tensors(norm_hf: str) -> tuple[Tensor, ...]:
    """nextn.* where a checkpoint counts the head as one more layer, its norms as they are. norm_hf: that after it"""
    names = {
        "eh_proj": "eh_proj",
        "enorm": "enorm",
        "hnorm": "hnorm",
        "shared_head_norm": norm_hf,
        "embed_tokens": "embed_tokens",
        "shared_head_head": "shared_head.head",
    }
    return tuple(replace(t, hf=f"{names[t.name.split('.')[1]]}.weight") for t in eh_proj_tensors(norm=AS_IS))


def eh_proj_tensors(norm: Change) -> tuple[Tensor, ...]:
    """nextn.*: eh_proj([enorm(embedding) ; hnorm(hidden)]) before the block, a norm and an output after it."""
    return (
        # columns: embedding, then hidden
        Tensor("nextn.eh_proj.weight", (n_embd, 2 * n_embd), "fc.weight", cb="eh_proj"),
        Tensor("nextn.enorm.weight", (n_embd,), "pre_fc_norm_embedding.weight", norm, cb="enorm"),
        Tensor("nextn.hnorm.weight", (n_embd,), "pre_fc_norm_hidden.weight", norm, cb="hnorm"),
        Tensor("nextn.shared_head_norm.weight", (n_embd,), "norm.weight", norm, fallback=(OUTPUT_NORM,),
               cb="shared_head_norm"),
        Tensor("nextn.embed_tokens.weight", (N_VOCAB, n_embd), "embed_tokens.weight", fallback=(TOKEN_EMBD,),
               cb="tok_embd"),
        Tensor("nextn.shared_head_head.weight", (N_VOCAB, n_embd), "lm_head.weight", fallback=(OUTPUT, TOKEN_EMBD),
               cb="result_output"),
    )  # fmt: skip


# Special tokens of GLM's models, which llama.cpp's converter takes by their texts.
GLM_SPECIAL = (("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>"))
