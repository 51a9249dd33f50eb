"""Chapters as cells: reading the percent format, and running a chapter with what each cell prints.

Owns the format and the running. It must not know how a chapter is shown.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.learn import show
from mtpref.front.learn.show import Picture

FOLDER = Path(__file__).parent / "chapters"
MARK = re.compile(r"# %%( \[markdown\])?\n")


@dataclass(frozen=True)
class Cell:
    """kind: prose or code. text: Markdown, or Python. line: of the file, where the text begins.

    output    what the code printed, in order: text, or a Picture
    """

    kind: str
    text: str
    line: int
    output: tuple[str | Picture, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """One file. number: from 1; name: the file's, without number."""

    number: int
    name: str
    path: Path

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(_cells(self.path.read_text(encoding="utf-8")))

    @property
    def title(self) -> str:
        return self.cells[0].text.splitlines()[0].removeprefix("# ")

    @property
    def summary(self) -> str:
        """The paragraph after the title, on one line."""
        return " ".join(self.cells[0].text.split("\n\n")[1].split())

    @property
    def slug(self) -> str:
        return f"{self.number:02d}-{self.name.replace('_', '-')}"


def _cells(text: str) -> Iterator[Cell]:
    """Cells of a percent-format file: `# %% [markdown]` in front of prose in comments, `# %%` in front of code."""
    parts = MARK.split(text)
    assert not parts[0].strip(), "text in front of the first cell"
    line = 1
    for mark, body in zip(parts[1::2], parts[2::2], strict=True):
        line += 1
        if mark:
            prose = [row.removeprefix("#").removeprefix(" ") for row in body.strip().splitlines()]
            yield Cell("prose", "\n".join(prose), line)
        else:
            yield Cell("code", body.strip("\n"), line + len(body) - len(body.lstrip("\n")))
        line += body.count("\n")


def _chapters() -> tuple[Chapter, ...]:
    found = []
    for path in sorted(FOLDER.glob("c[0-9][0-9]_*.py")):
        found.append(Chapter(int(path.stem[1:3]), path.stem[4:], path))
    return tuple(found)


CHAPTERS = _chapters()


def find_chapter(number: int) -> Chapter:
    """The chapter of a number.

    Errors  MtprefError for a number that no chapter has
    """
    for chapter in CHAPTERS:
        if chapter.number == number:
            return chapter
    raise MtprefError(f"chapter {number} does not exist, expected 1 .. {len(CHAPTERS)}; try: mtpref learn")


def run_chapter(chapter: Chapter) -> Iterator[Cell]:
    """The chapter's cells, code ones run in turn, with their output.

    Errors  AssertionError where a claim does not hold, with the chapter's own line
    """
    namespace: dict[str, Any] = {"__name__": f"chapter_{chapter.number}"}
    for cell in chapter.cells:
        if cell.kind == "prose":
            yield cell
            continue
        code = compile("\n" * (cell.line - 1) + cell.text, str(chapter.path), "exec")
        printed = io.StringIO()
        with show.collected() as pictures, contextlib.redirect_stdout(printed):
            exec(code, namespace)
        yield Cell("code", cell.text, cell.line, tuple(_output(printed.getvalue(), pictures)))


def _output(printed: str, pictures: list[Picture]) -> Iterator[str | Picture]:
    """What was printed, with each picture at the place of its mark."""
    for part in re.split(f"({show.MARK}[0-9]+\n)", printed):
        if part.startswith(show.MARK):
            yield pictures[int(part[len(show.MARK) :])]
        elif part:
            yield part
