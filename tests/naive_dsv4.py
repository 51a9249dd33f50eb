"""Naive float64 forward passes of deepseek4: four residual streams, windows and compressed rows, hashed experts, and
the MTP block.

Owns the obvious whole, token by token and row by row, written from llama.cpp's graph. Names and layouts as in
naive_model.py. A hidden row is the four streams one after the other, before the head puts them together.
"""

import math
from typing import Any

import numpy as np

from tests import naive, naive_loop, naive_moe
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer

N_STREAMS = 4
load = naive_moe.load


def of_block(hparams: HParams, key: str, il: int) -> Any:
    """A number, or the block's entry of an array."""
    value = hparams[key]
    return value[il] if isinstance(value, list | tuple | np.ndarray) else value


def ratio_of(hparams: HParams, il: int) -> int:
    return int(hparams["attention.compress_ratios"][il])


# STREAMS


def sinkhorn(comb: Array, eps: float, n_iterations: int) -> Array:
    """comb (source, target), of one token."""
    comb = np.stack([naive.softmax(row) for row in comb]) + eps
    comb = comb / (comb.sum(axis=0, keepdims=True) + eps)
    for _ in range(n_iterations - 1):
        comb = comb / (comb.sum(axis=1, keepdims=True) + eps)
        comb = comb / (comb.sum(axis=0, keepdims=True) + eps)
    return comb


def connection(weights: Weights, hparams: HParams, name: str, streams: Array) -> tuple[Array, Array, Array]:
    """What one token's streams (4, n_embd) are read with, written with and mixed by."""
    flat = streams.reshape(-1)
    mixes = naive.matmul(weights[f"{name}_fn.weight"], naive.rms_norm(flat, np.ones(len(flat)), eps_of(hparams)))
    scale, base = weights[f"{name}_scale.weight"], weights[f"{name}_base.weight"]
    eps = float(hparams["hyper_connection.epsilon"])
    n = N_STREAMS
    pre = naive.sigmoid(mixes[:n] * scale[0] + base[:n]) + eps
    post = 2 * naive.sigmoid(mixes[n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mixes[2 * n :] * scale[2] + base[2 * n :]).reshape(n, n)
    return pre, post, sinkhorn(comb, eps, int(hparams["hyper_connection.sinkhorn_iterations"]))


def around(weights: Weights, hparams: HParams, name: str, streams: Array, part: Any) -> Array:
    """One sub-layer on the streams of all tokens (n, 4, n_embd). part: rows -> rows"""
    found = [connection(weights, hparams, name, one) for one in streams]
    x = np.stack(
        [sum(pre[s] * one[s] for s in range(N_STREAMS)) for (pre, _, _), one in zip(found, streams, strict=True)]
    )
    y = part(x)
    out = np.zeros_like(streams)
    for t, (_, post, comb) in enumerate(found):
        for target in range(N_STREAMS):
            out[t, target] = post[target] * y[t]
            for source in range(N_STREAMS):
                out[t, target] += comb[source, target] * streams[t, source]
    return out


def together(weights: Weights, hparams: HParams, streams: Array) -> Array:
    """The streams of all tokens as the head reads them: (n, 4, n_embd) -> (n, n_embd)"""
    rows = []
    for one in streams:
        flat = one.reshape(-1)
        normed = naive.rms_norm(flat, np.ones(len(flat)), eps_of(hparams))
        mixes = naive.matmul(weights["output_hc_fn.weight"], normed)
        p = naive.sigmoid(mixes * weights["output_hc_scale.weight"][0] + weights["output_hc_base.weight"])
        rows.append(sum((p[s] + float(hparams["hyper_connection.epsilon"])) * one[s] for s in range(N_STREAMS)))
    return np.stack(rows)


# ATTENTION


def angles_of(hparams: HParams, ratio: int) -> list[float]:
    """Angle per position of each pair; a layer without compressed rows has another base and no scaling."""
    n_rot = int(hparams["rope.dimension_count"])
    if ratio == 0:
        base = float(hparams.get("rope.freq_base", 10000.0))
        return [naive.power(base, -2.0 * i / n_rot) for i in range(n_rot // 2)]
    base, factor = float(hparams["attention.compress_rope_freq_base"]), float(hparams.get("rope.scaling.factor", 1.0))
    n_orig = int(hparams.get("rope.scaling.original_context_length") or hparams["context_length"])
    return naive.rope_scaled(n_rot, base, factor, n_orig, hparams.get("rope.scaling.type") == "yarn")[0]


def turned(row: Array, position: int, angles: list[float], sign: float = 1.0) -> Array:
    """One head with its last dimensions turned, pairs (2i, 2i + 1) of them. sign -1: back"""
    out, first = row.copy(), len(row) - 2 * len(angles)
    for i, angle in enumerate(angles):
        c, s = naive.cos(position * angle), sign * naive.sin(position * angle)
        a, b = row[first + 2 * i], row[first + 2 * i + 1]
        out[first + 2 * i], out[first + 2 * i + 1] = a * c - b * s, a * s + b * c
    return out


def values_and_scores(weights: Weights, prefix: str, ratio: int, h: Array) -> tuple[Array, Array]:
    """What each token brings to its block, twice as wide where blocks overlap."""
    values = naive.matmul(weights[f"{prefix}_kv.weight"], h)
    scores = naive.matmul(weights[f"{prefix}_gate.weight"], h)
    for t in range(len(h)):
        scores[t] += weights[f"{prefix}_ape.weight"][t % ratio]
    return values, scores


def compressed(weights: Weights, hparams: HParams, prefix: str, ratio: int, h: Array, angles: list[float]) -> Array:
    """Every row that the blocks which end within the sequence leave: (n // ratio, width)."""
    values, scores = values_and_scores(weights, prefix, ratio, h)
    norm = weights[f"{prefix}_norm.weight"]
    width, rows = len(norm), []
    for block in range(len(h) // ratio):
        first = block * ratio
        members = []  # (value, score) of each row of the block, each (width,)
        if ratio == 4:
            for t in range(first - ratio, first):
                is_there = t >= 0
                members.append((values[t, :width] if is_there else np.zeros(width),
                                scores[t, :width] if is_there else np.full(width, -np.inf)))  # fmt: skip
            members += [(values[t, width:], scores[t, width:]) for t in range(first, first + ratio)]
        else:
            members += [(values[t], scores[t]) for t in range(first, first + ratio)]
        row = np.zeros(width)
        for d in range(width):
            share = naive.softmax(np.array([score[d] for _, score in members]))
            row[d] = sum(w * value[d] for w, (value, _) in zip(share, members, strict=True))
        rows.append(turned(naive.rms_norm(row, norm, eps_of(hparams)), first, angles))
    return np.array(rows).reshape(len(rows), width)


def chosen_rows(
    weights: Weights, hparams: HParams, p: str, h: Array, low: Array, t: int, position: int, keys: Array,
    angles: list[float],
) -> tuple[list[int], Array]:  # fmt: skip
    """The compressed rows that the indexer lets token t see, in order, and the score of each that it could see."""
    n_head, width = int(hparams["attention.indexer.head_count"]), int(hparams["attention.indexer.key_length"])
    q = naive.matmul(weights[p + "indexer.attn_q_b.weight"], low[t]).reshape(n_head, width)
    q = np.stack([turned(row, position, angles) for row in q])
    w = naive.matmul(weights[p + "indexer.proj.weight"], h[t]) / math.sqrt(n_head * width)
    n_seen = (t + 1) // 4
    scores = np.zeros(n_seen)
    for r in range(n_seen):
        for head in range(n_head):
            scores[r] += max(0.0, float(naive.dot(q[head], keys[r]))) * w[head]
    best = sorted(range(n_seen), key=lambda r: (-scores[r], r))[: int(hparams["attention.indexer.top_k"])]
    return sorted(best), scores


def gap(scores: Array, seen: list[int]) -> float:
    """How near another choice was: the least score chosen minus the greatest left out, over the greatest of all."""
    rest = [s for r, s in enumerate(scores) if r not in seen]
    return float((scores[seen].min() - max(rest)) / np.abs(scores).max()) if rest else math.inf


def window_input(
    weights: Weights, hparams: HParams, p: str, h: Array, positions: list[int], angles: list[float]
) -> tuple[Array, Array, Array]:
    """Queries' latent, queries (n, n_head, width), and the row that each token leaves. p: the block's prefix"""
    n_head, width, eps = int(hparams["attention.head_count"]), int(hparams["attention.key_length"]), eps_of(hparams)
    low = naive.rms_norm(naive.matmul(weights[p + "attn_q_a.weight"], h), weights[p + "attn_q_a_norm.weight"], eps)
    q = naive.matmul(weights[p + "attn_q_b.weight"], low).reshape(len(h), n_head, width)
    q = naive.rms_norm(q, np.ones(width), eps)
    k = naive.rms_norm(naive.matmul(weights[p + "attn_kv.weight"], h), weights[p + "attn_kv_a_norm.weight"], eps)
    q = np.stack([[turned(head, pos, angles) for head in row] for row, pos in zip(q, positions, strict=True)])
    return low, q, np.stack([turned(row, pos, angles) for row, pos in zip(k, positions, strict=True)])


def attention(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int], ratio: int
) -> tuple[Array, dict[str, Array]]:
    """Attention over a whole sequence. h (n, n_embd), normed; rows of it stand at 0, 1, ..."""
    n_head, width = int(hparams["attention.head_count"]), int(hparams["attention.key_length"])
    window, n_groups = int(hparams["attention.sliding_window"]), int(hparams["attention.output_group_count"])
    p, n, angles = f"blk.{il}.", len(h), angles_of(hparams, ratio)
    low, q, k = window_input(weights, hparams, p, h, positions, angles)
    t: dict[str, Array] = {"qr_norm": low, "q": q, "kv": k}
    rows = np.zeros((0, width))
    if ratio:
        rows = compressed(weights, hparams, p + "attn_compressor", ratio, h, angles)
    if ratio == 4:
        keys = compressed(weights, hparams, p + "indexer_compressor", 4, h, angles)
    out = np.zeros((n, n_head, width))
    t["lid_gap"] = np.full(n, np.inf)
    for i in range(n):
        seen = list(range((i + 1) // ratio)) if ratio else []
        if ratio == 4:
            seen, scores = chosen_rows(weights, hparams, p, h, low, i, positions[i], keys, angles)
            t["lid_gap"][i] = gap(scores, seen)
        cells = np.concatenate([k[max(0, i - window + 1) : i + 1], rows[seen]])
        for head in range(n_head):
            scores = naive.dot(cells, q[i, head]) / math.sqrt(width)
            share = naive.softmax(np.append(scores, weights[p + "attn_sinks.weight"][head]))[:-1]
            out[i, head] = turned(naive.dot(share, cells), positions[i], angles, -1.0)
    size = n_head * width // n_groups
    groups = weights[p + "attn_output_a.weight"].reshape(n_groups, -1, size)
    mixed = [naive.matmul(groups[g], out.reshape(n, n_groups, size)[:, g]) for g in range(n_groups)]
    return naive.matmul(weights[p + "attn_output_b.weight"], np.concatenate(mixed, axis=-1)), t | {"attn_derope": out}


# EXPERTS


def clamped(x: Array, gate: Array, up: Array, down: Array, limit: float) -> Array:
    """A network whose gate and up are clamped before silu."""
    g, u = naive.matmul(gate, x), naive.matmul(up, x)
    if limit > 1e-6:
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    return naive.matmul(down, naive.silu(g) * u)


def experts(weights: Weights, hparams: HParams, il: int, x: Array, tokens: list[int]) -> tuple[Array, dict[str, Array]]:
    """Experts and shared expert of all tokens; the experts' ids, their weights, and every expert's probability."""
    p, n_used = f"blk.{il}.", int(hparams["expert_used_count"])
    limit = float(of_block(hparams, "swiglu_clamp_exp", il))
    own = "swiglu_clamp_shexp" if "swiglu_clamp_shexp" in hparams else "swiglu_clamp_exp"
    shared_limit = float(of_block(hparams, own, il))
    rows, chosen, probs, shares = [], [], [], []
    for token, row in zip(tokens, x, strict=True):
        prob = np.sqrt(naive.softplus(naive.matmul(weights[p + "ffn_gate_inp.weight"], row)))
        if il < int(hparams["hash_layer_count"]):
            ids = [int(e) for e in weights[p + "ffn_gate_tid2eid.weight"][token]]
        else:
            score = prob + weights[p + "exp_probs_b.bias"]
            ids = sorted(range(len(prob)), key=lambda e: (-score[e], e))[:n_used]
        w = [float(prob[e]) for e in ids]
        if hparams["expert_weights_norm"]:
            total = max(sum(w), 2.0**-14)
            w = [one / total for one in w]
        if float(hparams["expert_weights_scale"]) not in (0.0, 1.0):
            w = [one * float(hparams["expert_weights_scale"]) for one in w]
        y = np.zeros(x.shape[1])
        for e, share in zip(ids, w, strict=True):
            gate, up, down = (weights[f"{p}ffn_{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            y += share * clamped(row, gate, up, down, limit)
        gate, up, down = (weights[f"{p}ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
        y += clamped(row, gate, up, down, shared_limit)
        rows.append(y)
        chosen.append(ids)
        probs.append(prob)
        shares.append(w)
    taken = {"ffn_moe_topk": np.array(chosen), "ffn_moe_weights": np.array(shares), "ffn_moe_probs": np.stack(probs)}
    return np.stack(rows), taken


# MODELS


def block(
    weights: Weights, hparams: HParams, il: int, streams: Array, tokens: list[int], positions: list[int], ratio: int
) -> tuple[Array, dict[str, Array]]:
    """Attention, then experts, each around the streams."""
    p, eps = f"blk.{il}.", eps_of(hparams)
    taken: dict[str, Array] = {}

    def mixer(x: Array) -> Array:
        y, t = attention(
            weights, hparams, il, naive.rms_norm(x, weights[p + "attn_norm.weight"], eps), positions, ratio
        )
        taken.update(t, hc_attn_pre=x, attn_out=y)
        return y

    def ffn(x: Array) -> Array:
        y, t = experts(weights, hparams, il, naive.rms_norm(x, weights[p + "ffn_norm.weight"], eps), tokens)
        taken.update(t, hc_ffn_pre=x, ffn_out=y)
        return y

    streams = around(weights, hparams, p + "hc_attn", streams, mixer)
    taken["hc_attn_post"] = streams
    streams = around(weights, hparams, p + "hc_ffn", streams, ffn)
    return streams, taken | {"l_out": streams}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ...; h_post and h_pre: after the final norm, and the raw streams."""
    embd = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    streams = np.repeat(embd[:, None], N_STREAMS, axis=1)
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        ratio = ratio_of(hparams, il)
        streams, t = block(weights, hparams, il, streams, tokens, list(range(len(tokens))), ratio)
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    h_post = naive.rms_norm(together(weights, hparams, streams), weights["output_norm.weight"], eps_of(hparams))
    logits = naive.matmul(weights["output.weight"], h_post)
    return TrunkResult(logits, h_post, streams.reshape(len(tokens), -1), tensors)


def draft(
    weights: Weights, hparams: HParams, tokens: list[int], n_max: int
) -> tuple[list[int], list[naive_loop.Candidate]]:
    """Draft after `tokens`, whose last one is decided but not yet run: as naive_loop.draft, on raw streams."""
    hiddens = [np.zeros(N_STREAMS * weights["output_norm.weight"].shape[0])]
    if len(tokens) > 1:
        hiddens += list(trunk(weights, hparams, tokens[:-1]).h_pre)
    rows, candidates = list(tokens), []
    for _ in range(n_max):
        out = mtp(weights, hparams, rows, np.stack(hiddens), list(range(len(rows))))
        candidates.append(naive_loop.Candidate(*naive.top10(out.logits[-1]), True))
        rows.append(candidates[-1].ids[0])
        hiddens.append(out.h_pre[-1])
    return rows[len(tokens) :], candidates


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i of its window.
    hiddens (n, 4 * n_embd)"""
    eps, il = eps_of(hparams), n_layer(hparams)
    p = f"blk.{il}.nextn."
    embd = naive.f64(weights.get(p + "embed_tokens.weight", weights["token_embd.weight"]))
    e = naive.rms_norm(embd[np.asarray(tokens, dtype=np.int64)], weights[p + "enorm.weight"], eps)
    states = naive.f64(hiddens).reshape(len(tokens), N_STREAMS, -1)
    streams = np.zeros_like(states)
    for t in range(len(tokens)):
        for s in range(N_STREAMS):
            g = naive.rms_norm(states[t, s], weights[p + "hnorm.weight"], eps)
            streams[t, s] = naive.matmul(weights[p + "eh_proj.weight"], np.concatenate([e[t], g]))
    streams, taken = block(weights, hparams, il, streams, tokens, positions, 0)
    norm = weights.get(p + "shared_head_norm.weight", weights["output_norm.weight"])
    h_nextn = naive.rms_norm(together(weights, hparams, streams), norm, eps)
    logits = naive.matmul(weights.get(p + "shared_head_head.weight", weights["output.weight"]), h_nextn)
    tensors = {f"mtp_{name}-{il}": value for name, value in taken.items()}
    return MtpResult(logits, h_nextn, streams.reshape(len(tokens), -1), tensors)
