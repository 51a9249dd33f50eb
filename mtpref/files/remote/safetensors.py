"""A safetensors file on a server: its header in memory, its tensors by ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.remote.ranges import RemoteFile
from mtpref.files.tensor_files.safetensors import DTYPES, MAX_HEADER, SafetensorsFile

MAX_DATA = 1 << 20  # bytes of a tensor that is asked for whole: shapes and scales that say how others are stored


class RemoteSafetensors(SafetensorsFile):
    """An open .safetensors file on a server. n_bytes: of the file    header_bytes: of its header

    room   bytes that the header may have
    """

    def __init__(self, remote: RemoteFile, room: int = MAX_HEADER) -> None:
        self.remote = remote
        self.path = Path(remote.address.name)
        self.label = remote.label
        self.metadata = {}
        self.n_bytes = remote.size
        self.header_bytes = 0
        self._room = room
        self._open(remote.size)

    def only(self, names: Iterable[str]) -> None:
        """Forget the other tensors, and the file's beginning."""
        kept = set(names)
        self._tensors = {name: entry for name, entry in self._tensors.items() if name in kept}
        self.remote.head = b""
        self.remote.expect(self.place(name) for name in self._tensors)

    def pieces(self, name: str) -> Iterator[bytes]:
        """A tensor's bytes in order."""
        start, end = self.place(name)
        return self.remote.pieces(start, end - start)

    def _beginning(self, first: int, end: int) -> bytes:
        if end > self._room:
            raise MtprefError(f"headers of {end} bytes and more, expected at most {self._room}")
        self.header_bytes = end
        return self.remote.read(first, end - first)

    def _view(self, name: str) -> NDArray:
        dtype_name, shape = self.dtype(name), self.shape(name)
        start, end = self.place(name)
        if dtype_name not in DTYPES or end - start > MAX_DATA:
            raise MtprefError(f"{self.label}: tensor {printable(name)} is on a server, where no values are read")
        raw = self.remote.read(start, end - start)
        return np.frombuffer(raw, DTYPES[dtype_name], math.prod(shape)).reshape(shape)

    def release(self, name: str) -> None:
        """Nothing of a tensor is kept."""

    def close(self) -> None:
        self.remote.close()
