"""Write the tables of GPTQ for experts in docs/keeping-the-head.md: a trained head with experts, before and after.

    python tools/compare_expert_quants.py

There is no small trained model with experts, so the tiny model's feed-forward networks are cut up: half of the hidden
units are the shared expert, the other half is shared out among 8 experts twice over, of which each token takes 2. The
inputs are a trained model's, and so are the weights but the router's. Calibrated on stories that the tiny model was
trained on, measured on held-out ones (tools/tiny/stories). Everything is counted, nothing timed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_head_quants import SEED, rounded
from micro_gguf import uniform
from numpy.typing import NDArray
from tiny.text import held_out_stories, training_stories

import mtpref
from mtpref.engine.model import Model, Pairs
from mtpref.files.gguf import WriteOptions, open_gguf, write_gguf
from mtpref.front.api import tiny_path
from mtpref.heads.pairs import pairs_of
from mtpref.heads.quantize import head as quantising
from mtpref.heads.quantize.collect import product_of, run_head, watched
from mtpref.heads.quantize.gptq import gptq, round_to_nearest
from mtpref.heads.quantize.grid import Grid
from mtpref.heads.quantize.head import gptq_head, head_matrices, trunk_rows, with_matrices
from mtpref.spec import Matrix
from mtpref.spec.quants import dequantize

TARGET = Path(__file__).parent.parent / "docs" / "keeping-the-head.md"
BEGIN, END = "<!-- experts -->\n", "<!-- end of experts -->\n"
N_EXPERT, N_USED = 8, 2
N_TOKENS, N_HELD_OUT = (256, 1024, 4096), 2048
N_STORIES = 48, 24  # to calibrate on, to measure on: enough for those tokens
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Stories:
    """(name, text) of stories that the tiny model was trained on, and of held-out ones."""

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]


def load_corpus() -> Stories:
    n_train, n_held_out = N_STORIES
    kinds = training_stories(SEED, n_train, 1), held_out_stories(n_held_out)
    return Stories(*(tuple((f"story {i}", text) for i, text in enumerate(texts)) for texts in kinds))


def write_with_experts(path: Path) -> None:
    """The tiny model as qwen35moe."""
    with open_gguf(tiny_path()) as file:
        keys: list[tuple[str, Any, str]] = []
        n_ff = int(file.require("qwen35.feed_forward_length", "int"))
        for key, value, kind in pairs_of(file):
            if key == "general.architecture":
                keys.append((key, "qwen35moe", "str"))
                keys += [
                    ("qwen35moe.expert_count", N_EXPERT, "u32"),
                    ("qwen35moe.expert_used_count", N_USED, "u32"),
                    ("qwen35moe.expert_feed_forward_length", n_ff // 8, "u32"),
                    ("qwen35moe.expert_shared_feed_forward_length", n_ff // 2, "u32"),
                ]
            elif key != "qwen35.feed_forward_length":
                keys.append((key.replace("qwen35.", "qwen35moe."), value, kind))
        tensors: list[tuple[str, str, tuple[int, ...], Any]] = []
        for info in file.tensors.values():
            x = dequantize(info.type_name, file.data(info), info.shape)
            made = _cut(info.name, x) if ".ffn_" in info.name else {info.name: x}
            tensors += [(name, "F32", part.shape, part) for name, part in made.items()]
        write_gguf(path, keys, tensors, options=WriteOptions(force=True))


def _cut(name: str, x: F32) -> dict[str, F32]:
    """One matrix of a feed-forward network as shared expert and experts; with the gate, router and shared gate."""
    prefix, short = name[: name.index("ffn_")], name[name.index("ffn_") :].removesuffix(".weight")
    by_unit = x.T if short == "ffn_down" else x
    half = len(by_unit) // 2
    width = half // 4
    # Expert e has quarter e % 4 of the second half, so that each unit has two experts.
    experts = [by_unit[half + e % 4 * width : half + (e % 4 + 1) * width] for e in range(N_EXPERT)]
    shared = by_unit[:half]
    if short == "ffn_down":
        return {
            f"{name.replace('ffn_down', 'ffn_down_exps')}": np.stack([2 * w.T for w in experts]),
            f"{name.replace('ffn_down', 'ffn_down_shexp')}": np.ascontiguousarray(shared.T),
        }
    made = {name.replace(short, f"{short}_exps"): np.stack(experts), name.replace(short, f"{short}_shexp"): shared}
    if short == "ffn_gate":
        made[f"{prefix}ffn_gate_inp.weight"] = uniform(5, f"{prefix}router", (N_EXPERT, x.shape[1]))
        made[f"{prefix}ffn_gate_inp_shexp.weight"] = np.zeros((1, x.shape[1]), np.float32)
    return made


def hidden_of(model: Model, chunks: Sequence[Pairs]) -> F64:
    """The head's rows, of every position."""
    found = []
    for chunk in chunks:
        state = model.new_state(chunk.first + len(chunk.ids))
        found.append(model.mtp(state, chunk.ids, chunk.rows, chunk.first, n_logits=1).hidden.post)
    return np.concatenate(found).astype(np.float64)


def nmse(model: Model, made: dict[str, Matrix], held: Sequence[Pairs]) -> float:
    """Of the head's hidden rows with these matrices, against its own."""
    own, changed = hidden_of(model, held), hidden_of(with_matrices(model, made), held)
    return float(((changed - own) ** 2).sum() / (own**2).sum())


def calibrated(model: Model, chunks: list[Pairs], grid: Grid, *, scaled: bool) -> dict[str, Matrix]:
    """scaled: whether few rows are damped more, and very few rounded to nearest, as `gptq_head` does it."""
    kept = quantising.EXPERT_DAMPING, quantising.MIN_ROWS
    try:
        if not scaled:
            quantising.EXPERT_DAMPING, quantising.MIN_ROWS = 0.0, 1
        return gptq_head(model, chunks, grid).made
    finally:
        quantising.EXPERT_DAMPING, quantising.MIN_ROWS = kept


def only_experts(made: dict[str, Matrix]) -> dict[str, Matrix]:
    return {name: w for name, w in made.items() if product_of(name).expert is not None}


def table(model: Model, calibration: list[Pairs], held: list[Pairs]) -> str:
    lines = ["| tokens of calibration | rows of an expert | RTN | GPTQ, damping 0.01 | GPTQ |", "|---|---|---|---|---|"]
    grid = Grid("Q4_0")
    plain = nmse(model, only_experts(rounded(model, grid)), held)
    for n in N_TOKENS:
        chunks = first_tokens(calibration, n)
        found = [nmse(model, only_experts(calibrated(model, chunks, grid, scaled=s)), held) for s in (False, True)]
        cells = [f"{value:.2e}" for value in (plain, *found)]
        lines.append(f"| {n} | {n * N_USED // N_EXPERT} on average | {' | '.join(cells)} |")
    whole = [nmse(model, made, held) for made in (rounded(model, grid), calibrated(model, chunks, grid, scaled=True))]
    lines.append(f"| {N_TOKENS[-1]}, all of the head's matrices | - | {whole[0]:.2e} | - | {whole[1]:.2e} |")
    return "\n".join(lines) + "\n"


def by_rows(model: Model, chunks: list[Pairs]) -> str:
    """Error of one matrix's products on other rows, over that of rounding to nearest: rows against damping."""
    name, grid = "blk.4.ffn_gate.weight", Grid("Q4_0")
    seen: list[F64] = []
    run_head(watched(model, lambda n, x: seen.append(x.astype(np.float64)) if n == name else None), chunks)
    x = np.random.Generator(np.random.Philox(1)).permutation(np.concatenate(seen))
    held, x = x[:2048], x[2048:]
    w = head_matrices(model)[name].dequantize().astype(np.float64)

    def error(raw: NDArray[np.uint8]) -> float:
        return float(np.linalg.norm(held @ (dequantize(grid.kind, raw.reshape(-1), w.shape) - w).T))

    least = error(round_to_nearest(w, grid))
    lines = ["| rows / columns | damping 0.01 | 0.1 | 1 | 10 | columns / (2 rows) |", "|---|---|---|---|---|---|"]
    for n in (16, 64, 256, 1024):
        hessian = 2 / n * x[:n].T @ x[:n]
        dampings = (0.01, 0.1, 1.0, 10.0, max(0.01, 0.5 * w.shape[1] / n))
        cells = [f"{error(gptq(w, hessian, grid, damping=d)) / least:.2f}" for d in dampings]
        lines.append(f"| {n} / {w.shape[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def first_tokens(chunks: list[Pairs], n: int) -> list[Pairs]:
    found = []
    for chunk in chunks:
        if n < 2:
            break
        found.append(Pairs(chunk.ids[:n], chunk.rows[:n], chunk.first))
        n -= len(found[-1].ids)
    return found


def chunks_of(model: Model, files: list[tuple[str, str]], n: int) -> list[Pairs]:
    ids: list[list[int]] = []
    for _, text in files:
        ids.append(list(model.vocab.encode(text[:8192]))[:1024])
        if sum(map(len, ids)) >= n:
            break
    return trunk_rows(model, ids)


def measured() -> tuple[str, str]:
    corpus = load_corpus()
    train, held_out = list(corpus.train), list(corpus.held_out)
    tiny = mtpref.load().core
    with tempfile.TemporaryDirectory() as folder:
        write_with_experts(Path(folder) / "experts.gguf")
        model = mtpref.load(Path(folder) / "experts.gguf").core
        calibration = chunks_of(model, train, N_TOKENS[-1])
        first = table(model, calibration, first_tokens(chunks_of(model, held_out, N_HELD_OUT), N_HELD_OUT))
    return first, by_rows(tiny, chunks_of(tiny, train, 6144))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure GPTQ of a head with experts")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args(argv)
    text = "\n".join(measured())
    if args.print:
        print(text)
        return 0
    before, _, rest = TARGET.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        print(f"error: {TARGET}: no {BEGIN.strip()} to {END.strip()}", file=sys.stderr)
        return 2
    TARGET.write_text(before + BEGIN + text + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
