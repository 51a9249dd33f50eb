"""Architectures of no use but to show what a data sheet can say: kinds, blocks, streams and heads that qwen35 lacks.

Each is made of this file alone; nothing in the package knows of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import Architecture, Block, Either, HeadSheet, Hyper, Tensor
from mtpref.architectures.common import base_hypers, eh_proj_tensors, n_embd, n_ff, root_tensors
from mtpref.architectures.sheet import Streams
from mtpref.architectures.transforms import AS_IS
from mtpref.spec.kinds import SWIGLU_FFN, LayerKind, Sequential, no_state
from mtpref.spec.state import StateSpec

F32 = NDArray[np.float32]
N_VOCAB, N_EMBD, N_FF, N_EXPERT, N_LAYER = 48, 32, 64, 4, 6

decay = Hyper("decay", "ema_decay", "f32", low=0.0, high=1.0)
n_expert = Hyper("n_expert", "expert_count")
n_dense = Hyper("n_dense", "leading_dense_block_count", default=0, low=0)
window = Hyper("window", "attention.sliding_window", "u32/layer")
n_row = Hyper("n_row", "latent_length")
ratio = Hyper("ratio", "compress_ratio")


@dataclass(frozen=True)
class Config:
    """What a toy kind is configured with, by name."""

    values: tuple[tuple[str, Any], ...]

    def __getattr__(self, name: str) -> Any:
        found = dict(self.values)
        if name not in found:
            raise AttributeError(name)
        return found[name]


def configured(*names: str) -> Callable[[Any], Config]:
    return lambda v: Config(tuple((name, v[name]) for name in names))


def means(cells: F32, first: int, n: int, reach: int) -> F32:
    """Row t: the mean over the last `reach` cells up to first + t, later ones counting more; added in order."""
    out = []
    for last in range(first, first + n):
        total, weight = np.zeros(cells.shape[1:], np.float32), np.float32(0)
        for i in range(max(0, last + 1 - reach), last + 1):
            total += cells[i] * np.float32(i + 1)
            weight += np.float32(i + 1)
        out.append(total / weight)
    return np.stack(out)


# KINDS


def ema_forward(w, cfg, x, state, span, tap):
    """s_t = decay s_{t-1} + (1 - decay) W_in x_t; y_t = W_out s_t. The state after each of the last tokens is kept."""
    share, s, after = np.float32(cfg.decay), state.arrays["cache_ema"], []
    for row in span.ops.mul_mat(w["mix_in.weight"], x):
        s = share * s + (np.float32(1) - share) * row
        after.append(s)
    state.arrays["cache_ema"] = s
    state.planes = {"cache_ema": np.stack(after[-span.keep :])}
    tap("ema", np.stack(after))
    return span.ops.mul_mat(w["mix_out.weight"], np.stack(after))


EMA = LayerKind(
    "ema",
    configured("n_embd", "decay"),
    lambda cfg, kv_type: (StateSpec("cache_ema", (cfg.n_embd,), positional=False),),
    ema_forward,
)


def turned(x: F32, pos: NDArray[np.int32]) -> F32:
    """Interleaved RoPE on all dimensions: pairs (2i, 2i + 1)."""
    half = x.shape[-1] // 2
    angle = pos[:, None] * (0.5 ** np.arange(half))[None, :]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out = np.empty_like(x)
    out[:, 0::2] = x[:, 0::2] * cos - x[:, 1::2] * sin
    out[:, 1::2] = x[:, 0::2] * sin + x[:, 1::2] * cos
    return out


def latent_forward(w, cfg, x, state, span, tap):
    """One row a token, turned by its position; a token sees the last `window` of them."""
    cells = state.arrays["cache_latent"]
    rows = turned(span.ops.mul_mat(w["latent_down.weight"], x), span.pos)
    cells[span.first : span.first + len(x)] = rows
    tap("latent", rows)
    return span.ops.mul_mat(w["latent_up.weight"], means(cells, span.first, len(x), cfg.window))


LATENT = LayerKind(
    "latent",
    configured("n_row", "window"),
    lambda cfg, kv_type: (StateSpec("cache_latent", (cfg.n_row,), positional=True),),
    latent_forward,
)


def compressed_forward(w, cfg, x, state, span, tap):
    """One row from each `ratio` tokens: a cell of its own a token keeps the raw rows, whole groups are averaged."""
    cells = state.arrays["cache_raw"]
    cells[span.first : span.first + len(x)] = span.ops.mul_mat(w["raw_in.weight"], x)
    out = []
    for last in range(span.first, span.first + len(x)):
        n_groups = (last + 1) // cfg.ratio
        groups = [cells[g * cfg.ratio : (g + 1) * cfg.ratio].sum(axis=0, dtype=np.float32) for g in range(n_groups)]
        total = np.zeros(cells.shape[1], np.float32)
        for row in groups:
            total += row
        out.append(total / np.float32(max(1, n_groups)))
    return span.ops.mul_mat(w["raw_out.weight"], np.stack(out))


COMPRESSED = LayerKind(
    "compressed",
    configured("n_embd", "ratio"),
    lambda cfg, kv_type: (StateSpec("cache_raw", (cfg.n_embd,), positional=True),),
    compressed_forward,
)


def experts_forward(w, cfg, x, state, span, tap):
    """The best expert of each token, by the lowest id among equals."""
    chosen = np.argmax(span.ops.mul_mat(w["ffn_gate_inp.weight"], x), axis=1)
    tap("ffn_moe_topk", chosen)
    return np.concatenate([span.ops.mul_mat(w["ffn_exps.weight"][e], x[t : t + 1]) for t, e in enumerate(chosen)])


EXPERTS = LayerKind("experts", configured("n_expert"), no_state, experts_forward)


def reading_forward(w, cfg, x, state, span, tap):
    """The mean of the trunk's first latent layer over the positions that it holds: no cell of its own."""
    cells = next(layer.arrays["cache_latent"] for layer in span.target if "cache_latent" in layer.arrays)
    row = means(cells, max(0, span.first - 1), 1, span.first or 1)[0]
    return span.ops.mul_mat(w["latent_up.weight"], np.repeat(row[None], len(x), axis=0))


READING = LayerKind("reading", configured("n_row"), no_state, reading_forward)


# BLOCKS


def parallel(x, around, mixer, ffn, tap):
    """x + mixer(norm x) + ffn(norm x)."""
    h = around.norm("attn_norm.weight", x)
    return x + (mixer(h) + ffn(h))


def normed_after(x, around, mixer, ffn, tap):
    """Norms before and after each part."""
    x = x + around.norm("post_attention_norm.weight", mixer(around.norm("attn_norm.weight", x)))
    return x + around.norm("post_ffw_norm.weight", ffn(around.norm("ffn_norm.weight", x)))


def two_streams(x, around, mixer, ffn, tap):
    """Two rows side by side: both parts read their sum, the mixer writes the first, the network the second."""
    a, b = x[:, :N_EMBD], x[:, N_EMBD:]
    a = a + mixer(around.norm("attn_norm.weight", a + b))
    return np.concatenate([a, b + ffn(around.norm("ffn_norm.weight", a + b))], axis=1)


STREAMS = Streams(
    enter=lambda x, cfg: np.concatenate([x, np.zeros_like(x)], axis=1),
    leave=lambda ops, w, x, cfg, tap: x[:, :N_EMBD] + x[:, N_EMBD:],
    tensors=(),
)


def norms(*names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{name}.weight", (n_embd,)) for name in names)


MIX, RAW = (
    tuple(Tensor(f"{name}_{side}.weight", (n_embd, n_embd)) for side in ("in", "out")) for name in ("mix", "raw")
)
ROWS = (Tensor("latent_down.weight", (n_row, n_embd)), Tensor("latent_up.weight", (n_embd, n_row)))
DENSE = (
    Tensor("ffn_gate.weight", (n_ff, n_embd)),
    Tensor("ffn_up.weight", (n_ff, n_embd)),
    Tensor("ffn_down.weight", (n_embd, n_ff)),
)
STACK = (
    Tensor("ffn_gate_inp.weight", (n_expert, n_embd)),
    Either(((Tensor("ffn_exps.weight", (n_expert, n_embd, n_embd)),), (Tensor("ffn_old.weight", (n_embd, n_embd)),))),
)
BEFORE = Sequential("attn_norm.weight", "ffn_norm.weight")
TWO = norms("attn_norm", "ffn_norm")
AFTER = norms("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


@dataclass(frozen=True)
class Cycle:
    """Leading dense blocks, then these in turn."""

    dense: Block
    others: tuple[Block, ...]

    def blocks(self, meta, n_layer, names):
        return self.first(meta.u32("leading_dense_block_count", 0, low=0), n_layer)

    def first(self, n_dense, n_layer):
        return tuple(
            self.dense if il < n_dense else self.others[(il - n_dense) % len(self.others)] for il in range(n_layer)
        )

    def declared(self, keys, n_blocks, n_trunk, problems):
        return self.first(keys.integer("leading_dense_block_count") or 0, n_trunk), "leading_dense_block_count"

    def keys_of(self, found, n_layer, n_heads):
        return [("leading_dense_block_count", found["first_k_dense_replace"], "u32")]

    def all_blocks(self):
        return (self.dense, *self.others)


EMA_DENSE = Block("ema", EMA, SWIGLU_FFN, TWO + MIX + DENSE, BEFORE, ("mix_",))
LATENT_MOE = Block("latent_moe", LATENT, EXPERTS, norms("attn_norm") + ROWS + STACK, parallel, ("latent_",))
COMPRESSED_AFTER = Block("compressed", COMPRESSED, SWIGLU_FFN, AFTER + RAW + DENSE, normed_after, ("raw_",))
LATENT_HEAD = Block("mtp", LATENT, SWIGLU_FFN, TWO + ROWS + DENSE, BEFORE, ("nextn.",))
READER = Block("mtp", READING, SWIGLU_FFN, TWO + (ROWS[1],) + DENSE, BEFORE, ("nextn.",))
HYPERS = (*base_hypers, decay, n_expert, n_dense, window, n_row, ratio)
CYCLE = Cycle(EMA_DENSE, (LATENT_MOE, COMPRESSED_AFTER, EMA_DENSE))
NEXTN = eh_proj_tensors(norm=AS_IS)
_WIDE = {"nextn.hnorm.weight": (2 * n_embd,), "nextn.eh_proj.weight": (2 * n_embd, 3 * n_embd)}
WIDE_NEXTN = tuple(replace(tensor, shape=_WIDE.get(tensor.name, tensor.shape)) for tensor in NEXTN)


def toy(name: str, layers: Any, head: HeadSheet, **more: Any) -> Architecture:
    return Architecture(name, HYPERS, root_tensors(norm=AS_IS), layers, head, **more)


def streaming(block: Block) -> Block:
    return replace(block, residual=two_streams)


# One head; two in a chain, fed with rows before the norm; a row of two streams; a head that reads the trunk's cells.
SINGLE = toy("toy", CYCLE, HeadSheet(LATENT_HEAD, NEXTN))
CHAIN = toy("toychain", CYCLE, HeadSheet(LATENT_HEAD, NEXTN, hidden="pre", chain="pre"), n_heads=2)
WIDE = toy(
    "toywide",
    Cycle(EMA_DENSE_WIDE := streaming(EMA_DENSE), (EMA_DENSE_WIDE,)),
    HeadSheet(streaming(LATENT_HEAD), WIDE_NEXTN, hidden="pre", chain="pre", n_hidden=2 * n_embd),
    streams=STREAMS,
)
READS = toy("toyreads", CYCLE, HeadSheet(READER, NEXTN, reads_target=True))
TOYS = {sheet.name: sheet for sheet in (SINGLE, CHAIN, WIDE, READS)}


# FILES


def keys(sheet: Architecture) -> list[tuple[str, Any, str]]:
    n_block = N_LAYER + sheet.n_heads
    values = [
        ("block_count", n_block, "u32"),
        ("nextn_predict_layers", sheet.n_heads, "u32"),
        ("context_length", 256, "u32"),
        ("embedding_length", N_EMBD, "u32"),
        ("feed_forward_length", N_FF, "u32"),
        ("attention.head_count", 1, "u32"),
        ("attention.layer_norm_rms_epsilon", 1e-5, "f32"),
        ("ema_decay", 0.75, "f32"),
        ("expert_count", N_EXPERT, "u32"),
        ("leading_dense_block_count", 1, "u32"),
        ("attention.sliding_window", [3 + il for il in range(n_block)], "arr:u32"),
        ("latent_length", 8, "u32"),
        ("compress_ratio", 3, "u32"),
    ]
    return [
        ("general.architecture", sheet.name, "str"),
        *((f"{sheet.name}.{key}", value, kind) for key, value, kind in values),
        ("tokenizer.ggml.model", "test", "str"),
        ("tokenizer.ggml.tokens", [f"{i:x}" for i in range(N_VOCAB)], "arr:str"),
    ]


def tensors(sheet: Architecture) -> Iterator[tuple[str, str, tuple[int, ...], F32]]:
    """Every tensor that the sheet lists (the first of alternatives), random and of a size that keeps rows apart."""
    rng = np.random.default_rng(3)
    sizes = {"n_vocab": N_VOCAB, "n_embd": N_EMBD, "n_ff": N_FF, "n_expert": N_EXPERT, "n_row": 8}
    blocks = [sheet.layers.dense, *(sheet.layers.others[i % len(sheet.layers.others)] for i in range(N_LAYER - 1))]
    wanted = list(sheet.tensors[:2])
    wanted += [t.at(il) for il, block in enumerate(blocks) for t in first_choice(block)]
    for il in range(N_LAYER, N_LAYER + sheet.n_heads):
        wanted += [t.at(il) for t in (*(t for t in sheet.head.tensors if t.required), *first_choice(sheet.head.block))]
    for tensor in wanted:
        shape = tuple(dim.value(sizes) for dim in tensor.shape)
        scale = 2.0 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        values = rng.standard_normal(shape) * scale + (len(shape) == 1)
        yield tensor.name, "F32", shape, values.astype(np.float32)


def first_choice(block: Block) -> Iterator[Tensor]:
    for item in block.tensors:
        yield from item.choices[0] if isinstance(item, Either) else (item,)
