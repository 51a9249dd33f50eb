"""A chapter for a terminal, as a page of docs/learn, and as a Jupyter notebook.

Owns the three forms. It must not run anything: it is given cells with their output.
"""

import base64
import json
import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

from mtpref.front.learn.chapter import CHAPTERS, Cell, Chapter
from mtpref.front.learn.show import Picture

MAX_WIDTH = 96
TITLE, CODE, RESET = "\x1b[1m", "\x1b[36m", "\x1b[0m"


def terminal(cell: Cell, width: int = MAX_WIDTH, *, is_colored: bool = False) -> str:
    """A cell as text of this width: prose wrapped, code after a bar, output indented; what is longer goes on below."""
    width = max(40, min(width, MAX_WIDTH))
    if cell.kind == "prose":
        return "\n\n".join(_paragraph(part, width, is_colored) for part in cell.text.split("\n\n"))
    lines = [part for line in cell.text.splitlines() for part in _bent(line, width, "  | ", "  :     ")]
    if is_colored:
        lines = [f"{CODE}{line}{RESET}" for line in lines]
    out = [part.text if isinstance(part, Picture) else part.rstrip("\n") for part in cell.output]
    if out:
        lines.append("")
        lines += [bent for part in out for line in part.splitlines() for bent in _bent(line, width, " " * 4, " " * 8)]
    return "\n".join(lines)


def _bent(line: str, width: int, indent: str, further: str) -> list[str]:
    """A line, broken at blanks where it is too long."""
    bent, start = [], indent
    while len(start + line) > width:
        first = len(line) - len(line.lstrip())
        at = line.rfind(" ", first + 1, width - len(start) + 1)
        if at <= first:
            break
        bent.append((start + line[:at]).rstrip())
        line, start = line[at + 1 :].lstrip(), further + " " * (first if start == indent else 0)
        further = start
    return [*bent, (start + line).rstrip()]


def _paragraph(text: str, width: int, is_colored: bool) -> str:
    mark = re.match(r"##? ", text)
    if mark:
        title = text[mark.end() :]
        line = ("=" if mark[0] == "# " else "-") * len(title)
        return f"{TITLE}{title}{RESET}" if is_colored else f"{title}\n{line}"
    if text.startswith("|") and max(map(len, text.splitlines())) > width:
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
        told = [" | ".join(row) for row in rows if set("".join(row)) - set("-: ")]
        return "\n".join(textwrap.fill(row, width, subsequent_indent=" " * 4, break_on_hyphens=False) for row in told)
    if text.startswith(("    ", "```", "|")):
        return text
    # A list: each item on lines of its own.
    items = re.split(r"\n(?=(?:[-*]|\d+\.) )", text)
    return "\n".join(_filled(item, width) for item in items)


def _filled(text: str, width: int) -> str:
    mark = re.match(r"(?:[-*]|\d+\.) ", text)
    further = " " * len(mark[0]) if mark else ""
    return textwrap.fill(
        " ".join(text.split()), width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


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

# Learn MTP in twelve chapters

The first shows a round of drafting and verifying by hand, the second opens the head; the others follow from these two.
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
            # An untrusted notebook shows no SVG of its own, but an image that is one.
            source64 = base64.b64encode(part.svg.encode()).decode()
            data = {
                "text/html": [f'<img alt="{escape(part.alt, quote=True)}" src="data:image/svg+xml;base64,{source64}">'],
                "image/svg+xml": part.svg.splitlines(keepends=True),
                "text/plain": part.text.splitlines(keepends=True),
            }
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        else:
            outputs.append({"output_type": "stream", "name": "stdout", "text": part.splitlines(keepends=True)})
    return {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": source, "outputs": outputs,
            "execution_count": None}  # fmt: skip
