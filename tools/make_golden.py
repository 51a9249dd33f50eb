"""Make the golden vectors: every suite of golden/ and its manifest.

    python tools/make_golden.py [-o DIR] [--level L1]

The same bytes on every machine: inputs come from integer streams, expected values from the float64 oracles in
portable arithmetic (tests/portable.py) or from the specification itself.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.build import FOLDERS, SuiteBuilder, write_json

from golden import l0_dequantize, l1_operations, l2_layers, l3_trunk, l4_mtp, l5_loop, l6_text, sampling
from mtpref.golden.format import CLASSES, FORMAT, sha256_of
from tests.portable import portable_arithmetic

ROOT = Path(__file__).resolve().parents[1]
MAKERS: dict[str, Callable[[], Iterator[SuiteBuilder]]] = {
    "L0": l0_dequantize.suites,
    "L1": lambda: chain(l1_operations.suites(), sampling.operations()),
    "L2": l2_layers.suites,
    "L3": l3_trunk.suites,
    "L4": l4_mtp.suites,
    "L5": l5_loop.suites,
    "L6": l6_text.suites,
}
# What decides the values: the specification, and the container and block formats under it.
SPEC_FILES = ("mtpref/spec/*.py", "mtpref/ops/*.py", "mtpref/quants*/*.py", "mtpref/quants.py", "mtpref/steps.py")


def make(root: Path, levels: tuple[str, ...]) -> None:
    """Write the suites of some levels below `root` and a manifest of all that is there.

    A level is made in a temporary folder first, so that an interrupted run leaves the old files.
    """
    root.mkdir(parents=True, exist_ok=True)
    for level in levels:
        with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as made, portable_arithmetic():
            for suite in MAKERS[level]():
                suite.write(Path(made))
            shutil.rmtree(root / FOLDERS[level], ignore_errors=True)
            os.replace(Path(made) / FOLDERS[level], root / FOLDERS[level])
    write_json(root / "manifest.json", manifest(root))


def manifest(root: Path) -> dict[str, Any]:
    """The index: suites, files with their hashes, tolerance classes, and the hash of the specification."""
    paths = sorted(p for folder in ("models", *FOLDERS.values()) for p in (root / folder).glob("*.*"))
    files = [{"path": p.relative_to(root).as_posix(), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths]
    return {
        "format": FORMAT,
        "version": (root / "VERSION").read_text(encoding="ascii").strip() if (root / "VERSION").exists() else "0",
        "spec_sha256": spec_sha256(),
        "classes": CLASSES,
        "suites": [_suite_record(root, p) for p in paths if p.suffix == ".json"],
        "files": files,
    }


def _suite_record(root: Path, path: Path) -> dict[str, Any]:
    data = json.loads(path.read_bytes())
    record = {name: data[name] for name in ("suite", "level", "op", "spec")}
    flags = sorted({flag for case in data["cases"] for flag in case["flags"]})
    requires = sorted({need for case in data["cases"] for need in case["requires"]})
    return record | {
        "path": path.relative_to(root).as_posix(), "n_cases": len(data["cases"]), "requires": requires, "flags": flags,
    }  # fmt: skip


def spec_sha256() -> str:
    """The hash of the files that decide the values: a change of any asks for new vectors."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in SPEC_FILES for p in ROOT.glob(pattern)}):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "golden", help="folder (default: golden)")
    parser.add_argument("--level", choices=tuple(MAKERS), action="append", help="only this level (default: all)")
    args = parser.parse_args()
    make(args.output, tuple(args.level or MAKERS))
    with contextlib.suppress(BrokenPipeError):
        print(f"{args.output}: {sum(p.stat().st_size for p in args.output.rglob('*') if p.is_file())} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
