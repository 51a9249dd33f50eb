"""Naive float64 forward passes of cohere2moe.

Owns the obvious whole, token by token and expert by expert, written from llama.cpp's graph and transformers' model.
Names and layouts as in naive_model.py; routers are naive_moe.py's, the turn of neighbours naive_mla.py's. There is no
cache.
"""

import math

import numpy as np

from tests import naive, naive_mla, naive_moe
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, n_layer

load = naive_moe.load


def norm(hparams: HParams, x: Array, weight: Array) -> Array:
    """RMS norm where the file has an epsilon for it, else the mean is taken out too."""
    eps = float(hparams.get("attention.layer_norm_rms_epsilon", 0.0))
    if eps:
        return naive.rms_norm(x, weight, eps)
    centred = naive.f64(x) - naive.total(naive.f64(x)) / x.shape[-1]
    eps = float(hparams["attention.layer_norm_epsilon"])
    return centred / np.sqrt(naive.total(centred * centred) / x.shape[-1] + eps) * naive.f64(weight)


def has_window(hparams: HParams, il: int) -> bool:
    pattern = hparams.get("attention.sliding_window_pattern", 4)
    if isinstance(pattern, list | tuple | np.ndarray):
        return bool(pattern[il]) if il < len(pattern) else False
    return il < n_layer(hparams) and (pattern == 0 or il % int(pattern) != 0)


def attention(weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]) -> Array:
    """Causal attention over a whole sequence. h (n, n_embd), normed"""
    p, n = f"blk.{il}.", len(h)
    n_head, n_kv = int(hparams["attention.head_count"]), int(hparams["attention.head_count_kv"])
    size = int(hparams["attention.key_length"])
    if p + "attn_qkv.weight" in weights:
        rows = naive.matmul(weights[p + "attn_qkv.weight"], h)
        q, k, v = np.split(rows, [n_head * size, (n_head + n_kv) * size], axis=1)
    else:
        q, k, v = (naive.matmul(weights[f"{p}attn_{x}.weight"], h) for x in "qkv")
    q, k, v = q.reshape(n, n_head, size), k.reshape(n, n_kv, size), v.reshape(n, n_kv, size)
    is_dense = il < int(hparams.get("leading_dense_block_count", 0))
    if has_window(hparams, il) or is_dense or il >= n_layer(hparams):
        base, factor = float(hparams.get("rope.freq_base", 10000.0)), float(hparams.get("rope.scaling.factor", 1.0))
        is_yarn = hparams.get("rope.scaling.type") == "yarn"
        own = "rope.scaling.original_context_length"
        n_orig = int(hparams[own if own in hparams else "context_length"])
        angles, magnitude = naive.rope_scaled(size, base, factor, n_orig, is_yarn)
        q, k = (naive_mla.turned(x, positions, angles, magnitude) for x in (q, k))
    out = np.zeros((n, n_head, size))
    for i in range(n):
        seen = [j for j in range(i + 1) if not has_window(hparams, il) or i - j < int(hparams[WINDOW])]
        for head in range(n_head):
            kv = head // (n_head // n_kv)
            share = naive.softmax(np.array([float(naive.dot(q[i, head], k[j, kv])) / math.sqrt(size) for j in seen]))
            for j, w in zip(seen, share, strict=True):
                out[i, head] += w * v[j, kv]
    return naive.matmul(weights[p + "attn_output.weight"], out.reshape(n, -1))


WINDOW = "attention.sliding_window"


def network(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """Dense, or experts: the mean of their result and the shared expert's, where there is one."""
    p = f"blk.{il}."
    if p + "ffn_gate_inp.weight" not in weights:
        return naive.swiglu(h, *(weights[f"{p}ffn_{x}.weight"] for x in ("gate", "up", "down"))), {}
    rows, chosen = [], []
    for row in h:
        ids, shares, _ = naive_moe.route(weights, hparams, il, row)
        out = np.zeros(len(row))
        for e, share in zip(ids, shares, strict=True):
            if f"{p}ffn_gate_up_exps.weight" in weights:
                gate, up = np.split(weights[f"{p}ffn_gate_up_exps.weight"][e], 2)
            else:
                gate, up = (weights[f"{p}ffn_{x}_exps.weight"][e] for x in ("gate", "up"))
            out += share * naive.swiglu(row, gate, up, weights[f"{p}ffn_down_exps.weight"][e])
        if f"{p}ffn_up_shexp.weight" in weights:
            out = (out + naive.swiglu(row, *(weights[f"{p}ffn_{x}_shexp.weight"] for x in ("gate", "up", "down")))) / 2
        rows.append(out)
        chosen.append(ids)
    return np.stack(rows), {"ffn_moe_topk": np.array(chosen)}


def block(
    weights: Weights, hparams: HParams, il: int, x: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """x += attention(norm x) + network(norm x)."""
    h = norm(hparams, x, weights[f"blk.{il}.attn_norm.weight"])
    mixed = attention(weights, hparams, il, h, positions)
    y, t = network(weights, hparams, il, h)
    return x + mixed + y, t | {"attn_norm": h, "attn_out": mixed, "ffn_out": y, "l_out": x + mixed + y}


def logits(weights: Weights, hparams: HParams, own: Array | None, h: Array) -> Array:
    output = weights.get("output.weight", weights["token_embd.weight"]) if own is None else own
    return naive.matmul(output, h) * float(hparams["logit_scale"])


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ..."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        x, t = block(weights, hparams, il, x, list(range(len(tokens))))
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    post = norm(hparams, x, weights["output_norm.weight"])
    return TrunkResult(logits(weights, hparams, None, post), post, x, tensors)


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i."""
    il = n_layer(hparams)
    p = f"blk.{il}.nextn."
    embd = naive.f64(weights.get(p + "embed_tokens.weight", weights["token_embd.weight"]))
    e = norm(hparams, embd[np.asarray(tokens, dtype=np.int64)], weights[p + "enorm.weight"])
    h = norm(hparams, naive.f64(hiddens), weights[p + "hnorm.weight"])
    x = naive.matmul(weights[p + "eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x, t = block(weights, hparams, il, x, positions)
    post = norm(hparams, x, weights.get(p + "shared_head_norm.weight", weights["output_norm.weight"]))
    own = weights.get(p + "shared_head_head.weight")
    return MtpResult(logits(weights, hparams, own, post), post, x, {f"mtp_{n}-{il}": v for n, v in t.items()})
