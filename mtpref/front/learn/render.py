"""A chapter for a terminal, as a page of docs/learn, and as a Jupyter notebook.

Owns the three forms. It must not run anything: it is given cells with their output.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from mtpref.front.learn.chapter import CHAPTERS, Cell, Chapter
from mtpref.front.learn.show import Picture

WIDTH = 96


def terminal(cell: Cell) -> str:
    """A cell as plain text: prose wrapped, code behind a bar, output indented."""
    if cell.kind == "prose":
        return "\n\n".join(_paragraph(part) for part in cell.text.split("\n\n"))
    lines = [f"  | {line}".rstrip() for line in cell.text.splitlines()]
    out = [part.text if isinstance(part, Picture) else part.rstrip("\n") for part in cell.output]
    if out:
        lines += ["", *(f"    {line}".rstrip() for part in out for line in part.splitlines())]
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    if text.startswith("# "):
        title = text[2:]
        return f"{title}\n{'=' * len(title)}"
    if text.startswith("## "):
        return f"{text[3:]}\n{'-' * len(text[3:])}"
    if re.match(r"[-*|>0-9]", text) or text.startswith(("    ", "```")):
        return text
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def page(chapter: Chapter, cells: Sequence[Cell]) -> str:
    """The chapter as Markdown, its pictures beside it in pictures/."""
    number = chapter.number
    parts = [
        f"<!-- Written by tools/write_chapters.py from mtpref/front/learn/chapters/{chapter.path.name}. "
        f"In a terminal: mtpref learn {number} -->"
    ]
    for cell in cells:
        if cell.kind == "prose":
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        for part in cell.output:
            if isinstance(part, Picture):
                parts.append(f"![{part.alt}](pictures/{chapter.slug}-{part.name}.svg)")
            elif part.strip():
                parts.append(f"```text\n{part.rstrip()}\n```")
    before = [c for c in CHAPTERS if c.number == number - 1]
    after = [c for c in CHAPTERS if c.number == number + 1]
    links = [f"[{c.number}. {c.title}]({c.slug}.md)" for c in [*before, *after]]
    parts.append(" | ".join(["[All chapters](README.md)", *links]))
    return "\n\n".join(parts) + "\n"


def contents() -> str:
    """The page that lists the chapters."""
    rows = "\n".join(f"{c.number}. [{c.title}]({c.slug}.md): {c.summary}" for c in CHAPTERS)
    return f"""<!-- Written by tools/write_chapters.py -->

# Learn MTP in ten chapters

Each chapter is one Python file that runs offline, on the model inside the package, in seconds. What it claims it
asserts; the output below its code is what the code printed. Read them here, or in a terminal:

```sh
mtpref learn
mtpref learn 3
```

{rows}

To play with a chapter, copy its file from `mtpref/front/learn/chapters`, or make Jupyter notebooks of all of them:

```sh
python tools/write_chapters.py --ipynb notebooks
```

Words are in the [glossary](../glossary.md); what the chapters leave out is in the [reading guide](../reading-guide.md).
"""


def notebook(chapter: Chapter, cells: Sequence[Cell]) -> str:
    """The chapter as a Jupyter notebook (nbformat 4.5), with its output."""
    found = {
        "cells": [_notebook_cell(i, cell) for i, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "title": chapter.title,
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(found, indent=1, ensure_ascii=True) + "\n"


def _notebook_cell(i: int, cell: Cell) -> dict[str, Any]:
    source = cell.text.splitlines(keepends=True)
    if cell.kind == "prose":
        return {"cell_type": "markdown", "id": f"cell-{i}", "metadata": {}, "source": source}
    outputs: list[dict[str, Any]] = []
    for part in cell.output:
        if isinstance(part, Picture):
            data = {
                "image/svg+xml": part.svg.splitlines(keepends=True),
                "text/plain": part.text.splitlines(keepends=True),
            }
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        else:
            outputs.append({"output_type": "stream", "name": "stdout", "text": part.splitlines(keepends=True)})
    return {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": source, "outputs": outputs,
            "execution_count": None}  # fmt: skip
