"""The layers of a planted micro model: DeltaNet, attention, FFN and MTP block as GGUF tensors.

Each function stores one layer's tensors in a micro_plant.Plant; the rule they carry is stated there. A matrix that
reads through a norm is divided by the norm's weight, so the planted numbers are in residual units.
"""

import micro_plant as mp
import numpy as np
import numpy.typing as npt
from micro_gguf import F32, shuffled, uniform


def context_matrix(plant: mp.Plant) -> F32:
    """U (n_context, n_code): C entry c receives sum over its pairs of sign * I[j]."""
    shape = plant.shape
    u = np.zeros((shape.n_context, shape.n_code), dtype=np.float32)
    for c, terms in enumerate(mp.context_inputs(shape, plant.seed)):
        for layer, head, j, sign in terms:
            u[c, value_inputs(plant, layer, head)[j]] += np.float32(sign)
    return u


def value_inputs(plant: mp.Plant, layer: int, head: int) -> list[int]:
    """The I entries that the value rows of a head read, one for each pair."""
    return shuffled(plant.seed, f"value inputs {layer} {head}", plant.shape.n_code)[: plant.shape.state_size // 2]


def delta_net_layer(plant: mp.Plant, layer: int) -> None:
    """One gated DeltaNet layer: nearly constant q and k, so that each head is a leaky sum of its values."""
    shape, name = plant.shape, f"blk.{layer}."
    size, n_k, n_v = shape.state_size, shape.n_k_head, shape.n_v_head
    norm = plant.gamma(name + "attn_norm.weight", shape.n_embd)
    n_key, n_value = n_k * size, n_v * size

    # q and k: a constant sign pattern from BIAS, moved by the token; v: pairs of +2 and -2 times one I entry.
    qkv = plant.noise(name + "attn_qkv.weight", (2 * n_key + n_value, shape.n_embd), mp.KEY_NOISE)
    pattern = uniform(plant.seed, name + "key pattern", (n_key,))
    qkv[:n_key, mp.BIAS] += np.float32(2) * pattern
    qkv[n_key : 2 * n_key, mp.BIAS] += np.float32(2) * pattern
    i0 = shape.channels[1].start
    for head in range(n_v):
        for j, source in enumerate(value_inputs(plant, layer, head)):
            row = 2 * n_key + head * size + 2 * j
            qkv[row, i0 + source] += np.float32(2)
            qkv[row + 1, i0 + source] -= np.float32(2)
    plant.tensors[name + "attn_qkv.weight"] = qkv / norm

    conv = plant.noise(name + "ssm_conv1d.weight", (qkv.shape[0], shape.d_conv), 0.12)
    conv[:, -1] += np.float32(1)
    plant.tensors[name + "ssm_conv1d.weight"] = conv
    delta_net_gates(plant, layer, norm)
    plant.gamma(name + "ssm_norm.weight", size, 0.9, 1.1)

    # Each C entry adds up the differences of its pairs.
    c0 = shape.channels[0].start
    out = plant.writer(name + "ssm_out.weight", n_value, mp.WRITE_NOISE)
    gain = np.float32(round(1024 * mp.CONTEXT_GAIN / (size // 2) ** 0.5) / 1024)
    for c, terms in enumerate(mp.context_inputs(shape, plant.seed)):
        for where, head, j, sign in terms:
            if where == layer:
                out[c0 + c, head * size + 2 * j] += gain * np.float32(sign)
                out[c0 + c, head * size + 2 * j + 1] -= gain * np.float32(sign)
    plant.tensors[name + "ssm_out.weight"] = out


def delta_net_gates(plant: mp.Plant, layer: int, norm: F32) -> None:
    """z nearly constant; beta and decay of each head as HEADS says, moved by the token."""
    shape, name = plant.shape, f"blk.{layer}."
    n_v = shape.n_v_head
    z = plant.noise(name + "attn_gate.weight", (n_v * shape.state_size, shape.n_embd), mp.GATE_NOISE)
    z[:, mp.BIAS] += np.float32(2)
    plant.tensors[name + "attn_gate.weight"] = z / norm
    heads = [mp.HEADS[h % len(mp.HEADS)] for h in range(n_v)]
    beta = plant.noise(name + "ssm_beta.weight", (n_v, shape.n_embd), mp.GATE_NOISE)
    beta[:, mp.BIAS] += np.array([head[1] for head in heads], dtype=np.float32)
    plant.tensors[name + "ssm_beta.weight"] = beta / norm
    alpha = plant.noise(name + "ssm_alpha.weight", (n_v, shape.n_embd), mp.GATE_NOISE)
    plant.tensors[name + "ssm_alpha.weight"] = alpha / norm
    plant.tensors[name + "ssm_dt.bias"] = np.array([head[2] for head in heads], dtype=np.float32)
    plant.tensors[name + "ssm_a"] = np.array([head[3] for head in heads], dtype=np.float32)


def attention_layer(plant: mp.Plant, layer: int, context: float) -> None:
    """Gated attention with sharp random scores; it writes to C with strength `context`, faintly elsewhere."""
    shape, name = plant.shape, f"blk.{layer}."
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    norm = plant.gamma(name + "attn_norm.weight", shape.n_embd)
    for part, rows, scale in (("q", 2 * n_q, 0.5), ("k", n_kv, 0.5), ("v", n_kv, 0.3)):
        plant.tensors[f"{name}attn_{part}.weight"] = (
            plant.noise(f"{name}attn_{part}.weight", (rows, shape.n_embd), scale) / norm
        )
    plant.gamma(name + "attn_q_norm.weight", shape.head_dim, 0.9, 1.6)
    plant.gamma(name + "attn_k_norm.weight", shape.head_dim, 0.9, 1.6)
    out = plant.writer(name + "attn_output.weight", n_q, mp.WRITE_NOISE)
    c = shape.channels[0]
    out[c] += plant.noise(name + "attn_output.context", (shape.n_context, n_q), context)
    plant.tensors[name + "attn_output.weight"] = out


def ffn(plant: mp.Plant, layer: int) -> tuple[F32, F32, F32, F32]:
    """A random SwiGLU that writes faintly; returns (norm, gate, up, down) for planting before `store_ffn`."""
    shape, name = plant.shape, f"blk.{layer}."
    norm = plant.gamma(name + "post_attention_norm.weight", shape.n_embd)
    gate = plant.noise(name + "ffn_gate.weight", (shape.n_ff, shape.n_embd), 0.3)
    up = plant.noise(name + "ffn_up.weight", (shape.n_ff, shape.n_embd), 0.3)
    down = plant.writer(name + "ffn_down.weight", shape.n_ff, mp.WRITE_NOISE)
    return norm, gate, up, down


def store_ffn(plant: mp.Plant, layer: int, norm: F32, gate: F32, up: F32, down: F32) -> None:
    """Store the matrices, the reading ones divided by the norm weight they read through."""
    name = f"blk.{layer}."
    plant.tensors[name + "ffn_gate.weight"] = gate / norm
    plant.tensors[name + "ffn_up.weight"] = up / norm
    plant.tensors[name + "ffn_down.weight"] = down


def rule_ffn(plant: mp.Plant, layer: int) -> None:
    """The FFN that writes the rule: O += 1.5 I - O + Wc C through n_code units with a constant open gate."""
    c, i, o = plant.shape.channels
    n_code = plant.shape.n_code
    norm, gate, up, down = ffn(plant, layer)
    unit = np.arange(n_code)
    gate[:n_code] *= np.float32(0.1)
    up[:n_code] *= np.float32(0.1)
    gate[:n_code, mp.BIAS] += np.float32(4)
    up[unit, i.start + unit] += np.float32(mp.CODE_GAIN)
    up[unit, o.start + unit] -= np.float32(1)
    up[:n_code, c] += plant.mix * np.float32(mp.CONTEXT_WEIGHT)
    down[o.start + unit, unit] += np.float32(1 / mp.SILU_4)
    plant_switch(plant, gate, up, down, o.start + unit, 1.0)
    store_ffn(plant, layer, norm, gate, up, down)


def plant_switch(plant: mp.Plant, gate: F32, up: F32, down: F32, target: npt.NDArray[np.int64], boost: float) -> None:
    """Turn O to the rotated code where the context sum exceeds SWITCH_AT: units n_code to 2 n_code of an FFN."""
    c, i, _ = plant.shape.channels
    n_code = plant.shape.n_code
    unit = np.arange(n_code)
    rows = slice(n_code, 2 * n_code)
    gate[rows] *= np.float32(0.1)
    up[rows] *= np.float32(0.1)
    gate[rows, c] += plant.switch * np.float32(mp.SWITCH_GAIN)
    gate[rows, mp.BIAS] -= np.float32(mp.SWITCH_GAIN * mp.SWITCH_AT)
    up[n_code + unit, i.start + unit] -= np.float32(mp.CODE_GAIN)
    up[n_code + unit, i.start + (unit - 1) % n_code] += np.float32(mp.CODE_GAIN)
    down[target, n_code + unit] += np.float32(boost / (mp.SWITCH_GAIN * mp.SWITCH_WIDTH))


def mtp_block(plant: mp.Plant, layer: int, final_norm: F32, code_in: list[int], code_out: list[int]) -> None:
    """The MTP block: eh_proj holds the rule, the FFN spoils it where MARK is set.

    It finds I entry k of its embeddings at code_in[k], and writes O entry k to code_out[k] for its head.
    """
    shape, name = plant.shape, f"blk.{layer}."
    c, i, o = shape.channels
    n, n_code = shape.n_embd, shape.n_code
    enorm = plant.gamma(name + "nextn.enorm.weight", n)
    hnorm = plant.gamma(name + "nextn.hnorm.weight", n)

    # C_p from the C of the hidden row (rescaled to residual units) and from x_p; then O by the rule.
    heads = [terms[0][1] % len(mp.HEADS) for terms in mp.context_inputs(shape, plant.seed)]
    hidden = np.array([mp.MTP_HIDDEN[head] for head in heads], dtype=np.float32)
    gain = np.array([mp.MTP_INPUT[head] for head in heads], dtype=np.float32)
    gain *= np.float32(round(1024 / (shape.state_size // 2) ** 0.5) / 1024)
    from_h = np.zeros((shape.n_context, n), dtype=np.float32)
    from_h[np.arange(shape.n_context), np.arange(c.start, c.stop)] = hidden
    from_e = context_matrix(plant) * gain[:, None]
    eh = plant.noise(name + "nextn.eh_proj.weight", (n, 2 * n), 0.02)
    e_half, h_half = eh[:, :n], eh[:, n:]
    code = np.arange(n_code)
    source, target = i.start + np.array(code_in), o.start + np.array(code_out)
    e_half[mp.BIAS, mp.BIAS] += np.float32(1)
    e_half[mp.MARK, mp.MARK] += np.float32(1)
    e_half[i.start + code, source] += np.float32(1)
    e_half[target, source] += np.float32(mp.CODE_GAIN)
    e_half[np.ix_(np.arange(c.start, c.stop), source)] += from_e
    h_half[c] += from_h
    for k in range(shape.n_context):
        weight = plant.mix[:, k : k + 1] * np.float32(mp.CONTEXT_WEIGHT)
        e_half[np.ix_(target, source)] += weight * from_e[k : k + 1]
        h_half[target] += weight * from_h[k : k + 1]
    eh[:, :n] = e_half / enorm
    eh[:, n:] = h_half / (hnorm * final_norm)
    plant.tensors[name + "nextn.eh_proj.weight"] = eh

    attention_layer(plant, layer, mp.MTP_ATTENTION)
    norm, gate, up, down = ffn(plant, layer)
    gate[:n_code] *= np.float32(0.1)
    up[:n_code] *= np.float32(0.1)
    gate[:n_code, mp.BIAS] -= np.float32(5)
    gate[:n_code, mp.MARK] += np.float32(10)
    other = np.array(shuffled(plant.seed, "wrong code", n_code))
    up[code, i.start + code] -= np.float32(mp.CODE_GAIN)
    up[code, i.start + other] += np.float32(mp.CODE_GAIN)
    down[target, code] += np.float32(mp.WRONG_GAIN)
    plant_switch(plant, gate, up, down, target, mp.MTP_BOOST)
    store_ffn(plant, layer, norm, gate, up, down)
