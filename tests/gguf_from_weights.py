"""A GGUF file from weights by GGUF name and hyper-parameters by key: what tests of whole models load.

Owns the metadata kinds of the keys and the hashed tokenizer `test`. Values of weights are those of
tests/random_weights.py: float32 numbers held in float64.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mtpref.files.gguf import write_gguf
from mtpref.spec import quants

Array = np.ndarray
FLOAT_KEYS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor")


def metadata(hparams: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """The keys of a qwen35 file with the vocabulary t0, t1, ..."""
    kv: list[tuple[str, Any, str]] = [("general.architecture", "qwen35", "str"), ("general.name", "random", "str")]
    for key, value in hparams.items():
        if key == "n_vocab":
            continue
        if key in FLOAT_KEYS:
            kind = "f32"
        elif isinstance(value, str):
            kind = "str"
        elif isinstance(value, list):
            kind = "arr:bool" if isinstance(value[0], bool) else "arr:i32"
        else:
            kind = "u32"
        kv.append((f"qwen35.{key}", value, kind))
    kv.append(("tokenizer.ggml.model", "test", "str"))
    kv.append(("tokenizer.ggml.tokens", [f"t{i}" for i in range(hparams["n_vocab"])], "arr:str"))
    return kv


def stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    """What a converter keeps in F32 whatever the file's type: vectors and the convolution."""
    return len(shape) < 2 or name.endswith("ssm_conv1d.weight")


def write_model(path: Path, weights: dict[str, Array], hparams: dict[str, Any], type_name: str = "F32") -> Path:
    """Write the weights, matrices as `type_name`."""
    tensors = []
    for name, values in weights.items():
        kind = "F32" if stays_f32(name, values.shape) else type_name
        raw = np.ascontiguousarray(quants.quantize(kind, values)).view(np.uint8)
        tensors.append((name, kind, values.shape, raw))
    write_gguf(path, metadata(hparams), tensors)
    return path
