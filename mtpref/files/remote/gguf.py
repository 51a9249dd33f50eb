"""A GGUF file on a server: its header in memory, its tensors by ranges.

The header is read as far as the parser goes, in steps that grow; every check is the parser's own (files/gguf).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError
from mtpref.files.doors import Mapping as MappedFile
from mtpref.files.gguf import GgufFile, TensorInfo
from mtpref.files.gguf.parse import Budget, Header, read_header
from mtpref.files.gguf.shards import join_shards, shard_paths
from mtpref.files.gguf.whole import human_bytes
from mtpref.files.remote.ranges import NotThereError, RemoteFile

MAX_HEADER = 128 << 20  # bytes of all headers of a model; the largest real ones have 2 * 10**7
MAX_STEP = 4 << 20
MAX_DATA = 64 << 20  # bytes of a tensor that is asked for whole


class RemoteGguf(GgufFile):
    """An open GGUF file on a server."""

    def __init__(self, remote: RemoteFile, buffer: MappedFile, header: Header) -> None:
        super().__init__(Path(remote.address.name), buffer, header)
        self.remote, self.label, self.n_bytes = remote, remote.label, remote.size

    def close(self) -> None:
        self.remote.close()
        super().close()

    def expect(self, names: set[str]) -> None:
        """Tensors that will be read, in the file's order."""
        for no, part in enumerate((self, *self.others)):
            if isinstance(part, RemoteGguf):
                infos = [info for name, info in self.tensors.items() if name in names and info.shard == no]
                part.remote.expect((info.offset, info.offset + info.n_bytes) for info in infos)

    def data(self, tensor: TensorInfo | str) -> npt.NDArray[np.uint8]:
        info = self.tensors.get(tensor) if isinstance(tensor, str) else tensor
        if info is None or info.n_bytes > MAX_DATA:
            raise MtprefError(
                f"{self.label}: tensor {tensor if info is None else info.name} is missing, or too large to be read at "
                "once from a server"
            )
        return np.frombuffer(self._remote_of(info).read(info.offset, info.n_bytes), np.uint8)

    def release(self, tensor: TensorInfo) -> None:
        """Nothing of a tensor is kept."""

    def pieces(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        for piece in self._remote_of(tensor).pieces(tensor.offset, tensor.n_bytes):
            yield np.frombuffer(piece, np.uint8)

    def copied(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        """The pieces: what a server has as holes cannot be seen."""
        return self.pieces(tensor)

    def n_held(self, tensor: TensorInfo) -> int:
        return tensor.n_bytes

    def _remote_of(self, info: TensorInfo) -> RemoteFile:
        owner = self.owner(info)
        assert isinstance(owner, RemoteGguf)
        return owner.remote


def open_remote_gguf(name: str, open_file: Callable[[str], RemoteFile]) -> tuple[RemoteGguf, str | None]:
    """A GGUF model on a server, all files of it, and why the first stands alone where another is not there.

    name        of the first file; open_file: opens a file of this name in the same folder
    Errors      MtprefError as `open_gguf`, for headers of more than MAX_HEADER bytes, and as `RemoteFile`
    """
    budget, room = Budget(), _Room()
    first = _open_one(open_file(name), budget, room)
    try:
        paths = shard_paths(first)
        if paths:
            join_shards(first, paths, lambda path: _open_one(open_file(path.name), budget, room))
    except NotThereError as error:
        first.close()
        return _open_one(open_file(name), Budget(), _Room()), str(error)
    except BaseException:
        first.close()
        raise
    return first, None


class _Room:
    """What headers may still take, all files together."""

    def __init__(self) -> None:
        self.left = MAX_HEADER


def _open_one(remote: RemoteFile, budget: Budget, room: _Room) -> RemoteGguf:
    size = min(remote.size, room.left)
    if size < 1:
        raise MtprefError(f"{remote.label}: headers of more than {human_bytes(MAX_HEADER)} before it; refused")
    buffer = MappedFile(-1, size)  # memory, of no file
    filled = 0

    def reach(n_bytes: int) -> int:
        """Have the first n bytes; more, where a step brings more."""
        nonlocal filled
        if n_bytes <= filled:
            return filled
        if n_bytes > size:
            raise MtprefError(
                f"{remote.label}: a header of more than {human_bytes(MAX_HEADER)}, expected less (real ones have 20 "
                "MB); refused"
            )
        goal = min(size, max(n_bytes, min(2 * filled, filled + MAX_STEP), len(remote.head)))
        for piece in remote.pieces(filled, goal - filled):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    try:
        reach(min(size, len(remote.head)))
        header = read_header(buffer, remote.size, remote.label, budget, reach)
        room.left -= filled
        remote.head = b""
        return RemoteGguf(remote, buffer, header)
    except BaseException:
        remote.close()
        buffer.close()
        raise
