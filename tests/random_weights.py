"""Random qwen35 weights and tokens from a seed, the same bits on every platform and NumPy version.

Owns a counter-based generator made of 64-bit integer mixing and one exact division: no libm, no NumPy random
stream. Used by the recorded reference values (weights are regenerated, not stored) and by tests. Values are
float32 numbers held in float64, so a F32 GGUF written from them holds the same numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray
HParams = dict[str, Any]

MASK = (1 << 64) - 1
# four 16-bit fields, each uniform on 0..65535, have a sum of this mean and of variance (2^32 - 1) / 3
FIELD_SUM_MEAN = 2 * 65535
FIELD_SUM_DEVIATION = 37837.22723720648


def mix(x: Array) -> Array:
    """The finaliser of splitmix64 on a uint64 array."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, name: str) -> int:
    """FNV-1a of the name, started from the seed, so that each tensor has its own stream."""
    key = (0xCBF29CE484222325 ^ (seed * 0x9E3779B97F4A7C15)) & MASK
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) & MASK
    return key


def bits(seed: int, name: str, n: int) -> Array:
    """n uint64 numbers of the stream (seed, name)."""
    counter = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(counter + np.uint64(stream_key(seed, name)))


def uniform(seed: int, name: str, n: int) -> Array:
    """n numbers in [0, 1), multiples of 2^-53."""
    return (bits(seed, name, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, name: str, n: int) -> Array:
    """n numbers of mean 0 and variance 1: the sum of four uniforms, bounded by 3.47."""
    raw = bits(seed, name, n)
    total = np.zeros(n, dtype=np.int64)
    for shift in (0, 16, 32, 48):
        total += ((raw >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    return (total - FIELD_SUM_MEAN).astype(np.float64) / FIELD_SUM_DEVIATION


def random_tokens(seed: int, n: int, n_vocab: int) -> list[int]:
    return [int(x) for x in bits(seed, "tokens", n) % np.uint64(n_vocab)]


def recurrent_layers(hparams: HParams) -> list[bool]:
    """True for each DeltaNet layer, over all blocks; MTP blocks are never recurrent."""
    n_layer = hparams["block_count"] - hparams.get("nextn_predict_layers", 0)
    given = hparams.get("attention.recurrent_layers")
    interval = hparams.get("full_attention_interval", 4)
    flags = given[:n_layer] if given is not None else [(i + 1) % interval != 0 for i in range(n_layer)]
    return [bool(f) for f in flags] + [False] * (hparams["block_count"] - n_layer)


def tensor_shapes(hparams: HParams, extra: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """NumPy shapes by GGUF name. `extra` names optional tensors: output, and of the MTP block
    shared_head_norm,
    embed_tokens, shared_head_head. `hparams` carries n_vocab beside the GGUF keys."""
    n_embd, n_vocab = hparams["embedding_length"], hparams["n_vocab"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, n_embd),
        "output_norm.weight": (n_embd,),
    }
    if "output" in extra:
        shapes["output.weight"] = (n_vocab, n_embd)
    flags = recurrent_layers(hparams)
    n_layer = len(flags) - hparams.get("nextn_predict_layers", 0)
    for i, recurrent in enumerate(flags):
        layer = linear_shapes(hparams) if recurrent else attention_shapes(hparams)
        layer.update({"attn_norm.weight": (n_embd,), "post_attention_norm.weight": (n_embd,)})
        n_ff = hparams["feed_forward_length"]
        layer.update({"ffn_gate.weight": (n_ff, n_embd), "ffn_up.weight": (n_ff, n_embd)})
        layer["ffn_down.weight"] = (n_embd, n_ff)
        if i >= n_layer:
            layer["nextn.eh_proj.weight"] = (n_embd, 2 * n_embd)
            layer.update({"nextn.enorm.weight": (n_embd,), "nextn.hnorm.weight": (n_embd,)})
            if "shared_head_norm" in extra:
                layer["nextn.shared_head_norm.weight"] = (n_embd,)
            for name in ("embed_tokens", "shared_head_head"):
                if name in extra:
                    layer[f"nextn.{name}.weight"] = (n_vocab, n_embd)
        shapes.update({f"blk.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def linear_shapes(hparams: HParams) -> dict[str, tuple[int, ...]]:
    n_embd, size = hparams["embedding_length"], hparams["ssm.state_size"]
    n_v_head = hparams["ssm.time_step_rank"]
    n_v = n_v_head * size
    n_conv = 2 * hparams["ssm.group_count"] * size + n_v
    return {
        "attn_qkv.weight": (n_conv, n_embd),
        "attn_gate.weight": (n_v, n_embd),
        "ssm_conv1d.weight": (n_conv, hparams["ssm.conv_kernel"]),
        "ssm_dt.bias": (n_v_head,),
        "ssm_a": (n_v_head,),
        "ssm_beta.weight": (n_v_head, n_embd),
        "ssm_alpha.weight": (n_v_head, n_embd),
        "ssm_norm.weight": (size,),
        "ssm_out.weight": (n_embd, n_v),
    }


def attention_shapes(hparams: HParams) -> dict[str, tuple[int, ...]]:
    n_embd, head_dim = hparams["embedding_length"], hparams["attention.key_length"]
    n_q, n_kv = hparams["attention.head_count"] * head_dim, hparams["attention.head_count_kv"] * head_dim
    return {
        "attn_q.weight": (2 * n_q, n_embd),
        "attn_k.weight": (n_kv, n_embd),
        "attn_v.weight": (n_kv, n_embd),
        "attn_output.weight": (n_embd, n_q),
        "attn_q_norm.weight": (head_dim,),
        "attn_k_norm.weight": (head_dim,),
    }


def random_weights(
    seed: int,
    hparams: HParams,
    scale: float = 1.0,
    extra: tuple[str, ...] = (),
    factors: Mapping[str, float] | None = None,
) -> dict[str, Array]:
    """Weights by GGUF name: matrices of deviation scale / sqrt(n_in), norms around 1, -4.05 < ssm_a <= -0.05.

    `factors` multiplies every tensor whose name ends in the key, e.g. {"token_embd.weight": 1e-3}.
    """
    weights = {}
    for name, shape in tensor_shapes(hparams, extra).items():
        n = int(np.prod(shape))
        if name.endswith("norm.weight"):
            values = 1.0 + 0.2 * normal(seed, name, n)
        elif name.endswith("ssm_a"):
            u = uniform(seed, name, n)
            values = -(0.05 + 4.0 * u * u)
        elif name.endswith("ssm_dt.bias"):
            values = normal(seed, name, n) - 1.0
        elif name.endswith("token_embd.weight") or name.endswith("embed_tokens.weight"):
            values = 0.5 * scale * normal(seed, name, n)
        else:
            values = scale / np.sqrt(np.float64(shape[-1])) * normal(seed, name, n)
        for suffix, factor in (factors or {}).items():
            if name.endswith(suffix):
                values = values * factor
        weights[name] = values.astype(np.float32).astype(np.float64).reshape(shape)
    return weights
