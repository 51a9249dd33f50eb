"""The files of llama-results: a prompt's ids and the trunk's logits at every position.

Owns the layout. `llama-results --check` reads what `write_results` writes; it insists on the very path of the model
that it was given with -m. Its NMSE limit is 1e-6, not to be changed.
Source: llama.cpp tools/results
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, write_gguf

KEY = "path_model"


def is_results(file: GgufFile) -> bool:
    return KEY in file.kv and {"tokens", "logits"} <= set(file.tensors)


def read_results(file: GgufFile) -> dict[str, NDArray]:
    """{"tokens": (T,) int32, "result_output": (T, n_vocab) float32}: ne says (T, n_vocab), the data are token by token.

    Errors  MtprefError where types or sizes do not fit together
    """
    tokens, logits = file.tensors["tokens"], file.tensors["logits"]
    if tokens.type_name != "I32" or logits.type_name != "F32":
        raise MtprefError(
            f"{file.label}: tokens and logits have types {tokens.type_name} and {logits.type_name}, "
            "expected I32 and F32 as llama-results writes them"
        )
    ids, values = file.data(tokens).view(np.int32), file.data(logits).view(np.float32)
    if ids.size == 0 or values.size % ids.size or values.size == 0:
        raise MtprefError(f"{file.label}: {ids.size} tokens and {values.size} logits, expected as many for each token")
    return {"tokens": ids, "result_output": values.reshape(ids.size, -1)}


def write_results(path: str | Path, model_path: str, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
    """Write a file for `llama-results --check -m model_path`.

    Shapes  logits: (T, n_vocab), of every token
    """
    tokens = np.asarray(ids, np.int32)
    n_tokens, n_vocab = logits.shape
    write_gguf(path, [(KEY, model_path, "str")], [
        ("tokens", "I32", (n_tokens,), tokens),
        ("logits", "F32", (n_vocab, n_tokens), np.ascontiguousarray(logits).reshape(n_vocab, n_tokens)),
    ])  # fmt: skip
