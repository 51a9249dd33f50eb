"""Write what `mtpref diagnose --stats` needs of the catalogue's measurements into the package.

python tools/write_signatures.py          docs/faults.json -> mtpref/faults/diagnose/signatures.json
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "faults.json"
TARGET = ROOT / "mtpref" / "faults" / "diagnose" / "signatures.json"


def signature(measured: dict[str, Any], healthy: dict[str, Any]) -> dict[str, Any]:
    """Rates by draft position, and of the first after a full acceptance and after any other; the same healthy.
    A stand_in was measured on another model than the tiny one, which cannot have that fault."""

    def split(m: dict[str, Any]) -> list[float | None]:
        after = m.get("a1_after") or {}
        return [after.get("full"), after.get("partial")]

    return {"a": measured["a"], "split": split(measured), "healthy_a": healthy["a"], "healthy_split": split(healthy)}


def render(record: dict[str, Any]) -> str:
    """The file: one line a fault."""
    healthy = record["healthy"]
    lines = ['  "healthy": ' + json.dumps(signature(healthy[""], healthy[""]))]
    for id, measured in record["faults"].items():
        options = measured.get("options", [])
        base = healthy.get(" ".join(options), healthy[""])
        own = signature(measured, base) | ({"stand_in": True} if any(o.startswith("-m ") for o in options) else {})
        lines.append(f"  {json.dumps(id)}: {json.dumps(own)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    TARGET.write_text(render(json.loads(SOURCE.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
