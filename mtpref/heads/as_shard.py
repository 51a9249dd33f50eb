"""`graft --as-shard`: a head as one file more of a split model, whose other files are not written again.

The first file of a split model alone says how many files and tensors there are, and has the model's keys: it is made
anew. A later file is looked at for its number (`split.no`) and found by a name that has the new total, so a link under
that name serves. Where the first file holds tensors (it need not, and in large uploads does not), they are copied.
Source: llama.cpp src/llama-model-loader.cpp, which reads split.count and split.tensors.count of the first file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import (
    GgufFile,
    How,
    Kept,
    TensorInfo,
    WriteOptions,
    check_folder,
    how_kept,
    human_bytes,
    write_folder,
)
from mtpref.files.gguf.parse import DEFAULT_ALIGNMENT
from mtpref.files.gguf.shards import MAX_SHARDS, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_path, shard_prefix
from mtpref.files.gguf.writer import Verbatim, parts_of, plan_tensors
from mtpref.heads.contents import Item
from mtpref.heads.graft import Graft
from mtpref.heads.layout import layout_of
from mtpref.heads.pairs import Pair


@dataclass(frozen=True)
class NewShard:
    """A split model with a head in a file of its own.

    pairs         of the first file    first, head: tensors of the first and of the last file
    kept          the files between, under their new names
    replaces      the trunk's last file, where it holds the trunk's own head and nothing else; it is left out
    """

    prefix: str
    pairs: list[Pair]
    first: list[Item]
    head: list[Item]
    kept: list[Kept]
    replaces: Path | None

    @property
    def n_files(self) -> int:
        return len(self.kept) + 2

    @property
    def n_new(self) -> int:
        """Bytes of tensors that are written."""
        return sum(item.n_bytes for item in (*self.first, *self.head))


def as_shard(trunk: GgufFile, joined: Graft) -> NewShard:
    """The files of a split model with the head of `joined`, which is `graft` of the two.

    Errors   MtprefError for a trunk in one file, or whose own head lies among tensors that stay
    """
    if not trunk.others:
        raise MtprefError(
            f"{trunk.label}: a model in one file, expected the first of a split one (NAME-00001-of-0000N.gguf): its "
            "file would be written again as a whole, as a graft into one file does"
        )
    own = set(layout_of(trunk).names)
    last = len(trunk.others)
    replaces = None
    if own:
        holders = {trunk.tensors[name].shard for name in own}
        others = [name for name, info in trunk.tensors.items() if info.shard == last and name not in own]
        if holders != {last} or others:
            where = trunk.owner(trunk.tensors[next(iter(own))]).label
            raise MtprefError(
                f"{trunk.label}: has a head of its own, in {where}, with tensors of the trunk beside it or elsewhere; "
                "expected none, or one in a last file of its own: a file that is linked cannot lose tensors; "
                "a graft into one file replaces it"
            )
        replaces = trunk.others[-1].path
    prefix = shard_prefix(trunk.path, 0, last + 1)
    if prefix is None:  # `open_gguf` has found the others by it
        raise MtprefError(f"{trunk.label}: not named as the first of {last + 1} files; give it its own name again")
    between = trunk.others[:-1] if replaces else trunk.others
    count = len(between) + 2
    if count > MAX_SHARDS:
        raise MtprefError(f"{trunk.label}: {count} files, expected at most {MAX_SHARDS}")
    stays: dict[str, TensorInfo] = {name: info for name, info in trunk.tensors.items() if name not in own}
    items = joined.contents.items
    first = [item for item in items if item.name in stays and stays[item.name].shard == 0]
    head = [item for item in items if item.name not in stays]
    name = Path(prefix).name
    kept = [Kept(shard_path(name, no + 1, count).name, part.path) for no, part in enumerate(between)]
    pairs = [*joined.contents.pairs, *_split(0, count, len(items))]
    return NewShard(name, pairs, first, head, kept, replaces)


def write_as_shard(
    out: str | Path, made: NewShard, how: How, options: WriteOptions, say: Callable[[str], None] | None = None
) -> list[Path]:
    """Write the set as a new folder, whole or not at all; gives its paths, the first file's first.

    how      of the files that are kept; across devices hard links are copies, which `say` is told
    Errors   MtprefError as `write_folder`
    """
    say = say or (lambda text: None)
    check_folder(out)
    taken = how_kept(made.kept, Path(out), how)
    if taken != how:
        total = human_bytes(sum(file.source.stat().st_size for file in made.kept))
        say(
            f"{out} is on another device than the trunk: {len(made.kept)} files, {total}, are copied; "
            "`how=symbolic` links them"
        )
    count = made.n_files
    alignment = max((item.copy.alignment for item in made.head if isinstance(item.copy, Verbatim)), default=0)
    of_head: list[Pair] = [("general.alignment", alignment, "u32")] if alignment > DEFAULT_ALIGNMENT else []
    files = [
        (shard_path(made.prefix, 0, count), made.pairs, _planned(made.first)),
        (shard_path(made.prefix, count - 1, count), [*of_head, *_split(count - 1, count, _total(made))],
         _planned(made.head)),
    ]  # fmt: skip
    write_folder(out, parts_of(files, options.progress), made.kept, taken, options)
    return [Path(out) / shard_path(made.prefix, no, count).name for no in range(count)]


def notes_of(made: NewShard) -> list[str]:
    """What a user should know of such a set."""
    notes = []
    if made.replaces is not None:
        notes.append(f"{made.replaces.name} held the trunk's own head and nothing else: it is left out")
    if made.first:
        n = human_bytes(sum(item.n_bytes for item in made.first))
        notes.append(
            f"the trunk's first file holds {len(made.first)} tensors: it is written again, its {n} as they are"
        )
    if made.kept:
        notes.append(
            f"the {len(made.kept)} files between first and last say {SPLIT_COUNT} and {SPLIT_TENSORS} as before: "
            "llama.cpp (llama-gguf-split --merge too) reads them of the first file alone, and so does mtpref; a "
            "program that compares them in every file would refuse the set: the one file that --merge makes serves it"
        )
    return notes


def _planned(items: list[Item]) -> Any:
    return plan_tensors((item.name, item.type_name, item.shape, item.data) for item in items)


def _split(no: int, count: int, n_tensors: int) -> list[Pair]:
    return [(SPLIT_NO, no, "u16"), (SPLIT_COUNT, count, "u16"), (SPLIT_TENSORS, n_tensors, "i32")]


def _total(made: NewShard) -> int:
    return next(int(value) for key, value, _ in made.pairs if key == SPLIT_TENSORS)
