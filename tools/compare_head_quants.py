"""Write the table of quantisation methods in docs/keeping-the-head.md: the head of a tiny model, by type and method.

    python tools/compare_head_quants.py tiny-f32.gguf

The model is the float32 one of tools/make_tiny.py (--f32): what every row is compared with. Calibrated on stories that
it was trained on, measured on held-out ones (tools/tiny/stories). Everything is counted, nothing timed.
"""

import argparse
from pathlib import Path

import numpy as np
from tiny.text import held_out_stories, training_stories

import mtpref
from mtpref.engine.model import Model, Pairs
from mtpref.heads.quantize.collect import Collector, run_head, watched
from mtpref.heads.quantize.encode import encode
from mtpref.heads.quantize.gptq import round_to_nearest
from mtpref.heads.quantize.grid import Grid
from mtpref.heads.quantize.head import gptq_head, head_matrices, trunk_rows
from mtpref.heads.quantize.methods import Measured, measure
from mtpref.measure.probe import Text
from mtpref.measure.probe.count import Estimate
from mtpref.spec import Matrix

TARGET = Path(__file__).parent.parent / "docs" / "keeping-the-head.md"
BEGIN, END = "<!-- methods -->\n", "<!-- end of methods -->\n"
SEED, N_TRAIN, N_HELD_OUT = 1, 48, 24  # of tools/make_tiny.py; stories
Way = dict[str, Matrix]


def encoded(model: Model, kind: str, weights: dict[str, np.ndarray]) -> Way:
    """Every matrix of the head rounded to nearest, or weighted by importance where there is one."""
    return {
        name: Matrix(name, kind, w.n_out, w.n_in, encode(kind, w.dequantize(), weights.get(name)).reshape(-1))
        for name, w in head_matrices(model).items()
    }


def rounded(model: Model, grid: Grid) -> Way:
    return {
        name: Matrix(name, grid.kind, w.n_out, w.n_in, round_to_nearest(w.dequantize(), grid).reshape(-1))
        for name, w in head_matrices(model).items()
    }


def importance(model: Model, chunks: list[Pairs]) -> dict[str, np.ndarray]:
    seen = Collector()
    run_head(watched(model, seen.see), chunks)
    return {name: (total / n).astype(np.float32) for name, (total, n) in seen.sums.items()}


def ways(model: Model, chunks: list[Pairs]) -> dict[str, Way]:
    weights = importance(model, chunks)
    found: dict[str, Way] = {}
    for kind in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"):
        found[f"{kind} | RTN"] = encoded(model, kind, {})
        if kind != "Q8_0":
            found[f"{kind} | imatrix"] = encoded(model, kind, weights)
        if kind in ("Q8_0", "Q4_1", "Q4_0"):
            found[f"{kind} | GPTQ"] = gptq_head(model, chunks, Grid(kind)).made
    found["Q4_0, groups of 128 | RTN"] = rounded(model, Grid("Q4_0", 128))
    found["Q4_0, groups of 128 | GPTQ"] = gptq_head(model, chunks, Grid("Q4_0", 128)).made
    return found


def table(rows: list[Measured]) -> str:
    lines = [
        "| type | method | kB | KL, nats | top-1 agreement | a_1 | a_2 | a_3 | a_1 less the original's |\n",
        "|---|" * 9 + "\n",
    ]
    lines[1] = "|" + "---|" * 9 + "\n"
    for row in rows:
        name = row.name if "|" in row.name else f"{row.name} (F32) | -"
        size = f"{row.n_bytes / 1e3:.0f}" if row.n_bytes else "-"
        cells = [_cell(row.kl, 4), _cell(row.agreement), *(_cell(a) for a in row.a), _cell(row.less)]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _cell(e: Estimate, digits: int = 3) -> str:
    if e.value is None:
        return "-"
    half = "" if e.low is None or e.high is None else f" +- {max(e.high - e.value, e.value - e.low):.{digits}f}"
    return f"{e.value:.{digits}f}{half}"


def texts_of(model: Model, stories: list[str]) -> list[Text]:
    return [Text(f"story {i}", tuple(model.vocab.encode(text))) for i, text in enumerate(stories)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the table of quantisation methods of a tiny model's head.")
    parser.add_argument("model", type=Path, help="float32 GGUF that tools/make_tiny.py wrote")
    model = mtpref.load(parser.parse_args(argv).model).core
    training = texts_of(model, training_stories(SEED, N_TRAIN, 1))
    held_out = texts_of(model, held_out_stories(N_HELD_OUT))
    chunks = trunk_rows(model, [text.ids for text in training])
    rows = measure(model, ways(model, chunks), held_out)
    n_seen, n_measured = (sum(len(t.ids) for t in texts) for texts in (training, held_out))
    about = f"Calibrated on {n_seen} tokens, measured on {n_measured} held-out ones; +- is half a 95 % interval.\n\n"
    page = TARGET.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    TARGET.write_text(before + BEGIN + about + table(rows) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
