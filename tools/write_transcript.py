"""Write docs/transcript.md: the same prompts with and without MTP, run on the embedded tiny model.

    python tools/write_transcript.py

Times are left out: everything in the page is the same on every machine.
"""

import sys
from pathlib import Path

import mtpref
from mtpref.engine.decode import STRATEGIES, Statistics

TARGET = Path(__file__).parent.parent / "docs" / "transcript.md"
N_PREDICT = 96
PROMPTS = (
    "The pie was gone.",
    '"Who took my hat?" asked the baker.',
    "def read_lines(path):",
)
INTRO = f"""# Transcript: with and without MTP

Written by `python tools/write_transcript.py` on the embedded tiny model: `ggml` numerics, contract `llama.cpp`,
greedy, {N_PREDICT} tokens. Without MTP every token costs a pass of the trunk; with it, a pass can give several.
The text is the same, bit for bit, whatever the draft length and the roll back. On the command line this is

```sh
mtpref generate -n {N_PREDICT} -p "..."
mtpref generate -n {N_PREDICT} -p "..." --spec-type none
```
"""


def run(model: mtpref.LanguageModel, prompt: str, **settings: object) -> mtpref.Run:
    return model.generate(prompt, mtpref.Options(n_predict=N_PREDICT, **settings)).finish()  # type: ignore[arg-type]


def row(label: str, statistics: Statistics) -> str:
    rates = ", ".join(f"{rate:.2f}" for rate in statistics.acceptance_per_pos(conditional=False)) or "-"
    acceptance = "-" if statistics.acceptance is None else f"{100 * statistics.acceptance:.1f} %"
    saved = 1 - statistics.n_trunk_passes / statistics.n_predict
    return (
        f"| {label} | {acceptance} | {rates} | {statistics.n_accepted} / {statistics.n_drafted} | "
        f"{statistics.n_trunk_passes} | {100 * saved:.0f} % |"
    )


def section(model: mtpref.LanguageModel, prompt: str) -> str:
    plain = run(model, prompt, spec_type="none")
    rows = [row("without MTP", plain.statistics)]
    for n_max in (1, 2, 3):
        drafted = run(model, prompt, policy=mtpref.PolicyConfig(n_max=n_max))
        assert drafted.ids == plain.ids
        rows.append(row(f"drafts of up to {n_max}", drafted.statistics))
    for rollback in STRATEGIES:
        other = run(model, prompt, rollback=rollback)
        assert other.ids == plain.ids
        if rollback == "two-phase":
            rows.append(row("drafts of up to 3, two-phase", other.statistics))
    text = (prompt + plain.text).rstrip()
    return "\n".join(
        [
            f"## Prompt {prompt!r}\n",
            "```text",
            text,
            "```\n",
            "| run | acceptance | per position | accepted / drafted | trunk passes | passes saved |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def render() -> str:
    model = mtpref.load()
    return "\n".join([INTRO, *(section(model, prompt) for prompt in PROMPTS)])


def main() -> int:
    TARGET.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
