"""Naive float64 forward passes of deepseek32 and glm-dsa: a latent row with an indexer that chooses the cells.

Owns the indexer and attention over what it chose, token by token and cell by cell, written from llama.cpp's graphs.
Queries, latents, experts and the MTP block, which has no indexer, are naive_mla.py's.
"""

import math

import numpy as np

from tests import naive, naive_mla
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer

load = naive_mla.load


def indexer_sizes(hparams: HParams) -> tuple[int, int, int]:
    """Heads, width of a key, and how many cells are chosen."""
    head, key, top = (hparams[f"attention.indexer.{name}"] for name in ("head_count", "key_length", "top_k"))
    return int(head), int(key), int(top)


def is_full(hparams: HParams, il: int) -> bool:
    """Whether layer il has an indexer of its own; another takes what the last that has one chose."""
    types = hparams.get("attention.indexer.types")
    if types is not None:
        return bool(types[il])
    is_long = hparams["arch"] == "glm-dsa" and int(hparams["context_length"]) >= 1 << 20
    return il < 3 or (il - 2) % 4 == 0 if is_long else True


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Mean and variance of the last axis taken out."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def turned_front(hparams: HParams, x: Array, positions: list[int]) -> Array:
    """RoPE of the first n_rot dimensions. x (n_tokens, n_heads, width)"""
    angles, magnitude, _ = scaling(hparams)
    n_rot, out = 2 * len(angles), x.copy()
    if hparams["arch"] == "glm-dsa":
        out[:, :, :n_rot] = naive_mla.turned(x[:, :, :n_rot], positions, angles, magnitude)
        return out
    for t, position in enumerate(positions):
        for i, angle in enumerate(angles):
            c, s = magnitude * naive.cos(position * angle), magnitude * naive.sin(position * angle)
            a, b = x[t, :, i], x[t, :, i + len(angles)]
            out[t, :, i], out[t, :, i + len(angles)] = a * c - b * s, a * s + b * c
    return out


def scaling(hparams: HParams) -> tuple[list[float], float, float]:
    """naive_mla's, where llama.cpp takes mscale to be 1 (deepseek32) or reads no mscale_all_dim (glm-dsa)."""
    if hparams["arch"] == "glm-dsa":
        return naive_mla.scaling({k: v for k, v in hparams.items() if k != "rope.scaling.yarn_log_multiplier"})
    angles, magnitude, scale = naive_mla.scaling(hparams)
    all_dim = float(hparams.get("rope.scaling.yarn_log_multiplier", 0.0)) / 0.1
    if hparams.get("rope.scaling.type") == "yarn" and all_dim:
        stretch = naive.log(float(hparams["rope.scaling.factor"]))
        magnitude = (1 + 0.1 * stretch) / (1 + 0.1 * all_dim * stretch)
        scale *= magnitude**2
    return angles, magnitude, scale


def index_scores(
    weights: Weights, hparams: HParams, il: int, h: Array, low: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """Row t: the score of each cell j <= t, -infinity after it. h (n, n_embd) normed, low (n, n_query) normed"""
    n_head, n_key, _ = indexer_sizes(hparams)
    p, eps = f"blk.{il}.indexer.", 0.0 if hparams["arch"] == "glm-dsa" else 1e-6
    q = naive.matmul(weights[p + "attn_q_b.weight"], low).reshape(len(h), n_head, n_key)
    k = layer_norm(naive.matmul(weights[p + "attn_k.weight"], h), weights[p + "k_norm.weight"],
                   weights[p + "k_norm.bias"], eps)  # fmt: skip
    q, k = turned_front(hparams, q, positions), turned_front(hparams, k[:, None], positions)[:, 0]
    w = naive.matmul(weights[p + "proj.weight"], h) / math.sqrt(n_key * n_head)
    scores = np.full((len(h), len(h)), -np.inf)
    for t in range(len(h)):
        for j in range(t + 1):
            scores[t, j] = sum(max(0.0, float(naive.dot(q[t, i], k[j]))) * w[t, i] for i in range(n_head))
    return scores, {"indexer_q not rotated": q, "indexer_k not rotated": k, "indexer_weights": w, "scores": scores}


def chosen_cells(scores: Array, n_top: int) -> list[list[int]]:
    """For each token the cells of the greatest scores that it sees, the lowest among equals; in their order."""
    return [sorted(sorted(range(t + 1), key=lambda j: (-row[j], j))[:n_top]) for t, row in enumerate(scores)]


def attention(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int], cells: list[list[int]] | None
) -> tuple[Array, list[list[int]], dict[str, Array]]:
    """Attention over the cells that this layer's indexer chooses, or over `cells`; and which they were."""
    n_head, n_latent, _, n_nope, n_value = naive_mla.sizes(hparams)
    angles, magnitude, scale = scaling(hparams)
    p, eps, n = f"blk.{il}.", eps_of(hparams), len(h)
    low = naive.rms_norm(naive.matmul(weights[p + "attn_q_a.weight"], h), weights[p + "attn_q_a_norm.weight"], eps)
    t: dict[str, Array] = {}
    if cells is None:
        scores, t = index_scores(weights, hparams, il, h, low, positions)
        cells = chosen_cells(scores, indexer_sizes(hparams)[2])
    q = naive.matmul(weights[p + "attn_q_b.weight"], low).reshape(n, n_head, -1)
    both = naive.matmul(weights[p + "attn_kv_a_mqa.weight"], h)
    c = naive.rms_norm(both[:, :n_latent], weights[p + "attn_kv_a_norm.weight"], eps)
    k_pe = naive_mla.turned(both[:, None, n_latent:], positions, angles, magnitude)[:, 0]
    q_nope, q_pe = q[:, :, :n_nope], naive_mla.turned(q[:, :, n_nope:], positions, angles, magnitude)
    to_key, to_value = naive_mla.key_and_value(weights, hparams, il)
    out = np.zeros((n, n_head, n_value))
    for head in range(n_head):
        for i, seen in enumerate(cells):
            keys = np.concatenate([naive.matmul(to_key[head], c[seen]), k_pe[seen]], axis=1)
            share = naive.softmax(naive.dot(keys, np.concatenate([q_nope[i, head], q_pe[i, head]])) * scale)
            out[i, head] = naive.dot(share, naive.matmul(to_value[head], c[seen]))
    return naive.matmul(weights[p + "attn_output.weight"], out.reshape(n, -1)), cells, t | {"kv_cmpr": c}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ...; tensors["cells-N"]: whether a token sees a cell."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    positions, eps = list(range(len(tokens))), eps_of(hparams)
    tensors: dict[str, Array] = {}
    chosen: list[list[int]] | None = None
    for il in range(n_layer(hparams)):
        h = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], eps)
        shared = None if is_full(hparams, il) else chosen
        mixed, chosen, t = attention(weights, hparams, il, h, positions, shared)
        x = x + mixed
        x, more = naive_mla.feed_forward(weights, with_gating(hparams), il, x)
        tensors |= {f"{name}-{il}": value for name, value in (t | more).items()}
        tensors[f"cells-{il}"] = np.array([[j in cells for j in range(len(tokens))] for cells in chosen])
    h_post = naive.rms_norm(x, weights["output_norm.weight"], eps)
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), h_post)
    return TrunkResult(logits, h_post, x, tensors)


def with_gating(hparams: HParams) -> HParams:
    """A router of glm-dsa is a sigmoid where no key says otherwise."""
    return hparams | {"expert_gating_func": int(hparams.get("expert_gating_func", 0)) or 2}


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block: it sees every cell."""
    return naive_mla.mtp(weights, with_gating(hparams), tokens, hiddens, positions, yarn=scaling(hparams))
