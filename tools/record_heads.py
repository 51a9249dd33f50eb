"""Record what llama.cpp's converter makes of a checkpoint in its three modes: tests/data/heads.json.

    MTPREF_LLAMA_CPP=DIR python tools/record_heads.py

Keys and tensors with names, types, shapes and order; not the data, which is the checkpoint's. Needs torch and
transformers.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.gguf_copy import copy_of  # noqa: E402
from tests.hf_checkpoint import convert, write_checkpoint  # noqa: E402

MODEL = ROOT / "golden/models/micro-60-f32.gguf"
FLAGS = ("default", "--mtp", "--no-mtp")


def content_of(path: Path) -> dict:
    kv, tensors = copy_of(path)
    keys = [[key, _plain(value), kind] for key, value, kind in kv]
    return {"keys": keys, "tensors": [[name, kind, list(shape), data.nbytes] for name, kind, shape, data in tensors]}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [v.decode() for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name, own_output, outtype in (("tied", False, "f32"), ("own-output", True, "q8_0")):
            checkpoint = write_checkpoint(MODEL, Path(folder) / name, own_output=own_output)
            files = {}
            for flag in FLAGS:
                out = Path(folder) / f"{name}{flag}.gguf"
                convert(checkpoint, out, "--outtype", outtype, *([] if flag == "default" else [flag]))
                files[flag] = content_of(out)
            cases.append({"name": name, "outtype": outtype, "files": files})
    (ROOT / "tests/data/heads.json").write_text(json.dumps({"converter": cases}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
