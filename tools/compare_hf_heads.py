"""Write the table of `graft --hf` in docs/keeping-the-head.md: one head in a quantised checkpoint, by type and method.

    python tools/compare_hf_heads.py [--print]

Two made checkpoints: the tiny model's, and the same with its feed-forward networks cut into experts
(compare_expert_quants.py). Each base is the trunk in INT4, groups of 32, as compressed-tensors packs it; the head is
put back as BF16, and as INT4 rounded to nearest and by GPTQ. What is measured is what `mtpref convert` makes of the
folders: the packed codes as they are. Calibrated on stories that the tiny model was trained on, measured on held-out
ones (tools/tiny/stories).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from compare_expert_quants import N_EXPERT, N_USED, Stories, load_corpus, write_with_experts  # noqa: E402
from compare_head_quants import _cell, texts_of  # noqa: E402

from mtpref.architectures import ARCHITECTURES, state_from_gguf  # noqa: E402
from mtpref.engine.model import Model, load  # noqa: E402
from mtpref.files.gguf import open_gguf  # noqa: E402
from mtpref.heads.convert import Settings as ConvertSettings  # noqa: E402
from mtpref.heads.convert import convert  # noqa: E402
from mtpref.heads.into_hf import Settings, graft_hf  # noqa: E402
from mtpref.heads.quantize.head import head_matrices  # noqa: E402
from mtpref.heads.quantize.methods import REFERENCE, measure  # noqa: E402
from mtpref.spec.quants import dequantize  # noqa: E402
from tests.hf_folder import read_state, write_checkpoint  # noqa: E402
from tests.quantised_folder import CASES, case_folder  # noqa: E402

TARGET = ROOT / "docs" / "keeping-the-head.md"
BEGIN, END = "<!-- hf-heads -->\n", "<!-- end of hf-heads -->\n"
# name of a row -> settings
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "INT4, 32, all matrices of the block | RTN": {},
        "INT4, 32, all matrices of the block | GPTQ": {"method": "gptq"},
        "INT4, 128, feed-forward network; attention 32 | RTN": {"head_type": "w4a16", "group_size": 128},
        "INT4, 128, feed-forward network; attention 32 | GPTQ": {
            "head_type": "w4a16",
            "group_size": 128,
            "method": "gptq",
        },
        "FP8 blocks, feed-forward network; attention INT4, 32 | RTN": {"head_type": "fp8-block"},
    },
    "tiny with experts": {
        "INT4, 32, experts | RTN": {},
        "INT4, 32, experts | GPTQ": {"method": "gptq"},
    },
}


def checkpoints(folder: Path, name: str) -> tuple[Path, Path]:
    """(the quantised base without a head, the original)."""
    state, config, tokenizer = read_state()
    case = CASES["int4"]
    if name != "tiny":
        state, config = with_experts(folder / "experts.gguf", config)
        case = CASES["int4 experts"]
    original = write_checkpoint(folder / "original", state, config, tokenizer)
    trunk = {key: x for key, x in state.items() if not key.startswith("mtp.")}
    base = case_folder(folder / "base", case, trunk, config, tokenizer)
    return base, original


def with_experts(path: Path, config: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    write_with_experts(path)
    sheet = ARCHITECTURES["qwen35moe"]
    with open_gguf(path) as file:
        keys = {key: file.kv[key] for key in file.kv}
        n_layer = keys["qwen35moe.block_count"] - keys["qwen35moe.nextn_predict_layers"]
        values = {n: keys[f"qwen35moe.{k}"] for n, k in sheet.symbols.items() if f"qwen35moe.{k}" in keys}
        tensors = {t.name: dequantize(t.type_name, file.data(t), t.shape) for t in file.tensors.values()}
    width = keys["qwen35moe.expert_feed_forward_length"]
    shared = keys["qwen35moe.expert_shared_feed_forward_length"]
    own = {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text", "num_experts": N_EXPERT,
           "num_experts_per_tok": N_USED, "moe_intermediate_size": width,
           "shared_expert_intermediate_size": shared}  # fmt: skip
    kept = {key: x for key, x in config.items() if key != "intermediate_size"}
    return state_from_gguf(sheet, tensors, values | {"n_layer": n_layer}), kept | own


def head_of(base: Path, original: Path, out: Path, settings: Settings) -> tuple[Model, int]:
    """The model of a folder, and the bytes of its head."""
    made = graft_hf(base, original, out, settings)
    convert(out, out.with_suffix(".gguf"), ConvertSettings())
    return load(out.with_suffix(".gguf")), made.n_bytes


def rows_of(name: str, corpus: Stories) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, original = checkpoints(folder, name)
        model, n_bytes = head_of(base, original, folder / "bf16", Settings(head_type="bf16"))
        texts = []
        for label, text in corpus.train:
            texts.append(str(folder / f"{label}.txt"))
            Path(texts[-1]).write_text(text, encoding="utf-8")
        ways, sizes = {}, {REFERENCE: n_bytes}
        for i, (row, settings) in enumerate(WAYS[name].items()):
            given: dict[str, Any] = {"calibration": tuple(texts)} if settings.get("method") == "gptq" else {}
            other, sizes[row] = head_of(base, original, folder / f"way{i}", Settings(**settings, **given))
            ways[row] = head_matrices(other)
        found = measure(model, ways, texts_of(model, [text for _, text in corpus.held_out]))
    lines = []
    for one in found:
        label = "BF16, all | -" if one.name == REFERENCE else one.name
        cells = [_cell(one.kl, 4), _cell(one.agreement), *(_cell(a) for a in one.a), _cell(one.less)]
        lines.append(f"| {name} | {label} | {sizes[one.name] / 1e3:.0f} | {' | '.join(cells)} |\n")
    return "".join(lines)


def table() -> str:
    head = ["checkpoint", "head", "method", "kB", "KL, nats", "top-1 agreement", "a_1", "a_2", "a_3",
            "a_1 less BF16's"]  # fmt: skip
    corpus = load_corpus()
    about = f"Calibrated on {len(corpus.train)} stories, measured on {len(corpus.held_out)} held-out ones; "
    lines = [
        about + "+- is half a 95 % interval.\n\n",
        "| " + " | ".join(head) + " |\n",
        "|" + "---|" * len(head) + "\n",
    ]
    return "".join([*lines, *(rows_of(name, corpus) for name in WAYS)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure heads put into quantised checkpoints")
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    args = parser.parse_args(argv)
    made = table()
    if args.print:
        print(made)
        return 0
    page = TARGET.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    TARGET.write_text(before + BEGIN + made + END + rest.split(END)[1], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
