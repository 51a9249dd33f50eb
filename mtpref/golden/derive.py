"""Models of golden cases that are not in the folder: the tiny model of the package, and quantisations of it.

Owns how a quantisation is derived, so that its bytes need not be committed: every matrix of the packaged file is
dequantised and encoded again by ggml's reference rules; everything else is copied.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, open_gguf, printable, write_gguf
from mtpref.files.gguf.parse import TensorInfo
from mtpref.spec import quants

# None: the packaged file itself.
DERIVED: dict[str, str | None] = {"tiny": None, "tiny-f16": "F16", "tiny-q4_0": "Q4_0", "tiny-q5_1": "Q5_1"}
NAMES = tuple(DERIVED)


def derive(name: str, source: Path, target: Path) -> None:
    """Write a derived model.

    name     one of DERIVED; source: the packaged tiny model
    Errors   MtprefError for another name, or a file that cannot be written
    """
    if name not in DERIVED:
        raise MtprefError(f"golden model {printable(name)}: cannot be derived, expected one of {', '.join(DERIVED)}")
    with open_gguf(source) as file:
        kv = [(key, _value(file, key), str(file.kv.kind(key))) for key in file.kv]
        write_gguf(target, kv, [_tensor(file, info, DERIVED[name]) for info in file.tensors.values()])


def _value(file: GgufFile, key: str) -> Any:
    return file.kv.raw(key) if file.kv.kind(key) == "str" else file.kv[key]


def _tensor(file: GgufFile, info: TensorInfo, type_name: str | None) -> tuple[str, str, tuple[int, ...], Any]:
    """The tensor in its new type: matrices that the packaged file holds as Q8_0 change, all else stays."""
    if info.type_name != "Q8_0" or type_name is None:
        return info.name, info.type_name, info.shape, file.data(info)
    return info.name, type_name, info.shape, _encoder(file, info, type_name)


def _encoder(file: GgufFile, info: TensorInfo, type_name: str) -> Callable[[], Any]:
    def encoded() -> Any:
        values = quants.dequantize(info.type_name, file.data(info), info.shape).reshape(info.shape)
        return quants.quantize(type_name, values)

    return encoded
