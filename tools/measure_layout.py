"""Make the layout of a very large model, hundreds of GB of which a few MB are there, and measure the verbs on it.

    python tools/measure_layout.py                       (DeepSeek-like: 61 layers, 384 experts, 14 files)
    python tools/measure_layout.py --make DIR            (the files alone)
    python tools/measure_layout.py --files 3 --n-layer 8 --n-expert 64

Keys, tensors and shapes are those of `make_random.py --shape kimi-k2`; the data of matrices is a hole, which the file
system keeps as nothing and gives as zeros, and the vectors are there. The first file holds the keys alone, as in large
uploads. Each verb runs in a process of its own; told are its seconds, the greatest resident size, the bytes of tensors
that it read, and the size of what it wrote, on disk and as it looks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from make_random import SHAPES, Shape, random_metadata, random_tensors, read_back, sheet_tensors  # noqa: E402
from micro_gguf import kind_of  # noqa: E402

from mtpref.architectures import ARCHITECTURES, numbers  # noqa: E402
from mtpref.files.gguf import Copied, GgufFile, tensor_bytes, write_shards  # noqa: E402
from mtpref.files.holes import Hole  # noqa: E402
from mtpref.heads.pairs import without_head  # noqa: E402
from mtpref.heads.quantize.mixture import Item, fitting, is_quantizable  # noqa: E402

N_FILES = 14
KIND = "Q4_K"
COUNTS = "MTPREF_LAYOUT_COUNTS"


@dataclass(frozen=True)
class Verb:
    """What one verb took. n_read: bytes of tensors that it asked for; n_disk, n_apparent: of what it wrote"""

    name: str
    code: int
    seconds: float
    peak: int
    n_read: int
    n_disk: int
    n_apparent: int


def shape_of(**sizes: Any) -> Shape:
    arch, own = SHAPES["kimi-k2"]
    return Shape(ARCHITECTURES[arch], own | {name: n for name, n in sizes.items() if n is not None}, "gpt2")


def has_holes(folder: Path) -> bool:
    """Whether the file system keeps and tells holes."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(1 << 30)
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError:
            return os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
    return False


def make(prefix: Path, shape: Shape, *, n_files: int = N_FILES, has_head: bool) -> Path:
    """PREFIX-00001-of-000NN.gguf and so on, the first with the keys alone; gives the first."""
    pairs = [(key, value, kind_of(value)) for key, value in random_metadata(shape).items()]
    n_layer = shape.sizes["n_layer"]
    tensors = list(_tensors(shape))
    if not has_head:
        pairs = without_head(pairs, shape.sheet.name, n_layer)
        tensors = [t for t in tensors if not t[0].startswith(f"blk.{n_layer}.")]
    sizes = [tensor_bytes(kind, dims) for _, kind, dims, _ in tensors]
    limit = sum(sizes) // (n_files - 1)
    while _n_groups(sizes, limit) > n_files - 1:
        limit += max(sizes) // 16
    prefix.parent.mkdir(parents=True, exist_ok=True)
    return write_shards(prefix, pairs, tensors, max_bytes=limit, first_is_empty=True)[0]


def _tensors(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...], Any]]:
    values = {**shape.sheet.values(read_back(shape)), "n_vocab": shape.sizes["n_vocab"]}
    small = {name: data for name, kind, dims, data in random_tensors(shape, 1, "F32") if len(dims) == 1}
    for tensor in sheet_tensors(shape):
        dims = numbers(tensor.shape, values)
        assert dims is not None
        if len(dims) == 1:
            yield tensor.name, "F32", dims, small[tensor.name]
            continue
        is_small = not is_quantizable(Item(tensor.name, "F32", dims))
        kind = "F32" if is_small else fitting(KIND, dims[-1])
        n_bytes = tensor_bytes(kind, dims)
        yield tensor.name, kind, dims, Copied(partial(_hole, n_bytes), lambda: 0)


def _hole(n_bytes: int) -> list[Hole]:
    return [Hole(n_bytes)]


def _n_groups(sizes: list[int], limit: int) -> int:
    n, used = 1, 0
    for size in sizes:
        if used + size > limit and used:
            n, used = n + 1, 0
        used += size
    return n


# MEASURE


def verbs(folder: Path) -> dict[str, list[str]]:
    """The commands in order; each may read what an earlier one wrote."""
    whole, trunk = (str(next(folder.glob(f"{name}/*-00001-of-*.gguf"))) for name in ("whole", "trunk"))
    out = {name: str(folder / name) for name in ("mtp.gguf", "stripped.gguf", "again.gguf", "sharded")}
    return {
        "inspect": ["inspect", whole],
        "check --fast": ["check", "--fast", whole],
        "extract": ["extract", whole, "-o", out["mtp.gguf"]],
        "strip": ["strip", whole, "-o", out["stripped.gguf"]],
        "graft": ["graft", "--no-probe", out["stripped.gguf"], out["mtp.gguf"], "-o", out["again.gguf"]],
        "graft --as-shard": ["graft", "--no-probe", "--as-shard", trunk, out["mtp.gguf"], "-o", out["sharded"]],
    }


def measure(name: str, command: list[str], folder: Path) -> Verb:
    """Run a verb in a process of its own."""
    report = folder / "report.json"
    before = _sizes(folder)
    environment = os.environ | {COUNTS: str(report)}
    done = subprocess.run([sys.executable, __file__, "--here", *command], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    if not report.is_file():
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    told = json.loads(report.read_text())
    report.unlink()
    new = {key: size for key, size in _sizes(folder).items() if key not in before}
    disk, apparent = (sum(size[i] for size in new.values()) for i in (0, 1))
    return Verb(name, done.returncode, told["seconds"], told["peak"], told["read"], disk, apparent)


def _sizes(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """Files by device and inode (a hard link is none of its own): bytes on disk, bytes."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {(s.st_dev, s.st_ino): (512 * s.st_blocks, s.st_size) for s in found}


def _here(command: list[str]) -> int:
    """In this process: the verb, and a report of what it took."""
    from mtpref.front import cli

    n_read = 0
    pieces = GgufFile.pieces

    def counted(self: GgufFile, tensor: Any) -> Iterator[Any]:
        nonlocal n_read
        for piece in pieces(self, tensor):
            n_read += piece.nbytes
            yield piece

    GgufFile.pieces = counted  # type: ignore[method-assign]
    began = time.monotonic()
    code = cli.main(command)
    told = {"seconds": time.monotonic() - began, "read": n_read,
            "peak": _peak()}  # fmt: skip
    Path(os.environ[COUNTS]).write_text(json.dumps(told))
    return code


def _peak() -> int:
    """Bytes. Linux's getrusage counts what the process was before its program was started."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["--here"]:
        return _here(given[1:])
    parser = argparse.ArgumentParser(description="measure the verbs on the layout of a very large model")
    parser.add_argument("--files", type=int, default=N_FILES, help=f"files of the model (default: {N_FILES})")
    parser.add_argument("--n-layer", type=int, help="layers of the trunk (default: 61)")
    parser.add_argument("--n-expert", type=int, help="experts of a layer (default: 384)")
    parser.add_argument("--make", type=Path, metavar="DIR", help="make the files there, and no more")
    args = parser.parse_args(given)
    shape = shape_of(n_layer=args.n_layer, n_expert=args.n_expert)
    with tempfile.TemporaryDirectory() as name:
        folder = args.make or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not has_holes(folder):
            print(f"measure_layout: {folder}: its file system keeps no holes; choose another folder", file=sys.stderr)
            return 2
        for part, has_head in (("whole", True), ("trunk", False)):
            first = make(folder / part / "m", shape, n_files=args.files, has_head=has_head)
            sizes = _sizes(folder / part).values()
            print(f"{first}: {sum(s[1] for s in sizes) / 1e9:.1f} GB, {sum(s[0] for s in sizes) / 1e6:.1f} MB on disk")
        if args.make:
            return 0
        print("verb              code  seconds    peak MB    read MB  on disk MB  apparent GB")
        for verb, command in verbs(folder).items():
            v = measure(verb, command, folder)
            print(f"{v.name:16}  {v.code:4}  {v.seconds:7.1f}  {v.peak / 1e6:9.0f}  {v.n_read / 1e6:9.1f}  "
                  f"{v.n_disk / 1e6:10.1f}  {v.n_apparent / 1e9:11.2f}", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
