"""Files taken apart and put together: what tests of extract, strip and graft share."""

from pathlib import Path

from mtpref.files.gguf import WriteOptions, open_gguf, write_gguf
from mtpref.heads import extract, graft, strip, write_contents
from tests.gguf_copy import copy_of

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref/data/tiny.gguf"
MICRO = ROOT / "golden/models/micro-60-f32.gguf"
FREE = WriteOptions()


def split_of(model: Path, folder: Path) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    with open_gguf(model) as f:
        write_contents(folder / "mtp.gguf", extract(f), FREE)
        write_contents(folder / "trunk.gguf", strip(f), FREE)
    return folder / "trunk.gguf", folder / "mtp.gguf"


def join(trunk: Path, source: Path, out: Path) -> Path:
    with open_gguf(trunk) as t, open_gguf(source) as s:
        write_contents(out, graft(t, s).contents, FREE)
    return out


def rewritten(path: Path, out: Path, *, keys=None, tensors=None, drop=()) -> Path:
    """A copy with other keys (None: without) and other or fewer tensors."""
    kv, items = copy_of(path)
    kv = [(k, (keys or {}).get(k, v), kind) for k, v, kind in kv if (keys or {}).get(k, v) is not None]
    items = [(n, *(tensors or {}).get(n, rest)) for n, *rest in items if n not in drop]
    write_gguf(out, kv, items)
    return out
