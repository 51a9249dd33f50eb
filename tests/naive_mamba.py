"""Naive float64 forward passes of nemotron_h_moe.

Owns the obvious whole, token by token, head by head and expert by expert, written from llama.cpp's graph, the paper of
Mamba-2 and transformers' model. Names and layouts as in naive_model.py; routers are naive_moe.py's. There is no cache.
"""

import numpy as np

from tests import naive, naive_moe, naive_parallel
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, n_layer

load = naive_moe.load


def rms_eps(hparams: HParams) -> float:
    rms = "attention.layer_norm_rms_epsilon"
    return float(hparams[rms if rms in hparams else "attention.layer_norm_epsilon"])


def mamba(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """A Mamba-2 mixer over a whole sequence from the zero state. h (n, n_embd), normed"""
    w = {name.removeprefix(f"blk.{il}."): x for name, x in weights.items() if name.startswith(f"blk.{il}.")}
    n_inner, n_state = int(hparams["ssm.inner_size"]), int(hparams["ssm.state_size"])
    n_head, n_group = int(hparams["ssm.time_step_rank"]), int(hparams["ssm.group_count"])
    d_conv, size = int(hparams["ssm.conv_kernel"]), n_inner // n_head
    rows = naive.matmul(w["ssm_in.weight"], h)
    z, raw, dt = np.split(rows, [n_inner, 2 * n_inner + 2 * n_group * n_state], axis=1)
    mixed = np.zeros_like(raw)
    for t in range(len(h)):
        for j in range(d_conv):
            if t - j >= 0:
                mixed[t] += raw[t - j] * w["ssm_conv1d.weight"][:, d_conv - 1 - j]
    mixed = naive.silu(mixed + w["ssm_conv1d.bias"])
    x, b, c = np.split(mixed, [n_inner, n_inner + n_group * n_state], axis=1)
    out, y = np.zeros_like(x), np.zeros_like(x)
    state = np.zeros((n_head, size, n_state))
    for t in range(len(h)):
        for head in range(n_head):
            g = head // (n_head // n_group)
            own, part = slice(head * size, (head + 1) * size), slice(g * n_state, (g + 1) * n_state)
            step = float(naive.softplus(dt[t, head] + w["ssm_dt.bias"][head]))
            decay = float(naive.exp(np.float64(step * float(w["ssm_a"].reshape(-1)[head]))))
            state[head] = decay * state[head] + step * np.outer(x[t, own], b[t, part])
            y[t, own] = naive.dot(state[head], c[t, part])
            out[t, own] = y[t, own] + float(w["ssm_d"].reshape(-1)[head]) * x[t, own]
    gated = (out * naive.silu(z)).reshape(len(h), n_group, -1)
    normed = gated / np.sqrt(naive.total(gated * gated) / gated.shape[-1] + rms_eps(hparams)) * w["ssm_norm.weight"]
    result = naive.matmul(w["ssm_out.weight"], normed.reshape(len(h), -1))
    return result, {"scan_output": y, "final_output": normed, "new_state": state, "mamba_out": result}


def attention(weights: Weights, hparams: HParams, il: int, h: Array) -> Array:
    """Causal attention over a whole sequence, nothing turned. h (n, n_embd), normed"""
    p, n, size = f"blk.{il}.", len(h), int(hparams["attention.key_length"])
    n_head, n_kv = int(hparams["attention.head_count"]), int(hparams["attention.head_count_kv"][il])
    if p + "attn_qkv.weight" in weights:
        rows = np.split(
            naive.matmul(weights[p + "attn_qkv.weight"], h), [n_head * size, (n_head + n_kv) * size], axis=1
        )
    else:
        rows = [naive.matmul(weights[f"{p}attn_{x}.weight"], h) + weights.get(f"{p}attn_{x}.bias", 0.0) for x in "qkv"]
    q, k, v = (x.reshape(n, -1, size) for x in rows)
    out = naive.attention(q, k, v, 0).reshape(n, -1)
    return naive.matmul(weights[p + "attn_output.weight"], out) + weights.get(p + "attn_output.bias", 0.0)


def relu2(x: Array) -> Array:
    return np.maximum(x, 0.0) ** 2


def network(weights: Weights, hparams: HParams, il: int, h: Array) -> tuple[Array, dict[str, Array]]:
    """Experts without a gate on rows that may be narrower, plus the shared expert on the whole ones."""
    p, rows, chosen = f"blk.{il}.", [], []
    for row in h:
        ids, shares, _ = naive_moe.route(weights, hparams, il, row)
        down = weights.get(p + "ffn_latent_down.weight")
        low = row if down is None else naive.matmul(down, row)
        out = np.zeros(len(low))
        for e, share in zip(ids, shares, strict=True):
            hidden = relu2(naive.matmul(weights[p + "ffn_up_exps.weight"][e], low))
            out += share * naive.matmul(weights[p + "ffn_down_exps.weight"][e], hidden)
        out = out if down is None else naive.matmul(weights[p + "ffn_latent_up.weight"], out)
        shared = relu2(naive.matmul(weights[p + "ffn_up_shexp.weight"], row))
        rows.append(out + naive.matmul(weights[p + "ffn_down_shexp.weight"], shared))
        chosen.append(ids)
    return np.stack(rows), {"ffn_moe_topk": np.array(chosen), "ffn_out": np.stack(rows)}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens`, each of one part."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        h = naive.rms_norm(x, weights[f"blk.{il}.attn_norm.weight"], rms_eps(hparams))
        if hparams["feed_forward_length"][il]:
            y, t = network(weights, hparams, il, h)
        elif hparams["attention.head_count_kv"][il]:
            y = attention(weights, hparams, il, h)
            t = {"attn_out": y}
        else:
            y, t = mamba(weights, hparams, il, h)
        x = x + y
        tensors |= {f"{name}-{il}": value for name, value in (t | {"attn_norm": h, "nemotron_h_block_out": x}).items()}
    post = naive.rms_norm(x, weights["output_norm.weight"], rms_eps(hparams))
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), post)
    return TrunkResult(logits, post, x, tensors)


def mtp(weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int]) -> MtpResult:
    """The MTP block over rows (tokens[i], hiddens[i]); row i attends to rows 0 .. i."""
    il, eps = n_layer(hparams), rms_eps(hparams)
    p = f"blk.{il}."
    embd = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    e = naive.rms_norm(embd, weights[p + "nextn.enorm.weight"], eps)
    h = naive.rms_norm(naive.f64(hiddens), weights[p + "nextn.hnorm.weight"], eps)
    x = naive.matmul(weights[p + "nextn.eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x = x + attention(weights, hparams, il, naive.rms_norm(x, weights[p + "attn_norm.weight"], eps))
    y, t = network(weights, hparams, il, naive.rms_norm(x, weights[p + "post_attention_norm.weight"], eps))
    x = x + y
    own = {"attention.layer_norm_epsilon": hparams["attention.layer_norm_epsilon"]}
    post = naive_parallel.norm(own, x, weights[p + "nextn.shared_head_norm.weight"])
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), post)
    return MtpResult(logits, post, x, {f"mtp_{n}-{il}": v for n, v in t.items()})
