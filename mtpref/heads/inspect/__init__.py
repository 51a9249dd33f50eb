"""`mtpref inspect FILE`: what a GGUF file holds, and where each tensor of its MTP head comes from.

Reads the header only. report.py builds the report (a dict, schema "mtpref-inspect-1"), layers.py decides layer
kinds and judges the head, render.py prints it for people. table.py says what the model takes, by state of its head.
"""

import json
import sys
from pathlib import Path

from mtpref.heads.inspect.render import render
from mtpref.heads.inspect.report import SCHEMA, inspect_file

__all__ = ["SCHEMA", "inspect_file", "render", "run", "run_memory"]


def run(path: str | Path, as_json: bool, width: int = 100) -> int:
    """Print the report on stdout, as JSON or as text of this width; 0 when it could be read (MtprefError if not)."""
    report = inspect_file(path)
    _print(json.dumps(report, indent=1, allow_nan=False) if as_json else render(report, width))
    return 0


def run_memory(path: str | Path, as_json: bool, n_ctx: int | None) -> int:
    """Print the table of memory on stdout, as JSON or as text; 0 when it could be made (MtprefError if not)."""
    from mtpref.heads.inspect.table import N_CTX, memory_table, render_table

    table = memory_table(path, N_CTX if n_ctx is None else n_ctx)
    _print(json.dumps(table, indent=1) if as_json else "\n".join(render_table(table)))
    return 0


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
