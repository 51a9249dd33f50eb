"""A checkpoint's folder on a server: its head judged as `check` judges a folder's, and copied as it is stored.

Of the tensors only the head's, and what a head shares with its trunk, are looked at: the index says in which files they
are, and no other file is opened. What is copied keeps its file's name, type and order, so that a conversion of the
small folder gives the bytes that one of the whole folder gives.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import SHARED
from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json
from mtpref.files.gguf import WriteOptions, check_folder, human_bytes, listed, printable, write_folder
from mtpref.files.gguf.whole import Part, check_space
from mtpref.files.remote import NotThereError, Place, RemoteFile, RemoteSafetensors, Spool
from mtpref.files.tensor_files.safetensors import Streamed, safetensors_part
from mtpref.heads.check import Finding, Report, marks
from mtpref.heads.check.checkpoint import folder_findings
from mtpref.heads.convert import Settings
from mtpref.heads.convert.general import LIMITS
from mtpref.heads.convert.run import checked_parts
from mtpref.heads.fetch.found import Found, Taken, unversioned
from mtpref.heads.hf import Checkpoint, TextConfig, canonical, gguf_tensors, refuse_apart, text_config
from mtpref.heads.hf.beside import NAMED, is_head_name
from mtpref.heads.hf.checkpoint import CONFIG, INDEX, MAX_JSON, WHOLE, check_names, read_index, read_json
from mtpref.heads.hf.formats.declared import FILES as DECLARED

MAX_CONFIG = 4 << 20
MAX_HEADERS = 128 << 20  # bytes of the headers of all files that are opened
MAX_OPENED = 256  # files that hold a part of the head; real ones are spread over fewer than ten
BESIDE = "mtp.safetensors"  # where a head in a file of its own is looked for, without a list of files
# What a conversion reads beside config.json and the weights, with the most bytes of each.
TEXTS = {
    **dict.fromkeys(("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"), MAX_JSON),
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), MAX_CONFIG),
    **dict.fromkeys(DECLARED, MAX_CONFIG),
    **LIMITS,
}


def look_checkpoint(place: Place) -> Found:
    """Open a checkpoint and judge what its head's files say. Errors: MtprefError as `look`"""
    folder = tempfile.TemporaryDirectory(prefix="mtpref-fetch-")
    files: dict[str, RemoteSafetensors] = {}
    try:
        return FoundCheckpoint(place, folder, files)
    except MtprefError as error:
        _close(folder, files)
        # Texts of the folder are read from copies of them.
        raise MtprefError(str(error).replace(f"{folder.name}/", place.named(""))) from None
    except BaseException:
        _close(folder, files)
        raise


class FoundCheckpoint(Found):
    """A checkpoint. files: those that hold the head and what it shares; index: all tensors -> file, None without one"""

    is_folder = True

    def __init__(
        self, place: Place, folder: tempfile.TemporaryDirectory[str], files: dict[str, RemoteSafetensors]
    ) -> None:
        self.place, self.files, self._folder, self._room = place, files, folder, MAX_HEADERS
        self.copies = Path(folder.name)
        if not self._copy(CONFIG, MAX_CONFIG):
            raise MtprefError(
                f"{place.label}: no {CONFIG} there, expected a checkpoint's folder or a URL of a GGUF file"
            )
        for name in DECLARED:
            self._copy(name, MAX_CONFIG)
        config = read_json(self.copies / CONFIG)
        self.config = text_config(config, place.label)
        refuse_apart(self.config, place.label)
        self.index = read_index(self.copies) if self._copy(INDEX, MAX_JSON) else None
        unlisted = self._open(config)
        self.checkpoint = Checkpoint(self.copies, config, dict(files), unlisted, place.label)
        self.size = self._size()
        found = gguf_tensors(self.checkpoint, self.config)
        self.parts = found.of_head()
        self.report = Report(place.label, None, False, folder_findings(self.checkpoint, self.config, found))
        self.report.findings += self._missing()
        self.report.findings += marks.of_checkpoint(config, self.checkpoint.metadata, bool(found.n_mtp))
        if found.n_mtp:
            self.report.findings += self._whole()
        self.report.findings += unversioned(self.remotes())
        self.report.findings.append(Finding("not-run", "the head", "headers alone were read"))

    # WHAT IS THERE

    def _copy(self, name: str, max_bytes: int) -> bool:
        """A small file of the folder into ours; whether there is one."""
        raw = self.place.small(name, max_bytes)
        if raw is not None:
            (self.copies / name).write_bytes(raw)
        return raw is not None

    def _open(self, config: dict[str, Any]) -> tuple[str, ...]:
        """Open the files that hold something wanted; gives those that the index does not list."""
        index, place = self.index, self.place
        if index is None:
            names = [WHOLE]
        else:
            index = {name: file for name, file in index.items() if self._is_wanted(name)}
            names = sorted(set(index.values()))
        if len(names) > MAX_OPENED:
            raise MtprefError(f"{place.label}: a head in {len(names)} files, expected at most {MAX_OPENED}; refused")
        for name in names:
            self._open_one(name)
        check_names(self.place.label, index, dict(self.files))
        known = {name for file in self.files.values() for name in file.names}
        if self.place.files is not None:
            listed_files = set(self.index.values()) if self.index is not None else {WHOLE}
            beside = sorted(n for n in self.place.files if n.endswith(".safetensors") and n not in listed_files)
            beside = [name for name in beside if NAMED.search(name)]
        else:
            beside = [] if any(is_head_name(name, self.config.n_layer) for name in known) else [BESIDE]
        return tuple(name for name in beside if self._open_beside(name, known))

    def _open_one(self, name: str) -> RemoteSafetensors:
        file = RemoteSafetensors(self.place.open(name), self._room)
        self._room -= file.header_bytes
        self.files[name] = file
        file.only(filter(self._is_wanted, file.names))
        return file

    def _open_beside(self, name: str, known: set[str]) -> bool:
        """A head's own file, as heads/hf/beside.py takes it; False for another."""
        try:
            file = RemoteSafetensors(self.place.open(name), self._room)
        except NotThereError:  # a name that was tried
            return False
        self.files[name] = file
        names = set(file.names)
        if not names or not all(is_head_name(one, self.config.n_layer) for one in names) or names <= known:
            self.files.pop(name).close()
            return False
        file.only(names)
        if both := sorted(names & known):
            raise MtprefError(
                f"{self.place.label}: tensor {printable(both[0])} is in {printable(name)} and in a file of the model, "
                "expected it once; download the folder and take one of the two away"
            )
        return True

    def _is_wanted(self, name: str) -> bool:
        """Whether a tensor is the head's, or one that a head shares with its trunk."""
        return is_head_name(name, self.config.n_layer) or canonical(name).startswith(_shared(self.config))

    def _missing(self) -> list[Finding]:
        if self.index is None or self.place.files is None:
            return []
        missing = sorted(set(self.index.values()) - set(self.place.files))
        text = f"{len(missing)} of the files of {INDEX} are not there: {listed(missing)}"
        return [Finding("shards-missing", INDEX, text)] if missing else []

    def _whole(self) -> list[Finding]:
        """What a conversion of the head would refuse; else its types."""
        try:
            _, found, parts, _, _ = checked_parts(
                self.checkpoint, Settings(which="mtp", allow_unmapped=True), needs_shared=False
            )
        except MtprefError as error:
            return [Finding("cannot-convert", "conversion", str(error).removeprefix(f"{self.checkpoint.label}: "))]
        kinds: dict[str, list[str]] = {}
        for part in parts:
            if part.is_head:
                kinds.setdefault(self._kind(part.source), []).append(
                    part.name.split(".", 2)[-1].removesuffix(".weight")
                )
        shared = ", ".join(part.name for part in found.of_head() if not part.is_head)
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items()))
        return [Finding("fallbacks", "shared with the trunk", shared or "nothing"), Finding("types", "types", text)]

    def _kind(self, name: str) -> str:
        stored = self.checkpoint.stored(name)
        return stored.kind or stored.dtype

    def _head_bytes(self) -> dict[bool, int]:
        """Bytes of the head's own tensors (True), and of what it shares (False)."""
        sizes: Counter[bool] = Counter()
        for file in self.files.values():
            for name in file.names:
                start, end = file.place(name)
                sizes[is_head_name(name, self.config.n_layer)] += end - start
        return dict(sizes)

    def _size(self) -> int:
        """Bytes of all weights: what the index says, else what the files have."""
        if self.index is not None:
            said = parse_json((self.copies / INDEX).read_bytes()).get("metadata")
            total = said.get("total_size") if isinstance(said, dict) else None
            if isinstance(total, int) and 0 <= total < 1 << 63:
                return total
        return sum(file.n_bytes for file in self.files.values())

    # OUT

    def lines(self, width: int) -> list[str]:
        sizes = self._head_bytes()
        n_files = len(set(self.index.values())) if self.index is not None else 1
        n_all = f", {len(self.index)} tensors" if self.index is not None else ""
        n_read = len(self.files)
        own = sum(part.is_head for part in self.parts)
        return [
            f"{printable(self.place.label, 400)}: a checkpoint of {self.config.name or self.config.sheet.name} "
            f"({self.config.sheet.name}), {human_bytes(self.size)} in {n_files} {_files(n_files)}{n_all}",
            f"layers: {self.config.n_layer}, and MTP blocks declared: {self.config.n_heads or 0}",
            f"MTP head: {own} tensors, {human_bytes(sizes.get(True, 0))}, in {n_read} {_files(n_read)}; what it shares "
            f"with the trunk: {human_bytes(sizes.get(False, 0))}",
        ]

    def contents(self) -> dict[str, Any]:
        sizes = self._head_bytes()
        return {
            "architecture": self.config.sheet.name,
            "config": self.checkpoint.config,
            "n_layer": self.config.n_layer,
            "n_heads": self.config.n_heads,
            "n_bytes": self.size,
            "head_bytes": sizes.get(True, 0),
            "shared_bytes": sizes.get(False, 0),
            "tensors": [
                {
                    "name": name,
                    "file": file,
                    "type": self.files[file].dtype(name),
                    "shape": self.files[file].shape(name),
                }
                for file in sorted(self.files)
                for name in self.files[file].names
            ],
        }

    def take(self, target: str | Path, options: WriteOptions, spool: Spool | None = None) -> Taken:
        checked_parts(self.checkpoint, Settings(which="mtp", allow_unmapped=True), needs_shared=False)
        n_bytes = sum(self._head_bytes().values())
        check_folder(target)
        for name, most in TEXTS.items():
            if name not in DECLARED:
                self._copy(name, most)
        for file in self.files.values():
            if spool is not None:
                file.remote.keep(spool)
            file.only(file.names)
        check_space(Path(target), n_bytes + (spool.n_bytes_to_come(n_bytes) if spool is not None else 0))
        wrote = _Progress(options, n_bytes)
        parts = [self._part(name, wrote) for name in sorted(self.files)]
        for path in sorted(self.copies.iterdir()):
            raw = path.read_bytes() if path.name != INDEX else self._small_index()
            parts.append(Part(Path(path.name), len(raw), partial(_put, raw)))
        write_folder(target, parts, [], "copy", options)
        return Taken(Path(target), sum(len(file.names) for file in self.files.values()), n_bytes)

    def _part(self, file_name: str, wrote: _Progress) -> Part:
        file = self.files[file_name]
        tensors = [
            Streamed(name, file.dtype(name), file.shape(name), partial(_counted, file, name, wrote))
            for name in file.names
        ]
        return safetensors_part(file_name, tensors, file.metadata)

    def _small_index(self) -> bytes:
        """The index of what is copied."""
        assert self.index is not None
        listed_files = set(self.index.values())
        where = {name: file for file in sorted(self.files) if file in listed_files for name in self.files[file].names}
        total = sum(self._bytes(file, name) for name, file in where.items())
        record = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        return (json.dumps(record, indent=2) + "\n").encode()

    def _bytes(self, file: str, name: str) -> int:
        start, end = self.files[file].place(name)
        return end - start

    def remotes(self) -> list[RemoteFile]:
        return [file.remote for file in self.files.values()]

    def close(self) -> None:
        _close(self._folder, self.files)


class _Progress:
    """Bytes that went out, over all files."""

    def __init__(self, options: WriteOptions, n_total: int) -> None:
        self._report, self._n_done, self._n_total = options.progress, 0, n_total

    def __call__(self, n_bytes: int) -> None:
        self._n_done += n_bytes
        if self._report is not None:
            self._report(self._n_done, self._n_total)


def _counted(file: RemoteSafetensors, name: str, wrote: _Progress) -> Iterator[NDArray[np.uint8]]:
    """A tensor's bytes in order; they are told as they come."""
    for piece in file.pieces(name):
        wrote(len(piece))
        yield np.frombuffer(piece, np.uint8)


def _shared(config: TextConfig) -> tuple[str, ...]:
    """How the canonical names of what a head shares with its trunk begin, those of scales too."""
    names = [tensor.hf for tensor in config.sheet.tensors if tensor.name in SHARED and tensor.hf]
    return tuple(re.sub(r"weight$", "", name) for name in names)


def _files(n: int) -> str:
    return "file" if n == 1 else "files"


def _put(raw: bytes, file: Any) -> None:
    file.write(raw)


def _close(folder: tempfile.TemporaryDirectory[str], files: dict[str, RemoteSafetensors]) -> None:
    for file in files.values():
        file.close()
    folder.cleanup()
