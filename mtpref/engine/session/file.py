"""State files: one sequence's tokens, model state and checkpoints in a GGUF. docs/sessions.md lists keys and tensors.

Owns the layout, and the refusal of a file that belongs to something else or is damaged. The same state gives the same
bytes. It must not know when a state is saved.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.engine.session.identity import head_id, trunk_id
from mtpref.files.gguf import GgufFile, open_gguf, printable, without_leading_ones, write_gguf
from mtpref.spec.state import KV_DTYPES, Checkpoint, LayerState, ModelState

SCHEMA = "mtpref-session-1"
KEY = "mtpref.session"
MAX_CHECKPOINTS = 1024
LENGTHS = ("n_past", "n_mtp", "mtp_start")
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Saved:
    """What a file holds beside the positional cells, which `read_session` puts into the state."""

    ids: list[int]
    mark: Checkpoint
    checkpoints: list[Checkpoint]


@dataclass(frozen=True)
class _Slot:
    """One tensor of the file. il: the layer, n_layer for the head (llama.cpp gives its block the next number)."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    il: int
    array: str


def _cells(state: ModelState, lengths: Checkpoint) -> list[_Slot]:
    """Positional arrays up to their lengths: the trunk's, then the head's."""
    slots, n_layer = [], len(state.layers)
    n_mtp, _ = head_lengths(lengths)
    for il, layer in enumerate(_all_layers(state)):
        length, prefix = (lengths.n_past, "") if il < n_layer else (n_mtp, "mtp_")
        for spec in layer.specs:
            if spec.positional and spec.n_cells(length):
                name = f"{prefix}{spec.name}-{il}"
                slots.append(_Slot(name, spec.kv_type, (spec.n_cells(length), *spec.shape), il, spec.name))
    return slots


def _carried(state: ModelState, prefix: str) -> list[_Slot]:
    """What has no past of its own, for the mark or for one checkpoint; the pending hidden row comes last."""
    slots = [
        _Slot(f"{prefix}{spec.name}-{il}", spec.kv_type, spec.shape, il, spec.name)
        for il, layer in enumerate(state.layers)
        for spec in layer.specs
        if not spec.positional
    ]
    return [*slots, _Slot(f"{prefix}pending_h", "F32", state.pending_h.shape, 0, "")]


def _prefixes(n_checkpoints: int) -> list[str]:
    return ["", *(f"checkpoint-{i}." for i in range(n_checkpoints))]


def _all_layers(state: ModelState) -> list[LayerState]:
    """The trunk's, then the heads'."""
    return [*state.layers, *(head.layer for head in state.heads)]


def head_lengths(lengths: Checkpoint) -> tuple[int, int]:
    """n_mtp and mtp_start: between rounds all heads of a chain hold the same positions. (0, 0) without a head."""
    found = {pair for pair in lengths.heads if pair != (0, 0)} or {(0, 0)}
    if len(found) > 1:
        raise ValueError(f"heads with different cells {sorted(found)}: a state is saved between rounds")
    return found.pop()


# WRITE


def write_session(
    path: str | Path, core: Model, state: ModelState, ids: list[int], mark: Checkpoint, checkpoints: list[Checkpoint]
) -> None:
    """Write what `read_session` reads: the state as it is at `mark`, whatever has happened to it since.

    Errors  MtprefError where the file cannot be written; an older file stays as it was then
    """
    if any(held is not None for held in mark.held):
        raise MtprefError(
            f"{printable(str(path), 400)}: catch_up is {core.recipe.contract.catch_up}, expected target: a session's "
            "file has no place for rows that heads hold back; use `contract` catch_up=target"
        )
    kv: list[tuple[str, Any, str]] = [("general.architecture", "mtpref-session", "str")]
    kv += [(f"{KEY}.{name}", value, "str") for name, value in _identity(core).items()]
    kv += [
        (f"{KEY}.ids", np.asarray(ids, np.int32), "arr:i32"),
        (f"{KEY}.n_mtp", head_lengths(mark)[0], "u32"),
        (f"{KEY}.mtp_start", head_lengths(mark)[1], "u32"),
    ]
    rows = [(c.n_past, *head_lengths(c)) for c in checkpoints]
    for i, name in enumerate(LENGTHS):
        kv.append((f"{KEY}.checkpoint_{name}", [row[i] for row in rows], "arr:u32"))
    tensors = []
    for slot in _cells(state, mark):
        tensors.append((slot, _all_layers(state)[slot.il].arrays[slot.array][: slot.shape[0]]))
    for prefix, saved in zip(_prefixes(len(checkpoints)), [mark, *checkpoints], strict=True):
        for slot in _carried(state, prefix):
            tensors.append((slot, saved.recurrent[slot.il][slot.array] if slot.array else saved.pending_h))
    write_gguf(path, kv, [(s.name, s.type_name, s.shape, a.view(DTYPES[s.type_name])) for s, a in tensors])


def _identity(core: Model) -> dict[str, str]:
    """What must be the same where the state is used again."""
    return {
        "schema": SCHEMA,
        "model_arch": core.config.arch,
        "model": trunk_id(core),
        "head": head_id(core),
        "numerics": core.recipe.numerics,
        "contract": core.contract_name,
        "kv_type": core.kv_type,
        "kv_type_draft": core.kv_type_draft,
    }


# READ


def read_session(path: str | Path, core: Model, state: ModelState) -> Saved:
    """Fill an empty state from a file. Where the model has no head, the file's head cells are left out.

    Errors   MtprefError, one line, for a file of another model, quantisation, contract, numerics or KV type, for a
             damaged one, and for one that does not fit the state's context; the state is not usable then
    Cost     nothing is allocated before every length and shape has been checked
    """
    with open_gguf(path) as file:
        has_head = _check_identity(file, core)
        ids = _ids(file, core, state)
        mark, *checkpoints = _lengths(file, state, len(ids), has_head)
        prefixes = _prefixes(len(checkpoints))
        cells = _cells(state, mark)
        _check_tensors(file, [*cells, *(slot for prefix in prefixes for slot in _carried(state, prefix))], has_head)
        state.reserve(len(ids))
        for head, (n_cells, _) in zip(state.heads, mark.heads, strict=True):
            head.reserve(n_cells)
        for slot in cells:
            array = _all_layers(state)[slot.il].arrays[slot.array]
            array[: slot.shape[0]] = _read(file, slot).view(array.dtype)
        filled = [_fill(file, state, *pair) for pair in zip(prefixes, [mark, *checkpoints], strict=True)]
    state.n_past = mark.n_past
    for head, lengths in zip(state.heads, mark.heads, strict=True):
        head.n_cells, head.start = lengths
    state.restore(filled[0])
    return Saved(ids, filled[0], filled[1:])


def _check_identity(file: GgufFile, core: Model) -> bool:
    """Whether file and model both have, or could have, head cells; refuses a file that belongs to something else."""
    if file.get("general.architecture") != "mtpref-session":
        raise MtprefError(
            f"{file.label}: not a state file of mtpref, expected general.architecture mtpref-session; "
            "was it written by `Session.save`?"
        )
    here = _identity(core)
    for name, expected in here.items():
        found = str(file.require(f"{KEY}.{name}", "str"))
        if name == "head" and not (found and expected):
            continue
        if found != expected:
            raise MtprefError(
                f"{file.label}: {KEY}.{name} is {printable(found, 80)}, expected {expected}, that of "
                f"{OWNERS[name]}; use what wrote the file, or another file"
            )
    return bool(here["head"])


OWNERS = {
    "schema": "this version of mtpref",
    "model_arch": "this model",
    "model": "this model (weights or hyper-parameters differ: another model, quantisation or `rope`)",
    "head": "this model's MTP head (its weights differ)",
    "numerics": "this run (`numerics`)",
    "contract": "this run (`contract`)",
    "kv_type": "this run (`kv_type`)",
    "kv_type_draft": "this run (`kv_type_draft`)",
}


def _ids(file: GgufFile, core: Model, state: ModelState) -> list[int]:
    key = f"{KEY}.ids"
    file.require(key, "arr:i32")
    n_ids = file.kv.size(key)
    if n_ids > state.n_ctx:
        raise MtprefError(
            f"{file.label}: {n_ids} tokens, expected at most {state.n_ctx}; use a larger `n_ctx`, or another file"
        )
    ids = file.kv[key].to_numpy()
    if n_ids and not 0 <= ids.min() <= ids.max() < core.n_vocab:
        raise _damaged(file, f"key {key} holds ids from {ids.min()} to {ids.max()}", f"0 .. {core.n_vocab - 1}")
    return [int(i) for i in ids]


def _lengths(file: GgufFile, state: ModelState, n_past: int, has_head: bool) -> list[Checkpoint]:
    """The mark and the checkpoints, with lengths only: each is a prefix of the next, and the last of the mark."""
    columns = [[n_past], [file.require(f"{KEY}.n_mtp", "u32")], [file.require(f"{KEY}.mtp_start", "u32")]]
    for column, name in zip(columns, LENGTHS, strict=True):
        key = f"{KEY}.checkpoint_{name}"
        file.require(key, "arr:u32")
        if file.kv.size(key) > MAX_CHECKPOINTS:
            raise _damaged(file, f"key {key} has {file.kv.size(key)} entries", f"at most {MAX_CHECKPOINTS}")
        column += [int(n) for n in file.kv[key].to_numpy()]
    if len({len(column) for column in columns}) != 1:
        raise _damaged(file, "its checkpoints have different numbers of lengths", "one of each for every checkpoint")
    rows = list(zip(*columns, strict=True))
    for n, n_mtp, mtp_start in rows:
        is_prefix = n_mtp <= rows[0][1] and (n_mtp == 0 or mtp_start == rows[0][2])
        if not (0 < n <= n_past or n == n_past == 0) or mtp_start + n_mtp > n or not is_prefix:
            raise _damaged(file, f"{n} positions with {n_mtp} MTP cells from {mtp_start}",
                           f"a prefix of {n_past} with {rows[0][1]} from {rows[0][2]}")  # fmt: skip
    if any(row[0] >= later[0] for row, later in pairwise(rows[1:])):
        raise _damaged(file, "its checkpoints are out of order", "positions that rise")
    n_heads = len(state.heads)
    lengths = [
        Checkpoint(n, ((n_mtp, start if n_mtp else 0),) * n_heads, state.pending_h, ()) for n, n_mtp, start in rows
    ]
    return lengths if has_head else [c.without_head() for c in lengths]


def _check_tensors(file: GgufFile, slots: list[_Slot], has_head: bool) -> None:
    """Exactly the expected tensors, with the expected types and shapes."""
    for slot in slots:
        info = file.tensors.get(slot.name)
        if info is None:
            raise _damaged(file, f"tensor {slot.name} is missing", f"{slot.type_name} of shape {slot.shape[::-1]}")
        found = (info.type_name, without_leading_ones(info.shape))
        if found != (slot.type_name, without_leading_ones(slot.shape)):
            raise _damaged(file, f"tensor {slot.name} is {info.type_name} of shape {info.ne}",
                           f"{slot.type_name} of shape {slot.shape[::-1]}")  # fmt: skip
    names = {slot.name for slot in slots}
    for name in file.tensors:
        if name not in names and (has_head or not name.startswith("mtp_")):
            raise _damaged(file, f"tensor {printable(name)} belongs to nothing", f"{len(names)} tensors")


def _read(file: GgufFile, slot: _Slot) -> NDArray[Any]:
    """A tensor's elements, which must be numbers: NaN would spread through all that follows."""
    data = file.data(slot.name).view(DTYPES[slot.type_name]).reshape(slot.shape)
    is_nan = (data & 0x7FFF) > 0x7F80 if slot.type_name == "BF16" else np.isnan(data)
    if is_nan.any():
        raise _damaged(file, f"tensor {slot.name} holds {int(is_nan.sum())} NaN", "numbers")
    return data


def _fill(file: GgufFile, state: ModelState, prefix: str, lengths: Checkpoint) -> Checkpoint:
    recurrent: list[dict[str, NDArray]] = [{} for _ in state.layers]
    *slots, pending = _carried(state, prefix)
    for slot in slots:
        recurrent[slot.il][slot.array] = _read(file, slot).view(KV_DTYPES[slot.type_name]).copy()
    return replace(lengths, recurrent=tuple(recurrent), pending_h=_read(file, pending).astype(np.float32))


def _damaged(file: GgufFile, found: str, expected: str) -> MtprefError:
    return MtprefError(f"{file.label}: {found}, expected {expected}; the state file is damaged, delete it")
