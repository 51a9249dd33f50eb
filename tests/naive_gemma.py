"""Naive float64 forward passes of gemma4 and of its assistant.

Owns the obvious whole, token by token, written from llama.cpp's graphs and transformers' Gemma4. Names and layouts as
in naive_model.py. There is no cache: keys and values of the whole text are made again at every call, and the assistant
is given the cells that the text before its token has.
"""

import math
from typing import NamedTuple

import numpy as np

from tests import naive, naive_moe
from tests.naive_chain import of_layer
from tests.naive_model import Array, HParams, TrunkResult, Weights, eps_of

load = naive_moe.load


class Cells(NamedTuple):
    """Keys after norm and RoPE, values after their norm: (n_tokens, n_kv, width)."""

    k: Array
    v: Array


class Step(NamedTuple):
    """Of the assistant: logits (n_vocab,), the row for its next step (n_embd of the target), tensors by cb() name."""

    logits: Array
    h_nextn: Array
    tensors: dict[str, Array]


def tanh(x: Array) -> Array:
    e = naive.exp(-2.0 * np.abs(naive.f64(x)))
    return np.sign(x) * (1.0 - e) / (1.0 + e)


def gelu(x: Array) -> Array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    x = naive.f64(x)
    return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def rms(x: Array, eps: float) -> Array:
    """RMS norm without a weight."""
    return naive.rms_norm(x, np.ones(x.shape[-1]), eps)


def has_window(hparams: HParams, il: int) -> bool:
    return bool(hparams["attention.sliding_window_pattern"][il])


def width(hparams: HParams, il: int) -> int:
    """Of a layer's keys and values."""
    return int(hparams["attention.key_length_swa" if has_window(hparams, il) else "attention.key_length"])


def angles(weights: Weights, hparams: HParams, il: int) -> list[float]:
    """Angle per position of each pair; a layer without a window divides them by rope_freqs."""
    full = int(hparams["rope.dimension_count" if "rope.dimension_count" in hparams else "attention.key_length"])
    if has_window(hparams, il):
        n_rot, base = int(hparams.get("rope.dimension_count_swa", full)), float(hparams.get("rope.freq_base_swa", 1e4))
        return [naive.power(base, -2.0 * i / n_rot) for i in range(n_rot // 2)]
    base, factors = float(hparams.get("rope.freq_base", 1e4)), weights["rope_freqs.weight"]
    return [naive.power(base, -2.0 * i / full) / float(factors[i]) for i in range(full // 2)]


def turned(x: Array, positions: list[int], per_pair: list[float]) -> Array:
    """Pairs (i, i + n_rot/2) of the first n_rot dimensions. x (n_tokens, n_heads, size)"""
    out, half = x.copy(), len(per_pair)
    for t, position in enumerate(positions):
        for i, angle in enumerate(per_pair):
            c, s = naive.cos(position * angle), naive.sin(position * angle)
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i], out[t, :, i + half] = a * c - b * s, a * s + b * c
    return out


def queries(weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]) -> Array:
    n_head = int(of_layer(hparams, "attention.head_count", il))
    q = naive.matmul(weights[f"blk.{il}.attn_q.weight"], h).reshape(len(h), n_head, width(hparams, il))
    q = naive.rms_norm(q, weights[f"blk.{il}.attn_q_norm.weight"], eps_of(hparams))
    return turned(q, positions, angles(weights, hparams, il))


def own_cells(weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]) -> Cells:
    """Keys and values of a layer that has its own. Values without a matrix are the keys' products, not normed by it."""
    p, eps = f"blk.{il}.", eps_of(hparams)
    shape = (len(h), int(of_layer(hparams, "attention.head_count_kv", il)), width(hparams, il))
    k = naive.matmul(weights[p + "attn_k.weight"], h).reshape(shape)
    v = naive.matmul(weights[p + "attn_v.weight"], h).reshape(shape) if p + "attn_v.weight" in weights else k
    k = naive.rms_norm(k, weights[p + "attn_k_norm.weight"], eps)
    return Cells(turned(k, positions, angles(weights, hparams, il)), rms(v, eps))


def attend(hparams: HParams, il: int, q: Array, positions: list[int], cells: Cells) -> Array:
    """Scores are not scaled. Cell c is position c. q (n, n_head, size) -> (n, n_head * size)"""
    n_window, out = int(hparams["attention.sliding_window"]), np.zeros_like(q)
    for t, position in enumerate(positions):
        seen = [c for c in range(len(cells.k)) if c <= position]
        seen = [c for c in seen if not has_window(hparams, il) or position - c < n_window]
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // cells.k.shape[1])
            share = naive.softmax(np.array([float(naive.dot(q[t, head], cells.k[c, kv])) for c in seen]))
            for c, w in zip(seen, share, strict=True):
                out[t, head] += w * cells.v[c, kv]
    return out.reshape(len(q), -1)


def network(x: Array, gate: Array, up: Array, down: Array) -> Array:
    return naive.matmul(down, gelu(naive.matmul(gate, x)) * naive.matmul(up, x))


def experts(weights: Weights, hparams: HParams, il: int, x: Array) -> tuple[Array, Array]:
    """Of rows before any norm: the router and the experts have norms of their own."""
    p, eps, n_embd = f"blk.{il}.", eps_of(hparams), x.shape[1]
    to_router = rms(x, eps) / math.sqrt(n_embd) * weights[p + "ffn_gate_inp.scale"]
    h = naive.rms_norm(x, weights[p + "pre_ffw_norm_2.weight"], eps)
    out, chosen = np.zeros_like(x), []
    for t in range(len(x)):
        probs = naive.softmax(naive.matmul(weights[p + "ffn_gate_inp.weight"], to_router[t]))
        ids = sorted(range(len(probs)), key=lambda e: (-probs[e], e))[: int(hparams["expert_used_count"])]
        total = sum(float(probs[e]) for e in ids)
        for e in ids:
            if p + "ffn_gate_up_exps.weight" in weights:
                gate, up = np.split(weights[p + "ffn_gate_up_exps.weight"][e], 2)
            else:
                gate, up = (weights[f"{p}ffn_{part}_exps.weight"][e] for part in ("gate", "up"))
            y = network(h[t], gate, up, weights[p + "ffn_down_exps.weight"][e])
            scale = weights[p + "ffn_down_exps.scale"][e] if p + "ffn_down_exps.scale" in weights else 1.0
            out[t] += float(probs[e]) / total * float(scale) * y
        chosen.append(ids)
    return out, np.array(chosen)


def after_attention(
    weights: Weights, hparams: HParams, il: int, x: Array, o: Array, inputs: Array | None
) -> tuple[Array, dict[str, Array]]:
    """The rest of a block. o: what attention gives before its output product; inputs: the layer's own embeddings"""
    p, eps = f"blk.{il}.", eps_of(hparams)
    y = naive.matmul(weights[p + "attn_output.weight"], o)
    x = x + naive.rms_norm(y, weights[p + "post_attention_norm.weight"], eps)
    t = {"attn_output": y, "attn_residual": x}
    dense = (weights[f"{p}ffn_{part}.weight"] for part in ("gate", "up", "down"))
    y = network(naive.rms_norm(x, weights[p + "ffn_norm.weight"], eps), *dense)
    if p + "ffn_gate_inp.weight" in weights:
        more, t["ffn_moe_topk"] = experts(weights, hparams, il, x)
        y = naive.rms_norm(y, weights[p + "post_ffw_norm_1.weight"], eps)
        y = y + naive.rms_norm(more, weights[p + "post_ffw_norm_2.weight"], eps)
    t["ffn_moe_combined" if "ffn_moe_topk" in t else "ffn_out"] = y
    x = x + naive.rms_norm(y, weights[p + "post_ffw_norm.weight"], eps)
    if inputs is not None:
        gated = gelu(naive.matmul(weights[p + "inp_gate.weight"], x)) * inputs
        y = naive.rms_norm(naive.matmul(weights[p + "proj.weight"], gated), weights[p + "post_norm.weight"], eps)
        x = x + y
        t["per_layer_embd_out"] = y
    scale = weights.get(p + "layer_output_scale.weight")
    x = x if scale is None else x * float(scale[0])
    return x, t | {"l_out": x}


def per_layer_inputs(weights: Weights, hparams: HParams, tokens: list[int], x: Array) -> list[Array] | None:
    """For each layer the rows of its own embeddings, (n, n_embd_per_layer)."""
    n_own, n_layer = int(hparams.get("embedding_length_per_layer_input", 0)), int(hparams["block_count"])
    if not n_own:
        return None
    of_tokens = naive.f64(weights["per_layer_token_embd.weight"])[tokens] * math.sqrt(n_own)
    made = naive.matmul(weights["per_layer_model_proj.weight"], x) / math.sqrt(x.shape[1])
    made = made.reshape(len(x), n_layer, n_own)
    made = naive.rms_norm(made, weights["per_layer_proj_norm.weight"], eps_of(hparams))
    both = (made + of_tokens.reshape(len(x), n_layer, n_own)) / math.sqrt(2.0)
    return [both[:, il] for il in range(n_layer)]


def source(hparams: HParams, il: int) -> int:
    """The layer whose cells layer il reads: itself, or the last of its kind that has its own."""
    n_own = int(hparams["block_count"]) - int(hparams.get("attention.shared_kv_layers", 0))
    return il if il < n_own else n_own - (2 if has_window(hparams, il) else 1)


def run(weights: Weights, hparams: HParams, tokens: list[int]) -> tuple[TrunkResult, list[Cells]]:
    """All layers over `tokens` at positions 0, 1, ..., and the cells that each reads."""
    eps, positions = eps_of(hparams), list(range(len(tokens)))
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, np.int64)]
    x = x * math.sqrt(x.shape[1])
    inputs = per_layer_inputs(weights, hparams, tokens, x)
    tensors: dict[str, Array] = {}
    cells: list[Cells] = []
    for il in range(int(hparams["block_count"])):
        h = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], eps)
        at = source(hparams, il)
        cells.append(own_cells(weights, hparams, il, h, positions) if at == il else cells[at])
        q = queries(weights, hparams, il, h, positions)
        o = attend(hparams, il, q, positions, cells[il])
        x, t = after_attention(weights, hparams, il, x, o, None if inputs is None else inputs[il])
        t |= {"Qcur": q, "kqv_out": o}
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    post = naive.rms_norm(x, weights["output_norm.weight"], eps)
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), post)
    cap = float(hparams.get("final_logit_softcapping", 0.0))
    logits = tanh(logits / cap) * cap if cap else logits
    return TrunkResult(logits, post, x, tensors), cells


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    return run(weights, hparams, tokens)[0]


Model = tuple[HParams, Weights]


def assistant(
    own: Model, target: Model, token: int, hidden: Array, cells: list[Cells], pos0: int, n_cells: int | None = None
) -> Step:
    """One step: the token and a row of the target's width, at position pos0, over the cells of positions before it.

    n_cells  cells that are there, where it is not that many
    """
    n_cells = pos0 if n_cells is None else n_cells
    hparams, weights = own
    embd = naive.f64(target[1]["token_embd.weight"])[token] * math.sqrt(len(hidden))
    x = naive.matmul(weights["nextn.pre_projection.weight"], np.concatenate([embd, naive.f64(hidden)]))[None]
    tensors: dict[str, Array] = {"mtp_pre_proj-0": x}
    for il in range(int(hparams["block_count"])):
        h = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], eps_of(hparams))
        read = cells[-2 if has_window(hparams, il) else -1]
        q = queries(weights, hparams, il, h, [pos0])
        o = attend(hparams, il, q, [pos0], Cells(read.k[:n_cells], read.v[:n_cells]))
        x, t = after_attention(weights, hparams, il, x, o, None)
        tensors |= {f"mtp_{name}-{il}": value for name, value in (t | {"Qcur": q, "kqv_out": o}).items()}
    post = naive.rms_norm(x, weights["output_norm.weight"], eps_of(hparams))[0]
    logits = naive.matmul(weights["token_embd.weight"], post)
    return Step(logits, naive.matmul(weights["nextn.post_projection.weight"], post), tensors)


def draft(own: Model, target: Model, tokens: list[int], n_max: int) -> list[Step]:
    """Draft after `tokens`, whose last one is decided but not yet run."""
    pos0, n_embd = len(tokens) - 1, target[1]["token_embd.weight"].shape[1]
    hidden, cells = np.zeros(n_embd), [Cells(np.zeros((0, 1, 1)), np.zeros((0, 1, 1)))] * 2
    if pos0:
        out, cells = run(target[1], target[0], tokens[:-1])
        hidden = out.h_post[-1]
    token, steps = tokens[-1], []
    for _ in range(n_max):
        steps.append(assistant(own, target, token, hidden, cells, pos0))
        token, hidden = naive.argmax(steps[-1].logits), steps[-1].h_nextn
    return steps
