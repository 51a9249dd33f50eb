"""Make a random qwen35 + MTP GGUF of a real model's shape, for loading and timing; its text means nothing.

    python tools/make_random.py -o random-0.8b-q8_0.gguf            (Qwen3.5 0.8B shape, Q8_0)
    python tools/make_random.py --type F32 --n-embd 256 --n-layer 8 --n-vocab 4096 -o small.gguf

Written in pieces of at most a few MB, so memory stays bounded whatever the shape. Same arguments, same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mtpref.base.errors import MtprefError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from micro_gguf import TYPES, U8, Tensor, encode, hash_u64, tensor_of, uniform, write_gguf

PIECE = 1 << 18
# Norm weights and DeltaNet vectors: (middle, half width) of their uniform values.
VECTORS = {"ssm_a": (-0.6, 0.5), "ssm_dt.bias": (-1.0, 0.5)}


class Shape(argparse.Namespace):
    """Hyper-parameters from the command line; GGUF's meanings, `n_layer` counts the trunk only."""

    n_embd: int
    n_layer: int
    interval: int
    n_ff: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    state_size: int
    n_k_head: int
    n_v_head: int
    d_conv: int
    tokenizer: str


def matrix_pieces(seed: int, name: str, shape: tuple[int, ...], type_name: str) -> Iterator[U8]:
    """A matrix of standard deviation about 1 / sqrt(row length), piece by piece.

    Q8_0 blocks are made as such: quants of 8 random bits (-128 is clipped), one F16 scale within 25 % of the right
    one. The other types encode uniform floats.
    """
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


def layer_shapes(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """NumPy shapes of one layer's tensors by their name after `blk.N.`; layer == n_layer is the MTP block."""
    n, n_key = shape.n_embd, shape.n_k_head * shape.state_size
    n_value, n_q = shape.n_v_head * shape.state_size, shape.n_head * shape.head_dim
    out: dict[str, tuple[int, ...]] = {"attn_norm.weight": (n,), "post_attention_norm.weight": (n,)}
    if layer < shape.n_layer and (layer + 1) % shape.interval != 0:
        n_conv = 2 * n_key + n_value
        out |= {"attn_qkv.weight": (n_conv, n), "attn_gate.weight": (n_value, n), "ssm_out.weight": (n, n_value)}
        out |= {"ssm_conv1d.weight": (n_conv, shape.d_conv), "ssm_norm.weight": (shape.state_size,)}
        out |= dict.fromkeys(("ssm_alpha.weight", "ssm_beta.weight"), (shape.n_v_head, n))
        out |= dict.fromkeys(("ssm_dt.bias", "ssm_a"), (shape.n_v_head,))
    else:
        n_kv = shape.n_head_kv * shape.head_dim
        out |= {"attn_q.weight": (2 * n_q, n), "attn_k.weight": (n_kv, n), "attn_v.weight": (n_kv, n)}
        out |= {"attn_output.weight": (n, n_q)}
        out |= dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (shape.head_dim,))
    out |= {"ffn_gate.weight": (shape.n_ff, n), "ffn_up.weight": (shape.n_ff, n), "ffn_down.weight": (n, shape.n_ff)}
    if layer == shape.n_layer:
        out |= {"nextn.eh_proj.weight": (n, 2 * n)}
        out |= {f"nextn.{name}.weight": (n,) for name in ("enorm", "hnorm", "shared_head_norm")}
    return out


def random_tensors(shape: Shape, seed: int, type_name: str) -> list[Tensor]:
    """Every tensor of the model, matrices as generators."""
    shapes = {"token_embd.weight": (shape.n_vocab, shape.n_embd), "output_norm.weight": (shape.n_embd,)}
    for layer in range(shape.n_layer + 1):
        shapes |= {f"blk.{layer}.{name}": dims for name, dims in layer_shapes(shape, layer).items()}
    out: list[Tensor] = []
    for name, dims in shapes.items():
        if len(dims) == 1:
            middle, half = VECTORS.get(name.split(".", 2)[-1], (1.0, 0.3))
            values = np.float32(middle) + np.float32(half) * uniform(seed, name, dims)
            out.append(tensor_of(name, values, "F32"))
            continue
        kind = "F32" if "ssm_conv1d" in name else type_name
        out.append((name, kind, dims, partial(matrix_pieces, seed, name, dims, kind)))
    return out


def tokenizer_metadata(shape: Shape) -> dict[str, object]:
    """llama.cpp's `test` tokenizer, or a made-up byte-level BPE: 256 bytes, then made-up words with one merge each."""
    if shape.tokenizer == "test":
        return {"tokenizer.ggml.model": "test", "tokenizer.ggml.tokens": [f"{i:x}" for i in range(shape.n_vocab)]}
    if shape.n_vocab < 257:
        raise ValueError(f"--n-vocab {shape.n_vocab}: a gpt2 tokenizer needs at least 257")
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    letters, merges, first = "abcdefghijklmnopqrstuvwxyz", [], 0
    words = list(letters)
    while len(tokens) < shape.n_vocab - 1:
        merges += [f"{words[first]} {letter}" for letter in letters[: shape.n_vocab - 1 - len(tokens)]]
        made = [words[first] + letter for letter in letters[: shape.n_vocab - 1 - len(tokens)]]
        words, tokens, first = words + made, tokens + made, first + 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": [*tokens, "<|endoftext|>"],
        "tokenizer.ggml.token_type": [np.int32(1)] * (shape.n_vocab - 1) + [np.int32(3)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": shape.n_vocab - 1,
    }


def random_metadata(shape: Shape) -> dict[str, object]:
    """Metadata under llama.cpp's keys."""
    pairs = shape.n_rot // 2
    sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0]
    values: dict[str, object] = {
        "block_count": shape.n_layer + 1,
        "nextn_predict_layers": 1,
        "context_length": 262144,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "full_attention_interval": shape.interval,
        "rope.dimension_count": shape.n_rot,
        "rope.dimension_sections": [np.int32(n) for n in sections],
        "rope.freq_base": 1e7,
        "ssm.conv_kernel": shape.d_conv,
        "ssm.state_size": shape.state_size,
        "ssm.group_count": shape.n_k_head,
        "ssm.time_step_rank": shape.n_v_head,
        "ssm.inner_size": shape.n_v_head * shape.state_size,
    }
    general: dict[str, object] = {"general.architecture": "qwen35", "general.name": "mtpref random"}
    return general | {f"qwen35.{key}": value for key, value in values.items()} | tokenizer_metadata(shape)


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, Shape]:
    """The command line: options, and the shape (defaults: Qwen3.5 0.8B)."""
    parser = argparse.ArgumentParser(description="Make a random qwen35 + MTP GGUF of a real model's shape.")
    parser.add_argument("-o", "--output", required=True, help="file to write")
    parser.add_argument("--type", default="Q8_0", choices=TYPES, help="type of the matrices (default Q8_0)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random number (default 1)")
    parser.add_argument("--tokenizer", default="test", choices=["test", "gpt2"], help="default: test")
    sizes = {"n-embd": 1024, "n-layer": 24, "interval": 4, "n-ff": 3584, "n-vocab": 248320, "n-head": 8, "n-head-kv": 2}
    sizes |= {"head-dim": 256, "n-rot": 64, "state-size": 128, "n-k-head": 16, "n-v-head": 16, "d-conv": 4}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args(argv)
    return args, Shape(**vars(args))


def main(argv: list[str] | None = None) -> int:
    """Write the file; exit code 2 and one line on stderr if it cannot be made."""
    args, shape = parse_args(argv)
    try:
        write_gguf(args.output, random_metadata(shape), random_tensors(shape, args.seed, args.type))
    except (ValueError, OSError, MtprefError) as error:
        print(f"make_random: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
