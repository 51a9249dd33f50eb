"""Naive float64 forward passes of architectures with experts: qwen35moe, qwen3next, glm4moe, hy_v3.

Owns the obvious whole, token by token and expert by expert; written from llama.cpp's graphs and transformers' models.
Names and layouts as in naive_model.py, which has the layers that qwen35moe shares with qwen35. `hparams` has the
architecture's name under "arch".
"""

from typing import Any

import numpy as np

from tests import naive, naive_model
from tests.naive_model import Array, HParams, MtpResult, TrunkResult, Weights, eps_of, n_layer


def load(path: str) -> tuple[HParams, Weights]:
    """Every tensor of a GGUF as float64, the hyper-parameters, and the architecture's name among them."""
    import gguf

    hparams, weights = naive_model.load_gguf(str(path))
    arch = gguf.GGUFReader(path).fields["general.architecture"].contents()
    return hparams | {"arch": arch}, weights


# EXPERTS


def route(weights: Weights, hparams: HParams, il: int, x: Array) -> tuple[list[int], list[float], dict[str, Array]]:
    """The experts of one token, the best first, their weights, and what llama.cpp names on the way."""
    is_qwen = hparams["arch"].startswith("qwen")
    logits = naive.matmul(weights[f"blk.{il}.ffn_gate_inp.weight"], x)
    sigmoid = not is_qwen and int(hparams.get("expert_gating_func", 2)) != 1
    p = naive.sigmoid(logits) if sigmoid else naive.softmax(logits)
    t = {"ffn_moe_logits": logits, "ffn_moe_probs": p}
    bias = weights.get(f"blk.{il}.exp_probs_b.bias", weights.get(f"blk.{il}.exp_probs_b"))
    score = [float(p[e]) + (0.0 if bias is None else float(bias[e])) for e in range(len(p))]
    n_group, n_used = int(hparams.get("expert_group_count", 1)), int(hparams["expert_used_count"])
    allowed = set(range(len(p)))
    if n_group > 1:
        size = len(p) // n_group
        best_two = [sum(sorted(score[g * size : (g + 1) * size])[-2:]) for g in range(n_group)]
        groups = sorted(range(n_group), key=lambda g: (-best_two[g], g))[: int(hparams["expert_group_used_count"])]
        allowed = {e for g in groups for e in range(g * size, (g + 1) * size)}
    ids = sorted(allowed, key=lambda e: (-score[e], e))[:n_used]
    w = [float(p[e]) for e in ids]
    if is_qwen or hparams.get("expert_weights_norm", False):
        total = max(sum(w), 2.0**-14)
        w = [one / total for one in w]
    scale = 0.0 if is_qwen else float(hparams.get("expert_weights_scale", 0.0))
    if scale not in (0.0, 1.0):
        w = [one * scale for one in w]
    return ids, w, t | {"ffn_moe_topk": np.array(ids), "ffn_moe_weights": np.array(w)}


def moe(weights: Weights, hparams: HParams, il: int, x: Array) -> tuple[Array, dict[str, Array]]:
    """The experts' network of all tokens."""
    p, rows = f"blk.{il}.", []
    taps: dict[str, list[Array]] = {}
    for row in x:
        ids, w, t = route(weights, hparams, il, row)
        out = np.zeros(len(row))
        for e, weight in zip(ids, w, strict=True):
            if f"{p}ffn_gate_up_exps.weight" in weights:
                both = weights[f"{p}ffn_gate_up_exps.weight"][e]
                gate, up = both[: len(both) // 2], both[len(both) // 2 :]
            else:
                gate, up = (weights[f"{p}ffn_{part}_exps.weight"][e] for part in ("gate", "up"))
            out = out + weight * naive.swiglu(row, gate, up, weights[f"{p}ffn_down_exps.weight"][e])
        t["ffn_moe_out"] = out
        if f"{p}ffn_up_shexp.weight" in weights:
            gate, up, down = (weights[f"{p}ffn_{part}_shexp.weight"] for part in ("gate", "up", "down"))
            shared = naive.swiglu(row, gate, up, down)
            key = f"{p}ffn_gate_inp_shexp.weight"
            if key in weights:
                shared = shared * naive.sigmoid(naive.matmul(weights[key].reshape(1, -1), row))
            out = out + shared
        rows.append(out)
        for name, value in t.items():
            taps.setdefault(name, []).append(value)
    return np.stack(rows), {name: np.stack(values) for name, values in taps.items()}


# MIXERS


def plain_attention(weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]) -> Array:
    """Attention without a gate over a whole sequence: biases, then norms of q and k, then RoPE of the first n_rot."""
    n_head, n_head_kv = int(hparams["attention.head_count"]), int(hparams["attention.head_count_kv"])
    size, eps = int(hparams["attention.key_length"]), eps_of(hparams)
    n_rot, base = int(hparams.get("rope.dimension_count", size)), float(hparams.get("rope.freq_base", 10000.0))
    rows = naive_model.project_qkv(weights, il, h, n_head * size, n_head_kv * size)
    if f"blk.{il}.attn_qkv.bias" in weights:
        biases: Any = np.split(weights[f"blk.{il}.attn_qkv.bias"], [n_head * size, (n_head + n_head_kv) * size])
    else:
        biases = [weights.get(f"blk.{il}.attn_{part}.bias", 0.0) for part in "qkv"]
    q, k, v = (
        (row + bias).reshape(len(h), n, size)
        for row, bias, n in zip(rows, biases, (n_head, n_head_kv, n_head_kv), strict=True)
    )
    if f"blk.{il}.attn_q_norm.weight" in weights:
        q = naive.rms_norm(q, weights[f"blk.{il}.attn_q_norm.weight"], eps)
        k = naive.rms_norm(k, weights[f"blk.{il}.attn_k_norm.weight"], eps)
    q, k = turned(q, positions, n_rot, base), turned(k, positions, n_rot, base)
    out = naive.attention(q, k, v, 0)
    return naive.matmul(weights[f"blk.{il}.attn_output.weight"], out.reshape(len(h), -1))


def turned(x: Array, positions: list[int], n_rot: int, base: float) -> Array:
    """NEOX RoPE: pairs (i, i + n_rot/2) of the first n_rot dimensions; the rest stays."""
    out = x.copy()
    for t, position in enumerate(positions):
        for i in range(n_rot // 2):
            angle = position * naive.power(base, -2.0 * i / n_rot)
            c, s = naive.cos(angle), naive.sin(angle)
            a, b = x[t, :, i], x[t, :, i + n_rot // 2]
            out[t, :, i], out[t, :, i + n_rot // 2] = a * c - b * s, a * s + b * c
    return out


def as_qwen35(weights: Weights, hparams: HParams, il: int) -> Weights:
    """A qwen3next DeltaNet layer in qwen35's tensors: projections apart, value heads in the tiled order."""
    p, n_k, n_v = f"blk.{il}.", int(hparams["ssm.group_count"]), int(hparams["ssm.time_step_rank"])
    size, r = int(hparams["ssm.state_size"]), n_v // n_k
    made = {name: w for name, w in weights.items() if name.startswith(p)}
    if p + "ssm_in.weight" in weights and p + "attn_qkv.weight" not in weights:
        q: list[Array] = []
        k: list[Array] = []
        v: list[Array] = []
        z: list[Array] = []
        at = 0
        for _ in range(n_k):
            for part, n in ((q, size), (k, size), (v, r * size), (z, r * size)):
                part.append(weights[p + "ssm_in.weight"][at : at + n])
                at += n
        made[p + "attn_qkv.weight"] = np.concatenate([*q, *k, *v])
        made[p + "attn_gate.weight"] = np.concatenate(z)
    ba, beta, alpha = weights[p + "ssm_ba.weight"], [], []
    for g in range(n_k):
        beta += list(ba[2 * r * g : 2 * r * g + r])
        alpha += list(ba[2 * r * g + r : 2 * r * (g + 1)])
    made[p + "ssm_beta.weight"], made[p + "ssm_alpha.weight"] = np.stack(beta), np.stack(alpha)
    # Tiled place t * H_k + g is the checkpoint's head g * r + t.
    order = [g * r + t for t in range(r) for g in range(n_k)]
    rows = np.concatenate([np.arange(head * size, (head + 1) * size) for head in order])
    first = 2 * n_k * size
    for name in ("attn_qkv.weight", "ssm_conv1d.weight"):
        made[p + name] = np.concatenate([made[p + name][:first], made[p + name][first:][rows]])
    made[p + "attn_gate.weight"] = made[p + "attn_gate.weight"][rows]
    made[p + "ssm_out.weight"] = made[p + "ssm_out.weight"][:, rows]
    for name in ("ssm_beta.weight", "ssm_alpha.weight", "ssm_dt.bias", "ssm_a"):
        made[p + name] = made[p + name][order]
    return made


def mixer(weights: Weights, hparams: HParams, il: int, h: Array, positions: list[int]) -> Array:
    arch = hparams["arch"]
    if not arch.startswith("qwen"):
        return plain_attention(weights, hparams, il, h, positions)
    if naive_model.is_recurrent(hparams, il):
        own = as_qwen35(weights, hparams, il) if arch == "qwen3next" else weights
        return naive_model.linear_layer(own, hparams, il, h)[0]
    half = int(hparams["rope.dimension_count"]) // 2
    sections = hparams.get("rope.dimension_sections", [half, half, half, 0])
    return naive_model.attention_layer(weights, hparams | {"rope.dimension_sections": sections}, il, h, positions)[0]


# MODELS


def block(
    weights: Weights, hparams: HParams, il: int, x: Array, positions: list[int]
) -> tuple[Array, dict[str, Array]]:
    """x += mixer(norm x); x += ffn(norm x)."""
    eps, p = eps_of(hparams), f"blk.{il}."
    x = x + mixer(weights, hparams, il, naive.rms_norm(x, weights[p + "attn_norm.weight"], eps), positions)
    norm = "ffn_norm.weight" if p + "ffn_norm.weight" in weights else "post_attention_norm.weight"
    h = naive.rms_norm(x, weights[p + norm], eps)
    t: dict[str, Array] = {}
    if p + "ffn_gate_inp.weight" in weights:
        y, t = moe(weights, hparams, il, h)
    else:
        y = naive_model.ffn(weights, il, h)
    return x + y, t | {"ffn_out": y, "l_out": x + y}


def trunk(weights: Weights, hparams: HParams, tokens: list[int]) -> TrunkResult:
    """All layers over `tokens` at positions 0, 1, ..."""
    x = naive.f64(weights["token_embd.weight"])[np.asarray(tokens, dtype=np.int64)]
    tensors: dict[str, Array] = {}
    for il in range(n_layer(hparams)):
        x, t = block(weights, hparams, il, x, list(range(len(tokens))))
        tensors |= {f"{name}-{il}": value for name, value in t.items()}
    h_post = naive.rms_norm(x, weights["output_norm.weight"], eps_of(hparams))
    logits = naive.matmul(weights.get("output.weight", weights["token_embd.weight"]), h_post)
    return TrunkResult(logits, h_post, x, tensors)


def mtp(
    weights: Weights, hparams: HParams, tokens: list[int], hiddens: Array, positions: list[int], head: int = 0
) -> MtpResult:
    """MTP block `head` over rows (tokens[i], hiddens[i]) at positions[i]; row i attends to rows 0 .. i."""
    eps, il = eps_of(hparams), n_layer(hparams) + head
    p = f"blk.{il}.nextn."
    embd = naive.f64(weights.get(p + "embed_tokens.weight", weights["token_embd.weight"]))
    e = naive.rms_norm(embd[np.asarray(tokens, dtype=np.int64)], weights[p + "enorm.weight"], eps)
    h = naive.rms_norm(naive.f64(hiddens), weights[p + "hnorm.weight"], eps)
    x = naive.matmul(weights[p + "eh_proj.weight"], np.concatenate([e, h], axis=-1))
    x, t = block(weights, hparams, il, x, positions)
    h_nextn = naive.rms_norm(x, weights.get(p + "shared_head_norm.weight", weights["output_norm.weight"]), eps)
    shared = weights.get("output.weight", weights["token_embd.weight"])
    logits = naive.matmul(weights.get(p + "shared_head_head.weight", shared), h_nextn)
    return MtpResult(logits, h_nextn, x, {f"mtp_{name}-{il}": value for name, value in t.items()})
