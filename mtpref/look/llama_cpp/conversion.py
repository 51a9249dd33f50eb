"""The .bin files of llama.cpp's examples/model-conversion and of llama-debug --save-logits.

DATA/PREFIX-MODEL.bin holds the logits of the last token as raw float32, DATA/PREFIX-MODEL-tokens.bin the prompt's ids
as raw int32, ...-prompt.txt the prompt, .txt the logits as text. PREFIX is `pytorch` for the original model,
`llamacpp` for the converted one; their scripts look for exactly these names.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.doors import read_regular
from mtpref.files.gguf import printable
from mtpref.files.tensor_files import write_whole

MAX_BYTES = 1 << 30
TOKENS = "-tokens"
EMBEDDINGS = "-embeddings"
# Beginnings of other files that are called .bin.
_FOREIGN = {b"GGUF": "a GGUF file", b"PK": "a ZIP file (a PyTorch checkpoint)", b"\x80\x02": "a Python pickle"}


def read_bin(path: str | Path) -> dict[str, NDArray]:
    """The tensors of one .bin file and of its -tokens.bin, if that stands beside it.

    -> {"result_output": (n,)} for logits, {"result_norm": (n,)} for ...-embeddings.bin, {"tokens": (T,)} for
    ...-tokens.bin; with a neighbour both, tokens first.
    Errors  MtprefError for a file that is no such thing
    """
    path = Path(path)
    if path.stem.endswith(TOKENS):
        return {"tokens": _raw(path, np.dtype("<i4"))}
    found = {}
    tokens = path.with_name(f"{path.stem}{TOKENS}.bin")
    if tokens.exists():
        found["tokens"] = _raw(tokens, np.dtype("<i4"))
    found["result_norm" if path.stem.endswith(EMBEDDINGS) else "result_output"] = _raw(path, np.dtype("<f4"))
    return found


def _raw(path: Path, dtype: np.dtype) -> NDArray:
    label = printable(str(path), 400)
    try:
        n_bytes = path.stat().st_size
        if not 0 < n_bytes <= MAX_BYTES or n_bytes % 4:
            raise MtprefError(
                f"{label}: {n_bytes} bytes, expected 4 for each value, at most {MAX_BYTES >> 30} GiB; "
                "write it again, for example with llama-debug --save-logits"
            )
    except OSError as error:
        raise MtprefError(f"{label}: cannot be read ({error.strerror}); expected raw values") from None
    raw = read_regular(path, label, "expected raw values", MAX_BYTES)
    for start, what in _FOREIGN.items():
        if raw.startswith(start):
            raise MtprefError(f"{label}: {what}, expected raw values as llama-debug --save-logits writes them")
    values = np.frombuffer(raw, dtype)
    if dtype.kind == "i" and values.min() < 0:
        raise MtprefError(f"{label}: holds the id {values.min()}, expected token ids, 0 or more")
    return values


def write_bin(
    folder: str | Path, stem: str, prompt: str, ids: Sequence[int], logits: NDArray[np.float32]
) -> list[Path]:
    """Write the four files of `stem` ("pytorch-NAME"), and say their paths.

    Shapes  logits: (n_vocab,), of the last token
    """
    folder = Path(folder)
    listed = ", ".join(str(i) for i in ids)
    texts = {
        f"{stem}.bin": np.asarray(logits, "<f4").tobytes(),
        f"{stem}.txt": "".join(f"{i}: {x:.6g}\n" for i, x in enumerate(logits.tolist())).encode(),
        f"{stem}{TOKENS}.bin": np.asarray(ids, "<i4").tobytes(),
        f"{stem}-prompt.txt": f"prompt: {prompt}\nn_tokens: {len(ids)}\ntoken ids: {listed}\n".encode(
            "utf-8", "replace"
        ),
    }
    for name, raw in texts.items():
        write_whole(folder / name, raw)
    return [folder / name for name in texts]
