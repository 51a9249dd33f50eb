"""A model file to be written whose tensors come from other files: keys, and for each tensor where its bytes are."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtpref.gguf import GgufFile, TensorInfo, WriteOptions, write_gguf, write_shards
from mtpref.gguf.writer import Data
from mtpref.heads.pairs import Pair


@dataclass(frozen=True)
class Item:
    """A tensor of an open file under its name in the new one."""

    name: str
    info: TensorInfo
    file: GgufFile


@dataclass(frozen=True)
class Contents:
    """Keys and tensors in the order of the file to be."""

    pairs: list[Pair]
    items: list[Item]

    @property
    def n_bytes(self) -> int:
        return sum(item.info.n_bytes or 0 for item in self.items)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(item.name, item.info.shape) for item in self.items]


def items_of(file: GgufFile, names: Iterable[str]) -> list[Item]:
    """These tensors of a file under their own names, in the file's order."""
    wanted = set(names)
    return [Item(info.name, info, file) for info in file.tensors.values() if info.name in wanted]


def files_of(*files: GgufFile) -> list[Path]:
    """The paths of files and all their shards: what must not be written over."""
    return [part.path for file in files for part in (file, *file.others)]


def write_contents(
    path: str | Path,
    contents: Contents,
    options: WriteOptions,
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
) -> list[Path]:
    """Write a model, in one file or, with one of the limits, in several named after `path`; gives their paths.

    Memory   a few MiB beside the header, whatever the size of the model
    Errors   MtprefError as `write_gguf` and `write_shards`
    """
    path = Path(path)
    tensors = [(item.name, item.info.type_name, item.info.shape, _pieces(item)) for item in contents.items]
    if max_tensors is None and max_bytes is None:
        write_gguf(path, contents.pairs, tensors, options=options)
        return [path]
    prefix = str(path).removesuffix(".gguf")
    return write_shards(prefix, contents.pairs, tensors, max_tensors=max_tensors, max_bytes=max_bytes, options=options)


def _pieces(item: Item) -> Data:
    return lambda: item.file.pieces(item.info)
