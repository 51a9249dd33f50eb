"""What a GGUF says of the model itself: name, size, licence, origin.

Owns the use of the gguf package's own reading of a checkpoint (model card, folder name, generation_config.json), which
llama.cpp's converter uses too: the same checkpoint gives the same keys.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Sized, Within, describe, is_whole, parse_json, read
from mtpref.files.doors import read_regular
from mtpref.files.gguf import printable
from mtpref.heads.convert.keys import Keys
from mtpref.heads.pairs import Shapes, size_label

_KINDS = {
    "UINT8": "u8", "INT8": "i8", "UINT16": "u16", "INT16": "i16", "UINT32": "u32", "INT32": "i32", "FLOAT32": "f32",
    "BOOL": "bool", "STRING": "str", "UINT64": "u64", "INT64": "i64", "FLOAT64": "f64",
}  # fmt: skip


# Files that the gguf package reads whole, and how long each may be. YAML in a card takes it 10 s for a megabyte.
LIMITS = {"README.md": 4 << 20, "generation_config.json": 1 << 20, "chat_template.json": 4 << 20,
          "chat_template.jinja": 4 << 20}  # fmt: skip
MAX_CARD = 64 << 10
MAX_TEXT = 4 << 20
_KIND_OF = {"str": Annotated[str, Sized(0, MAX_TEXT)], "bool": bool,
            "f32": Annotated[float, Within(-3.4e38, 3.4e38)], "f64": float,
            **{f"u{n}": Annotated[int, Within(0, (1 << n) - 1)] for n in (8, 16, 32, 64)},
            **{f"i{n}": Annotated[int, Within(-(1 << n - 1), (1 << n - 1) - 1)] for n in (8, 16, 32, 64)}}  # fmt: skip


def description(folder: Path, arch: str, tensors: Shapes) -> Keys:
    """general.type and the keys of the model's description; general.architecture stands first in a file.

    tensors   names and shapes of the file, for general.size_label
    Errors     MtprefError for a model card that cannot be read
    """
    import gguf

    tensors = list(tensors)
    n_values = sum(math.prod(shape) for _, shape in tensors)
    check_files(folder)

    def fill(writer: Any) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        found = gguf.Metadata.load(None, folder, None, n_values)
        found.name = found.name or folder.resolve().name
        if found.size_label is None and n_values > 0:
            found.size_label = size_label(tensors)
        found.set_gguf_meta_model(writer)

    return recorded(fill, arch, f"{printable(str(folder), 400)}: model card or generation_config.json")


def recorded(fill: Callable[[Any], None], arch: str, what: str) -> Keys:
    """The keys that a function gives to a gguf.GGUFWriter, in its order.

    Errors   MtprefError naming `what` for whatever the package throws at bad files
    """
    import gguf

    try:
        with quiet():
            writer = gguf.GGUFWriter(None, arch)
            fill(writer)
            pairs = [(key, value.value, _kind(value, f"{what}: {key}")) for key, value in writer.kv_data[0].items()]
    except MtprefError:
        raise
    except Exception as error:  # the package's own reading of files that may hold anything
        raise MtprefError(f"{what}: cannot be read ({printable(f'{type(error).__name__}: {error}', 160)})") from None
    return [(key, _checked(value, kind, f"{what}: {printable(key)}"), kind) for key, value, kind in pairs]


def check_files(folder: Path) -> None:
    """Refuse files that would take the package's reading too long.

    Errors   MtprefError
    """
    templates = {
        str(path.relative_to(folder)): 4 << 20 for path in (folder / "additional_chat_templates").glob("*.jinja")
    }
    for name, most in {**LIMITS, **templates}.items():
        path = folder / name
        if not path.is_file():
            continue
        label = printable(str(path), 400)
        raw = read_regular(path, label, "expected a file of a checkpoint folder", most)
        if path.suffix == ".json":
            _check_json(raw, label)
        if name == "README.md":
            _check_card(raw, label)


def _check_json(raw: bytes, label: str) -> None:
    try:
        parse_json(raw)
    except MtprefError as error:
        if not str(error).startswith("no JSON"):  # llama.cpp's converter passes over what is none
            raise MtprefError(f"{label}: {error}") from None


def _check_card(raw: bytes, label: str) -> None:
    end = raw.find(b"\n---", 3)
    if raw.startswith(b"---") and (len(raw) if end < 0 else end) > MAX_CARD:
        raise MtprefError(
            f"{label}: a head of more than {MAX_CARD >> 10} KiB between its lines of ---, expected a model card's"
        )


def _checked(value: Any, kind: str, where: str) -> Any:
    """A key's value, as it may stand in a file.

    Errors   MtprefError for another type, a number out of range, half of a surrogate pair
    """
    element = kind.removeprefix("arr:")
    if element == kind:
        found = read(_KIND_OF[kind], value, where)
    else:
        found = read(list[str if element == "str" else _KIND_OF[element]], list(value), where)  # type: ignore[misc]
    if element == "str" and not is_whole("".join(found)):
        raise MtprefError(f"{where} is {describe(found)}, expected text of whole characters")
    return found


def _kind(value: Any, where: str) -> str:
    import gguf

    if value.type.name != "ARRAY":
        return _KINDS[value.type.name]
    found = value.sub_type or gguf.GGUFValueType.get_type(value.value[0])
    if found.name not in _KINDS:
        raise MtprefError(f"{where} is a list of {describe(value.value[0])}, expected texts or numbers")
    return "arr:" + _KINDS[found.name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The package prints and logs; what matters is said by the caller."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # its modules log under several names
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
