"""The tensors of the qwen35 architecture: names, shapes, which may be absent and what stands in for them.

Data only. A name holds "{i}" for the block number. A shape is in NumPy order (GGUF dimensions reversed), each
dimension a sum of products over the symbols of `SYMBOLS`, to be evaluated with `dims`. Read next: inspect.py,
which compares a file with these tables.
Source: llama.cpp src/models/qwen35.cpp (load_arch_tensors).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Symbol -> key below the architecture's prefix. n_vocab is the length of tokenizer.ggml.tokens.
SYMBOLS: dict[str, str] = {
    "n_embd": "embedding_length",
    "n_ff": "feed_forward_length",
    "n_head": "attention.head_count",
    "n_head_kv": "attention.head_count_kv",
    "n_embd_head": "attention.key_length",
    "d_conv": "ssm.conv_kernel",
    "d_state": "ssm.state_size",  # S, one DeltaNet head's width
    "n_k_head": "ssm.group_count",  # H_k
    "n_v_head": "ssm.time_step_rank",  # H_v
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model. `fallback`: names to use instead, the first present wins; empty: required."""

    name: str
    shape: tuple[str, ...]
    fallback: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return not self.fallback


# A head that its file has trimmed: d2t[row] is the token id of a row. n_draft_vocab is the length of d2t.
D2T = TensorSpec("d2t", ("n_draft_vocab",))


def trimmed(specs: Sequence[TensorSpec], *, has_trunk: bool) -> list[TensorSpec]:
    """The tensors of a file with d2t: the head, or the output of a stand-alone head, has a row for each of its ids."""
    shape = ("n_draft_vocab", "n_embd")
    changed = [D2T]
    for spec in specs:
        if spec.name.endswith(".nextn.shared_head_head.weight"):
            spec = TensorSpec(spec.name, shape, () if has_trunk else ("output.weight",))
        elif spec.name == "output.weight" and not has_trunk:
            spec = TensorSpec(spec.name, shape, spec.fallback)
        changed.append(spec)
    return changed


GLOBAL = (
    TensorSpec("token_embd.weight", ("n_vocab", "n_embd")),
    TensorSpec("output_norm.weight", ("n_embd",)),
    TensorSpec("output.weight", ("n_vocab", "n_embd"), ("token_embd.weight",)),
)
_NORMS = (
    TensorSpec("blk.{i}.attn_norm.weight", ("n_embd",)),
    TensorSpec("blk.{i}.post_attention_norm.weight", ("n_embd",)),
)
_FFN = (
    TensorSpec("blk.{i}.ffn_gate.weight", ("n_ff", "n_embd")),
    TensorSpec("blk.{i}.ffn_up.weight", ("n_ff", "n_embd")),
    TensorSpec("blk.{i}.ffn_down.weight", ("n_embd", "n_ff")),
)
_ATTENTION = (
    TensorSpec("blk.{i}.attn_q.weight", ("2*n_head*n_embd_head", "n_embd")),  # per head: q, then gate
    TensorSpec("blk.{i}.attn_k.weight", ("n_head_kv*n_embd_head", "n_embd")),
    TensorSpec("blk.{i}.attn_v.weight", ("n_head_kv*n_embd_head", "n_embd")),
    TensorSpec("blk.{i}.attn_output.weight", ("n_embd", "n_head*n_embd_head")),
    TensorSpec("blk.{i}.attn_q_norm.weight", ("n_embd_head",)),
    TensorSpec("blk.{i}.attn_k_norm.weight", ("n_embd_head",)),
)
_DELTA = (
    TensorSpec("blk.{i}.attn_qkv.weight", ("2*n_k_head*d_state + n_v_head*d_state", "n_embd")),
    TensorSpec("blk.{i}.attn_gate.weight", ("n_v_head*d_state", "n_embd")),  # z
    TensorSpec("blk.{i}.ssm_conv1d.weight", ("2*n_k_head*d_state + n_v_head*d_state", "d_conv")),
    TensorSpec("blk.{i}.ssm_dt.bias", ("n_v_head",)),
    TensorSpec("blk.{i}.ssm_a", ("n_v_head",)),
    TensorSpec("blk.{i}.ssm_beta.weight", ("n_v_head", "n_embd")),
    TensorSpec("blk.{i}.ssm_alpha.weight", ("n_v_head", "n_embd")),
    TensorSpec("blk.{i}.ssm_norm.weight", ("d_state",)),
    TensorSpec("blk.{i}.ssm_out.weight", ("n_embd", "n_v_head*d_state")),
)
_NEXTN = (
    TensorSpec("blk.{i}.nextn.eh_proj.weight", ("n_embd", "2*n_embd")),  # columns: embedding, then hidden
    TensorSpec("blk.{i}.nextn.enorm.weight", ("n_embd",)),
    TensorSpec("blk.{i}.nextn.hnorm.weight", ("n_embd",)),
    TensorSpec("blk.{i}.nextn.shared_head_norm.weight", ("n_embd",), ("output_norm.weight",)),
    TensorSpec("blk.{i}.nextn.embed_tokens.weight", ("n_vocab", "n_embd"), ("token_embd.weight",)),
    TensorSpec("blk.{i}.nextn.shared_head_head.weight", ("n_vocab", "n_embd"), ("output.weight", "token_embd.weight")),
)
DELTA_LAYER = _NORMS + _DELTA + _FFN
ATTENTION_LAYER = _NORMS + _ATTENTION + _FFN
MTP_BLOCK = _NEXTN + _NORMS + _ATTENTION + _FFN

# Layer kind -> the tensors of one block of it. The keys are the kinds that inspect prints.
LAYERS: dict[str, tuple[TensorSpec, ...]] = {
    "delta_net": DELTA_LAYER,
    "attention": ATTENTION_LAYER,
    "mtp": MTP_BLOCK,
}
ARCHITECTURES = ("qwen35",)


def dims(shape: tuple[str, ...], values: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape in numbers, or None when a symbol has no value."""
    out = []
    for expression in shape:
        total = 0
        for term in expression.split("+"):
            product = 1
            for factor in term.strip().split("*"):
                if not factor.isdigit() and factor not in values:
                    return None
                product *= int(factor) if factor.isdigit() else values[factor]
            total += product
        out.append(total)
    return tuple(out)
