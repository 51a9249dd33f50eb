"""Write the table of findings in docs/keeping-the-head.md from mtpref/heads/check/findings.py.

python tools/write_check_doc.py
"""

from pathlib import Path

from mtpref.heads.check import CATALOGUE

PAGE = Path(__file__).parent.parent / "docs" / "keeping-the-head.md"
BEGIN, END = "<!-- findings -->\n", "<!-- end of findings -->"


def table() -> str:
    rows = [f"| `{id}` | {kind.severity} | {kind.meaning} | {kind.remedy} |\n" for id, kind in CATALOGUE.items()]
    return "| finding | severity | meaning | what to do |\n|---|---|---|---|\n" + "".join(rows)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
