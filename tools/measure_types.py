"""Measure, weight type by weight type, how close both numerics come to stock llama.cpp: the table of docs/checks.md.

    python tools/measure_types.py --llama-bin DIR [--type Q4_0 ...]

For each type: the K-quant micro model, all matrices brought to that type by llama-quantize (--pure, with a flat
importance matrix, which the smallest types demand), then the logits of a 22-token prompt by llama-results and mtpref,
with F32 KV. Prints one line for each type: NMSE in `ggml` and in `exact` numerics, and at how many positions the greedy
token is the same.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import make_micro  # noqa: E402
import micro_plant  # noqa: E402

import mtpref  # noqa: E402
from mtpref import spec  # noqa: E402
from mtpref.base.errors import MtprefError  # noqa: E402
from mtpref.files.gguf import open_gguf, write_gguf  # noqa: E402
from mtpref.look.compare.measures import nmse  # noqa: E402
from mtpref.look.llama_cpp.programs import NUMERICS, run  # noqa: E402

PROMPT = "a prompt of several chunks of five bytes each, and some more, to make it twenty tokens long. And on and on"
# What llama-quantize calls a file of the type, where that is not the type's own name.
FILE_TYPES = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "MXFP4": "Q8_0", "NVFP4": "Q8_0"}


def write_flat_imatrix(f32: Path, out: Path) -> None:
    """An importance matrix that gives all columns of all matrices the same weight."""
    kv = [("general.type", "imatrix", "str"), ("imatrix.datasets", ["none"], "arr:str"),
          ("imatrix.chunk_count", 1, "u32"), ("imatrix.chunk_size", 512, "u32")]  # fmt: skip
    tensors = []
    with open_gguf(f32) as file:
        for info in file.tensors.values():
            if len(info.shape) == 2:
                sums = np.ones((1, info.shape[1]), np.float32)
                tensors.append((f"{info.name}.in_sum2", "F32", sums.shape, sums.view(np.uint8).reshape(-1)))
                counts = np.ones((1, 1), np.float32)
                tensors.append((f"{info.name}.counts", "F32", counts.shape, counts.view(np.uint8).reshape(-1)))
    write_gguf(out, kv, tensors)


def quantise(bin_dir: Path, type_name: str, f32: Path, imatrix: Path, out: Path) -> None:
    """Bring all matrices to one type with llama-quantize."""
    if type_name == "F32":
        out.symlink_to(f32)
        return
    flags = [
        "--pure",
        "--imatrix",
        str(imatrix),
        "--token-embedding-type",
        type_name,
        "--output-tensor-type",
        type_name,
    ]
    if type_name in ("MXFP4", "NVFP4", "IQ2_S"):
        flags += ["--tensor-type", f".*={type_name}"]
    run([str(bin_dir / "llama-quantize"), *flags, str(f32), str(out), FILE_TYPES.get(type_name, type_name)], out.parent)


def measure(bin_dir: Path, model: Path) -> str:
    """One row of the table, without its first cell."""
    results = model.with_suffix(".results.gguf")
    command = [str(bin_dir / "llama-results"), "-m", model.name, "-p", PROMPT, "-o", results.name, *NUMERICS]
    run(command, model.parent)
    with open_gguf(results) as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1).copy()
    cells, same = [], []
    for numerics in ("ggml", "exact"):
        core = mtpref.load(model, numerics=numerics, kv_type="F32", kv_type_draft="F32").core
        ours = core.trunk(core.new_state(), ids, n_logits=len(ids)).logits
        cells.append(f"{nmse(theirs, ours):.1e}")
        same.append(int((theirs.argmax(axis=1) == ours.argmax(axis=1)).sum()))
    return f"{' | '.join(cells)} | {same[0]}, {same[1]} of {len(ids)}"


def types_in(model: Path) -> str:
    """The types of the matrices, most frequent first, where there are several."""
    with open_gguf(model) as file:
        names = [info.type_name for info in file.tensors.values() if len(info.shape) == 2 and info.shape[0] > 8]
    counts = sorted(((names.count(name), name) for name in set(names)), reverse=True)
    return ", ".join(f"{name} x{n}" for n, name in counts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="NMSE of logits against llama.cpp by weight type")
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder with llama-quantize and llama-results")
    parser.add_argument("--type", action="append", default=[], help="weight type (repeatable; default: all)")
    args = parser.parse_args(argv)
    print("| weights | `ggml` | `exact` | same greedy token |\n|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        f32, imatrix = Path(folder) / "original.gguf", Path(folder) / "imatrix.gguf"
        make_micro.make_micro(f32, 1, 60, "F32", shape=micro_plant.K_QUANT_SHAPE)
        write_flat_imatrix(f32, imatrix)
        for type_name in args.type or spec.GGML_PRODUCTS:
            model = Path(folder) / f"{type_name.lower()}.gguf"
            try:
                quantise(args.llama_bin, type_name, f32, imatrix, model)
                print(f"| {type_name} | {measure(args.llama_bin, model)} |", flush=True)
                print(f"{type_name}: {types_in(model)}", file=sys.stderr)
            except (MtprefError, RuntimeError, OSError) as error:
                failed = True
                print(f"{type_name}: {error}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
