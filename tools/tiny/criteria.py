"""What a tiny model must do before it ships, measured with mtpref itself and, where it is built, with stock llama.cpp.

Greedy text after the beginnings of held-out stories: readable is judged by reading, so the texts are kept; the rest is
counted. A file with another numerics than F32 cells is run with F32 cells, as llama.cpp is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mtpref
from mtpref.base.events import Verified
from mtpref.engine.decode import Options, PolicyConfig
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.limits import decision_limits
from mtpref.look.llama_cpp.programs import Programs

from .text import held_out_stories

N_PREDICT = 256
MIN_TOKENS = 150
PROMPT_WORDS = 12
MAX_BYTES = 8_000_000
CODE_PROMPTS = (
    "def read_lines(path):\n",
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    'class Queue:\n    """Create a queue object with a given maximum size.\n',
    "    def __init__(self, name, value=None):\n",
)


def repeated_4gram_rate(ids: Sequence[Any]) -> float:
    """Share of 4-grams that occurred earlier in the same text."""
    seen: set[tuple[Any, ...]] = set()
    repeated = 0
    for i in range(len(ids) - 3):
        gram = tuple(ids[i : i + 4])
        repeated += gram in seen
        seen.add(gram)
    return repeated / max(1, len(ids) - 3)


@dataclass
class Judged:
    """Figures, and the criteria: (what, found, expected, met); met is None where it was not measured."""

    figures: dict[str, object]
    criteria: list[tuple[str, str, str, bool | None]] = field(default_factory=list)

    def add(self, what: str, value: float, low: float, high: float = float("inf")) -> None:
        expected = f">= {low:g}" if high == float("inf") else f"{low:g} .. {high:g}"
        self.criteria.append((what, f"{value:.3f}", expected, low <= value <= high))

    @property
    def failed(self) -> list[str]:
        return [what for what, _, _, met in self.criteria if met is False]

    def table(self) -> str:
        words = {True: "met", False: "NOT MET", None: "not measured"}
        rows = [f"| {what} | {found} | {wanted} | {words[met]} |" for what, found, wanted, met in self.criteria]
        end = f"not met: {', '.join(self.failed)}" if self.failed else "no criterion failed"
        return "\n".join(["| criterion | found | expected | |", "|---|---|---|---|", *rows, "", end])


def story_prompts(n_prompts: int) -> list[str]:
    """The first words of held-out stories."""
    prompts = []
    for text in held_out_stories(n_prompts):
        words = text.split(" ")[:PROMPT_WORDS]
        prompts.append(" ".join(words).rstrip())
    return prompts


@dataclass
class Greedy:
    """Sums over the greedy runs of some prompts."""

    n_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    repeated: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    full: int = 0
    partial: int = 0
    none: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / max(1, self.drafted)

    def shares(self) -> dict[str, float]:
        rounds = max(1, self.full + self.partial + self.none)
        return {name: round(getattr(self, name) / rounds, 3) for name in ("full", "partial", "none")}


def greedy(model: mtpref.LanguageModel, prompts: list[str], n_max: int, n_predict: int = N_PREDICT) -> Greedy:
    """Run the loop after each prompt; rounds cut short by the budget or by the end of the text are not counted."""
    total = Greedy()
    for prompt in prompts:
        run = model.generate(prompt, Options(n_predict=n_predict, policy=PolicyConfig(n_max=n_max)))
        for event in run:
            if isinstance(event, Verified) and len(event.draft_ids) == n_max:
                total.drafted += n_max
                total.accepted += event.n_accepted
                total.full += event.n_accepted == n_max
                total.none += event.n_accepted == 0
                total.partial += 0 < event.n_accepted < n_max
        total.n_tokens += len(run.ids)
        total.repeated.append(repeated_4gram_rate(run.ids))
        total.texts.append(run.text)
    return total


def same_decisions(
    model: mtpref.LanguageModel, path: Path, folder: Path, prompts: list[str], n_predict: int = 64
) -> Agreement:
    """Drafts and verdicts of stock llama-speculative-simple beside ours, n_max 1 and 3."""
    p_limit, near_margin, _ = decision_limits(model.core.type_names, model.core.recipe.numerics)
    agreement = Agreement(p_limit, near_margin)
    for prompt in prompts:
        for n_max in (1, 3):
            log = Programs(folder).speculative(path, prompt, n_predict, n_max, 0.0)
            events = list(model.generate(prompt, Options(n_predict=n_predict, policy=PolicyConfig(n_max=n_max))))
            compare_rounds(agreement, log.rounds, events, n_predict, n_max, 0.0, f"{prompt[:20]!r} n_max {n_max}")
    return agreement


def judge(path: Path, n_prompts: int, llama_cpp: Path | None, forced: dict[str, float] | None) -> Judged:
    """All criteria for a file. forced: teacher_forced on held-out stories (None: not measured)."""
    model = mtpref.load(path, kv_type="F32")
    prompts = story_prompts(n_prompts)
    one, three, code = (greedy(model, p, n) for p, n in ((prompts, 1), (prompts, 3), (list(CODE_PROMPTS), 1)))
    shares, repeated = three.shares(), sum(one.repeated) / len(one.repeated)
    judged = Judged(
        {
            "prompts": n_prompts,
            "n_predict": N_PREDICT,
            "repeated_4gram": repeated,
            "most_repeated": max(one.repeated),
            "n_max_1": {"drafted": one.drafted, "acceptance": one.acceptance},
            "n_max_3": {"drafted": three.drafted, "acceptance": three.acceptance, **shares},
            "code": {"acceptance": code.acceptance, "repeated_4gram": sum(code.repeated) / len(code.repeated)},
            "texts": [p + "|" + t for p, t in zip(prompts, one.texts, strict=True)],
            "code_texts": [p + "|" + t for p, t in zip(CODE_PROMPTS, code.texts, strict=True)],
        }
    )
    size = path.stat().st_size
    judged.criteria.append(("bytes", f"{size:,}", f"<= {MAX_BYTES:,}", size <= MAX_BYTES))
    judged.add("tokens of a greedy text, mean", one.n_tokens / n_prompts, MIN_TOKENS)  # a short one repeats nothing
    judged.add("repeated 4-grams, greedy", repeated, 0.0, 0.25)
    judged.add("acceptance, n_max 1", one.acceptance, 0.60, 0.90)
    for name, word in (("full", "full"), ("partial", "partial"), ("none", "no")):
        judged.add(f"rounds with {word} acceptance, n_max 3", shares[name], 0.10)
    for name, low in (("a1", 0.65), ("a3", 0.35)):
        if forced is None:
            judged.criteria.append((f"teacher-forced {name}", "", f">= {low}", None))
        else:
            judged.add(f"teacher-forced {name}", forced[name], low)
    what, wanted = "decisions of stock llama.cpp", "no mismatch"
    if llama_cpp is None:
        judged.criteria.append((what, "", wanted, None))
    else:
        found = same_decisions(model, path, llama_cpp, prompts[:4])
        told = f"{found.n_rounds} rounds, {found.n_near_ties} near ties, {len(found.mismatches)} mismatches"
        judged.criteria.append((what, told, wanted, found.n_rounds > 0 and not found.mismatches))
    return judged
