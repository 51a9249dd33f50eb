"""Make a GGUF header of a real model's size: 248,320 tokens and 247,587 merges, no tensors.

    python tools/make_header.py header.gguf [--time]

The vocabulary is made of numbers, of about the byte lengths of a real one; the file has about 11 MB. With
`--time` a second process opens the file, reads the token strings once, and prints the seconds and the peak of
extra memory that this took (Linux). The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

from mtpref.files.gguf import write_gguf

N_TOKENS, N_MERGES = 248_320, 247_587

_TIME = """
import sys, time
from mtpref.files.gguf import open_gguf
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
before = peak()
start = time.perf_counter()
f = open_gguf(sys.argv[1])
opened = time.perf_counter()
tokens = f.kv["tokenizer.ggml.tokens"].to_bytes_list()
read = time.perf_counter()
extra = peak() - before
print(f"file {f.n_bytes / 1e6:.1f} MB, {len(tokens)} tokens, {len(f.kv['tokenizer.ggml.merges'])} merges")
print(f"open {opened - start:.3f} s, token strings {read - opened:.3f} s, extra memory {extra:.0f} MB")
"""


def token(i: int) -> bytes:
    """A token of 2 to 15 bytes, 7.5 on average, different for every i."""
    return f"{i:x}".encode() + b"token string"[: i * 7 % 11]


def merges() -> Iterator[bytes]:
    for i in range(N_MERGES):
        yield token(i)[:6] + b" " + token(i * 5 % N_TOKENS)[:6]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--time", action="store_true", help="open the file in a second process and print the cost")
    args = parser.parse_args()
    kv = [
        ("general.architecture", "qwen35", "str"),
        ("tokenizer.ggml.model", "gpt2", "str"),
        ("tokenizer.ggml.pre", "qwen35", "str"),
        ("tokenizer.ggml.tokens", [token(i) for i in range(N_TOKENS)], "arr:str"),
        ("tokenizer.ggml.token_type", [1] * N_TOKENS, "arr:i32"),
        ("tokenizer.ggml.merges", list(merges()), "arr:str"),
        ("tokenizer.ggml.eos_token_id", N_TOKENS - 1, "u32"),
    ]
    write_gguf(args.path, kv, [])
    if args.time:
        return subprocess.run([sys.executable, "-c", _TIME, args.path], check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
