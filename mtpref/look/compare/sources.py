"""Files of tensors, whatever made them, behind one door.

Owns how a file's kind is told (by its content, for raw .bin by its name) and what its tensors are called here. The
containers are read in mtpref/files/gguf, mtpref/files/tensor_files and mtpref/look/llama_cpp.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.doors import TextStream, open_text
from mtpref.files.gguf import GgufFile, open_gguf, printable
from mtpref.files.tensor_files import NpzFile, SafetensorsFile
from mtpref.look.compare.producers import in_execution_order
from mtpref.look.dump import KEY
from mtpref.look.llama_cpp import conversion, results
from mtpref.look.llama_cpp.callback import Printed, is_callback_text, read_callback_text
from mtpref.spec import quants

INTEGER_TYPES = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
KINDS = "a GGUF, .npz, .npy, .safetensors, a .bin of llama.cpp's model-conversion or the text of llama-eval-callback"
SNIFFED = 1 << 20


@dataclass
class Source:
    """One open file. `names` are in the order of execution where `has_order`, else in the order of the file.

    read   the values of a tensor, by its name in `names`
    """

    label: str
    kind: str
    names: list[str]
    has_order: bool
    read: Callable[[str], "NDArray | list[Printed]"]
    close: Callable[[], None] = field(default=lambda: None)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def renamed(self, rules: Sequence[tuple[re.Pattern[str], str]]) -> "Source":
        """Names that a rule matches whole become what it says; the first rule that matches is taken.

        Errors  MtprefError where two tensors get one name
        """
        given: dict[str, str] = {}
        for name in self.names:
            new = _rename(name, rules)
            if new in given:
                raise MtprefError(
                    f"`rules`: {self.label}: {printable(given[new])} and {printable(name)} both become "
                    f"{printable(new)}, expected a name for each"
                )
            given[new] = name
        return replace(self, names=list(given), read=lambda name: self.read(given[name]))


def parse_map(texts: Iterable[str]) -> list[tuple[re.Pattern[str], str]]:
    """Rules of the form REGEX=NAME; NAME may hold \\1.

    Errors  MtprefError for a rule that is none
    """
    rules = []
    for text in texts:
        pattern, sign, name = text.rpartition("=")
        try:
            compiled = re.compile(pattern)
            if not sign or not pattern or not name:
                raise ValueError("no REGEX=NAME")
            re.compile(f"{pattern}|").fullmatch("").expand(name)  # type: ignore[union-attr]  # a group that is not there
        except (re.error, ValueError, IndexError) as error:
            raise MtprefError(
                f"`rules` {text}: {error}; expected REGEX=NAME, for example "
                r"'layers\.(\d+)\.out=l_out-\1'"
            ) from None
        rules.append((compiled, name))
    return rules


def _rename(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        if (match := pattern.fullmatch(name)) is not None:
            return match.expand(new)
    return name


def open_source(path: str | Path) -> Source:
    """Open a file of tensors of any kind; of a pipe or standard input ("-"), only the text of llama-eval-callback.

    Errors  MtprefError for a file of no known kind, or a damaged one
    """
    path = Path(path)
    label = printable(str(path), 400)
    with open_text(path, label, f"expected {KINDS}") as file:
        start = file.start(SNIFFED)
        if path.is_file() and (container := _container(path, label, start)) is not None:
            return container
        if is_callback_text(start):
            return _callback(file, label)
    raise MtprefError(f"{label}: of no known kind ({len(start)} bytes looked at), expected {KINDS}")


def _container(path: Path, label: str, start: bytes) -> Source | None:
    """A file of tensors that begins so; None where it is none."""
    if start[:4] in (b"GGUF", b"FUGG"):
        return _gguf(path)
    if start[:2] == b"PK" or start[:6] == b"\x93NUMPY":
        return _npz(path)
    if path.suffix == ".bin":
        return _in_memory(label, "bin", conversion.read_bin(path))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return _safetensors(path)
    return None


def _gguf(path: Path) -> Source:
    file = open_gguf(path)
    if results.is_results(file):
        with file:
            return _in_memory(file.label, "llama-results", results.read_results(file))
    order = file.require(f"{KEY}.order", "arr:str") if f"{KEY}.order" in file.kv else []
    recorded = {name: None for name in order if name in file.tensors}
    names = [*(name for name in file.tensors if name not in recorded), *recorded]
    return Source(file.label, "GGUF", names, True, lambda name: _gguf_values(file, name), file.close)


def _gguf_values(file: GgufFile, name: str) -> NDArray:
    info = file.tensors[name]
    if info.type_name in INTEGER_TYPES:
        return file.data(info).view(INTEGER_TYPES[info.type_name]).reshape(info.shape)
    if info.type_name not in quants.DEQUANTIZABLE:
        raise MtprefError(
            f"{file.label}: tensor {printable(name)} has type {info.type_name}, expected one of "
            f"{', '.join((*quants.DEQUANTIZABLE, *INTEGER_TYPES))}"
        )
    return quants.dequantize(info.type_name, file.data(info), info.shape).reshape(info.shape)


def _npz(path: Path) -> Source:
    file = NpzFile(path)
    return Source(file.label, "npz", in_execution_order(file.names), False, file.values, file.close)


def _safetensors(path: Path) -> Source:
    file = SafetensorsFile(path)
    return Source(file.label, "safetensors", in_execution_order(file.names), False, file.values, file.close)


def _in_memory(label: str, kind: str, tensors: dict[str, NDArray]) -> Source:
    return Source(label, kind, list(tensors), True, tensors.__getitem__)


def _callback(file: TextStream, label: str) -> Source:
    found: dict[str, list[Printed]] = {}
    for printed in read_callback_text(file):
        found.setdefault(printed.name, []).append(printed)
    return Source(label, "printed", list(found), True, found.__getitem__)
