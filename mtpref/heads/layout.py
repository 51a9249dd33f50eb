"""What of a file is its MTP head: by the keys, checked against the tensors and the architecture's data sheet.

Source: llama.cpp conversion (--mtp, --no-mtp) and src/models, which count a head's blocks after the trunk's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mtpref.architectures import ARCHITECTURES, D2T
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, listed, printable
from mtpref.files.identify import describe_kind

BLOCK_COUNT, NEXTN = "block_count", "nextn_predict_layers"


@dataclass(frozen=True)
class HeadLayout:
    """arch; n_trunk: trunk blocks; n_nextn: MTP blocks; names: the head's tensors, in file order.

    is_declared   False: tensors named nextn are there, and no key counts their block
    """

    arch: str
    n_trunk: int
    n_nextn: int
    names: tuple[str, ...]
    is_declared: bool = True

    @property
    def missing(self) -> list[str]:
        """Required tensors that are not there."""
        here, sheet = set(self.names), ARCHITECTURES[self.arch]
        blocks = range(self.n_trunk, self.n_trunk + self.n_nextn)
        wanted = [tensor.at(i).name for i in blocks for tensor in sheet.head_tensors(i, here) if tensor.required]
        return [name for name in wanted if name not in here]


def layout_of(file: GgufFile) -> HeadLayout:
    """The head of an open file; n_nextn is 0 and names are empty without one.

    Errors   MtprefError for what is no model, another architecture, impossible counts, blocks that no key counts
    """
    what = describe_kind(file)
    if what is not None:
        raise MtprefError(f"{file.label}: this is {what}")
    arch = str(file.require("general.architecture", "str"))
    if arch not in ARCHITECTURES:
        raise MtprefError(f"{file.label}: architecture {printable(arch)}, expected one of {', '.join(ARCHITECTURES)}")
    if ARCHITECTURES[arch].target:
        raise MtprefError(
            f"{file.label}: this is an assistant of {ARCHITECTURES[arch].target} models: a head in a file of its own "
            "already, `model_draft` of its target; nothing is put in, taken out or split off"
        )
    n_block = int(file.require(f"{arch}.{BLOCK_COUNT}", "int"))
    n_nextn = int(file.require(f"{arch}.{NEXTN}", "int")) if f"{arch}.{NEXTN}" in file.kv else 0
    if not 0 <= n_nextn < n_block:
        raise MtprefError(
            f"{file.label}: key {arch}.{NEXTN} is {n_nextn}, expected less than {arch}.{BLOCK_COUNT} = {n_block}"
        )
    if not n_nextn:
        return _undeclared(file, arch, n_block)
    layout = layout_by(arch, n_block, n_nextn, file.tensors)
    if _is_trunk(file, arch, n_block - 1, layout.names):
        # The head is gone, and block_count was made that of the trunk: what the keys call the head is its last layer.
        return replace(layout_by(arch, n_block, 0, file.tensors), n_nextn=n_nextn)
    return layout


def _is_trunk(file: GgufFile, arch: str, il: int, names: tuple[str, ...]) -> bool:
    """Whether the block that the keys call the head is what a trunk of so many layers has there."""
    if any(".nextn." in name for name in names):
        return False
    blocks, _ = ARCHITECTURES[arch].layers.declared(_Counts(file, arch), il + 1, il + 1, [])
    marks = tuple(f"blk.{il}.{mark}" for mark in blocks[il].marks)
    return bool(marks) and any(name.startswith(marks) for name in names)


@dataclass(frozen=True)
class _Counts:
    """A file's keys as a data sheet asks for them; arrays have an entry for the head too, so they do not tell."""

    file: GgufFile
    arch: str

    def integer(self, key: str) -> int | None:
        key = f"{self.arch}.{key}"
        return int(self.file.require(key, "int")) if key in self.file.kv else None

    def integers(self, key: str, n: int) -> None:
        return None

    def flags(self, key: str, n: int) -> None:
        return None

    def has_tensor(self, name: str) -> bool:
        return name in self.file.tensors


def layout_by(arch: str, n_block: int, n_nextn: int, names: Iterable[str]) -> HeadLayout:
    """The same from numbers and names."""
    n_trunk = n_block - n_nextn
    return HeadLayout(
        arch,
        n_trunk,
        n_nextn,
        tuple(name for name in names if _block_of(name) >= n_trunk or (n_nextn and name == D2T.name)),
    )


def _undeclared(file: GgufFile, arch: str, n_block: int) -> HeadLayout:
    """A file whose keys know of no head: no nextn tensors, or some at the end, in blocks counted as trunk or not."""
    found = sorted({_block_of(name) for name in file.tensors if ".nextn." in name})
    if not found:
        layout = layout_by(arch, n_block, 0, file.tensors)
        if layout.names:
            raise MtprefError(
                f"{file.label}: {len(layout.names)} tensors of blocks after {arch}.{BLOCK_COUNT} = {n_block} "
                f"({listed(layout.names)}), none of them an MTP head's; convert the model again"
            )
        return layout
    n_trunk, n_nextn = found[0], len(found)
    if n_trunk < 1 or found != list(range(n_trunk, n_trunk + n_nextn)) or n_block not in (n_trunk, n_trunk + n_nextn):
        raise MtprefError(
            f"{file.label}: nextn tensors in {listed(tuple(f'blk.{i}' for i in found))}, no key {arch}.{NEXTN}, and "
            f"key {arch}.{BLOCK_COUNT} is {n_block}: which blocks are the head is not said; convert the model again"
        )
    return replace(layout_by(arch, n_trunk + n_nextn, n_nextn, file.tensors), is_declared=False)


def _block_of(name: str) -> int:
    """N of blk.N.*, else -1."""
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal() else -1
