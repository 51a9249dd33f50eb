"""Naive float64 forward passes of deepseek2: attention through a latent row, absorbed and plain, and the MTP block.

Owns the obvious whole, token by token and head by head, written from llama.cpp's graph. Names and layouts as in
naive_model.py; the experts are naive_moe.py's. `hparams` has the architecture's name under "arch".

`absorbed` decides how attention is put together, whatever tensors a file has: the two are equal in exact arithmetic.
"""

import math
from typing import Any

import numpy as np

from tests import naive, naive_model, naive_moe
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer

load = naive_moe.load
Yarn = tuple[list[float], float, float] | None


def _first(hparams: HParams, name: str, other: str) -> Any:
    """The key, or the one that stands in for it."""
    return hparams[name] if name in hparams else hparams[other]


def sizes(hparams: HParams) -> tuple[int, int, int, int, int]:
    """Heads, width of the latent, of the turned part of a key, of the rest of it, and of a value."""
    n_head, n_latent = int(hparams["attention.head_count"]), int(hparams["attention.kv_lora_rank"])
    n_rot = int(hparams["rope.dimension_count"])
    key = int(_first(hparams, "attention.key_length_mla", "attention.key_length"))
    value = int(_first(hparams, "attention.value_length_mla", "attention.value_length"))
    return n_head, n_latent, n_rot, key - n_rot, value


def scaling(hparams: HParams) -> tuple[list[float], float, float]:
    """Angle per position of each pair, the magnitude of cosine and sine, and the scale of scores."""
    _, _, n_rot, n_nope, _ = sizes(hparams)
    base, factor = float(hparams.get("rope.freq_base", 10000.0)), float(hparams.get("rope.scaling.factor", 1.0))
    stretch, magnitude = naive.log(factor) if factor > 1 else 0.0, 1.0
    is_yarn = hparams.get("rope.scaling.type") == "yarn"
    n_orig = int(_first(hparams, "rope.scaling.original_context_length", "context_length"))
    angles, _ = naive.rope_scaled(n_rot, base, factor, n_orig, is_yarn)
    # The key holds a tenth of the model's mscale_all_dim.
    all_dim = float(hparams.get("rope.scaling.yarn_log_multiplier", 0.0)) / 0.1
    if is_yarn and all_dim == 0.0:
        magnitude = 1 + 0.1 * stretch
    sharper = magnitude * (1 + 0.1 * all_dim * stretch)
    if not is_yarn:
        sharper = 1 + 0.1 * stretch
    return angles, magnitude, sharper**2 / math.sqrt(n_nope + n_rot)


def turned(x: Array, positions: list[int], angles: list[float], magnitude: float) -> Array:
    """RoPE of pairs (2i, 2i + 1). x (n_tokens, n_heads, n_rot)"""
    out = np.zeros_like(x)
    for t, position in enumerate(positions):
        for i, angle in enumerate(angles):
            c, s = magnitude * naive.cos(position * angle), magnitude * naive.sin(position * angle)
            a, b = x[t, :, 2 * i], x[t, :, 2 * i + 1]
            out[t, :, 2 * i], out[t, :, 2 * i + 1] = a * c - b * s, a * s + b * c
    return out


def key_and_value(weights: Weights, hparams: HParams, il: int) -> tuple[Array, Array]:
    """What makes keys (head, n_nope, latent) and values (head, n_value, latent) of a latent."""
    n_head, n_latent, _, n_nope, n_value = sizes(hparams)
    p = f"blk.{il}."
    if p + "attn_kv_b.weight" in weights:
        both = weights[p + "attn_kv_b.weight"].reshape(n_head, n_nope + n_value, n_latent)
        return both[:, :n_nope], both[:, n_nope:]
    return weights[p + "attn_k_b.weight"].transpose(0, 2, 1), weights[p + "attn_v_b.weight"]


def latent_attention(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int], absorbed: bool, yarn: Yarn = None
) -> tuple[Array, dict[str, Array]]:
    """Causal attention over a whole sequence. h (n, n_embd), normed; yarn: as `scaling` has it (None: deepseek2's)"""
    n_head, n_latent, _, n_nope, n_value = sizes(hparams)
    angles, magnitude, scale = yarn or scaling(hparams)
    p, eps, n = f"blk.{il}.", eps_of(hparams), len(h)
    if p + "attn_q_a.weight" in weights:
        low = naive.rms_norm(naive.matmul(weights[p + "attn_q_a.weight"], h), weights[p + "attn_q_a_norm.weight"], eps)
        q = naive.matmul(weights[p + "attn_q_b.weight"], low)
    else:
        q = naive.matmul(weights[p + "attn_q.weight"], h)
    t: dict[str, Array] = {"q": q}
    q = q.reshape(n, n_head, -1)
    both = naive.matmul(weights[p + "attn_kv_a_mqa.weight"], h)
    c = naive.rms_norm(both[:, :n_latent], weights[p + "attn_kv_a_norm.weight"], eps)
    k_pe = turned(both[:, None, n_latent:], positions, angles, magnitude)[:, 0]
    q_nope, q_pe = q[:, :, :n_nope], turned(q[:, :, n_nope:], positions, angles, magnitude)
    t |= {"kv_cmpr_pe": both, "kv_cmpr": c, "k_pe": k_pe, "q_pe": q_pe}
    to_key, to_value = key_and_value(weights, hparams, il)
    out = np.zeros((n, n_head, n_value))
    for head in range(n_head):
        for i in range(n):
            if absorbed:
                # The query goes to the latent; the weighted latents become a value.
                row = np.concatenate([naive.dot(to_key[head].T, q_nope[i, head]), q_pe[i, head]])
                cells = np.concatenate([c[: i + 1], k_pe[: i + 1]], axis=1)
                share = naive.softmax(naive.dot(cells, row) * scale)
                out[i, head] = naive.dot(to_value[head], naive.dot(share, cells[:, :n_latent]))
            else:
                # Keys and values are made of the latents first.
                keys = np.concatenate([naive.matmul(to_key[head], c[: i + 1]), k_pe[: i + 1]], axis=1)
                share = naive.softmax(naive.dot(keys, np.concatenate([q_nope[i, head], q_pe[i, head]])) * scale)
                out[i, head] = naive.dot(share, naive.matmul(to_value[head], c[: i + 1]))
    return naive.matmul(weights[p + "attn_output.weight"], out.reshape(n, -1)), t


def block(
    weights: Weights, hparams: HParams, il: int, x: Array, positions: list[int], absorbed: bool, yarn: Yarn = None
) -> tuple[Array, dict[str, Array]]:
    """x += attention(norm x); x += ffn(norm x)."""
    h = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], eps_of(hparams))
    mixed, t = latent_attention(weights, hparams, il, h, positions, absorbed, yarn)
    x, more = feed_forward(weights, with_gating(weights, hparams), il, x + mixed)
    return x, t | more


def feed_forward(weights: Weights, hparams: HParams, il: int, x: Array) -> tuple[Array, dict[str, Array]]:
    """x += ffn(norm x), dense or experts."""
    t: dict[str, Array] = {}
    h = naive.rms_norm(x, weights[f"blk.{il}.ffn_norm.weight"], eps_of(hparams))
    if f"blk.{il}.ffn_gate_inp.weight" in weights:
        y, t = naive_moe.moe(weights, hparams, il, h)
    else:
        y = naive_model.ffn(weights, il, h)
    return x + y, t | {"ffn_out": y, "l_out": x + y}


def with_gating(weights: Weights, hparams: HParams) -> dict[str, Any]:
    """Where no key says so the router is a softmax, save in GLM-4.7-Flash, which is told by its size."""
    if int(hparams.get("expert_gating_func", 0)):
        return hparams
    is_flash = n_layer(hparams) in (47, 48) and len(weights["token_embd.weight"]) == 154880
    return hparams | {"expert_gating_func": 2 if is_flash else 1}


def trunk(weights: Weights, hparams: HParams, tokens: list[int], absorbed: bool = True) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ..."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        x, t = block(weights, hparams, il, x, list(range(len(tokens))), absorbed)
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    h_post = naive.rms_norm(x, weights["output_norm.weight"], eps_of(hparams))
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), h_post)
    return TrunkResult(logits, h_post, x, tensors)


def mtp(
    weights: Weights,
    hparams: HParams,
    tokens: list[int],
    hiddens: Array,
    positions: list[int],
    absorbed: bool = True,
    yarn: Yarn = None,
) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i."""
    eps, il = eps_of(hparams), n_layer(hparams)
    p = f"blk.{il}.nextn."
    embd = naive.f64(weights.get(p + "embed_tokens.weight", weights["token_embd.weight"]))
    e = naive.rms_norm(embd[np.asarray(tokens, dtype=np.int64)], weights[p + "enorm.weight"], eps)
    h = naive.rms_norm(naive.f64(hiddens), weights[p + "hnorm.weight"], eps)
    x = naive.matmul(weights[p + "eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x, t = block(weights, hparams, il, x, positions, absorbed, yarn)
    h_nextn = naive.rms_norm(x, weights.get(p + "shared_head_norm.weight", weights["output_norm.weight"]), eps)
    shared = weights.get("output.weight", weights["token_embd.weight"])
    logits = naive.matmul(weights.get(p + "shared_head_head.weight", shared), h_nextn)
    return MtpResult(logits, h_nextn, x, {f"mtp_{name}-{il}": value for name, value in t.items()})
