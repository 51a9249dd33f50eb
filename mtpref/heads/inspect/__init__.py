"""`mtpref inspect FILE`: what a GGUF file holds, and where each tensor of its MTP head comes from.

Reads the header only. report.py builds the report (a dict, schema "mtpref-inspect-1"), layers.py decides layer
kinds and judges the head, render.py prints it for people.
"""

import json
import sys
from pathlib import Path

from mtpref.heads.inspect.render import render
from mtpref.heads.inspect.report import SCHEMA, inspect_file

__all__ = ["SCHEMA", "inspect_file", "render", "run"]


def run(path: str | Path, as_json: bool, width: int = 100) -> int:
    """Print the report on stdout, as JSON or as text of this width; 0 when it could be read (MtprefError if not)."""
    report = inspect_file(path)
    text = json.dumps(report, indent=1, allow_nan=False) if as_json else render(report, width)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    return 0
