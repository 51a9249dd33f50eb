"""Measure the memory of `convert` on experts: a sparse checkpoint of many, several GB apparent, and the peak.

    python tools/measure_convert.py --experts 32 --experts 256

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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

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


def write_sparse(folder: Path, n_expert: int, *, fused: bool) -> int:
    """The checkpoint; its apparent bytes."""
    config = config_of(n_expert)
    header, offset = {}, 0
    for name, shape in shapes(ARCH, config, fused=fused).items():
        n_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(ARCH)))
    return offset


def convert_here(folder: Path, target: Path, outtype: str) -> None:
    """In this process: convert, and print bytes before and at the peak, and seconds."""
    from mtpref.heads.convert import Settings, convert

    before, began = _peak(), time.monotonic()
    convert(folder, target, Settings(outtype=outtype))
    print(json.dumps([before, _peak(), time.monotonic() - began]))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure the memory of convert on experts")
    parser.add_argument("--experts", type=int, action="append", help="experts a layer; repeatable (default: 32, 256)")
    parser.add_argument("--outtype", default="q8_0")
    parser.add_argument("--here", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        convert_here(args.here[0], args.here[1], args.outtype)
        return 0
    expert = 2 * 2048 * 512
    print("experts  form    checkpoint  peak above the imports  of one expert's matrix  seconds")
    for n_expert in args.experts or [32, 256]:
        for fused in (False, True):
            with tempfile.TemporaryDirectory() as name:
                folder, target = Path(name) / "Sparse-1B", Path(name) / "out.gguf"
                n_bytes = write_sparse(folder, n_expert, fused=fused)
                line = [sys.executable, __file__, "--here", str(folder), str(target), "--outtype", args.outtype]
                done = subprocess.run(line, capture_output=True, text=True, check=True)
                before, peak, seconds = json.loads(done.stdout)
            form = "one" if fused else "apart"
            print(
                f"{n_expert:7}  {form:6}  {n_bytes / 1e9:7.2f} GB  {(peak - before) / 1e6:15.1f} MB  "
                f"{(peak - before) / expert:18.1f}x  {seconds:9.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
