"""The random-weight cases of the recorded reference values: shapes, seed, scales and tokens by name.

Each case is one kind of trouble: V heads that outnumber K heads, activations so small that the l2 norm's
epsilon matters, gates so large that softplus is its own argument and states are forgotten at once, and a head
that often agrees with its trunk, so that drafts are accepted, in part accepted and rejected.
"""

from typing import Any

import numpy as np

from tests.random_weights import Array, HParams, random_tokens, random_weights, recurrent_layers


def shape(**changes: Any) -> HParams:
    """A small qwen35 with one MTP block: GGUF keys without the prefix, and n_vocab. `__` stands for a dot."""
    hparams: HParams = {
        "n_vocab": 97,
        "block_count": 5,
        "nextn_predict_layers": 1,
        "context_length": 256,
        "embedding_length": 48,
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "full_attention_interval": 4,
        "rope.dimension_count": 8,
        "rope.dimension_sections": [2, 1, 1, 0],
        "rope.freq_base": 10000.0,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 6,
        "ssm.inner_size": 48,
    }
    hparams.update({name.replace("__", "."): value for name, value in changes.items()})
    return hparams


# Shapes with RoPE scaling: 24 tokens reach beyond the original context.
SCALED: dict[str, HParams] = {
    "linear": shape(rope__scaling__type="linear", rope__scaling__factor=4.0),
    "yarn": shape(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=16,
        rope__dimension_count=16, rope__dimension_sections=[3, 2, 2, 0], rope__freq_base=50.0,
    ),
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1, "hparams": shape(), "n_tokens": 24},
    "tiny_activations": {
        "seed": 2,
        "hparams": shape(
            block_count=4,
            attention__recurrent_layers=[True, False, True, False],
            ssm__time_step_rank=4,
            ssm__group_count=4,
            ssm__inner_size=32,
        ),
        "n_tokens": 20,
        "extra": ("output", "shared_head_norm", "embed_tokens", "shared_head_head"),
        "factors": {"token_embd.weight": 1e-3, "attn_qkv.weight": 1e-3, "ffn_down.weight": 1e-2},
    },
    "large_gates": {
        "seed": 3,
        "hparams": shape(
            block_count=4,
            full_attention_interval=2,
            nextn_predict_layers=1,
            attention__head_count_kv=1,
            attention__key_length=32,
            attention__value_length=32,
            rope__dimension_count=16,
            rope__dimension_sections=[3, 3, 2, 0],
            rope__freq_base=1e7,
            ssm__conv_kernel=3,
            ssm__group_count=1,
            ssm__time_step_rank=4,
            ssm__inner_size=32,
        ),
        "n_tokens": 70,
        "extra": ("shared_head_norm",),
        "factors": {
            "ssm_alpha.weight": 20.0,
            "ssm_beta.weight": 20.0,
            "attn_q.weight": 4.0,
            "attn_gate.weight": 4.0,
        },
    },
    "agreeing_head": {
        "seed": 5,
        "hparams": shape(block_count=3, full_attention_interval=2),
        "n_tokens": 12,
        "extra": ("output",),
        "factors": {"ssm_out.weight": 0.3, "attn_output.weight": 0.3, "ffn_down.weight": 0.3},
        "plant_head": True,
    },
}


def plant_head(weights: dict[str, Array], hparams: HParams) -> None:
    """Let the MTP block start from its token's embedding, as the trunk does: eh_proj = [identity | small]."""
    il, n_embd = hparams["block_count"] - 1, hparams["embedding_length"]
    eh_proj = weights[f"blk.{il}.nextn.eh_proj.weight"]
    eh_proj[:, n_embd:] *= 0.125
    eh_proj[:, :n_embd] = np.eye(n_embd)


def build(name: str) -> tuple[dict[str, Array], HParams, list[bool], list[int]]:
    """weights, hparams, recurrent flags of all blocks and tokens of a case."""
    case = CASES[name]
    hparams = case["hparams"]
    weights = random_weights(case["seed"], hparams, extra=case.get("extra", ()), factors=case.get("factors"))
    if case.get("plant_head"):
        plant_head(weights, hparams)
    tokens = random_tokens(case["seed"], case["n_tokens"], hparams["n_vocab"])
    return weights, hparams, recurrent_layers(hparams), tokens
