"""Measure what experts change, on micro models, and write the tables of docs/experts.md.

    python tools/measure_experts.py            # some minutes
    python tools/measure_experts.py --check    # only compare

Everything is counted, on texts that the models write themselves, so the numbers are the same on every machine.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from make_micro import make_standard

from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS
from mtpref.spec.contract import MtpContract

DOCS = Path(__file__).parent.parent / "docs"
PAGE, FAULT_DATA = DOCS / "experts.md", DOCS / "faults.json"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
MODELS = ("micro-qwen35moe-q8_0", "micro-qwen3next-q8_0", "micro-glm4moe-q8_0", "micro-hy_v3-q8_0")
N_TEXTS, N_PROMPT, N_TOKENS = 4, 8, 160
LIMITS = (1e-4, 1e-3, 1e-2)
WIDTHS = (1, 2, 3, 4, 6, 8)


class Walk:
    """Texts of one model: for each the ids, the trunk's rows and what every router chose."""

    def __init__(self, path: Path, numerics: str) -> None:
        self.model = load(path, make_recipe(numerics, MtpContract()), kv_type="F32", kv_type_draft="F32")

    def written(self, seed: int) -> list[int]:
        """A prompt of drawn ids and the model's greedy text after it."""
        random = np.random.Generator(np.random.Philox(seed))
        ids = [int(i) for i in random.integers(0, self.model.n_vocab, N_PROMPT)]
        state = self.model.new_state(N_TOKENS)
        out = self.model.trunk(state, ids, n_logits=1)
        while len(ids) < N_TOKENS:
            ids.append(int(self.model.recipe.ops.argmax(out.logits)[0]))
            out = self.model.trunk(state, ids[-1:], n_logits=1)
        return ids


def experts_of(model: Model, ids: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Chosen sets by layer (T, n_used, sorted), gaps by layer (L, T), the head's gaps (T,) and whether what it drafts
    at each place is the token after the next."""
    state = model.new_state(len(ids))
    out = model.trunk(state, ids, n_logits=1)
    rows = np.concatenate([np.zeros_like(out.hidden.post[:1]), out.hidden.post[:-1]])
    head = model.mtp(model.new_state(len(ids) + 1), ids, rows, 0, n_logits=len(ids))
    drafted = model.recipe.ops.argmax(head.logits)
    is_right = np.asarray(drafted[:-1] == np.asarray(ids[1:]))
    return ([np.sort(r.ids, axis=1) for r in out.routings], np.stack([r.gap for r in out.routings]),
            head.routings[0].gap[:-1], is_right)  # fmt: skip


def measured(folder: Path) -> Iterator[str]:
    gaps_rows, tie_rows, width_rows, accept_rows = [], [], [], []
    for name in MODELS:
        path = folder / f"{name}.gguf"
        make_standard(name, path)
        walk, other = Walk(path, "ggml"), Walk(path, "exact")
        texts = [walk.written(seed) for seed in range(N_TEXTS)]
        found = [experts_of(walk.model, ids) for ids in texts]
        again = [experts_of(other.model, ids) for ids in texts]
        gaps = np.concatenate([gap.reshape(-1) for _, gap, _, _ in found])
        moved = np.concatenate([(a != b).any(axis=2).reshape(-1) for (a, _, _, _), (b, _, _, _) in
                                ((_stacked(x), _stacked(y)) for x, y in zip(found, again, strict=True))])  # fmt: skip
        cfg = next(layer.ffn_cfg for layer in walk.model.layers if hasattr(layer.ffn_cfg, "n_used"))
        short = name.removeprefix("micro-")
        shape = f"{cfg.n_used} of {_n_expert(walk.model)}"
        shares = " | ".join(f"{100 * (gaps < limit).mean():.2f} %" for limit in LIMITS)
        gaps_rows.append(f"| {short} | {shape} | {gaps.size} | {shares} | {gaps.min():.0e} |")
        near = gaps < LIMITS[1]
        tie_rows.append(
            f"| {short} | {100 * moved.mean():.2f} % | {int(moved[near].sum())} of {int(near.sum())} | "
            f"{100 * moved[~near].mean():.2f} % |"
        )
        width_rows.append(f"| {short} | {_widths(found, cfg.n_used, _n_expert(walk.model))} |")
        head_gaps = np.concatenate([gap for _, _, gap, _ in found])
        right = np.concatenate([ok for _, _, _, ok in found])
        low = head_gaps < np.quantile(head_gaps, 0.25)
        accept_rows.append(
            f"| {short} | {100 * right.mean():.0f} % | {100 * right[low].mean():.0f} % | "
            f"{100 * right[~low].mean():.0f} % |"
        )
    yield from ("### Router gaps\n", "| model | experts | choices | " + " | ".join(f"below {x:g}" for x in LIMITS)
                + " | least |", "|---|---|---|" + "---|" * (len(LIMITS) + 1), *gaps_rows)  # fmt: skip
    title = "\n### Choices that other numerics make otherwise (`ggml` against `exact`, same Q8_0 file)\n"
    yield from (title, f"| model | of all | gap below {LIMITS[1]:g} | above |", "|---|---|---|---|", *tie_rows)
    yield from ("\n### Distinct experts that a batch of neighbouring tokens reads, a layer\n",
                "| model | " + " | ".join(f"{w} token{'s' if w > 1 else ''}" for w in WIDTHS) + " |",
                "|---|" + "---|" * len(WIDTHS), *width_rows)  # fmt: skip
    title = "\n### First draft token, by the gap of the head's router\n"
    yield from (title, "| model | right | gap in the lowest quarter | others |", "|---|---|---|---|", *accept_rows)
    yield from ("\n### What each mistake costs\n", *mistakes())


def _stacked(found: tuple) -> tuple:
    return (np.stack(found[0]), *found[1:])


def _n_expert(model: Model) -> int:
    return next(len(w["ffn_down_exps.weight"]) for w in model.weights.layers if "ffn_down_exps.weight" in w)


def _widths(found: Sequence[tuple], n_used: int, n_expert: int) -> str:
    """Measured mean, and in brackets what independent tokens would read."""
    cells = []
    for w in WIDTHS:
        counts = [np.unique(ids[at : at + w]).size for layers, *_ in found for ids in layers
                  for at in range(0, len(ids) - w + 1, w)]  # fmt: skip
        expected = n_expert * (1 - (1 - n_used / n_expert) ** w)
        cells.append(f"{np.mean(counts):.1f} ({expected:.1f})")
    return " | ".join(cells)


def mistakes() -> Iterator[str]:
    """The catalogue's experts, by what is left of the first draft token; docs/faults.json."""
    data = json.loads(FAULT_DATA.read_text(encoding="ascii"))
    yield "| fault | a1 healthy | a1 | greedy texts that stay the same |"
    yield "|---|---|---|---|"
    rows = []
    for id, fault in FAULTS.items():
        m = data["faults"][id]
        if fault.family == "E":
            healthy = data["healthy"][" ".join(m["options"])]["a"][0]
            text = f"{m['text']['same']} of {m['text']['of']}"
            cells = f"| [{id}](faults.md#{id.lower()}) | {100 * healthy:.0f} % | {100 * m['a'][0]:.0f} % | {text} |"
            rows.append((m["a"][0] - healthy, cells))
    yield from (cells for _, cells in sorted(rows))


def main() -> int:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    with tempfile.TemporaryDirectory() as folder:
        tables = "\n".join(measured(Path(folder)))
    page = f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.partition(END)[2]}"
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
