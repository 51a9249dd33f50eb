"""Write docs/learn from the chapters: text, code, and what the code prints and draws.

    python tools/write_chapters.py                 (docs/learn, its pictures, and the list of chapters)
    python tools/write_chapters.py --check         (exit code 1 where a page is not what the chapters give)
    python tools/write_chapters.py --ipynb DIR     (Jupyter notebooks, with output)

Everything is counted and nothing timed, so the pages are the same on every machine.
"""

import argparse
import sys
from pathlib import Path

from mtpref.front.learn import CHAPTERS, run_chapter
from mtpref.front.learn.render import contents, notebook, page
from mtpref.front.learn.show import Picture

TARGET = Path(__file__).parent.parent / "docs" / "learn"


def pages() -> dict[str, str]:
    """Name below docs/learn -> text."""
    out = {"README.md": contents()}
    for chapter in CHAPTERS:
        cells = list(run_chapter(chapter))
        out[f"{chapter.slug}.md"] = page(chapter, cells)
        for cell in cells:
            for part in cell.output:
                if isinstance(part, Picture):
                    out[f"pictures/{chapter.slug}-{part.name}.svg"] = part.svg
    return out


def differing(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Names that are missing, different, or there without a chapter."""
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    changed = [name for name, text in wanted.items() if name in there and (folder / name).read_text("utf-8") != text]
    return sorted([*changed, *(there ^ set(wanted))])


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--ipynb", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.ipynb is not None:
        write(args.ipynb, {f"{c.slug}.ipynb": notebook(c, list(run_chapter(c))) for c in CHAPTERS})
        return 0
    wanted = pages()
    if args.check:
        for name in differing(TARGET, wanted):
            print(f"docs/learn/{name}: not what the chapters give; run: python tools/write_chapters.py")
        return int(bool(differing(TARGET, wanted)))
    for name in differing(TARGET, wanted):
        if name not in wanted:
            (TARGET / name).unlink()
    write(TARGET, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
