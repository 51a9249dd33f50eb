"""The tiny model as one of experts that computes the same: a head with experts that is known to be sound.

Half of the hidden units of every feed-forward network are the shared expert, each quarter of the rest is two experts of
eight, e and e + 4, whose rows of the router are each other's negative: four of eight are taken, so each quarter once.
The weights are the tiny model's, block for block, doubled where half of them is taken and fourfold where a quarter is.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mtpref.files.gguf import write_gguf
from mtpref.spec.quants import dequantize, quantize
from tests.broken_heads import TINY
from tests.gguf_copy import Pairs, Tensors, copy_of

N_EXPERT, N_USED = 8, 4


def write_cut(path: Path) -> Path:
    """The tiny model as qwen35moe."""
    keys, tensors = copy_of(TINY)
    write_gguf(path, _keys(keys), [part for one in tensors for part in (_cut(*one) if ".ffn_" in one[0] else [one])])
    return path


def _keys(keys: Pairs) -> Pairs:
    n_ff = next(int(value) for key, value, _ in keys if key == "qwen35.feed_forward_length")
    out: Pairs = []
    for key, value, kind in keys:
        if key == "general.architecture":
            out.append((key, "qwen35moe", "str"))
            out += [
                ("qwen35moe.expert_count", N_EXPERT, "u32"),
                ("qwen35moe.expert_used_count", N_USED, "u32"),
                ("qwen35moe.expert_feed_forward_length", n_ff // 8, "u32"),
                ("qwen35moe.expert_shared_feed_forward_length", n_ff // 2, "u32"),
            ]
        elif key != "qwen35.feed_forward_length":
            out.append((key.replace("qwen35.", "qwen35moe."), value, kind))
    return out


def _cut(name: str, kind: str, shape: tuple[int, ...], data: Any) -> Tensors:
    x = dequantize(kind, np.ascontiguousarray(data).reshape(-1).view(np.uint8), shape)
    short = name[name.index("ffn_") :].removesuffix(".weight")
    is_down = short == "ffn_down"
    by_unit = x.T if is_down else x
    half, width = len(by_unit) // 2, len(by_unit) // 8
    shared, experts = by_unit[:half], [by_unit[half + e % 4 * width :][:width] for e in range(N_EXPERT)]
    stack = np.stack([4 * w.T if is_down else w for w in experts])
    made = {f"{short}_exps": (kind, stack), f"{short}_shexp": (kind, 2 * shared.T if is_down else shared)}
    if short == "ffn_gate":
        random = np.random.Generator(np.random.Philox(int(name.split(".")[1])))
        rows = random.normal(0, 1e-3, (5, x.shape[1])).astype(np.float32)
        made["ffn_gate_inp"] = "F32", np.concatenate([rows[:4], -rows[:4]])
        made["ffn_gate_inp_shexp"] = "F32", rows[4:]
    return [
        (
            name.replace(short, new),
            kind,
            part.shape,
            np.ascontiguousarray(quantize(kind, np.ascontiguousarray(part))).reshape(-1),
        )
        for new, (kind, part) in made.items()
    ]
