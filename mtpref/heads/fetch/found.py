"""What was found on a server, whatever kind of model it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtpref.files.gguf import WriteOptions, human_bytes
from mtpref.files.remote import Client, Place, RemoteFile, Spool, find
from mtpref.heads.check import Finding, Report

SCHEMA = "mtpref-fetch-1"


@dataclass(frozen=True)
class Taken:
    """What was written: n_tensors of n_bytes, under `path`."""

    path: Path
    n_tensors: int
    n_bytes: int


class Found(ABC):
    """A model on a server, open. A context manager.

    report    the findings of its headers, and the verdict
    size      bytes of the whole model, as far as is known
    is_folder: whether `take` writes a folder
    """

    is_folder = False

    place: Place
    report: Report
    size: int

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def lines(self, width: int) -> list[str]:
        """What it holds, for people."""

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """The same for programs."""

    @abstractmethod
    def take(self, target: str | Path, options: WriteOptions, spool: Spool | None = None) -> Taken:
        """Write the head alone: a GGUF file for -md, or a checkpoint's folder.

        spool    keeps what comes, and has what an earlier run has kept

        Errors   MtprefError: no head, or not all of it; what cannot be written; whatever the server does wrong
        """

    @abstractmethod
    def remotes(self) -> list[RemoteFile]:
        """The files that hold the head."""

    @abstractmethod
    def close(self) -> None:
        """Give the connections back."""

    def read(self) -> dict[str, int]:
        """What it took so far: requests, bytes, tries; and the bytes of the model that were not read."""
        meter = asdict(self.place.client.meter)
        return meter | {"n_model_bytes": self.size, "n_saved": max(self.size - self.place.client.meter.n_bytes, 0)}

    def read_line(self) -> str:
        """The same in a line."""
        read = self.read()
        again = f", {read['n_retries']} tries again" if read["n_retries"] else ""
        kept = sum(remote.n_kept for remote in self.remotes())
        again += f", and {human_bytes(kept)} that an earlier run has left" if kept else ""
        requests = "1 request" if read["n_requests"] == 1 else f"{read['n_requests']} requests"
        return (
            f"read {human_bytes(read['n_bytes'])} of {human_bytes(self.size)} in {requests}{again}; "
            f"{human_bytes(read['n_saved'])} saved"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.place.label,
            "contents": self.contents(),
            "check": self.report.to_json(),
            "read": self.read(),
        }


def look(client: Client, name: str) -> Found:
    """Open what a URL or hf: name stands for, and read its headers.

    Errors   MtprefError: no such name, no model, an architecture that is not known; whatever the server does wrong
    """
    from mtpref.heads.fetch.checkpoint import look_checkpoint
    from mtpref.heads.fetch.gguf import look_gguf

    place = find(client, name)
    return look_checkpoint(place) if place.gguf is None else look_gguf(place)


def unversioned(files: Iterable[RemoteFile]) -> list[Finding]:
    """A note where a server does not say which version of a file it gives."""
    found = [file for file in files if not file.is_versioned]
    text = "neither ETag nor Last-Modified: a change under way is seen by the size alone"
    return [Finding("unversioned", found[0].label, text)] if found else []
