"""Model files as keys and tensors whose bytes are elsewhere: what is read (`Source`), what is written (`Contents`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import Copied, Data, GgufArray, GgufFile, Verbatim, WriteOptions, write_gguf, write_shards
from mtpref.heads.pairs import Pair, pairs_of

Array = np.ndarray[Any, Any]
Pieces = Callable[[], Iterable[Array]]


@dataclass(frozen=True)
class Item:
    """A tensor under its name in the file to be.

    pieces   a function that gives its bytes in order
    copy     the same as a file holds them, with its holes; None for what is made
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int
    pieces: Pieces
    copy: Copied | None = None

    @property
    def data(self) -> Data:
        return self.pieces if self.copy is None else self.copy


@dataclass(frozen=True)
class Contents:
    """Keys and tensors in the order of the file to be."""

    pairs: list[Pair]
    items: list[Item]

    @property
    def n_bytes(self) -> int:
        return sum(item.n_bytes for item in self.items)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(item.name, item.shape) for item in self.items]


@dataclass(frozen=True)
class Source:
    """A file, or a checkpoint as it would be converted.

    items   its tensors by name    order: all names of the file, in order; those that are no item too
    rows    decodes some rows of a matrix (None: cannot)
    """

    label: str
    pairs: list[Pair]
    items: dict[str, Item]
    order: list[str]
    rows: Callable[[str, Array], Array | None]

    def get(self, key: str) -> Any:
        """A key's value in Python's own types; None where it is absent."""
        return next((_plain(value) for name, value, _ in self.pairs if name == key), None)

    def array(self, key: str) -> list[bytes] | None:
        """The strings of an array; None where it is absent or holds none."""
        found = next(((value, kind) for name, value, kind in self.pairs if name == key), None)
        if found is None or found[1] != "arr:str":
            return None
        value = found[0]
        texts = value.to_bytes_list() if isinstance(value, GgufArray) else value
        return [text.encode() if isinstance(text, str) else bytes(text) for text in texts]


def source_of(file: GgufFile) -> Source:
    """An open file, all shards of it."""
    items = {info.name: item_of(file, info.name) for info in file.tensors.values()}
    return Source(file.label, pairs_of(file), items, list(file.tensors), partial(_rows, file))


def item_of(file: GgufFile, name: str) -> Item:
    info = file.tensors[name]
    give, n_held = partial(file.copied, info), partial(file.n_held, info)
    # The bytes of a type that is not known end in padding.
    copy = Copied(give, n_held) if info.is_known else Verbatim(give, n_held, info.n_bytes, file.owner(info).alignment)
    return Item(name, info.type_name, info.shape, info.n_bytes, partial(file.pieces, info), copy)


def items_of(file: GgufFile, names: Iterable[str]) -> list[Item]:
    """These tensors of a file under their own names, in the file's order."""
    wanted = set(names)
    return [item_of(file, name) for name in file.tensors if name in wanted]


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
    tensors = [(item.name, item.type_name, item.shape, item.data) for item in contents.items]
    if max_tensors is None and max_bytes is None:
        write_gguf(path, contents.pairs, tensors, options=options)
        return [path]
    prefix = str(path).removesuffix(".gguf")
    return write_shards(prefix, contents.pairs, tensors, max_tensors=max_tensors, max_bytes=max_bytes, options=options)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, GgufArray | list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    # A file has float32; a checkpoint's config has decimals that become float32 when they are written.
    return float(np.float32(value)) if isinstance(value, float) else value


def _rows(file: GgufFile, name: str, rows: Array) -> Array | None:
    """Some rows of a matrix as float64, or None for a type that cannot be decoded."""
    try:
        return file.decoded_rows(file.tensors[name], rows).astype(np.float64)
    except MtprefError:
        return None
