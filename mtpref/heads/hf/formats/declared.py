"""What config.json says of how the tensors are stored: `quantization_config`, checked against what is there.

Owns its spellings. What is there decides; this names sizes that the tensors leave open (the block of a small matrix,
the version of GPTQ's zero points) and refuses tensors that it contradicts. Patterns (`re:...`) are not run: a tensor
must be what one of the groups says, and not be named as left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Sized, Within, describe, read_fields
from mtpref.files.gguf import printable

Bits = Annotated[int, Within(1, 64)]
Group = Annotated[int, Within(-1, 1 << 24)]
Block = Annotated[list[Annotated[int, Within(1, 1 << 24)]], Sized(2, 2)]
# Where a folder has it beside config.json: AutoGPTQ, AutoAWQ, Model-Optimizer.
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# quant_method -> the families of formats that it is about; others may stand beside them
FAMILIES = {
    "awq": ("awq",),
    "gptq": ("gptq",),
    "fp8": ("fp8",),
    "compressed-tensors": ("fp8", "int8", "packed", "nvfp4", "mxfp4"),
}
_VERSIONS = {"gptq": 1, "gemm": 1, "gptq_v2": 0}  # checkpoint_format of GPTQ -> what a stored zero lacks


def _symmetry(found: bool | None) -> list[str]:
    return [] if found is None else ["symmetric"] if found else ["with zero points"]


@dataclass(frozen=True)
class Facts:
    """What a tensor's parts say. group: columns with one scale, None where a group is no part of the format"""

    family: str
    type: str
    n_bits: int
    group: int | None = None
    is_one_group: bool = False
    is_symmetric: bool | None = None
    block: tuple[int, int] | None = None
    strategy: str | None = None

    def words(self) -> str:
        parts = [f"{self.type} {self.n_bits} bits"]
        parts += [f"strategy {self.strategy}"] if self.strategy else []
        parts += [f"block {list(self.block)}"] if self.block else []
        parts += [f"group_size {self.group}"] if self.group is not None else []
        return ", ".join(parts + _symmetry(self.is_symmetric))


@dataclass(frozen=True)
class Scheme:
    """`weights` of one of config_groups, or what another method says of all tensors."""

    num_bits: Bits | None = None
    type: str | None = None
    strategy: str | None = None
    group_size: Group | None = None
    symmetric: bool | None = None
    block_structure: Block | None = None

    def fits(self, facts: Facts) -> bool:
        whole = facts.is_one_group and self.group_size in (None, -1, 0)
        return (
            self.num_bits in (None, facts.n_bits)
            and self.type in (None, facts.type)
            and (facts.group is None or whole or self.group_size in (None, facts.group))
            and (facts.is_symmetric is None or self.symmetric in (None, facts.is_symmetric))
            and (facts.strategy is None or self._has_strategy(facts))
        )

    def _has_strategy(self, facts: Facts) -> bool:
        if self.strategy is None or facts.strategy is None:
            return True
        if facts.strategy == "block":
            block = None if self.block_structure is None else (self.block_structure[0], self.block_structure[1])
            return self.strategy == "block" and block in (None, facts.block)
        return self.strategy == facts.strategy or (facts.is_one_group and self.strategy in ("group", "channel"))

    def words(self) -> str:
        parts = [f"{self.type or 'int'} {self.num_bits} bits"] if self.num_bits else []
        parts += [f"strategy {printable(self.strategy)}"] if self.strategy else []
        parts += [f"block {self.block_structure}"] if self.block_structure else []
        parts += [f"group_size {self.group_size}"] if self.group_size is not None else []
        return ", ".join(parts + _symmetry(self.symmetric))


@dataclass(frozen=True)
class Declared:
    """method: quant_method, "" where nothing is said; less: what a stored zero of GPTQ lacks

    version   an AWQ or GPTQ layout that is not read, by its name
    """

    method: str = ""
    schemes: tuple[Scheme, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    less: int = 1
    version: str | None = None
    left_alone: frozenset[str] = field(default_factory=frozenset)

    def contradicts(self, module: str, facts: Facts) -> str | None:
        """Why a tensor of such a module cannot be what config.json says, or None."""
        if module in self.left_alone:
            return f"is stored as {facts.words()}, and config.json's quantization_config leaves it alone"
        if facts.family not in FAMILIES.get(self.method, ()):
            return None
        if self.method == "fp8" and self.blocks and facts.block not in (None, self.blocks[0]):
            return f"is stored as {facts.words()}, config.json says weight_block_size {list(self.blocks[0])}"
        if not self.schemes or any(scheme.fits(facts) for scheme in self.schemes):
            return None
        says = "; ".join(dict.fromkeys(scheme.words() for scheme in self.schemes[:4]))
        return f"is stored as {facts.words()}, config.json's quantization_config says {says}"


def declared(config: dict[str, Any], label: str, beside: Callable[[str], dict[str, Any] | None]) -> Declared:
    """What config.json, its text part, or a file beside it says.

    beside   reads another JSON file of the folder
    Errors   MtprefError for a field that is none
    """
    inner = config.get("text_config")
    for name in ("quantization_config", "compression_config", "quantization"):
        for outer in (config, inner if isinstance(inner, dict) else {}):
            found = outer.get(name)
            if found is not None:
                where = f"{label}: config.json: {name}"
                if not isinstance(found, dict):
                    raise MtprefError(f"{where} is {describe(found)}, expected an object")
                return _of(found, where, "" if name != "compression_config" else "compressed-tensors")
    for name, method in FILES.items():
        found = beside(name)
        if found is not None:
            return _of(found, f"{label}: {name}", method)
    return Declared()


@dataclass(frozen=True)
class _Method:
    quant_method: str | None = None
    packing_format: str | None = None


@dataclass(frozen=True)
class _Fp8:
    weight_block_size: Block | None = None


@dataclass(frozen=True)
class _Compressed:
    config_groups: dict[str, Any] | None = None
    ignore: list[Any] | None = None


@dataclass(frozen=True)
class _Words:
    """AWQ and GPTQ."""

    bits: Bits | None = None
    group_size: Group | None = None
    dynamic: dict[str, Any] | None = None
    checkpoint_format: str | None = None
    version: str | None = None


def _of(record: dict[str, Any], where: str, method: str) -> Declared:
    found = {key: value for key, value in record.items() if value is not None}
    given: _Method = read_fields(_Method, found, where)
    method = (given.quant_method or method).lower().replace("intel/", "")
    if method == "auto-round":
        packing = given.packing_format or ""
        method = "gptq" if "gptq" in packing else "awq" if "awq" in packing else method
    if method == "compressed-tensors":
        groups: _Compressed = read_fields(_Compressed, found, where)
        schemes = _schemes(groups.config_groups or {}, where)
        blocks = tuple((s.block_structure[0], s.block_structure[1]) for s in schemes if s.block_structure)
        names = (name for name in groups.ignore or () if isinstance(name, str) and not name.startswith("re:"))
        return Declared(method, schemes, blocks, left_alone=frozenset(names))
    if method == "fp8":
        fp8: _Fp8 = read_fields(_Fp8, found, where)
        block = fp8.weight_block_size
        return Declared(method, (), ((block[0], block[1]),) if block else ())
    return _of_words(method, read_fields(_Words, found, where)) if method in ("awq", "gptq") else Declared(method)


def _of_words(method: str, given: _Words) -> Declared:
    schemes = () if given.dynamic else (Scheme(num_bits=given.bits, group_size=given.group_size),)
    layout = ((given.version if method == "awq" else given.checkpoint_format) or "").lower()
    known = ("", "gemm") if method == "awq" else ("", *_VERSIONS)
    odd = None if layout in known else f"{method.upper()} of the layout {printable(layout, 40)}"
    return Declared(method, schemes, (), _VERSIONS.get(layout, 1), odd)


def _schemes(groups: dict[str, Any], where: str) -> tuple[Scheme, ...]:
    out = []
    for name, group in groups.items():
        at = f"{where}.config_groups.{printable(name)}"
        if not isinstance(group, dict):
            raise MtprefError(f"{at} is {describe(group)}, expected an object")
        weights = group.get("weights")
        if weights is None:
            continue
        if not isinstance(weights, dict):
            raise MtprefError(f"{at}.weights is {describe(weights)}, expected an object")
        known = {key: value for key, value in weights.items() if value is not None}
        out.append(read_fields(Scheme, known, f"{at}.weights"))
    return tuple(out)
