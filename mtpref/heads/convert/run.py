"""A conversion from end to end: checkpoint in, GGUF file out, in bounded memory.

Owns which tensors go in, their types, and what is refused or said. Facts: llama.cpp conversion/base.py
(prepare_tensors): one-dimensional tensors, norms, the convolution and what is no .weight stay F32; a row that the
type's block does not divide becomes F16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import assistant_of
from mtpref.base.errors import MtprefError
from mtpref.base.settings import OneOf, check_fields
from mtpref.files.gguf import QUANTIZATION_VERSION, WriteOptions, printable, tensor_bytes, write_gguf
from mtpref.files.vocab.pretokenizers import unusual_pre
from mtpref.heads.convert.expected import expected_shapes
from mtpref.heads.convert.general import description
from mtpref.heads.convert.keys import Keys, hyper_parameters
from mtpref.heads.convert.vocabulary import vocabulary
from mtpref.heads.hf import (
    Checkpoint,
    Inventory,
    Part,
    TextConfig,
    canonical,
    gguf_tensors,
    open_checkpoint,
    text_config,
)
from mtpref.heads.hf.checkpoint import INDEX
from mtpref.spec.kinds.windowed import FACTORS
from mtpref.spec.quants import TYPE_IDS, TYPES, quantize

# --outtype -> (type of matrices, general.file_type as llama.cpp numbers it)
OUTTYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7)}
_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a conversion is asked for.

    outtype         f32, f16, bf16 or q8_0
    which           "both", "mtp" (the head alone, as --mtp) or "trunk" (as --no-mtp)
    allow_unmapped  go on without tensors that have no place in a GGUF
    pre             the pre-tokenizer's name; None: found by behaviour
    keeps_codes     4-bit codes of the source stay as they are, in Q4_0 or MXFP4 blocks, where those hold the very same
                    values, whatever outtype says
    drops_copies    of the head's own tensors leave out those that are the trunk's, value by value, where a run takes
                    the trunk's in their place
    """

    outtype: Annotated[str, OneOf(tuple(OUTTYPES))] = "bf16"
    which: Annotated[str, OneOf(("both", "mtp", "trunk"))] = "both"
    allow_unmapped: bool = False
    pre: str | None = None
    keeps_codes: bool = True
    drops_copies: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "convert.Settings")


@dataclass
class Converted:
    """What was written, and what is to be said about it."""

    path: Path
    n_tensors: int
    n_mtp: int
    types: dict[str, int]  # ggml type -> tensors
    n_bytes: int  # of tensor data
    notes: list[str] = field(default_factory=list)


def convert(
    folder: str | Path, target: str | Path, settings: Settings, *, options: WriteOptions | None = None
) -> Converted:
    """Convert a checkpoint folder.

    options   as `write_gguf` takes them
    Errors    MtprefError: whatever the checkpoint lacks; tensors without a place (unless allowed); a head that
              config.json declares and no tensor is of, or that is asked for and absent
    """
    with open_checkpoint(folder) as checkpoint:
        made = plan(checkpoint, settings)
        write_gguf(target, made.keys, made.tensors, options=options)
    return _converted(Path(target), made.parts, made.n_mtp, made.notes)


@dataclass(frozen=True)
class Plan:
    """What a conversion will write: keys and tensors as `write_gguf` takes them.

    parts   (part, ggml type) of each    found: the whole checkpoint's inventory
    """

    keys: Keys
    tensors: list[tuple[str, str, tuple[int, ...], Callable[[], Iterator[NDArray[np.uint8]]]]]
    parts: list[tuple[Part, str]]
    found: Inventory
    n_mtp: int
    notes: list[str]


def plan(checkpoint: Checkpoint, settings: Settings, *, needs_shared: bool = True) -> Plan:
    """The plan for an open checkpoint, which must stay open until it is written.

    needs_shared  False: of what a head shares with its trunk, leave out what cannot be read
    Errors        as `convert`
    """
    config, found, parts, n_mtp, notes = checked_parts(checkpoint, settings, needs_shared=needs_shared)
    if settings.drops_copies:
        copies = _copies(checkpoint, parts)
        parts = [part for part in parts if part.name not in copies]
        notes += [f"{name} is left out: it is {other}, value by value" for name, other in copies.items()]
    type_name, file_type = OUTTYPES[settings.outtype]
    kept = {}
    if settings.keeps_codes and checkpoint.formats():
        kept = {part.name: part.keeps(checkpoint) for part in parts if part.place.tensor.is_typed}
    planned = [(part, _type(part, type_name, kept.get(part.name))) for part in parts]
    for kind, n in sorted(Counter(kind for kind in kept.values() if kind).items()):
        notes.append(
            f"{n} tensors keep their codes, in {kind} blocks that hold the same values (--decode: as the others)"
        )
    made = _made(config)
    shapes = [(part.name, part.shape) for part in parts]
    keys: Keys = description(checkpoint.folder, config.sheet.name, [*((t[0], t[2]) for t in made), *shapes])
    keys += hyper_parameters(config, n_mtp, file_type)
    keys.append(("general.quantization_version", QUANTIZATION_VERSION, "u32"))
    keys += vocabulary(checkpoint, config.vocab_size, config.sheet, settings.pre)
    pre = next((value for key, value, _ in keys if key == "tokenizer.ggml.pre"), None)
    if pre is not None and (odd := unusual_pre(config.sheet.name, pre, config.sheet.pre)) is not None:
        notes.append(odd)
    tensors = [
        (
            part.name,
            kind,
            part.shape,
            _data(checkpoint, part, kind, is_kept=kept.get(part.name) == kind, below=_below(part, config)),
        )
        for part, kind in planned
    ]
    return Plan(keys, [*made, *tensors], planned, found, n_mtp, notes)


def _made(config: TextConfig) -> list[tuple[str, str, tuple[int, ...], Callable[[], Iterator[NDArray[np.uint8]]]]]:
    """Tensors that no checkpoint has and a converter makes of config.json: factors of RoPE."""
    hf = config.sheet.hf
    factors = hf.factors(config.found) if hf is not None and hf.factors is not None else None
    if factors is None:
        return []
    data = np.asarray(factors, np.float32)
    return [(FACTORS, "F32", data.shape, lambda: iter([data.view(np.uint8)]))]


def checked_parts(
    checkpoint: Checkpoint, settings: Settings, *, needs_shared: bool = True
) -> tuple[TextConfig, Inventory, list[Part], int, list[str]]:
    """(configuration, inventory, what will be written, MTP blocks, notes): all there and in shape. No vocabulary is
    read, and no weight.

    Errors   as `convert`
    """
    config = text_config(checkpoint.config, checkpoint.label)
    found = gguf_tensors(checkpoint, config)
    notes = _notes(checkpoint, config, found, settings)
    n_mtp = _n_mtp(checkpoint, config, found, settings, notes)
    parts = {"both": found.parts, "mtp": found.of_head(), "trunk": found.of_trunk()}[settings.which]
    for name, text in found.shared_faults.items():
        if needs_shared:
            raise MtprefError(f"{checkpoint.label}: {text}")
        notes.append(f"{name} is left out: {text}")
    _check_whole(checkpoint, config, found, parts, n_mtp, settings.which)
    if settings.which == "both" and n_mtp:
        _check_streams(checkpoint, found)
    return config, found, parts, n_mtp, notes


def _converted(target: Path, planned: list[tuple[Part, str]], n_mtp: int, notes: list[str]) -> Converted:
    types = dict(Counter(kind for _, kind in planned))
    n_bytes = sum(tensor_bytes(kind, part.shape) for part, kind in planned)
    return Converted(target, len(planned), n_mtp, types, n_bytes, notes)


def _type(part: Part, wanted: str, kept: str | None) -> str:
    if part.place.tensor.below is not None:
        return "I32"
    if not part.place.tensor.is_typed:
        return "F32"
    if kept is not None:
        return kept
    return "F16" if part.shape[-1] % TYPES[TYPE_IDS[wanted]].block_elements else wanted


def _data(
    checkpoint: Checkpoint, part: Part, kind: str, *, is_kept: bool, below: int
) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    if is_kept:
        return lambda: part.blocks(checkpoint)
    if kind == "I32":
        return lambda: _table(checkpoint, part, below)
    return lambda: (quantize(kind, piece) for piece in part.pieces(checkpoint))


def _below(part: Part, config: TextConfig) -> int:
    """Of a table: what its numbers must be below."""
    below = part.place.tensor.below
    return (below.value(config.values) or 0) if below is not None else 0


def _table(checkpoint: Checkpoint, part: Part, below: int) -> Iterator[NDArray[np.uint8]]:
    """A table's numbers as int32, rows at a time. Errors: MtprefError for one that is out of range"""
    for piece in part.pieces(checkpoint):  # below 2**24, which float32 holds
        low, high = int(piece.min()), int(piece.max())
        if low < 0 or high >= below:
            bad = low if low < 0 else high
            raise MtprefError(f"{checkpoint.label}: {printable(part.source)} holds {bad}, expected 0 .. {below - 1}")
        yield piece.astype("<i4").view(np.uint8)


# WHAT IS THERE


def _copies(checkpoint: Checkpoint, parts: list[Part]) -> dict[str, str]:
    """Tensors of the head, and those of the trunk that they repeat: a run takes these where a head has none of its own.

    Bits are compared, of the values that a checkpoint's codes stand for.
    """
    by_name = {part.name: part for part in parts}
    found: dict[str, str] = {}
    for part in parts:
        tensor = part.place.tensor
        other = next((by_name[name] for name in tensor.fallback if name in by_name), None) if part.is_head else None
        if other is not None and other.shape == part.shape:
            pairs = zip(part.pieces(checkpoint), other.pieces(checkpoint), strict=True)
            if all(np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in pairs):
                found[part.name] = other.name
    return found


def _notes(checkpoint: Checkpoint, config: TextConfig, found: Inventory, settings: Settings) -> list[str]:
    notes = [f"{name}, which {INDEX} does not list, holds tensors of the MTP head" for name in checkpoint.unlisted]
    notes += [f"{n} tensors are stored as {kind}: read as the values that they stand for"
              for kind, n in sorted(checkpoint.formats().items())]  # fmt: skip
    if checkpoint.declared.method and not checkpoint.formats():
        method = printable(checkpoint.declared.method)
        notes.append(f"config.json says that tensors are quantised ({method}); none of those that are read is")
    doubt = config.sheet.hf.doubt if config.sheet.hf else None
    if doubt is not None and (told := doubt(config.found)) is not None:
        notes.append(told)
    if checkpoint.is_mlx:
        notes.append("MLX saved it, which adds 1 to norms that are added to once more here: `mtpref check` tells")
    if checkpoint.aside:
        notes.append(f"{len(checkpoint.aside)} scales of activations or caches are left out: no part of the weights")
    if found.unmapped:
        hf = config.sheet.hf
        head = hf.head.format(il=config.n_layer, i=0) if hf else ""
        listed = sorted(found.unmapped, key=lambda name: not canonical(name).startswith(head))  # the head's first
        names = ", ".join(printable(name) for name in listed[:_LISTED])
        more = f" and {len(found.unmapped) - _LISTED} more" if len(found.unmapped) > _LISTED else ""
        if not settings.allow_unmapped:
            raise MtprefError(
                f"{checkpoint.label}: {len(found.unmapped)} tensors have no place in a {config.sheet.name} GGUF: "
                f"{names}{more}; expected {_type_of(config)}'s; leave them out with `convert.Settings.allow_unmapped`"
            )
        notes.append(f"left out, since a {config.sheet.name} GGUF has no place for them: {names}{more}")
    if found.idle:
        notes.append(f"{len(found.idle)} tensors that no graph has a use for are left out: {found.idle[0]}, ...")
    if found.set_aside:
        notes.append(
            f"{len(found.set_aside)} tensors of vision or audio parts are left out: a text model has no use for them"
        )
    return notes


def _check_streams(checkpoint: Checkpoint, found: Inventory) -> None:
    """Refuse one file of a trunk and a head that put their streams together each in its own way."""
    own = {part.name: part for part in found.parts}
    for root in found.roots:
        trunk = own.get(root.name)
        if trunk is None or not np.array_equal(trunk.values(checkpoint), root.values(checkpoint)):
            beside = "is missing" if trunk is None else f"differs from {printable(trunk.source)}"
            raise MtprefError(
                f"{checkpoint.label}: {printable(root.source)}, beside which the trunk's {beside}: trunk and head put "
                "their streams together each in its own way, and in one file llama.cpp has the trunk's for both; make "
                "two files, with `which=trunk` and with `which=mtp`"
            )


def _type_of(config: TextConfig) -> str:
    return config.sheet.hf.model_types[0] if config.sheet.hf else config.sheet.name


def _n_mtp(checkpoint: Checkpoint, config: TextConfig, found: Inventory, settings: Settings, notes: list[str]) -> int:
    """MTP blocks that the file declares, after a word about whatever config.json and tensors disagree on."""
    declared, present, hf = config.n_heads or 0, found.n_mtp, config.sheet.hf
    if config.sheet.target:
        if settings.which != "both":
            raise MtprefError(
                f"{checkpoint.label}: an assistant of {config.sheet.target} models, which is a head and nothing else: "
                "expected a conversion of the whole"
            )
        return 0
    if (own := assistant_of(config.sheet.name)) is not None:
        apart = f"a checkpoint of its own drafts for {config.sheet.name} models ({own.name})"
        if settings.which == "mtp":
            raise MtprefError(f"{checkpoint.label}: no MTP head: {apart}; convert that one")
        notes.append(f"no MTP head: {apart}")
        return 0
    if settings.which == "trunk":
        if present:
            notes.append("the MTP head is left out, as --no-mtp says")
        return 0
    field, prefix = (hf.n_heads, hf.head) if hf else ("", "")
    tensors = f"{prefix.format(il=config.n_layer, i=0)}*"
    most = config.sheet.n_heads if config.sheet.head else 0
    if present > most:
        at_most = "one" if most == 1 else most
        raise MtprefError(
            f"{checkpoint.label}: {present} MTP blocks, expected at most {at_most}: no {config.sheet.name} graph runs "
            "more; convert the trunk with `which=trunk`"
        )
    if declared and present and declared != present:
        blocks = "1 MTP block" if present == 1 else f"{present} MTP blocks"
        raise MtprefError(
            f"{checkpoint.label}: config.json says {field} {declared}, the tensors have "
            f"{blocks}, expected as many: part of the head is lost, or config.json is wrong; take "
            "the original checkpoint, or correct config.json"
        )
    if declared and not present:
        raise MtprefError(
            f"{checkpoint.label}: config.json says {field} {declared}, and no tensor of an "
            "MTP head is there; did the program that saved it drop it? take the original checkpoint, "
            "or convert the trunk with `which=trunk`"
        )
    if not present:
        if settings.which == "mtp":
            raise MtprefError(f"{checkpoint.label}: no tensor of an MTP head ({tensors}), expected one for `which=mtp`")
        says = "neither config.json nor the tensors have one" if hf is None or hf.says_heads else f"no tensor {tensors}"
        notes.append(f"no MTP head: {says}")
    elif not declared and hf is not None and hf.says_heads:
        notes.append(f"config.json lacks {field}; the tensors have an MTP head, which is kept")
    return present


def _check_whole(
    checkpoint: Checkpoint, config: TextConfig, inventory: Inventory, parts: list[Part], n_mtp: int, which: str
) -> None:
    """Refuse a checkpoint that lacks a tensor which every such model has, or has it in another shape."""
    wrong = {"both": (False, True), "mtp": (True,), "trunk": (False,)}[which]
    fault = next((text for is_head, text in inventory.faults if is_head in wrong), None)
    if fault is not None:
        raise MtprefError(f"{checkpoint.label}: {fault}")
    found = {part.name: part.shape for part in parts}
    expected = expected_shapes(config, n_mtp, frozenset(found), has_trunk=which != "mtp")
    left = {*inventory.shared_faults}  # a caller that needs them has been refused
    left |= {FACTORS} if config.sheet.hf and config.sheet.hf.factors else set()  # made of config.json
    missing = [name for name, (_, required) in expected.items() if required and name not in found and name not in left]
    if missing:
        head = " of the MTP head" if ".nextn." in missing[0] or which == "mtp" else ""
        raise MtprefError(
            f"{checkpoint.label}: {len(missing)} tensors{head} are missing, the first becomes "
            f"{missing[0]}; was the checkpoint saved whole?"
        )
    for part in parts:
        if part.name not in expected:
            raise MtprefError(
                f"{checkpoint.label}: {printable(part.source)} would become {part.name}, which this "
                "layer does not have as config.json describes it, expected no such tensor"
            )
        wanted = expected[part.name][0]
        if wanted is not None and part.shape != wanted:
            raise MtprefError(
                f"{checkpoint.label}: {printable(part.source)}: {part.name} would have shape {part.shape}, expected "
                f"{wanted} as config.json's sizes say"
            )
