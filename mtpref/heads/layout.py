"""What of a file is its MTP head: by the keys, checked against the tensors.

Source: llama.cpp conversion/qwen.py (--mtp, --no-mtp), src/models/qwen35.cpp.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mtpref.errors import MtprefError
from mtpref.gguf import GgufFile, printable
from mtpref.identify import describe_kind
from mtpref.tensor_names import D2T, MTP_BLOCK

FAMILY = ("qwen35", "qwen35moe", "qwen3next")  # the converter treats the head of these alike
SHARED = ("token_embd.weight", "output_norm.weight", "output.weight")
BLOCK_COUNT, NEXTN = "block_count", "nextn_predict_layers"
MAX_NAMED = 4


@dataclass(frozen=True)
class HeadLayout:
    """arch; n_trunk: trunk blocks; n_nextn: MTP blocks by the keys; names: the head's tensors, in file order."""

    arch: str
    n_trunk: int
    n_nextn: int
    names: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Required tensors that are not there (of a dense block: the experts of others are not listed)."""
        here = set(self.names)
        ffn = () if self.arch == "qwen35" else (".ffn_",)
        return [
            name
            for i in range(self.n_trunk, self.n_trunk + self.n_nextn)
            for spec in MTP_BLOCK
            if spec.required and not any(part in spec.name for part in ffn)
            if (name := spec.name.format(i=i)) not in here
        ]


def layout_of(file: GgufFile) -> HeadLayout:
    """The head of an open file; n_nextn is 0 and names are empty without one.

    Errors   MtprefError for what is no model, another architecture, impossible counts, MTP tensors that no key declares
    """
    what = describe_kind(file)
    if what is not None:
        raise MtprefError(f"{file.label}: this is {what}")
    arch = str(file.require("general.architecture", "str"))
    if arch not in FAMILY:
        raise MtprefError(f"{file.label}: architecture {printable(arch)}, expected one of {', '.join(FAMILY)}")
    n_block = int(file.require(f"{arch}.{BLOCK_COUNT}", "int"))
    n_nextn = int(file.require(f"{arch}.{NEXTN}", "int")) if f"{arch}.{NEXTN}" in file.kv else 0
    if not 0 <= n_nextn < n_block:
        raise MtprefError(f"{file.label}: key {arch}.{NEXTN} is {n_nextn}, expected less than {arch}.{BLOCK_COUNT} = "
                          f"{n_block}")  # fmt: skip
    layout = layout_by(arch, n_block, n_nextn, file.tensors)
    if layout.names and not n_nextn:
        _refuse_undeclared(file, arch, layout.names)
    return layout


def layout_by(arch: str, n_block: int, n_nextn: int, names: Iterable[str]) -> HeadLayout:
    """The same from numbers and names."""
    n_trunk = n_block - n_nextn
    return HeadLayout(
        arch,
        n_trunk,
        n_nextn,
        tuple(name for name in names if _block_of(name) >= n_trunk or (n_nextn and name == D2T.name)),
    )


def _refuse_undeclared(file: GgufFile, arch: str, names: tuple[str, ...]) -> None:
    raise MtprefError(
        f"{file.label}: {len(names)} tensors of blocks behind {arch}.{BLOCK_COUNT} ({_named(names)}), but key "
        f"{arch}.{NEXTN} is absent or 0: which of them are a head is not said; convert the model again"
    )


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(printable(name) for name in names[:MAX_NAMED]) + ", ..." * (len(names) > MAX_NAMED)


def _block_of(name: str) -> int:
    """N of blk.N.*, else -1."""
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal() else -1
