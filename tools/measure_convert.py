"""Measure the memory of `convert` on experts: a sparse checkpoint of many, several GB apparent, and the peak.

    python tools/measure_convert.py --experts 32 --experts 256
    python tools/measure_convert.py --formats --experts 256

The checkpoint is one safetensors file whose data is a hole, so that it takes no disk; the converted file does, and is
removed. Each conversion runs in a process of its own; the peak is its greatest resident size above that of the same
program when everything is imported.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mtpref.files.tensor_files.safetensors import ITEM_BYTES  # noqa: E402
from tests.moe_folder import CONFIGS, shapes, tokenizer  # noqa: E402

ARCH = "qwen35moe"


def config_of(n_expert: int) -> dict[str, Any]:
    """The widths of Qwen3.5-35B-A3B in two layers and a head, with a small vocabulary."""
    return CONFIGS[ARCH] | {
        "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts": n_expert,
        "num_experts_per_tok": 8,
    }  # fmt: skip


def _parts(form: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The parts of an expert's matrix in a format: what follows the module's name -> type and shape."""
    if not form or len(shape) != 2:
        return {"weight": ("BF16", shape)}
    r, c = shape
    zeros, scales = ("I32", (c // 128, r // 8)), ("F16", (c // 128, r))
    found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
        "fp8": {"weight": ("F8_E4M3", shape), "weight_scale_inv": ("F32", (-(-r // 128), -(-c // 128)))},
        "int4": {"weight_packed": ("I32", (r, c // 8)), "weight_scale": ("BF16", (r, c // 32)),
                 "weight_shape": ("I64", (2,))},
        "awq": {"qweight": ("I32", (c, r // 8)), "qzeros": zeros, "scales": scales},
        "gptq": {"qweight": ("I32", (c // 8, r)), "qzeros": zeros, "scales": scales},
        "mxfp4": {"weight": ("I8", (r, c // 2)), "scale": ("F8_E8M0", (r, c // 32))},
        "nvfp4": {"weight_packed": ("U8", (r, c // 2)), "weight_scale": ("F8_E4M3", (r, c // 16)),
                  "weight_global_scale": ("F32", (1,))},
    }  # fmt: skip
    return found[form]


FORMATS = ("fp8", "int4", "awq", "gptq", "mxfp4", "nvfp4")


def write_sparse(folder: Path, n_expert: int, *, fused: bool, form: str = "") -> int:
    """The checkpoint; its apparent bytes. form: of the experts' matrices, all zeros but what must not be."""
    config = config_of(n_expert)
    header: dict[str, Any] = {}
    offset, filled = 0, {}
    for name, shape in shapes(ARCH, config, fused=fused).items():
        is_expert = "mlp.experts." in name and name.endswith(".weight")
        for part, (dtype, own) in _parts(form if is_expert else "", shape).items():
            full = name.removesuffix(".weight") + f".{part}" if is_expert else name
            n_bytes = ITEM_BYTES[dtype] * math.prod(own)
            header[full] = {"dtype": dtype, "shape": list(own), "data_offsets": [offset, offset + n_bytes]}
            if part == "weight_shape":
                filled[offset] = np.array(shape, "<i8").tobytes()
            elif part == "weight_global_scale":
                filled[offset] = np.ones(1, "<f4").tobytes()
            offset += n_bytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        for at, raw in filled.items():
            file.seek(8 + len(text) + at)
            file.write(raw)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(ARCH)))
    return offset


def convert_here(folder: Path, target: Path, outtype: str, *, keeps_codes: bool) -> None:
    """In this process: convert, and print bytes before and at the peak, and seconds of the processor."""
    from mtpref.heads.convert import Settings, convert

    before, began = _peak(), time.process_time()
    convert(folder, target, Settings(outtype=outtype, keeps_codes=keeps_codes))
    print(json.dumps([before, _peak(), time.process_time() - began]))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure the memory of convert on experts")
    parser.add_argument("--experts", type=int, action="append", help="experts a layer; repeatable (default: 32, 256)")
    parser.add_argument("--outtype", default="q8_0")
    parser.add_argument("--formats", action="store_true", help="experts apart in each quantised format (default: BF16)")
    parser.add_argument("--decode", action="store_true", help="as `mtpref convert --decode`")
    parser.add_argument("--here", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        convert_here(args.here[0], args.here[1], args.outtype, keeps_codes=not args.decode)
        return 0
    expert = 2 * 2048 * 512
    print("experts  form    checkpoint  peak above the imports  of one expert's matrix  CPU seconds")
    for n_expert in args.experts or [32, 256]:
        for form in FORMATS if args.formats else ("apart", "one"):
            with tempfile.TemporaryDirectory() as name:
                folder, target = Path(name) / "Sparse-1B", Path(name) / "out.gguf"
                n_bytes = write_sparse(folder, n_expert, fused=form == "one", form=form if args.formats else "")
                line = [sys.executable, __file__, "--here", str(folder), str(target), "--outtype", args.outtype]
                line += ["--decode"] if args.decode else []
                done = subprocess.run(line, capture_output=True, text=True, check=True)
                before, peak, seconds = json.loads(done.stdout)
            print(
                f"{n_expert:7}  {form:6}  {n_bytes / 1e9:7.2f} GB  {(peak - before) / 1e6:15.1f} MB  "
                f"{(peak - before) / expert:18.1f}x  {seconds:9.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
