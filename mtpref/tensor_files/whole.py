"""Writing a file whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mtpref.errors import MtprefError
from mtpref.gguf import printable


def write_whole(path: str | Path, write: Callable[[BinaryIO], None] | bytes) -> None:
    """Write to a temporary name beside the target, sync, rename.

    write   the bytes, or a function that writes them to the open file
    Errors  MtprefError for a target that cannot be written
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise MtprefError(f"{printable(str(path), 400)}: exists and is not a regular file, expected a file name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise MtprefError(f"{printable(str(path), 400)}: cannot be written: {error.strerror or error}; "
                          "expected a writable folder") from None  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)
