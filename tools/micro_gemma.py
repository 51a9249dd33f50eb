"""Planted micro models of gemma4 and of its assistant, a file each.

The rule of micro_plant.py without DeltaNet: attention is hash noise that writes to the context, the network of the last
layer writes the rule. Norms after each part say how much of what it makes reaches the stream, so matrices need not be
faint. gelu(x) - gelu(-x) = x: pairs of units are linear. The assistant holds the rule in nextn.pre_projection; where
MARK is set its last network turns O to another code. It has dimensions more than the target, which hold a constant
that keeps its norms from raising what is faint.
"""

from dataclasses import dataclass, field

import micro_plant as mp
import numpy as np
from micro_gguf import F32, shuffled, uniform

ATTENTION_NOISE = 0.5
HEAD_NORM = (0.62, 0.12)  # scores are not scaled: 16 values of about 0.6 each
CONTEXT_WRITE = 0.3  # what attention adds to each entry of the context
CONTEXT_WEIGHT = 2.4
FAINT = 0.02
RULE = 2.0
WRONG = 6.0
CONSTANT = 4.0
OUTPUT = 0.35  # logits of the assistant are small enough that others than the best have a share
UNTURNED = 1e30  # factor of RoPE frequencies: such a pair does not turn


@dataclass(frozen=True)
class GemmaShape:
    """Hyper-parameters under their GGUF meanings; pairs are of layers without a window, and of those with one.

    n_shared  last layers without cells of their own      n_own   width of the layers' own embeddings; 0: none
    is_wide   whether networks of sharing layers are twice as wide
    values    whether layers without a window have a matrix for values
    turned    pairs that turn in layers without a window
    scaled    whether the target's layers have an output scale
    """

    windowed: tuple[int, ...] = (1, 1, 0, 1, 0)
    assistant: tuple[int, ...] = (1, 1, 0)
    n_head: int = 4
    n_head_kv: tuple[int, int] = (1, 2)
    n_key: tuple[int, int] = (32, 16)
    n_window: int = 6
    turned: int = 4
    freq_base: tuple[float, float] = (1000000.0, 10000.0)
    softcap: float | None = 12.0
    n_shared: int = 0
    is_wide: bool = False
    n_own: int = 0
    values: bool = False
    scaled: bool = True
    n_expert: int = 0
    n_used: int = 3
    n_ff_exp: int = 32
    router: float = 2.0  # how sharp routers are
    fused: bool = True
    untied: bool = False
    n_embd_assistant: int = 96
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape(n_ff=64))

    @property
    def n_layer(self) -> int:
        return len(self.windowed)

    def n_ff(self, il: int) -> int:
        return self.micro.n_ff * (2 if self.is_wide and il >= self.n_layer - self.n_shared else 1)


def _shared_keys(name: str, shape: GemmaShape, windowed: tuple[int, ...], n_embd: int) -> dict[str, object]:
    full, swa = shape.n_key
    keys: dict[str, object] = {
        "block_count": len(windowed),
        "context_length": 4096,
        "embedding_length": n_embd,
        "feed_forward_length": shape.micro.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": [np.int32(shape.n_head_kv[w]) for w in windowed],
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": swa,
        "attention.value_length_swa": swa,
        "attention.sliding_window": shape.n_window,
        "attention.sliding_window_pattern": [bool(w) for w in windowed],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": full,
        "rope.dimension_count_swa": swa,
        "rope.freq_base": shape.freq_base[0],
        "rope.freq_base_swa": shape.freq_base[1],
    }
    made: dict[str, object] = {"general.architecture": name, "general.name": "mtpref micro", "general.alignment": 32}
    return made | {f"{name}.{key}": value for key, value in keys.items()}


def _with_tokens(keys: dict[str, object], shape: GemmaShape) -> dict[str, object]:
    tokens: dict[str, object] = {"tokenizer.ggml.model": "test"}
    return keys | tokens | {"tokenizer.ggml.tokens": [f"{i:x}" for i in range(shape.micro.n_vocab)]}


def target_keys(shape: GemmaShape) -> dict[str, object]:
    """Metadata of the target, with llama.cpp's hash tokenizer `test`."""
    keys = _shared_keys("gemma4", shape, shape.windowed, shape.micro.n_embd)
    keys["gemma4.attention.shared_kv_layers"] = shape.n_shared
    keys["gemma4.embedding_length_per_layer_input"] = shape.n_own
    if shape.is_wide:
        keys["gemma4.feed_forward_length"] = [np.int32(shape.n_ff(il)) for il in range(shape.n_layer)]
    if shape.softcap is not None:
        keys["gemma4.final_logit_softcapping"] = shape.softcap
    if shape.n_expert:
        keys["gemma4.expert_count"] = shape.n_expert
        keys["gemma4.expert_used_count"] = shape.n_used
        keys["gemma4.expert_feed_forward_length"] = shape.n_ff_exp
    return _with_tokens(keys, shape)


def assistant_keys(shape: GemmaShape) -> dict[str, object]:
    """Metadata of the assistant."""
    name = "gemma4-assistant"
    keys = _shared_keys(name, shape, shape.assistant, shape.n_embd_assistant)
    keys[f"{name}.nextn_predict_layers"] = len(shape.assistant)
    keys[f"{name}.embedding_length_out"] = shape.micro.n_embd
    keys[f"{name}.attention.shared_kv_layers"] = len(shape.assistant)
    keys[f"{name}.embedding_length_per_layer_input"] = 0
    return _with_tokens(keys, shape)


# PARTS OF A LAYER


def _noise(plant: mp.Plant, name: str, dims: tuple[int, ...], scale: float) -> None:
    plant.tensors[name] = uniform(plant.seed, f"gemma {name}", dims) * np.float32(scale)


def _behind(plant: mp.Plant, name: str, n: int, context: float, faint: float) -> F32:
    """The weight of a norm after a part: how much reaches the context, and the rest."""
    weight = plant.gamma(name, n, 0.8, 1.2)
    weight[plant.shape.channels[0]] *= np.float32(context)
    weight[plant.shape.channels[0].stop :] *= np.float32(faint)
    weight[: mp.MARK + 1] *= np.float32(faint / 4)
    return weight


def _attention(plant: mp.Plant, p: str, shape: GemmaShape, windowed: int, n: int, parts: str) -> None:
    """Attention of noise. parts: of `kv` what the layer has of its own"""
    size, n_kv = shape.n_key[windowed], shape.n_head_kv[windowed]
    norm = plant.gamma(p + "attn_norm.weight", n)
    for part, heads in (("q", shape.n_head), *((x, n_kv) for x in parts)):
        _noise(plant, f"{p}attn_{part}.weight", (heads * size, n), ATTENTION_NOISE)
        plant.tensors[f"{p}attn_{part}.weight"] /= norm
    for part in ("q", *parts):
        if part != "v":
            middle, half = (np.float32(x * (16 / size) ** 0.5) for x in HEAD_NORM)
            weight = middle + half * uniform(plant.seed, f"{p}attn_{part}_norm", (size,))
            plant.tensors[f"{p}attn_{part}_norm.weight"] = weight
    _noise(plant, p + "attn_output.weight", (n, shape.n_head * size), 0.4)
    _behind(plant, p + "post_attention_norm.weight", n, CONTEXT_WRITE, FAINT)


def _network(plant: mp.Plant, p: str, n: int, n_ff: int) -> tuple[F32, F32, F32, F32]:
    """(norm, gate, up, down) of noise; the first three are divided by the norm in _store."""
    norm = plant.gamma(p + "ffn_norm.weight", n)
    for part in ("gate", "up"):
        _noise(plant, f"{p}ffn_{part}.weight", (n_ff, n), 0.4)
    _noise(plant, p + "ffn_down.weight", (n, n_ff), 0.4)
    gate, up, down = (plant.tensors[f"{p}ffn_{part}.weight"] for part in ("gate", "up", "down"))
    return norm, gate, up, down


def _store(plant: mp.Plant, p: str, norm: F32, gate: F32, up: F32, down: F32) -> None:
    plant.tensors |= {p + "ffn_gate.weight": gate / norm, p + "ffn_up.weight": up / norm, p + "ffn_down.weight": down}


def _rule(plant: mp.Plant, gate: F32, up: F32, down: F32) -> None:
    """O += 2 I - O + Wc C, by pairs of units whose difference is linear."""
    c, i, o = plant.shape.channels
    n_code = plant.shape.n_code
    unit = np.arange(n_code)
    rows = np.zeros((n_code, gate.shape[1]), np.float32)
    rows[unit, i.start + unit] = np.float32(mp.CODE_GAIN)
    rows[unit, o.start + unit] = np.float32(-1)
    rows[:, c] = plant.mix * np.float32(CONTEXT_WEIGHT)
    down *= np.float32(0.1)
    for first, sign in ((0, 1), (1, -1)):
        own = 2 * unit + first
        gate[own] = gate[own] * np.float32(0.05) + np.float32(sign) * rows
        up[own] *= np.float32(0.05)
        up[own, mp.BIAS] += np.float32(2)
        down[:, own] *= np.float32(0.1)
        down[o.start + unit, own] += np.float32(sign)


def _experts(plant: mp.Plant, p: str, shape: GemmaShape, n: int) -> None:
    """Experts beside the dense network, with norms and a router's scale of their own."""
    norm = plant.gamma(p + "pre_ffw_norm_2.weight", n)
    scale = plant.gamma(p + "ffn_gate_inp.scale", n)
    _noise(plant, p + "ffn_gate_inp.weight", (shape.n_expert, n), shape.router)
    plant.tensors[p + "ffn_gate_inp.weight"] *= np.float32(n**0.5) / scale
    n_ff = shape.n_ff_exp
    for part in ("gate", "up"):
        _noise(plant, f"{p}ffn_{part}_exps.weight", (shape.n_expert, n_ff, n), 0.4)
    gate, up = (plant.tensors.pop(f"{p}ffn_{part}_exps.weight") / norm for part in ("gate", "up"))
    if shape.fused:
        plant.tensors[p + "ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    else:
        plant.tensors |= {p + "ffn_gate_exps.weight": gate, p + "ffn_up_exps.weight": up}
    _noise(plant, p + "ffn_down_exps.weight", (shape.n_expert, n, n_ff), 0.4)
    if shape.scaled:
        plant.gamma(p + "ffn_down_exps.scale", shape.n_expert, 0.5, 1.5)
    plant.gamma(p + "post_ffw_norm_1.weight", n, 0.9, 1.1)
    _behind(plant, p + "post_ffw_norm_2.weight", n, 0.5, 0.05)


def _own_embeddings(plant: mp.Plant, p: str, shape: GemmaShape, n: int) -> None:
    _noise(plant, p + "inp_gate.weight", (shape.n_own, n), 0.5)
    _noise(plant, p + "proj.weight", (n, shape.n_own), 0.5)
    _behind(plant, p + "post_norm.weight", n, CONTEXT_WRITE / 2, FAINT)


# MODELS


def plant_target(seed: int, wrong: float, shape: GemmaShape) -> dict[str, F32]:
    """All tensors of the target as float32 arrays in NumPy order, in file order."""
    m = shape.micro
    plant = mp.Plant(seed, m, wrong)
    out_codes = plant.output_codes()
    plant.embedding("token_embd.weight", plant.codes, out_codes, mp.wrong_tokens(seed, plant.order, wrong))
    plant.tensors["token_embd.weight"] /= np.float32(m.n_embd**0.5)
    if shape.n_own:
        _noise(plant, "per_layer_token_embd.weight", (m.n_vocab, shape.n_layer * shape.n_own), shape.n_own**-0.5)
        _noise(plant, "per_layer_model_proj.weight", (shape.n_layer * shape.n_own, m.n_embd), 0.5)
        plant.gamma("per_layer_proj_norm.weight", shape.n_own)
    final_norm = plant.gamma("output_norm.weight", m.n_embd, 0.8, 1.2)
    final_norm[m.channels[2]] *= np.float32(mp.OUTPUT_SCALE * m.n_embd**0.5)
    final_norm[mp.MARK] *= np.float32(0.05)
    final_norm[m.channels[1]] *= np.float32(0.05)
    if shape.untied:
        table = plant.noise("output.weight", (m.n_vocab, m.n_embd), 0.005)
        table[:, m.channels[2]] += out_codes / np.float32(m.n_embd**0.5)
        plant.tensors["output.weight"] = table
    factors = [1.0] * shape.turned + [UNTURNED] * (shape.n_key[0] // 2 - shape.turned)
    plant.tensors["rope_freqs.weight"] = np.array(factors, np.float32)
    for il, windowed in enumerate(shape.windowed):
        p, is_last = f"blk.{il}.", il == shape.n_layer - 1
        is_sharing = il >= shape.n_layer - shape.n_shared
        _attention(plant, p, shape, windowed, m.n_embd, "" if is_sharing else "kv" if windowed or shape.values else "k")
        parts = _network(plant, p, m.n_embd, shape.n_ff(il))
        if is_last:
            _rule(plant, *parts[1:])
        _store(plant, p, *parts)
        behind = _behind(plant, p + "post_ffw_norm.weight", m.n_embd, CONTEXT_WRITE / 2, FAINT)
        if is_last:
            behind[m.channels[2]] *= np.float32(RULE / FAINT)
        if shape.n_expert:
            _experts(plant, p, shape, m.n_embd)
        if shape.n_own:
            _own_embeddings(plant, p, shape, m.n_embd)
        if shape.scaled:
            plant.gamma(p + "layer_output_scale.weight", 1, 0.8, 1.2)
    return plant.tensors


def plant_assistant(seed: int, wrong: float, shape: GemmaShape) -> dict[str, F32]:
    """All tensors of the assistant of the target of that seed."""
    m, n = shape.micro, shape.n_embd_assistant
    plant = mp.Plant(seed, m, wrong)
    final_norm = plant_target(seed, wrong, shape)["output_norm.weight"]
    plant.tensors.clear()
    c, i, o = m.channels
    code, n_code = np.arange(m.n_code), m.n_code
    rest = slice(m.n_embd, n)

    table = uniform(seed, "assistant embedding", (m.n_vocab, n)) * np.float32(0.04)
    table[:, o] += plant.output_codes()
    plant.tensors["token_embd.weight"] = table
    out_norm = uniform(seed, "assistant norm", (n,)) * np.float32(0.1) + np.float32(1)
    out_norm[rest] *= np.float32(0.05)
    out_norm[i] *= np.float32(0.3)
    out_norm[o] *= np.float32(OUTPUT)
    plant.tensors["output_norm.weight"] = out_norm

    # The rule: the hidden row's context is that of the token before, which is most of this one's.
    pre = uniform(seed, "nextn.pre_projection", (n, 2 * m.n_embd)) * np.float32(0.02)
    e_half, h_half = pre[:, : m.n_embd], pre[:, m.n_embd :]
    e_half[mp.BIAS, mp.BIAS] += np.float32(1)
    e_half[mp.MARK, mp.MARK] += np.float32(1)
    e_half[rest, mp.BIAS] += np.float32(1)
    e_half[i.start + code, i.start + code] += np.float32(1)
    e_half[o.start + code, i.start + code] += np.float32(mp.CODE_GAIN)
    from_h = np.float32(0.5) / final_norm[c]
    h_half[np.arange(c.start, c.stop), np.arange(c.start, c.stop)] += from_h
    h_half[o, c] += plant.mix * (np.float32(CONTEXT_WEIGHT) * from_h)
    plant.tensors["nextn.pre_projection.weight"] = pre
    post = uniform(seed, "nextn.post_projection", (m.n_embd, n)) * np.float32(0.05)
    post[np.arange(c.start, c.stop), np.arange(c.start, c.stop)] += np.float32(1) * final_norm[c]
    plant.tensors["nextn.post_projection.weight"] = post
    factors = [1.0] * shape.turned + [UNTURNED] * (shape.n_key[0] // 2 - shape.turned)
    plant.tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    for il, windowed in enumerate(shape.assistant):
        p, is_last = f"blk.{il}.", il == len(shape.assistant) - 1
        _attention(plant, p, shape, windowed, n, "")
        norm, gate, up, down = _network(plant, p, n, m.n_ff)
        down *= np.float32(0.2)
        # One unit is a constant that fills the dimensions that the target lacks.
        gate[-1], up[-1], down[:, -1] = 0, 0, 0
        gate[-1, mp.BIAS], up[-1, mp.BIAS], down[rest, -1] = (np.float32(x) for x in (2, 2, CONSTANT))
        if is_last:
            other = np.array(shuffled(seed, "wrong code", n_code))
            gate[:n_code], up[:n_code] = gate[:n_code] * np.float32(0.05), up[:n_code] * np.float32(0.05)
            gate[:n_code, mp.BIAS] -= np.float32(4)
            gate[:n_code, mp.MARK] += np.float32(9)
            up[code, i.start + code] -= np.float32(mp.CODE_GAIN)
            up[code, i.start + other] += np.float32(mp.CODE_GAIN)
            down[o.start + code, code] += np.float32(WRONG)
        _store(plant, p, norm, gate, up, down)
        behind = _behind(plant, p + "post_ffw_norm.weight", n, CONTEXT_WRITE / 2, FAINT)
        behind[o] *= np.float32(1 / FAINT)
        plant.gamma(p + "layer_output_scale.weight", 1, 0.8, 1.2)
    return plant.tensors
