"""Models in several files, NAME-00001-of-0000N.gguf and so on: `open_gguf` opens them all, `write_shards` writes them.

Owns the naming rule and the checks that tie the files together. The first file has the model's keys; of the other
files' keys only `split.no` is read. Any file may hold no tensors. Knows nothing of models.
Source: llama.cpp src/llama-model-loader.cpp, llama_split_path and llama_split_prefix in src/llama.cpp.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf.parse import Budget
from mtpref.files.gguf.reader import GgufFile, open_one
from mtpref.files.gguf.values import listed, printable
from mtpref.files.gguf.whole import WriteOptions
from mtpref.files.gguf.writer import Data, PlannedTensor, alignment_of, plan_tensors, write_files

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
MAX_SHARDS = 4096  # a terabyte in files of 256 MB; split.count itself can say 65,535
MAX_NAMED = 3


def shard_path(prefix: str, no: int, count: int) -> Path:
    """The file `no` (from 0) of `count`: PREFIX-00001-of-00003.gguf is number 0 of 3."""
    return Path(f"{prefix}-{no + 1:05d}-of-{count:05d}.gguf")


def shard_prefix(path: Path, no: int, count: int) -> str | None:
    """What stands before -0000N-of-0000M.gguf, or None where the name does not end in these numbers."""
    suffix = shard_path("", no, count).name
    text = str(path)
    return text.removesuffix(suffix) if text.endswith(suffix) and len(text) > len(suffix) else None


def open_gguf(path: str | Path) -> GgufFile:
    """Map a GGUF file, and the others where it is the first of a split model, and check all headers.

    The result reads like one file: keys of the first, tensors of all (`TensorInfo.shard` says which file).
    Errors   MtprefError when a file cannot be opened, anything in its header is malformed, or files do not belong
             together: another file than the first was given, a missing file, a name that disagrees with the keys, a
             wrong number, a tensor in two files, another number of tensors than split.tensors.count
    Cost     one pass over the headers; tensor data is not touched. Limits hold for all files together.
    """
    budget = Budget()
    first = open_one(path, budget)
    try:
        _open_others(first, budget)
    except BaseException:
        first.close()
        raise
    return first


def is_shard(file: GgufFile) -> bool:
    """Whether the file says that it is one of several."""
    value = file.kv[SPLIT_COUNT] if file.kv.kind(SPLIT_COUNT) == "u16" else 0
    return int(value) > 1


def other_counts(file: GgufFile) -> str | None:
    """A line on later files whose own `split.count` is another than the first's, which alone counts; None without."""
    count = 1 + len(file.others)
    odd = [no for no, part in enumerate(file.others, 2) if part.get(SPLIT_COUNT, count) != count]
    if not odd:
        return None
    said = sorted({str(file.others[no - 2].get(SPLIT_COUNT)) for no in odd})
    which = f"files {odd[0]} to {odd[-1]}" if odd == list(range(odd[0], odd[-1] + 1)) else f"{len(odd)} files"
    return (
        f"{which if len(odd) > 1 else f'file {odd[0]}'} of {count}: {SPLIT_COUNT} is {listed(said, MAX_NAMED)}; "
        "a head was put beside them (graft --as-shard): that of the first file counts, for llama.cpp too"
    )


# READ


def _open_others(first: GgufFile, budget: Budget) -> None:
    if SPLIT_COUNT not in first.kv:
        return
    count = int(_require(first, SPLIT_COUNT, "u16"))
    if count <= 1:
        return
    prefix = _checked_prefix(first, count)
    if count > MAX_SHARDS:
        raise MtprefError(f"{first.label}: key {SPLIT_COUNT} is {count}, expected at most {MAX_SHARDS} files; refused")
    paths = [shard_path(prefix, no, count) for no in range(count)]
    _check_present(first, paths)
    owners = dict.fromkeys(first.tensors, first)
    for no in range(1, count):
        other = open_one(paths[no], budget)
        first.others = (*first.others, other)
        found = int(_require(other, SPLIT_NO, "u16"))
        if found != no:
            raise MtprefError(
                f"{other.label}: key {SPLIT_NO} is {found}, expected {no} as its name says; was the file renamed? "
                "download it again under its own name"
            )
        for name, info in other.tensors.items():
            if name in owners:
                raise MtprefError(
                    f"{other.label}: tensor {printable(name)} is also in {owners[name].label}, expected it in one "
                    "file; do the files belong together?"
                )
            owners[name] = other
            first.tensors[name] = replace(info, shard=no)
    first.n_bytes += sum(other.n_bytes for other in first.others)
    total = int(_require(first, SPLIT_TENSORS, "i32"))
    if total != len(first.tensors):
        raise MtprefError(
            f"{first.label}: {len(first.tensors)} tensors in its {count} files, expected {total} by key "
            f"{SPLIT_TENSORS}; files of different models or versions are mixed, download them again"
        )


def _require(file: GgufFile, key: str, kind: str) -> Any:
    found = file.kv.kind(key)
    if found != kind:
        what = "is missing" if found is None else f"is of type {found}"
        raise MtprefError(
            f"{file.label}: key {key} {what}, expected one of type {kind} in a file of a split model; split the model "
            "again (llama-gguf-split)"
        )
    return file.kv[key]


def _checked_prefix(first: GgufFile, count: int) -> str:
    no = int(_require(first, SPLIT_NO, "u16"))
    if no >= count:
        raise MtprefError(f"{first.label}: key {SPLIT_NO} is {no}, expected 0 .. {count - 1} = {SPLIT_COUNT} - 1")
    prefix = shard_prefix(first.path, no, count)
    if prefix is None:
        raise MtprefError(
            f"{first.label}: file {no + 1} of {count} of a split model, expected a name that ends in "
            f"{shard_path('', no, count).name}; give it its own name again, so that the others can be found"
        )
    if no != 0:
        raise MtprefError(
            f"{first.label}: file {no + 1} of {count} of a split model, expected the first; give "
            f"{printable(str(shard_path(prefix, 0, count)), 400)}"
        )
    return prefix


def _check_present(first: GgufFile, paths: list[Path]) -> None:
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        named = listed(missing, MAX_NAMED)
        raise MtprefError(
            f"{first.label}: {len(missing)} of its {len(paths)} files missing beside it: {named}; download "
            "all files of the model into one folder"
        )


# WRITE


def write_shards(
    prefix: str | Path,
    kv: Iterable[tuple[str, Any, str]],
    tensors: Iterable[tuple[str, str, tuple[int, ...], Data]],
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    first_is_empty: bool = False,
    options: WriteOptions | None = None,
) -> list[Path]:
    """Write a model as PREFIX-00001-of-0000N.gguf and so on, all files or none; gives their paths.

    kv, tensors     as `write_gguf`; all keys go to the first file, tensors in the order given
    max_tensors     tensors in a file at most; max_bytes: bytes of tensor data in a file at most (a tensor that is
                    larger has a file of its own). One of the two.
    first_is_empty  the first file holds the keys alone
    options         as `write_gguf`; files of a split model are never replaced, since that cannot be done in one step
    Errors          MtprefError as `write_gguf`; split keys in kv; more than MAX_SHARDS files
    """
    pairs, plan = list(kv), plan_tensors(tensors)
    if (max_tensors is None) == (max_bytes is None) or (max_tensors or max_bytes or 0) < 1:
        raise MtprefError(
            f"shards: max_tensors is {max_tensors} and max_bytes is {max_bytes}, expected one of them, 1 or more"
        )
    given = [key for key, _, _ in pairs if key.startswith("split.")]
    if given:
        raise MtprefError(f"shards: key {printable(given[0])} is given, expected keys of a model in one file")
    groups = _groups(plan, alignment_of(pairs), max_tensors, max_bytes)
    if first_is_empty:
        groups.insert(0, [])
    if len(groups) > MAX_SHARDS:
        raise MtprefError(f"shards: {len(groups)} files, expected at most {MAX_SHARDS}; choose a larger limit")
    paths = [shard_path(str(prefix), no, len(groups)) for no in range(len(groups))]
    split = [
        [(SPLIT_NO, no, "u16"), (SPLIT_COUNT, len(groups), "u16"), (SPLIT_TENSORS, len(plan), "i32")]
        for no in range(len(groups))
    ]
    split[0] = [*pairs, *split[0]]
    write_files(list(zip(paths, split, groups, strict=True)), options)
    return paths


def _groups(
    plan: list[PlannedTensor], alignment: int, max_tensors: int | None, max_bytes: int | None
) -> list[list[PlannedTensor]]:
    groups: list[list[PlannedTensor]] = [[]]
    n_bytes = 0
    for t in plan:
        size = -(-t.n_bytes // alignment) * alignment
        is_full = len(groups[-1]) == max_tensors or (max_bytes is not None and n_bytes + size > max_bytes)
        if is_full and groups[-1]:
            groups.append([])
            n_bytes = 0
        groups[-1].append(t)
        n_bytes += size
    return groups
