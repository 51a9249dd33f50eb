"""Naive float64 oracles of the single operations: the yardstick that the specification is measured with.

Owns the obvious form of each formula: float64 NumPy arrays in and out, plain loops, no blocking, no caching,
nothing shared with the package. Must not know the package. Whole models are in naive_model.py.

Arrays are token-major: (n_tokens, ...). Weight matrices are (n_out, n_in), the reverse of GGUF's ne.
"""

import math

import numpy as np

Array = np.ndarray

# Functions whose last bits depend on the machine. tests/portable.py puts slower ones in their place that do not.
exp, log1p, cos, sin, power, log = np.exp, np.log1p, math.cos, math.sin, math.pow, math.log
dot = np.matmul


def total(x: Array) -> Array:
    """The sum over the last axis, which is kept with length 1."""
    return np.sum(x, axis=-1, keepdims=True)


def f64(x: object) -> Array:
    return np.asarray(x, dtype=np.float64)


def matmul(w: Array, x: Array) -> Array:
    """y[..., o] = sum_i w[o, i] x[..., i]."""
    return dot(f64(x), f64(w).T)


def rms_norm(x: Array, w: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * w over the last axis."""
    x = f64(x)
    return x / np.sqrt(total(x * x) / x.shape[-1] + eps) * f64(w)


def l2_norm(x: Array, eps: float) -> Array:
    """x / sqrt(sum(x^2) + eps) over the last axis: eps is added to the sum, before the root."""
    x = f64(x)
    return x / np.sqrt(total(x * x) + eps)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), written so that neither side overflows."""
    x = f64(x)
    e = exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def silu(x: Array) -> Array:
    return f64(x) * sigmoid(x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), and x itself where x > 20."""
    x = f64(x)
    return np.where(x > 20.0, x, log1p(exp(np.minimum(x, 20.0))))


def softmax(x: Array) -> Array:
    x = f64(x)
    e = exp(x - np.max(x, axis=-1, keepdims=True))
    return e / total(e)


def top10(logits: Array) -> tuple[list[int], list[float]]:
    """The ten largest logits of one row, best first, and their softmax over these ten alone.

    This is the p that llama.cpp's MTP draft compares with --spec-draft-p-min. Ties: the lower id first.
    """
    logits = f64(logits)
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:10]
    return ids, [float(p) for p in softmax(logits[ids])]


def argmax(logits: Array) -> int:
    """The id of the largest logit of one row; the lowest id of a tie."""
    return int(np.argmax(f64(logits)))


# Gated DeltaNet


def conv_window(x: Array, history: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Causal depthwise convolution over the raw projections, then silu.

    x (n_tokens, n_channels); history (n_channels, d_conv - 1), oldest first; weight (n_channels, d_conv), j =
    0 meets the oldest value. Returns the sums before silu, after silu, and the new history (raw values).
    """
    x, weight = f64(x), f64(weight)
    d_conv = weight.shape[1]
    window = np.concatenate([f64(history).T, x], axis=0)
    raw = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(d_conv):
            raw[t] += window[t + j] * weight[:, j]
    return raw, silu(raw), window[len(x) :].T.copy()


def delta_gates(b: Array, a: Array, ssm_dt: Array, ssm_a: Array) -> tuple[Array, Array]:
    """beta = sigmoid(b); g = softplus(a + ssm_dt) * ssm_a, the log decay. ssm_a is -exp(A_log) already."""
    return sigmoid(b), softplus(f64(a) + f64(ssm_dt)) * f64(ssm_a)


def gated_delta_rule(q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array) -> tuple[Array, Array]:
    """The recurrence, one token and one v-head at a time; v-head h reads q/k-head h % H_k.

    q, k (n_tokens, H_k, S), already l2-normed; v (n_tokens, H_v, S); g, beta (n_tokens, H_v); state (H_v, S,
    S) as [v-head][value j][key i]. Per token: decay, read the prediction, write beta times the error, read
    the output from the updated state, divide by sqrt(S). Returns the outputs (n_tokens, H_v, S) and the last
    state.
    """
    q, k, v, g, beta = f64(q), f64(k), f64(v), f64(g), f64(beta)
    state = f64(state).copy()
    n_tokens, n_v_head, size = v.shape
    n_k_head = k.shape[1]
    out = np.zeros_like(v)
    for t in range(n_tokens):
        for h in range(n_v_head):
            key, query = k[t, h % n_k_head], q[t, h % n_k_head]
            m = state[h] * exp(g[t, h])
            delta = (v[t, h] - dot(m, key)) * beta[t, h]
            m = m + np.outer(delta, key)
            out[t, h] = dot(m, query) / math.sqrt(size)
            state[h] = m
    return out, state


def gated_norm(o: Array, z: Array, w: Array, eps: float) -> Array:
    """RMSNorm over each head, then times silu(z). o, z (n_tokens, H_v, S); w (S,)."""
    return rms_norm(o, w, eps) * silu(z)


# Gated attention


def split_q_gate(q_full: Array, n_head: int) -> tuple[Array, Array]:
    """Rows are [q | gate] head by head.

    (n_tokens, n_head * 2 * D) -> q (n_tokens, n_head, D), gate (n_tokens, n_head * D).
    """
    q_full = f64(q_full)
    n_tokens = len(q_full)
    head_dim = q_full.shape[1] // (2 * n_head)
    q = np.zeros((n_tokens, n_head, head_dim))
    gate = np.zeros((n_tokens, n_head * head_dim))
    for h in range(n_head):
        start = h * 2 * head_dim
        q[:, h] = q_full[:, start : start + head_dim]
        gate[:, h * head_dim : (h + 1) * head_dim] = q_full[:, start + head_dim : start + 2 * head_dim]
    return q, gate


def imrope_axis(i_pair: int, sections: list[int]) -> str:
    """Which position a pair turns by: "t", "h", "w" or "e" (interleaved sections, llama.cpp's rule)."""
    s = i_pair % sum(sections)
    if s % 3 == 1 and s < 3 * sections[1]:
        return "h"
    if s % 3 == 2 and s < 3 * sections[2]:
        return "w"
    if s % 3 == 0 and s < 3 * sections[0]:
        return "t"
    return "e"


def rope_scaled(
    n_rot: int,
    freq_base: float,
    factor: float,
    n_ctx_orig: int = 0,
    is_yarn: bool = False,
    betas: tuple[float, float] = (32.0, 1.0),
    ext: float = 1.0,
    mscale_all_dim: float = 0.0,
) -> tuple[list[float], float]:
    """Angle per position of each pair under linear scaling or YaRN, and the magnitude of cosine and sine.

    Linear: every angle divided by factor. YaRN: pairs that turn more than betas[0] times over n_ctx_orig keep their
    angle, pairs that turn fewer than betas[1] times have it divided, those between are mixed, linearly in the pair's
    index between the (rounded) indices of the two limits; the magnitude is 1 + 0.1 ln factor.
    """
    angles = [power(float(freq_base), -2.0 * i / n_rot) for i in range(n_rot // 2)]
    if not is_yarn:
        return [a / factor for a in angles], 1.0
    limits = [n_rot * log(n_ctx_orig / (beta * 2 * math.pi)) / (2 * log(freq_base)) for beta in betas]
    low, high = max(0, math.floor(limits[0])), min(n_rot - 1, math.ceil(limits[1]))
    scaled = []
    for i, angle in enumerate(angles):
        if i <= low:
            kept = 1.0
        elif i >= high:
            kept = 0.0
        else:
            kept = (high - i) / (high - low)
        scaled.append(angle * kept * ext + angle / factor * (1 - kept * ext))
    stretch = log(factor) if factor > 1 else 0.0
    return scaled, (1 + 0.1 * stretch) / (1 + 0.1 * mscale_all_dim * stretch)


def rope_imrope_text(
    x: Array,
    positions: list[int],
    n_rot: int,
    freq_base: float,
    sections: list[int],
    scaling: tuple[list[float], float] | None = None,
) -> Array:
    """Partial NEOX rotation of (n_tokens, n_heads, D): pair i is (x[i], x[i + n_rot/2]), i < n_rot/2.

    The angle is pos * base^(-2 i / n_rot). Text has t = h = w = pos and e = 0, so a pair that no section
    covers is not turned. Dimensions from n_rot on pass through. scaling: what `rope_scaled` gives; its magnitude
    stretches all pairs, turned or not.
    """
    angles, magnitude = scaling or rope_scaled(n_rot, freq_base, 1.0)
    x = f64(x)
    out = x.copy()
    for t in range(len(x)):
        for i in range(n_rot // 2):
            pos = 0 if imrope_axis(i, sections) == "e" else int(positions[t])
            c, s = magnitude * cos(pos * angles[i]), magnitude * sin(pos * angles[i])
            x0, x1 = x[t, :, i], x[t, :, i + n_rot // 2]
            out[t, :, i] = x0 * c - x1 * s
            out[t, :, i + n_rot // 2] = x0 * s + x1 * c
    return out


def attention(q: Array, k: Array, v: Array, n_past: int) -> Array:
    """Causal grouped-query attention; row t of q sees cells 0 .. n_past + t.

    q (n_tokens, n_head, D); k, v (n_past + n_tokens, n_head_kv, D), all cells including the rows' own. q-head
    h reads kv-head h // (n_head / n_head_kv). Scale 1/sqrt(D). Returns (n_tokens, n_head * D).
    """
    q, k, v = f64(q), f64(k), f64(v)
    n_tokens, n_head, head_dim = q.shape
    group = n_head // k.shape[1]
    out = np.zeros((n_tokens, n_head, head_dim))
    for t in range(n_tokens):
        n_cells = n_past + t + 1
        for h in range(n_head):
            p = softmax(dot(k[:n_cells, h // group], q[t, h]) / math.sqrt(head_dim))
            out[t, h] = dot(p, v[:n_cells, h // group])
    return out.reshape(n_tokens, n_head * head_dim)


def gated_attention(q: Array, gate: Array, k: Array, v: Array, n_past: int) -> Array:
    """attention(q, k, v) * sigmoid(gate), before the output projection. gate (n_tokens, n_head * D)."""
    return attention(q, k, v, n_past) * sigmoid(gate)


# Feed-forward and measures


def swiglu(x: Array, ffn_gate: Array, ffn_up: Array, ffn_down: Array) -> Array:
    """ffn_down @ (silu(ffn_gate @ x) * (ffn_up @ x))."""
    return matmul(ffn_down, silu(matmul(ffn_gate, x)) * matmul(ffn_up, x))


def few_bits(type_name: str, raw: Array) -> Array:
    """Blocks of Q1_0 (128 values) or Q2_0 (64): 18 bytes, d first, as float64, value by value."""
    values = []
    for block in np.asarray(raw, np.uint8).reshape(-1, 18):
        d = float(block[:2].copy().view("<f2")[0])
        for i in range(128 if type_name == "Q1_0" else 64):
            if type_name == "Q1_0":
                values.append(d if block[2 + i // 8] >> (i % 8) & 1 else -d)
            else:
                values.append(d * (int(block[2 + i // 4] >> (2 * (i % 4)) & 3) - 1))
    return f64(values)


def nmse(reference: Array, value: Array) -> float:
    """sum((a - b)^2) / sum(a^2), a being the reference. Not a number in either gives NaN."""
    a, b = f64(reference), f64(value)
    if a.shape != b.shape:
        raise ValueError(f"nmse: shapes {a.shape} and {b.shape} differ")
    error, power = float(np.sum((a - b) ** 2)), float(np.sum(a * a))
    if power == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / power
