"""Record transformers' values for Qwen3.5 trunk and MTP block, so that tests need no torch.

    python tools/record_hf.py
    python tools/record_hf.py --gguf MODEL --tokens 1,2,3 --tokens 7,8 --out FILE.npz
    python tools/record_hf.py --moe

The first form records the random-weight cases, whose weights are made from seeds and not stored; the last one the
trunks of small models with experts (tests/oracle_hf_moe.py), in float32.

Everything runs in float64, transformers' own float32 casts included. The arrays are named CASE.WHAT: tokens;
rows (the recorded row numbers); logits, h_nextn, and each layer's outputs under llama.cpp's names;
mtp_training.* with (x_{p+1}, h_p) at position p; mtp_llama_cpp.* with (x_p, h_{p-1}) at position p and a zero
hidden in row 0; power, the sum of squares over all rows of each recorded tensor. Needs the extra `oracle`.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mtpref.base.errors import MtprefError  # noqa: E402
from tests.hf_cases import CASES, build  # noqa: E402
from tests.random_weights import Array, HParams, recurrent_layers  # noqa: E402

DEFAULT_OUT = ROOT / "tests" / "data" / "hf_reference.npz"
MOE_OUT = ROOT / "tests" / "data" / "hf_moe.npz"
# a float64 row of a large vocabulary is big; its float32 rounding costs 1e-15 NMSE
LARGE_VOCAB = 1024


def chosen_rows(n: int, n_rows: int) -> list[int]:
    """At most n_rows row numbers, spread evenly, the first and the last among them."""
    return sorted({round(i * (n - 1) / max(n_rows - 1, 1)) for i in range(n_rows)} | {n - 1})


def record(
    weights: dict[str, Array], hparams: HParams, flags: list[bool], tokens: list[int], n_rows: int
) -> dict[str, Array]:
    """All arrays of one case, without the case's name."""
    from tests.oracle_hf import Oracle

    oracle = Oracle(weights, hparams, flags, "float64", "recurrent")
    _, h_nextn, tensors = oracle.trunk(tokens)
    n = len(tokens)
    parts = {"": (tensors, n)}
    if len(flags) > oracle.n_layer:
        logits, h, named = oracle.mtp(tokens[1:], h_nextn[:-1], list(range(n - 1)))
        parts["mtp_training."] = ({**named, "h_nextn": h, "result_output": logits}, n - 1)
        shifted = np.concatenate([np.zeros((1, h_nextn.shape[1])), h_nextn[:-1]])
        logits, h, named = oracle.mtp(tokens, shifted, list(range(n)))
        parts["mtp_llama_cpp."] = ({**named, "h_nextn": h, "result_output": logits}, n)
    arrays: dict[str, Array] = {"tokens": np.asarray(tokens, dtype=np.int32)}
    for prefix, (named, n_part) in parts.items():
        rows = chosen_rows(n_part, n_rows)
        arrays[prefix + "rows"] = np.asarray(rows, dtype=np.int32)
        for name, x in sorted(named.items()):
            if name.startswith(("attn_norm", "attn_post_norm", "mtp_enorm", "mtp_hnorm")):
                continue
            dtype = np.float32 if x.shape[1] > LARGE_VOCAB else np.float64
            arrays[prefix + name] = x[rows].astype(dtype)
            arrays[prefix + "power." + name] = np.asarray(np.sum(x * x))
    return arrays


def record_cases(n_rows: int) -> dict[str, Array]:
    out = {}
    for name in CASES:
        weights, hparams, flags, tokens = build(name)
        arrays = record(weights, hparams, flags, tokens, n_rows)
        out.update({f"{name}.{key}": x for key, x in arrays.items()})
    return out


def record_gguf(path: Path, prompts: list[list[int]], n_rows: int) -> dict[str, Array]:
    """The cases prompt0, prompt1, ... of one file, and the file's SHA-256."""
    from tests.naive_model import load_gguf

    if not path.is_file():
        raise MtprefError(f"{path}: no such file; expected a qwen35 GGUF")
    hparams, weights = load_gguf(str(path))
    hparams["attention.layer_norm_rms_epsilon"] = decimal_eps(hparams["attention.layer_norm_rms_epsilon"])
    flags = recurrent_layers(hparams)
    n_vocab = len(weights["token_embd.weight"])
    with open(path, "rb") as f:
        out: dict[str, Array] = {"sha256": np.asarray(hashlib.file_digest(f, "sha256").hexdigest())}
    for i, tokens in enumerate(prompts):
        if len(tokens) < 2 or max(tokens) >= n_vocab or min(tokens) < 0:
            raise MtprefError(f"--tokens number {i + 1}: found {tokens}, expected 2 or more ids below {n_vocab}")
        arrays = record(weights, hparams, flags, tokens, n_rows)
        out.update({f"prompt{i}.{key}": x for key, x in arrays.items()})
    return out


def record_moe() -> dict[str, Array]:
    from tests import oracle_hf_moe

    with tempfile.TemporaryDirectory() as scratch:
        return oracle_hf_moe.record(Path(scratch))


def decimal_eps(eps: float) -> float:
    """The short decimal that a GGUF's float32 stands for: 9.99999997e-07 is 1e-06, as transformers has it."""
    return float(np.format_float_scientific(np.float32(eps)))


def write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Compressed .npz, written beside the target and renamed; the same arrays give the same bytes."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def token_list(text: str) -> list[int]:
    return [int(x) for x in text.replace(",", " ").split()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record transformers' reference values")
    parser.add_argument("--gguf", type=Path, help="a qwen35 GGUF; without it the random-weight cases are recorded")
    parser.add_argument("--moe", action="store_true", help="record the small models with experts")
    parser.add_argument("--tokens", type=token_list, action="append", default=[], help="ids of one prompt: 1,2,3")
    parser.add_argument("--out", type=Path, help=f"default for the random-weight cases: {DEFAULT_OUT.name}")
    parser.add_argument("--rows", type=int, default=6, help="rows kept of each tensor (default 6)")
    args: Any = parser.parse_args(argv)
    if args.gguf is not None and (not args.tokens or args.out is None):
        parser.error("--gguf needs --tokens (one or more) and --out")
    try:
        if args.moe:
            arrays, out = record_moe(), args.out or MOE_OUT
        elif args.gguf is None:
            arrays, out = record_cases(args.rows), args.out or DEFAULT_OUT
        else:
            arrays, out = record_gguf(args.gguf, args.tokens, args.rows), args.out
    except MtprefError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; try: pip install '.[oracle]'", file=sys.stderr)
        return 2
    write_npz(out, arrays)
    print(json.dumps({"out": str(out), "arrays": len(arrays), "bytes": out.stat().st_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
