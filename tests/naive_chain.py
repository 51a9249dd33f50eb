"""Naive float64 forward passes of step35 and mimo2, and of drafts by a chain of heads.

Owns the obvious whole, token by token and head by head, written from llama.cpp's graphs and driver. Names and layouts
as in naive_model.py. `hparams` has the architecture's name under "arch"; counts by layer are lists. There is no
cache: every head's cells are made again from the text and the trunk's rows.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests import naive, naive_loop, naive_moe
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer

load = naive_moe.load


def of_layer(hparams: HParams, key: str, il: int, default: Any = None) -> Any:
    """A key's value for one layer."""
    value = hparams.get(key, default)
    return value[il] if isinstance(value, list | tuple | np.ndarray) else value


def has_window(hparams: HParams, il: int) -> bool:
    return bool(hparams["attention.sliding_window_pattern"][il])


def angles(weights: Weights, hparams: HParams, il: int) -> list[float]:
    """Angle per position of each pair of a layer."""
    is_windowed, is_step = has_window(hparams, il), hparams["arch"] == "step35"
    n_rot = int(hparams.get("rope.dimension_count") or hparams["attention.key_length"])
    if is_windowed:
        base = float(hparams.get("rope.freq_base_swa", 10000.0))
        return [naive.power(base, -2.0 * i / n_rot) for i in range(n_rot // 2)]
    n_rot = n_rot // 2 if is_step else n_rot
    base, factor = float(hparams.get("rope.freq_base", 10000.0)), float(hparams.get("rope.scaling.factor", 1.0))
    n_orig = int(hparams.get("rope.scaling.original_context_length") or hparams["context_length"])
    found, _ = naive.rope_scaled(n_rot, base, factor, n_orig, hparams.get("rope.scaling.type") == "yarn")
    factors = weights.get("rope_freqs.weight") if is_step else None
    return [a / (1.0 if factors is None else float(factors[i])) for i, a in enumerate(found)]


def turned(x: Array, positions: list[int], per_pair: list[float], magnitude: float) -> Array:
    """Pairs (i, i + n_rot/2) of the first n_rot dimensions; the rest stays. x (n_tokens, n_heads, size)"""
    out, half = x.copy(), len(per_pair)
    for t, position in enumerate(positions):
        for i, angle in enumerate(per_pair):
            c, s = magnitude * naive.cos(position * angle), magnitude * naive.sin(position * angle)
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i], out[t, :, i + half] = a * c - b * s, a * s + b * c
    return out


def attention(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """Causal attention over a whole sequence. h (n, n_embd), normed"""
    p, n, eps = f"blk.{il}.", len(h), eps_of(hparams)
    n_head, n_kv = (
        int(of_layer(hparams, "attention.head_count", il)),
        int(of_layer(hparams, "attention.head_count_kv", il)),
    )
    d_k, d_v = int(hparams["attention.key_length"]), int(hparams["attention.value_length"])
    if p + "attn_qkv.weight" in weights:
        rows = naive.matmul(weights[p + "attn_qkv.weight"], h)
        q, k, v = np.split(rows, [n_head * d_k, (n_head + n_kv) * d_k], axis=1)
    else:
        q, k, v = (naive.matmul(weights[f"{p}attn_{x}.weight"], h) for x in "qkv")
    q, k, v = q.reshape(n, n_head, d_k), k.reshape(n, n_kv, d_k), v.reshape(n, n_kv, d_v)
    if p + "attn_q_norm.weight" in weights:
        q = naive.rms_norm(q, weights[p + "attn_q_norm.weight"], eps)
        k = naive.rms_norm(k, weights[p + "attn_k_norm.weight"], eps)
    per_pair = angles(weights, hparams, il)
    is_yarn = hparams.get("rope.scaling.type") == "yarn" and not has_window(hparams, il)
    magnitude = 1.0 + 0.1 * naive.log(float(hparams["rope.scaling.factor"])) if is_yarn else 1.0
    q, k = turned(q, positions, per_pair, magnitude), turned(k, positions, per_pair, magnitude)
    out = np.zeros((n, n_head, d_v))
    n_window = int(hparams["attention.sliding_window"])
    sinks = weights.get(p + "attn_sinks.weight")
    for i in range(n):
        seen = [j for j in range(i + 1) if not has_window(hparams, il) or i - j < n_window]
        for head in range(n_head):
            kv = head // (n_head // n_kv)
            scores = [float(naive.dot(q[i, head], k[j, kv])) / math.sqrt(d_k) for j in seen]
            # The sink is one more score, whose value is nothing.
            more = [] if sinks is None else [float(sinks[head])]
            share = naive.softmax(np.array(scores + more))
            for j, w in zip(seen, share, strict=False):
                out[i, head] += w * v[j, kv]
    t = {"attn_pregate": out}
    if p + "attn_gate.weight" in weights:
        gate = naive.matmul(weights[p + "attn_gate.weight"], h)
        out = out * naive.sigmoid(gate)[:, :, None]
        t |= {"attn_gate": gate, "attn_gated": out}
    y = naive.matmul(weights[p + "attn_output.weight"], out.reshape(n, -1))
    scale = float(hparams.get("attention.value_scale", 1.0))
    return y * scale, t | {"attn_scaled": y * scale, "Qcur": q, "Kcur": k, "Vcur": v}


def network(x: Array, gate: Array, up: Array, down: Array, limit: float) -> Array:
    """down(silu(gate x) * up x), with limits where there are any."""
    a, b = naive.silu(naive.matmul(gate, x)), naive.matmul(up, x)
    if limit > 1e-6:
        a, b = np.minimum(a, limit), np.clip(b, -limit, limit)
    return naive.matmul(down, a * b)


def experts(weights: Weights, hparams: HParams, il: int, x: Array) -> tuple[Array, Array]:
    """The experts' network of all tokens, and which experts each went to."""
    p, is_step, out, chosen = f"blk.{il}.", hparams["arch"] == "step35", np.zeros_like(x), []
    limit = float(of_layer(hparams, "swiglu_clamp_exp", il, 0.0))
    for t, row in enumerate(x):
        probs = naive.sigmoid(naive.matmul(weights[p + "ffn_gate_inp.weight"], row))
        scores = probs + weights.get(p + "exp_probs_b.bias", 0.0)
        ids = sorted(range(len(probs)), key=lambda e: (-scores[e], e))[: int(hparams["expert_used_count"])]
        w = [float(probs[e]) for e in ids]
        if not is_step or hparams.get("expert_weights_norm", False):
            w = [one / max(sum(w), 2.0**-14) for one in w]
        scale = float(hparams.get("expert_weights_scale", 0.0)) if is_step else 0.0
        w = [one * scale for one in w] if scale not in (0.0, 1.0) else w
        for e, weight in zip(ids, w, strict=True):
            gate, up, down = (weights[f"{p}ffn_{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            out[t] += weight * network(row, gate, up, down, limit)
        chosen.append(ids)
    if p + "ffn_up_shexp.weight" in weights:
        gate, up, down = (weights[f"{p}ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
        out = out + network(x, gate, up, down, float(of_layer(hparams, "swiglu_clamp_shexp", il, 0.0)))
    return out, np.array(chosen)


def block(
    weights: Weights, hparams: HParams, il: int, x: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """x += attention(norm x); x += ffn(norm x)."""
    eps, p = eps_of(hparams), f"blk.{il}."
    y, t = attention(weights, hparams, il, naive.rms_norm(x, weights[p + "attn_norm.weight"], eps), positions)
    x = x + y
    h = naive.rms_norm(x, weights[p + "ffn_norm.weight"], eps)
    if p + "ffn_gate_inp.weight" in weights:
        y, t["ffn_moe_topk"] = experts(weights, hparams, il, h)
    else:
        # A dense network takes the shared expert's limit.
        gate, up, down = (weights[f"{p}ffn_{part}.weight"] for part in ("gate", "up", "down"))
        y = network(h, gate, up, down, float(of_layer(hparams, "swiglu_clamp_shexp", il, 0.0)))
    return x + y, t | {"ffn_out": y, "l_out": x + y}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ..."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        x, t = block(weights, hparams, il, x, list(range(len(tokens))))
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    h_post = naive.rms_norm(x, weights["output_norm.weight"], eps_of(hparams))
    return TrunkResult(naive.matmul(weights["output.weight"], h_post), h_post, x, tensors)


def mtp(
    weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int], head: int = 0
) -> MtpResult:
    """Head `head` over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i."""
    eps, il = eps_of(hparams), n_layer(hparams) + head
    p = f"blk.{il}."
    embd = naive.f64(weights.get(p + "nextn.embed_tokens.weight", weights["token_embd.weight"]))
    e = naive.rms_norm(embd[np.asarray(tokens, dtype=np.int64)], weights[p + "nextn.enorm.weight"], eps)
    h = naive.rms_norm(naive.f64(hiddens), weights[p + "nextn.hnorm.weight"], eps)
    x = naive.matmul(weights[p + "nextn.eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x, t = block(weights, hparams, il, x, positions)
    norms = (p + "nextn.shared_head_norm.weight", p + "layer_output_norm.weight", "output_norm.weight")
    post = naive.rms_norm(x, weights[next(name for name in norms if name in weights)], eps)
    logits = naive.matmul(weights.get(p + "nextn.shared_head_head.weight", weights["output.weight"]), post)
    return MtpResult(logits, post, x, {f"mtp_{name}-{il}": value for name, value in t.items()})


def draft(
    weights: Weights,
    hparams: HParams,
    tokens: list[int],
    n_max: int,
    runs: tuple[Callable[..., TrunkResult], Callable[..., MtpResult]] | None = None,
    rows_of: Callable[[Any], Array] = lambda result: result.h_pre,
) -> list[int]:
    """Draft after `tokens`, whose last one is decided but not yet run: head i in step i, over text and draft so far.

    runs: the architecture's trunk and head; rows_of: the rows that heads are given, of either's result
    """
    return draft_candidates(weights, hparams, tokens, n_max, runs, rows_of)[0]


def draft_candidates(
    weights: Weights,
    hparams: HParams,
    tokens: list[int],
    n_max: int,
    runs: tuple[Callable[..., TrunkResult], Callable[..., MtpResult]] | None = None,
    rows_of: Callable[[Any], Array] = lambda result: result.h_pre,
) -> tuple[list[int], list[naive_loop.Candidate]]:
    """The same, and the best ids of each step."""
    of_trunk, of_head = runs or (trunk, mtp)
    rows = [np.zeros(weights["output_norm.weight"].shape[0])]
    if len(tokens) > 1:
        rows += list(rows_of(of_trunk(weights, hparams, tokens[:-1])))
    n_heads = int(hparams["nextn_predict_layers"])
    drafted: list[int] = []
    candidates = []
    for step in range(min(n_max, n_heads) if n_heads > 1 else n_max):
        # Every head has the trunk's rows for the text; for the draft, the rows of the heads before it.
        head = step if n_heads > 1 else 0
        all_tokens = tokens + drafted
        out = of_head(weights, hparams, all_tokens, np.stack(rows), list(range(len(all_tokens))), head)
        candidates.append(naive_loop.Candidate(*naive.top10(out.logits[-1]), True))
        drafted.append(naive.argmax(out.logits[-1]))
        rows.append(rows_of(out)[-1])
    return drafted, candidates


def draft_late(weights: Weights, hparams: HParams, tokens: list[int], catch_up: str) -> list[int]:
    """Draft after `tokens` where each head is given, over text and draft alike, what the head before it made of the
    token before (`chain`), or the trunk's row of as many tokens earlier as its number (`delayed`)."""
    zero = np.zeros((1, weights["output_norm.weight"].shape[0]))
    of_trunk = trunk(weights, hparams, tokens[:-1]).h_pre if len(tokens) > 1 else zero[:0]
    rows = np.concatenate([zero, of_trunk])
    drafted: list[int] = []
    for head in range(int(hparams["nextn_predict_layers"])):
        all_tokens = tokens + drafted
        out = mtp(weights, hparams, all_tokens, rows, list(range(len(all_tokens))), head)
        drafted.append(naive.argmax(out.logits[-1]))
        rows = np.concatenate([zero, rows if catch_up == "delayed" else out.h_pre])
    return drafted
