"""Naive float64 forward passes of bailingmoe3: Kimi delta attention, and latent rows whose heads have gates.

Owns the obvious whole, token by token, head by head and expert by expert, written from llama.cpp's graph, the paper of
Kimi Linear and transformers' model. Names and layouts as in naive_model.py; routers are naive_moe.py's. No cache.
"""

import math

import numpy as np

from tests import naive, naive_chain, naive_mla, naive_moe
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer

load = naive_moe.load


def gates(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, Array]:
    """The log decay of each channel of each head's key (n, H, S), and the strength of the update (n, H)."""
    p, n_head, size = f"blk.{il}.", int(hparams["attention.head_count"]), int(hparams["kda.head_dim"])
    f = naive.matmul(weights[p + "ssm_f_a.weight"], h) + weights[p + "ssm_dt.bias"]
    g = np.zeros((len(h), n_head, size))
    for head in range(n_head):
        rate = float(weights[p + "ssm_a"].reshape(-1)[head])
        rows = f[:, head * size : (head + 1) * size]
        g[:, head] = float(hparams["kda.gate_lower_bound"]) * naive.sigmoid(rate * rows)
    return g, naive.sigmoid(naive.matmul(weights[p + "ssm_beta.weight"], h))


def convolved(weights: Weights, hparams: HParams, il: int, h: Array, part: str) -> Array:
    """q, k or v of each head (n, H, S): a product, a causal convolution of each channel, silu."""
    rows = naive.matmul(weights[f"blk.{il}.attn_{part}.weight"], h)
    taps = weights[f"blk.{il}.ssm_conv1d_{part}.weight"].reshape(rows.shape[1], -1)
    out, d_conv = np.zeros_like(rows), taps.shape[1]
    for t in range(len(h)):
        for back in range(min(d_conv, t + 1)):
            out[t] += rows[t - back] * taps[:, d_conv - 1 - back]
    return naive.silu(out).reshape(len(h), int(hparams["attention.head_count"]), -1)


def delta(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """A mixer of Kimi delta attention over a whole sequence from the zero state. h (n, n_embd), normed"""
    p, eps = f"blk.{il}.", eps_of(hparams)
    q, k, v = (convolved(weights, hparams, il, h, part) for part in "qkv")
    q, k = naive.l2_norm(q, eps), naive.l2_norm(k, eps)
    g, beta = gates(weights, hparams, il, h)
    n, n_head, size = v.shape
    out, state = np.zeros_like(v), np.zeros((n_head, size, size))
    for t in range(n):
        for head in range(n_head):
            # One column of the state for each channel of the key, which forgets at a rate of its own.
            for i in range(size):
                state[head, :, i] *= math.exp(float(g[t, head, i]))
            error = v[t, head] - naive.dot(state[head], k[t, head])
            state[head] += float(beta[t, head]) * np.outer(error, k[t, head])
            out[t, head] = naive.dot(state[head], q[t, head]) / math.sqrt(size)
    z = naive.matmul(weights[p + "ssm_g_a.weight"], h)
    normed = naive.rms_norm(out, weights[p + "ssm_norm.weight"], eps) * naive.sigmoid(z).reshape(out.shape)
    y = naive.matmul(weights[p + "attn_output.weight"], normed.reshape(n, -1))
    return y, {"kda_gate": g, "beta_sigmoid": beta, "q_conv_predelta": q, "k_conv_predelta": k, "v_conv_predelta": v,
               "attn_output": out, "new_state": state, "kda_normed": normed, "kda_out": y}  # fmt: skip


def turned(hparams: HParams, x: Array, positions: list[int]) -> Array:
    """RoPE of all of a row: pairs (2 i, 2 i + 1); with sections pairs (i, i + half), those of the last one still."""
    n_rot, base = x.shape[2], float(hparams.get("rope.freq_base", 10000.0))
    is_yarn, factor = hparams.get("rope.scaling.type") == "yarn", float(hparams.get("rope.scaling.factor", 1.0))
    n_orig = int(hparams.get("rope.scaling.original_context_length") or hparams["context_length"])
    angles, magnitude = naive.rope_scaled(n_rot, base, factor, n_orig, is_yarn)
    sections = [int(one) for one in hparams.get("rope.dimension_sections", [])]
    if not (sections and sections[0] and sections[1]):
        return naive_mla.turned(x, positions, angles, magnitude)
    still = [i % sum(sections) >= sum(sections[:3]) for i in range(n_rot // 2)]
    angles = [0.0 if stays else angle for stays, angle in zip(still, angles, strict=True)]
    return naive_chain.turned(x, positions, angles, magnitude)


def attention(
    weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """Causal attention with keys and values made of the latents, each head with a gate. h (n, n_embd), normed"""
    p, n, eps = f"blk.{il}.", len(h), eps_of(hparams)
    n_head, n_latent, _, n_nope, n_value = naive_mla.sizes(hparams)
    if p + "attn_q_a.weight" in weights:
        low = naive.rms_norm(naive.matmul(weights[p + "attn_q_a.weight"], h), weights[p + "attn_q_a_norm.weight"], eps)
        q = naive.matmul(weights[p + "attn_q_b.weight"], low)
    else:
        q = naive.matmul(weights[p + "attn_q.weight"], h)
    q = q.reshape(n, n_head, -1)
    both = naive.matmul(weights[p + "attn_kv_a_mqa.weight"], h)
    c = naive.rms_norm(both[:, :n_latent], weights[p + "attn_kv_a_norm.weight"], eps)
    k_pe, q_pe = (
        turned(hparams, both[:, None, n_latent:], positions)[:, 0],
        turned(hparams, q[:, :, n_nope:], positions),
    )
    to_key, to_value = naive_mla.key_and_value(weights, hparams, il)
    gate = naive.sigmoid(naive.matmul(weights[p + "attn_gate.weight"], h))
    out = np.zeros((n, n_head, n_value))
    for head in range(n_head):
        keys = np.concatenate([naive.matmul(to_key[head], c), k_pe], axis=1)
        values = naive.matmul(to_value[head], c)
        for i in range(n):
            query = np.concatenate([q[i, head, :n_nope], q_pe[i, head]])
            share = naive.softmax(naive.dot(keys[: i + 1], query) / math.sqrt(len(query)))
            out[i, head] = gate[i, head] * naive.dot(share, values[: i + 1])
    y = naive.matmul(weights[p + "attn_output.weight"], out.reshape(n, -1))
    return y, {"kv_cmpr": c, "k_pe": k_pe, "q_pe": q_pe, "attn_gated": out, "mla_out": y}


def network(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """A dense network, or experts and the shared expert, each with the block's limit where it has one."""
    p, rows, chosen = f"blk.{il}.", [], []
    limit, shared_limit = (
        float(naive_chain.of_layer(hparams, f"swiglu_clamp_{part}", il, 0.0)) for part in ("exp", "shexp")
    )
    if p + "ffn_gate.weight" in weights:
        gate, up, down = (weights[f"{p}ffn_{part}.weight"] for part in ("gate", "up", "down"))
        return naive_chain.network(h, gate, up, down, shared_limit), {}
    for row in h:
        ids, shares, _ = naive_moe.route(weights, hparams, il, row)
        gate, up, down = (weights[f"{p}ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
        out = naive_chain.network(row, gate, up, down, shared_limit)
        for e, share in zip(ids, shares, strict=True):
            gate, up, down = (weights[f"{p}ffn_{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            out = out + share * naive_chain.network(row, gate, up, down, limit)
        rows.append(out)
        chosen.append(ids)
    return np.stack(rows), {"ffn_moe_topk": np.array(chosen)}


def block(
    weights: Weights, hparams: HParams, il: int, x: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """x += mixer(norm x); x += network(norm x)."""
    eps, p = eps_of(hparams), f"blk.{il}."
    h = naive.rms_norm(x, weights[p + "attn_norm.weight"], eps)
    is_delta = p + "ssm_a" in weights
    y, t = delta(weights, hparams, il, h) if is_delta else attention(weights, hparams, il, h, positions)
    x = x + y
    y, more = network(weights, hparams, il, naive.rms_norm(x, weights[p + "ffn_norm.weight"], eps))
    return x + y, {"attn_norm": h} | t | more | {"ffn_out": y, "l_out": x + y}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ..."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        x, t = block(weights, hparams, il, x, list(range(len(tokens))))
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    post = naive.rms_norm(x, weights["output_norm.weight"], eps_of(hparams))
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), post)
    return TrunkResult(logits, post, x, tensors)


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i."""
    il, eps = n_layer(hparams), eps_of(hparams)
    p = f"blk.{il}."
    embd = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    e = naive.rms_norm(embd, weights[p + "nextn.enorm.weight"], eps)
    h = naive.rms_norm(naive.f64(hiddens), weights[p + "nextn.hnorm.weight"], eps)
    x = naive.matmul(weights[p + "nextn.eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x, t = block(weights, hparams, il, x, positions)
    post = naive.rms_norm(x, weights[p + "layer_output_norm.weight"], eps)
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), post)
    return MtpResult(logits, post, x, {f"mtp_{name}-{il}": value for name, value in t.items()})
