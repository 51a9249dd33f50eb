"""Diagnose the logs of a llama.cpp that was broken on purpose, and write the table of them in docs/diagnosis.md.

    python tools/diagnose_broken.py [--model tiny] [--page docs/diagnosis.md]

Each log of tests/data/llama_cpp/broken, whole, with the model that it was recorded of. --model: these columns alone
are made anew, the others stay as the page has them. A minute or two for each column on an idle core.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from record_broken import BREAKAGES, HEALTHY, MODELS, model_file  # noqa: E402

from mtpref import kernels  # noqa: E402
from mtpref.base.errors import MtprefError  # noqa: E402
from mtpref.engine.model import load  # noqa: E402
from mtpref.faults.diagnose import diagnose_log, read_port_runs  # noqa: E402
from mtpref.faults.diagnose.report import Report  # noqa: E402

LOGS = ROOT / "tests" / "data" / "llama_cpp" / "broken"
START, END = "<!-- broken builds -->", "<!-- end of broken builds -->"
NAMES = {name: name.removesuffix("-f32") for name in MODELS}  # as the table has them
Column = dict[str, str]


def said(report: Report, id: str) -> str:
    """What a report makes of a mistake: "first" where its id, or that of a fault that acts alike, leads."""
    if report.verdict != "found":
        return {"unknown": "none of the known", "undecided": "cannot tell"}.get(report.verdict, report.verdict)
    for n, cause in enumerate(report.causes, 1):
        if id and id in cause.ids:
            return "first" if n == 1 else f"place {n}"
    return f"{report.causes[0].ids[0]} named"


def column(name: str, folder: Path) -> Column:
    core = load(model_file(name, folder))
    found = {}
    for breakage, id in {**BREAKAGES, HEALTHY: ""}.items():
        report = diagnose_log(core, read_port_runs(LOGS / f"{breakage}.{name}.log.gz"))
        found[breakage] = said(report, id)
        print(f"{name}, {breakage}: {report.headline}", file=sys.stderr, flush=True)
    return found


def read_table(text: str) -> dict[str, Column]:
    """Columns by model, as a page has them."""
    block = text[text.index(START) : text.index(END)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
    by_name = {shown: name for name, shown in NAMES.items()}
    return {
        by_name[shown]: {re.sub("`", "", row[0]): row[i] for row in rows[2:]}
        for i, shown in enumerate(rows[0])
        if shown in by_name
    }


def render(columns: dict[str, Column]) -> str:
    lines = [f"| breakage | in the catalogue | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 2) + "|"]
    for breakage, id in {**BREAKAGES, HEALTHY: ""}.items():
        cells = [columns.get(name, {}).get(breakage, "-") for name in NAMES]
        lines.append(f"| `{breakage}` | {id or '-'} | {' | '.join(cells)} |")
    return "\n".join([START, *lines, END])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Diagnose the logs of a llama.cpp that was broken on purpose.")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one (repeatable; default: all)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "diagnosis.md", help="default: docs/diagnosis.md")
    args = parser.parse_args(argv)
    kernels.set_threads(1)
    try:
        text = args.page.read_text(encoding="utf-8")
        if START not in text or END not in text:
            raise MtprefError(f"{args.page}: it has no block from {START} to {END}")
        columns = read_table(text)
        with tempfile.TemporaryDirectory() as folder:
            for name in args.model or MODELS:
                columns[name] = column(name, Path(folder))
    except (MtprefError, OSError) as error:
        print(f"diagnose_broken: {error}", file=sys.stderr)
        return 2
    block = re.compile(f"{START}.*?{END}", re.DOTALL)
    args.page.write_text(block.sub(lambda _: render(columns), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
