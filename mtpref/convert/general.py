"""What a GGUF says of the model itself: name, size, licence, origin.

Owns the use of the gguf package's own reading of a checkpoint (model card, folder name, generation_config.json), which
llama.cpp's converter uses too: the same checkpoint gives the same keys.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mtpref.convert.keys import ARCH, Keys
from mtpref.errors import MtprefError
from mtpref.gguf import printable

_KINDS = {
    "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "UINT32": "u32", "INT32": "i32", "FLOAT32": "f32",
    "BOOL": "bool", "STRING": "str", "UINT64": "u64", "INT64": "i64", "FLOAT64": "f64",
}  # fmt: skip


def description(folder: Path, n_values: int) -> Keys:
    """general.type and the keys of the model's description; general.architecture stands first in a file.

    n_values   weights in the file, for general.size_label
    Errors     MtprefError for a model card that cannot be read
    """
    import gguf

    def fill(writer: Any) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        found = gguf.Metadata.load(None, folder, None, n_values)
        found.name = found.name or folder.resolve().name
        if found.size_label is None and n_values > 0:
            found.size_label = gguf.size_label(n_values, 0, 0, 0)
        found.set_gguf_meta_model(writer)

    return recorded(fill, f"{printable(str(folder), 400)}: model card or generation_config.json")


def recorded(fill: Callable[[Any], None], what: str) -> Keys:
    """The keys that a function gives to a gguf.GGUFWriter, in its order.

    Errors   MtprefError naming `what` for whatever the package throws at bad files
    """
    import gguf

    try:
        with quiet():
            writer = gguf.GGUFWriter(None, ARCH)
            fill(writer)
            pairs = list(writer.kv_data[0].items())
    except MtprefError:
        raise
    except Exception as error:  # the package's own reading of files that may hold anything
        raise MtprefError(f"{what}: cannot be read ({printable(f'{type(error).__name__}: {error}', 160)})") from None
    return [(key, value.value, _kind(value)) for key, value in pairs]


def _kind(value: Any) -> str:
    if value.type.name == "ARRAY":
        kind = value.sub_type.name if value.sub_type is not None else _element(value.value)
        return "arr:" + _KINDS[kind]
    return _KINDS[value.type.name]


def _element(values: Any) -> str:
    import gguf

    return str(gguf.GGUFValueType.get_type(values[0]).name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The package prints and logs; what matters is said by the caller."""
    logger = logging.getLogger("gguf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
