"""Make a random GGUF with an MTP head in a real model's shape, for loading and timing; its text means nothing.

    python tools/make_random.py -o random-0.8b-q8_0.gguf            (Qwen3.5 0.8B shape, Q8_0)
    python tools/make_random.py --type F32 --n-embd 256 --n-layer 8 --n-vocab 4096 -o small.gguf
    python tools/make_random.py --shape 35b-a3b --n-layer 12 --n-expert 128 -o random-moe-q8_0.gguf
    python tools/make_random.py --shape glm-4.5-air --n-layer 4 --set n_head=32 -o random-glm.gguf

Tensors and keys are those of the architecture's data sheet: a shape is a set of its hyper-parameters. Written in pieces
of at most a few MB, so memory stays bounded whatever the shape. Same arguments, same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, Architecture, Block, numbers
from mtpref.architectures.sheet import ByTensor
from mtpref.architectures.sheet import Tensor as SheetTensor
from mtpref.base.errors import MtprefError
from mtpref.heads.quantize.mixture import more_bits
from mtpref.spec.config import Metadata

sys.path.insert(0, str(Path(__file__).resolve().parent))

from micro_gguf import TYPES, U8, Tensor, encode, hash_u64, tensor_of, uniform, write_gguf
from micro_moe import chosen
from micro_plant import rope_sections

PIECE = 1 << 18
# Bytes of a K block, and its float16 scales: where they are, and their size for rows of standard deviation 1. Variances
# of the integers: Q4_K (s q - 7.5 m; s, m of 6 bits, q of 4) 66470; Q6_K (s q; s of 8 bits, q of 6, signed) 1.86e6.
K_BLOCKS = {"Q4_K": (144, ((0, 1 / 258), (2, 7.5 / 258))), "Q6_K": (210, ((208, 1 / 1365),))}
# Vectors that are no norms: (middle, half width) of their uniform values.
VECTORS = {
    "ssm_a": (-0.6, 0.5),
    "ssm_dt.bias": (-1.0, 0.5),
    "exp_probs_b.bias": (0.0, 0.05),
    "exp_probs_b": (0.0, 0.05),
    "attn_sinks.weight": (0.0, 1.0),
    **{f"hc_{part}_base.weight": (0.0, 1.0) for part in ("attn", "ffn")},
    "output_hc_base.weight": (0.0, 1.0),
    "indexer.k_norm.bias": (0.0, 0.1),
    **{f"attn_{part}.bias": (0.0, 0.1) for part in ("q", "k", "v", "qkv")},
}
# Shapes of real models: the architecture, and its hyper-parameters by the data sheet's names. n_layer: of the trunk;
# interval: of attention among DeltaNet layers; n_dense: layers in front that have no experts; n_window_only: those
# without compressed rows, after which ratios of 4 and 128 take turns.
_DELTA = {"d_conv": 4, "d_state": 128, "n_k_head": 16, "interval": 4, "n_ctx": 262144, "freq_base": 1e7}
_QWEN = _DELTA | {"n_head_kv": 2, "n_embd_head": 256, "n_rot": 64}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.8b": ("qwen35", _QWEN | {"n_embd": 1024, "n_layer": 24, "n_ff": 3584, "n_head": 8, "n_v_head": 16}),
    "35b-a3b": ("qwen35moe", _QWEN | {"n_embd": 2048, "n_layer": 40, "n_head": 16, "n_v_head": 32, "n_expert": 256,
                                      "n_expert_used": 8, "n_ff_exp": 512, "n_ff_shexp": 512, "n_ff": None}),
    "next-80b-a3b": ("qwen3next", _QWEN | {"n_embd": 2048, "n_layer": 48, "n_head": 16, "n_v_head": 32,
                                           "n_expert": 512, "n_expert_used": 10, "n_ff_exp": 512, "n_ff_shexp": 512,
                                           "n_ff": None, "n_vocab": 151936}),
    "glm-4.5-air": ("glm4moe", {"n_embd": 4096, "n_layer": 46, "n_ff": 10944, "n_head": 96, "n_head_kv": 8,
                                "n_embd_head": 128, "n_rot": 64, "n_ctx": 131072, "freq_base": 1e6, "n_dense": 1,
                                "n_expert": 128, "n_expert_used": 8, "n_ff_exp": 1408, "n_expert_shared": 1,
                                "expert_weights_norm": True, "expert_gating_func": 2, "n_vocab": 151552}),
    "kimi-k2": ("deepseek2", {"n_embd": 7168, "n_layer": 61, "n_ff": 18432, "n_head": 64, "n_head_kv": 1,
                              "n_embd_head": 576, "n_embd_head_v": 512, "n_key": 192, "n_value": 128, "n_latent": 512,
                              "n_q_latent": 1536, "n_rot": 64, "n_ctx": 131072, "freq_base": 5e4, "n_dense": 1,
                              "n_expert": 384, "n_expert_used": 8, "n_ff_exp": 2048, "n_expert_shared": 1,
                              "expert_weights_norm": True, "expert_weights_scale": 2.827, "expert_gating_func": 2,
                              "n_vocab": 163840}),
    "deepseek-v3.2": ("deepseek32", {"n_embd": 7168, "n_layer": 61, "n_ff": 18432, "n_head": 128, "n_head_kv": 1,
                                     "n_embd_head": 576, "n_embd_head_v": 512, "n_key": 192, "n_value": 128,
                                     "n_latent": 512, "n_q_latent": 1536, "n_rot": 64, "n_ctx": 163840,
                                     "freq_base": 1e4, "n_dense": 3, "n_expert": 256, "n_expert_used": 8,
                                     "n_expert_group": 8, "n_expert_group_used": 4, "n_ff_exp": 2048,
                                     "n_expert_shared": 1, "expert_weights_norm": True, "expert_weights_scale": 2.5,
                                     "expert_gating_func": 2, "n_index_head": 64, "n_index_key": 128, "n_top": 2048,
                                     "n_vocab": 129280}),
    "deepseek-v4-flash": ("deepseek4", {"n_embd": 4096, "n_layer": 43, "n_head": 64, "n_head_kv": 1,
                                        "n_embd_head": 512, "n_rot": 64, "n_q_latent": 1024, "n_window": 128,
                                        "n_output_group": 8, "n_output_latent": 1024, "n_index_head": 64,
                                        "n_index": 128, "n_best": 512, "n_window_only": 2, "n_hashed": 3,
                                        "n_ctx": 1048576, "freq_base": 1e4, "compress_freq_base": 1.6e5,
                                        "n_expert": 256, "n_expert_used": 6, "n_ff_exp": 2048, "n_expert_shared": 1,
                                        "expert_weights_norm": True, "expert_weights_scale": 1.5,
                                        "expert_gating_func": 4, "clamp_exp": 10.0, "n_streams": 4, "n_sinkhorn": 20,
                                        "streams_eps": 1e-6, "n_vocab": 129280}),
    "hy3": ("hy_v3", {"n_embd": 4096, "n_layer": 80, "n_ff": 13312, "n_head": 64, "n_head_kv": 8, "n_embd_head": 128,
                      "n_ctx": 262144, "freq_base": 11158840.0, "n_dense": 1, "n_expert": 192, "n_expert_used": 8,
                      "n_ff_exp": 1536, "n_ff_shexp": 1536, "expert_weights_norm": True, "expert_gating_func": 2,
                      "expert_weights_scale": 2.826, "n_vocab": 120832}),
}  # fmt: skip
# Options of their own; every other hyper-parameter goes by --set.
SIZES = {
    "n-embd": "n_embd", "n-layer": "n_layer", "interval": "interval", "n-ff": "n_ff", "n-vocab": "n_vocab",
    "n-head": "n_head", "n-head-kv": "n_head_kv", "head-dim": "n_embd_head", "n-rot": "n_rot",
    "state-size": "d_state", "n-k-head": "n_k_head", "n-v-head": "n_v_head", "d-conv": "d_conv",
    "n-expert": "n_expert", "n-expert-used": "n_expert_used", "n-ff-exp": "n_ff_exp",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model: its data sheet, hyper-parameters by its names (and n_layer, interval, n_dense, n_vocab), tokenizer."""

    sheet: Architecture
    sizes: dict[str, Any]
    tokenizer: str

    def values(self) -> dict[str, Any]:
        """What the sheet's hyper-parameters are; those that follow from others are made."""
        given = {name: value for name, value in self.sizes.items() if value is not None}
        pairs = given.get("n_rot", given["n_embd_head"]) // 2
        n_value = given.get("n_embd_head_v", given["n_embd_head"])
        made = {"n_block": given["n_layer"] + 1, "rms_eps": 1e-6, "n_embd_head_v": n_value}
        if "n_v_head" in given:
            made["d_inner"] = given["n_v_head"] * given["d_state"]
        if "n_window_only" in given:
            n_before, n_layer = given["n_window_only"], given["n_layer"]
            ratios = [0 if il < n_before else (4, 128)[(il - n_before) % 2] for il in range(n_layer)]
            made["compress_ratio"] = [np.int32(ratio) for ratio in (*ratios, 0)]
        for hyper in self.sheet.hypers:
            if hyper.name == "rope_sections" and hyper.default is None:
                made["rope_sections"] = [np.int32(n) for n in rope_sections(pairs)]
        known = {hyper.name for hyper in self.sheet.hypers}
        return {name: value for name, value in (given | made).items() if name in known}


def matrix_pieces(seed: int, name: str, shape: tuple[int, ...], type_name: str) -> Iterator[U8]:
    """A matrix of standard deviation about 1 / sqrt(row length), piece by piece.

    Q8_0 blocks are made as such: quants of 8 random bits (-128 is clipped), one F16 scale within 25 % of the right
    one. So are K blocks, all of whose integers are random bits. The other types encode uniform floats.
    """
    if type_name in K_BLOCKS:
        yield from k_pieces(seed, name, shape, type_name)
        return
    total, row = int(np.prod(shape)), shape[-1]
    bound = float(np.float32((3.0 / row) ** 0.5))
    for start in range(0, total, PIECE):
        n = min(PIECE, total - start)
        if type_name != "Q8_0":
            yield encode(uniform(seed, name, (n,), start) * np.float32(bound), type_name)
            continue
        quants = hash_u64(seed, name, n // 8, start // 8).astype("<u8").view(np.int8).reshape(-1, 32)
        spread = uniform(seed, name + " scale", (n // 32, 1), start // 32)
        scale = (np.float32(bound / 127) * (np.float32(1) + np.float32(0.25) * spread)).astype("<f2")
        yield np.hstack([scale.view(np.uint8), np.maximum(quants, -127).view(np.uint8)])


def k_pieces(seed: int, name: str, shape: tuple[int, ...], type_name: str) -> Iterator[U8]:
    """Blocks of 256 values of random bits, with the scales that give them a standard deviation of 1 / sqrt(row)."""
    if shape[-1] % 256:
        raise ValueError(f"{name}: rows of {shape[-1]} values, expected a multiple of 256 for type {type_name}")
    n_bytes, halves = K_BLOCKS[type_name]
    n_blocks = int(np.prod(shape)) // 256
    for start in range(0, n_blocks, PIECE // 256):
        n = min(PIECE // 256, n_blocks - start)
        width = -(-n_bytes // 8)
        raw = hash_u64(seed, name, n * width, start * width).astype("<u8").view(np.uint8).reshape(n, 8 * width)
        raw = np.ascontiguousarray(raw[:, :n_bytes])
        for at, factor in halves:
            scale = np.full(n, factor / shape[-1] ** 0.5, "<f2")
            raw[:, at : at + 2] = scale.view(np.uint8).reshape(n, 2)
        yield raw.reshape(-1)


def type_of(tensor: SheetTensor, type_name: str, n_blocks: int) -> str:
    """The type that a matrix gets. Q4_K_M: as llama-quantize mixes it for a model with tied embeddings."""
    if not tensor.is_quantised:
        return "F32"
    if type_name != "Q4_K_M":
        return type_name
    if tensor.role in ("output", "token_embd"):
        return "Q6_K"
    if tensor.role not in ("attn_v", "ffn_down"):
        return "Q4_K"
    return "Q6_K" if more_bits(int(tensor.name.split(".")[1]), n_blocks) else "Q4_K"


def blocks(shape: Shape) -> tuple[Block, ...]:
    """The trunk's blocks, then the head's."""
    n_layer, rule = shape.sizes["n_layer"], shape.sheet.layers
    marks = frozenset(f"blk.{il}.{rule.tensor}" for il in range(shape.sizes.get("n_dense", 0), n_layer)
                      ) if isinstance(rule, ByTensor) else frozenset()  # fmt: skip
    assert shape.sheet.head is not None
    return (*rule.blocks(read_back(shape), n_layer, marks), shape.sheet.head.block)


def sheet_tensors(shape: Shape) -> list[SheetTensor]:
    """Every tensor of the file: what the head can share with the trunk is shared, but for its norm."""
    assert shape.sheet.head is not None
    found = [t for t in shape.sheet.tensors if t.required or t.name not in ("output.weight",)]
    for il, block in enumerate(blocks(shape)):
        found += [tensor.at(il) for tensor in chosen(block)]
    head = [t for t in shape.sheet.head.tensors if t.required or t.name.endswith("norm.weight")]
    return found + [tensor.at(shape.sizes["n_layer"]) for tensor in head]


def random_tensors(shape: Shape, seed: int, type_name: str) -> list[Tensor]:
    """Every tensor of the model, matrices as generators."""
    values = {**shape.sheet.values(read_back(shape)), "n_vocab": shape.sizes["n_vocab"]}
    out: list[Tensor] = []
    for tensor in sheet_tensors(shape):
        name, dims = tensor.name, numbers(tensor.shape, values)
        if dims is None:
            raise ValueError(f"{name}: shape {' x '.join(map(str, tensor.shape))} lacks a hyper-parameter; try --set")
        if tensor.below is not None:
            n_rows, n = dims
            first = hash_u64(seed, name, n_rows) % np.uint64(values["n_expert"])
            table = (first.astype(np.int64)[:, None] + np.arange(n)) % values["n_expert"]
            out.append((name, "I32", dims, table.astype("<i4").view(np.uint8).reshape(-1)))
            continue
        if len(dims) == 1:
            middle, half = VECTORS.get(name.split(".", 2)[-1], (1.0, 0.3))
            vector = np.float32(middle) + np.float32(half) * uniform(seed, name, dims)
            out.append(tensor_of(name, vector, "F32"))
            continue
        kind = type_of(tensor, type_name, shape.sizes["n_layer"] + 1)
        out.append((name, kind, dims, partial(matrix_pieces, seed, name, dims, kind)))
    return out


def read_back(shape: Shape) -> Metadata:
    """The keys as a load of the file will read them, for the defaults of those that are not there."""

    def plain(value: object) -> object:
        return [int(item) for item in value] if isinstance(value, list) and isinstance(value[0], np.int32) else value

    return Metadata({key: plain(value) for key, value in model_keys(shape).items()}, "random")


def tokenizer_metadata(n_vocab: int, tokenizer: str) -> dict[str, object]:
    """llama.cpp's `test` tokenizer, or a made-up byte-level BPE: 256 bytes, then made-up words with one merge each."""
    if tokenizer == "test":
        return {"tokenizer.ggml.model": "test", "tokenizer.ggml.tokens": [f"{i:x}" for i in range(n_vocab)]}
    if n_vocab < 257:
        raise ValueError(f"--n-vocab {n_vocab}: a gpt2 tokenizer needs at least 257")
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    letters, merges, first = "abcdefghijklmnopqrstuvwxyz", [], 0
    words = list(letters)
    while len(tokens) < n_vocab - 1:
        merges += [f"{words[first]} {letter}" for letter in letters[: n_vocab - 1 - len(tokens)]]
        made = [words[first] + letter for letter in letters[: n_vocab - 1 - len(tokens)]]
        words.extend(made)
        tokens.extend(made)
        first += 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": [*tokens, "<|endoftext|>"],
        "tokenizer.ggml.token_type": [np.int32(1)] * (n_vocab - 1) + [np.int32(3)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": n_vocab - 1,
    }


def random_metadata(shape: Shape) -> dict[str, object]:
    """Metadata under llama.cpp's keys."""
    return model_keys(shape) | tokenizer_metadata(shape.sizes["n_vocab"], shape.tokenizer)


def model_keys(shape: Shape) -> dict[str, object]:
    """Those of the model."""
    sheet, values = shape.sheet, shape.values()
    keys: dict[str, object] = {hyper.key: values[hyper.name] for hyper in sheet.hypers if hyper.name in values}
    keys["nextn_predict_layers"] = 1
    for name, size in (("interval", "interval"), ("key", "n_dense")):
        if hasattr(sheet.layers, name) and size in shape.sizes:
            keys[getattr(sheet.layers, name)] = shape.sizes[size]
    general: dict[str, object] = {"general.architecture": sheet.name, "general.name": "mtpref random"}
    named = {f"{sheet.name}.{key}": value for key, value in keys.items()}
    return general | named


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, Shape]:
    """The command line: options, and the shape (default: Qwen3.5 0.8B). Errors: ValueError for a --set of nothing"""
    parser = argparse.ArgumentParser(description="Make a random GGUF with an MTP head in a real model's shape.")
    parser.add_argument("-o", "--output", required=True, help="file to write")
    types = (*TYPES, *K_BLOCKS, "Q4_K_M")
    parser.add_argument("--type", default="Q8_0", choices=types, help="type of the matrices (default Q8_0)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random number (default 1)")
    parser.add_argument("--tokenizer", default="test", choices=["test", "gpt2"], help="default: test")
    parser.add_argument("--shape", default="0.8b", choices=sorted(SHAPES), help="a real model's (default 0.8b)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER",
                        help="a hyper-parameter by the data sheet's name (mtpref/architectures)")  # fmt: skip
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, help="in place of the shape's")
    args = parser.parse_args(argv)
    arch, sizes = SHAPES[args.shape]
    sheet = ARCHITECTURES[arch]
    known = {hyper.name: hyper for hyper in sheet.hypers}
    own = {SIZES[name]: getattr(args, name.replace("-", "_")) for name in SIZES}
    sizes = {"n_vocab": 248320} | sizes | {name: value for name, value in own.items() if value is not None}
    for text in args.set:
        name, _, value = text.partition("=")
        if name not in known and name not in sizes:
            raise ValueError(f"--set {text}: {arch} has no {name}, expected one of {', '.join(known)}")
        kind = known[name].type if name in known else "u32"
        sizes[name] = float(value) if kind == "f32" else bool(int(value)) if kind == "bool" else int(value)
    return args, Shape(sheet, sizes, args.tokenizer)


def main(argv: list[str] | None = None) -> int:
    """Write the file; exit code 2 and one line on stderr if it cannot be made."""
    try:
        args, shape = parse_args(argv)
        write_gguf(args.output, random_metadata(shape), random_tensors(shape, args.seed, args.type))
    except (ValueError, OSError, MtprefError) as error:
        print(f"make_random: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
