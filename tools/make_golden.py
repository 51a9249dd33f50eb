"""Make the golden vectors: every suite of golden/ and its manifest.

    python tools/make_golden.py [-o DIR] [--level L1]
    python tools/make_golden.py --manifest     # the index alone, after a change of sources that changes no value

The same bytes on every machine: inputs come from integer streams, expected values from the float64 oracles in
portable arithmetic (tests/portable.py) or from the specification itself.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from golden import (
    assistant_models,
    chains_models,
    channels,
    clamped_layers,
    compressed,
    compressed_layers,
    connections,
    experts_layers,
    experts_models,
    experts_operations,
    indexer,
    indexer_models,
    l0_dequantize,
    l1_operations,
    l2_layers,
    l3_trunk,
    l4_mtp,
    l5_loop,
    l6_text,
    latent,
    parts,
    rows_models,
    sampling,
    single_models,
    streams_models,
    unscaled,
    windowed,
)
from mtpref.files.gguf import open_gguf
from mtpref.front.api import tiny_path
from mtpref.golden.build import FOLDERS, SuiteBuilder, manifest, write_json
from mtpref.golden.derive import NAMES, derive
from mtpref.golden.gen import tensors_sha256
from tests.portable import portable_arithmetic

ROOT = Path(__file__).resolve().parents[1]
Suites = Callable[[], Iterator[SuiteBuilder]]
# Of each level what makes its suites, in order.
PARTS: dict[str, tuple[Suites, ...]] = {
    "L0": (l0_dequantize.suites,),
    "L1": (
        l1_operations.suites,
        sampling.operations,
        experts_operations.suites,
        latent.operations,
        indexer.operations,
        connections.operations,
        compressed.operations,
        windowed.operations,
        unscaled.operations,
        parts.operations,
        channels.operations,
    ),
    "L2": (
        l2_layers.suites,
        experts_layers.suites,
        latent.layers,
        indexer.layers,
        connections.layers,
        compressed_layers.layers,
        clamped_layers.layers,
        windowed.layers,
        unscaled.layers,
        parts.layers,
    ),
    "L3": (
        l3_trunk.suites,
        experts_models.trunk,
        indexer_models.trunk,
        streams_models.trunk,
        chains_models.trunk,
        assistant_models.trunk,
        single_models.trunk,
        rows_models.trunk,
    ),
    "L4": (
        l4_mtp.suites,
        experts_models.heads,
        indexer_models.heads,
        streams_models.heads,
        chains_models.heads,
        assistant_models.heads,
        single_models.heads,
        rows_models.heads,
    ),
    "L5": (
        l5_loop.suites,
        experts_models.loops,
        indexer_models.loops,
        streams_models.loops,
        chains_models.loops,
        assistant_models.loops,
        single_models.loops,
    ),
    "L6": (l6_text.suites,),
}
MAKERS: dict[str, Suites] = {
    level: lambda parts=parts: (suite for part in parts for suite in part())  # type: ignore[misc]
    for level, parts in PARTS.items()
}


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
    version = (root / "VERSION").read_text(encoding="ascii").strip()
    write_json(root / "manifest.json", manifest(root, version, models=derived_models()))


def derived_models() -> dict[str, str]:
    """The hash of each model that cases name and the folder does not hold."""
    hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            derive(name, tiny_path(), Path(folder) / name)
            with open_gguf(Path(folder) / name) as file:
                hashes[name] = tensors_sha256(file)
    return hashes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "golden", help="folder (default: golden)")
    parser.add_argument("--level", choices=tuple(MAKERS), action="append", help="only this level (default: all)")
    parser.add_argument("--manifest", action="store_true", help="only manifest.json, of the suites that are there")
    args = parser.parse_args()
    make(args.output, () if args.manifest else tuple(args.level or MAKERS))
    with contextlib.suppress(BrokenPipeError):
        print(f"{args.output}: {sum(p.stat().st_size for p in args.output.rglob('*') if p.is_file())} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
