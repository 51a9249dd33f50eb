"""Write docs/faults.md, the catalogue: what the code says of each fault, and docs/faults.json, what it does.

python tools/measure_faults.py && python tools/write_faults.py
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpref.faults import FAMILIES, FAULTS, NEEDS, PLACES, Fault

DOCS = Path(__file__).parent.parent / "docs"
TARGET, DATA = DOCS / "faults.md", DOCS / "faults.json"

INTRO = """# Catalogue of faults

Written by `python tools/write_faults.py` from the code (`mtpref/faults`) and from measurements
([faults.json](faults.json), by `python tools/measure_faults.py`). Tests compare page, code and a part of the measurements.

{n_faults} faults, most of them seen in real engines, and {n_alike} look-alikes, each as the replacement of named entries of the reference:
operations, steps of the loop, contract, weights. `--fault ID` runs any verb that loads a model with a fault in it (it may
be repeated, and the number alone will do), and refuses a model that cannot have it; `mtpref faults` lists them; `mtpref
golden gen` refuses them.

```
mtpref generate --fault C3 --spec-draft-n-max 4        # acceptance with the wrong row after a rejection
mtpref dump -p "def f(x):" -o healthy.gguf
mtpref dump -p "def f(x):" -o faulty.gguf --fault G4   # the gate's rule
mtpref compare healthy.gguf faulty.gguf                # first divergence: mtp_attn_gated-4
```

## How to read the tables

The embedded tiny model (faults that it cannot have: one of golden/models, 64 ids, or one that `tools/make_micro.py` makes, 256 ids, named with the fault), {prompts} prompts that are none of its training text (four of them the beginnings of held-out stories, 400 and 700 characters long), {n_predict} tokens each,
drafts of {n_max}, greedy, `ggml` numerics, snapshot roll back; other options stand under the fault. A small model is far
more sensitive to some faults than a large one, and less to others: what carries over is the shape (which position, after
which rounds, which tensor first), not the size. Differences of a few points are within what these texts can tell, and the
last column of positions and the first rounds have few rounds.

* **a1 .. a4**: acceptance of each draft position: rounds that accepted so far / rounds that drafted. **cond.**: of tokens
  whose predecessors were accepted.
* **first / full / partial**: a1 in the first round, after a round in which all was accepted, and after any other.
* **<64 / <192 / more**: a1 in rounds that open at those positions of the context.
* **first tensor**: the first that differs in a dump of a prompt, by its cb() name; "none": only the loop shows it.
* **text**: how many of the {prompts} texts begin as the healthy ones, and the first token of any that is another. The
  small models that stand in have a planted text, which some faults leave as it is; a real model's is not so robust.
* **TV**: total variation over {seeds} seeds between what is drawn at one prompt and the target's own distribution: the
  token of a row that has a draft, and the token after it. The healthy row shows the noise.
"""  # noqa: E501

OUT = """
## Not in the catalogue

Numbers follow the list of reports that the catalogue was made from. Left out is what a single sequence of text on one
machine cannot have, or whose cause is not known: carry-over between sequences and misaligned rows of several (S1, V8),
prefix caches across requests (K2, S11), several MTP layers and split prefill (K9, K11), graph reuse and cell bookkeeping
inside an engine (S7, S9, S10, S12, S15), slots of image positions, grammars and penalties (V12, V13), converters that
stop with an error (W11, W12), compressors that keep too little (S16), and acceptance that collapses at certain context sizes
(K12).
"""  # noqa: E501


def render() -> str:
    """The whole page.

    Errors  KeyError for a fault that was never measured
    """
    data = json.loads(DATA.read_text(encoding="ascii"))
    n_alike = sum(fault.is_look_alike for fault in FAULTS.values())
    keys = {name: data[name] for name in ("n_max", "n_predict", "prompts", "seeds")}
    parts = [INTRO.format(n_faults=len(FAULTS) - n_alike, n_alike=n_alike, **keys), healthy_table(data["healthy"])]
    for letter, name in FAMILIES.items():
        faults = [fault for fault in FAULTS.values() if fault.family == letter]
        measured = {fault.id: data["faults"][fault.id] for fault in faults}
        parts += [f"\n## {letter}: {name}\n", table(faults, measured)]
        parts += [described(fault, measured[fault.id]) for fault in faults]
    return "\n".join(parts) + OUT


HEAD = """| | a1 .. a4 | cond. | first / full / partial | <64 / <192 / more | {last} |
|---|---|---|---|---|{rule}|"""


def healthy_table(healthy: Mapping[str, Any]) -> str:
    lines = ["## Healthy\n", HEAD.format(last="TV", rule="---")]
    for options, m in healthy.items():
        lines.append(f"| {f'`{options}`' if options else 'as above'} | {rates(m)} | {tv(m)} |")
    return "\n".join(lines)


def table(faults: list[Fault], measured: Mapping[str, Any]) -> str:
    lines = [HEAD.format(last="first tensor | text | TV", rule="---|---|---")]
    for fault in faults:
        m = measured[fault.id]
        first = f"`{m['first_tensor']}`" if m["first_tensor"] else "none"
        anchor = fault.id.split("-")[0]
        lines.append(f"| [{anchor}](#{fault.id.lower()}) | {rates(m)} | {first} | {text(fault, m)} | {tv(m)} |")
    return "\n".join(lines) + "\n"


def rates(m: Mapping[str, Any]) -> str:
    groups = (m["a"], m["a_conditional"], m["a1_after"].values(), m["a1_from_pos"].values())
    return " | ".join(" ".join("-" if x is None else f"{100 * x:.0f}" for x in group) for group in groups)


def text(fault: Fault, m: Mapping[str, Any]) -> str:
    said = m["text"]
    if "residual" in fault.needs:
        return "-"  # other draws: no token need be the same
    return "same" if said["differs_at"] is None else f"{said['same']} of {said['of']}, token {said['differs_at']}"


def tv(m: Mapping[str, Any]) -> str:
    return "" if m["distance"] is None else f"{m['distance']['first']:.3f} {m['distance']['second']:.3f}"


def described(fault: Fault, m: Mapping[str, Any]) -> str:
    said = fault.predicted
    wrong = [what for what, ok in (("greedy text", said.text), ("sampled text", said.distribution)) if not ok]
    expected = [f"acceptance: {said.acceptance}", f"by round: {said.split}", f"with length: {said.drift}"]
    expected += [f"changes {' and '.join(wrong)}" if wrong else "changes no text"]
    lines = [f"### {fault.id}\n", f"**{fault.title}.** {fault.mechanism}\n"]
    lines.append(f"* replaces {', '.join(f'`{entry}`' for entry in fault.replaces)} ({fault.bug_type})")
    lines.append(f"* expected: {'; '.join(expected)}")
    needs = [NEEDS[need] for need in fault.needs] + [_in_a_model(fault)] * bool(fault.where)
    if needs:
        options = f" (measured with `{' '.join(m['options'])}`)" if m["options"] else ""
        lines.append(f"* needs {'; '.join(needs)}{options}")
    if fault.seen:
        links = ", ".join(f"[{engine}]({link})" for engine, link in fault.seen)
        lines.append(
            f"* {'reported for' if fault.is_look_alike else 'seen in'} {links}"
            + (f": {fault.effect}" if fault.effect else "")
        )
    else:
        lines.append("* no report of it is known")
    return "\n".join(lines) + "\n"


def _in_a_model(fault: Fault) -> str:
    return f"a model with {' and '.join(PLACES[place][0] for place in fault.where)}"


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text(encoding="utf-8") == page else 1
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
