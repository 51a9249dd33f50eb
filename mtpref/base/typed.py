"""Values from outside, read by what is declared of them: JSON within bounds, then fields by their types.

Owns the parsing of JSON (size, depth, memory, UTF-8) and the check of every field's kind, range, length and
finiteness. A declaration is a dataclass with type hints; `Annotated[int, Within(1, 8)]` narrows one. Whatever does not
fit is an MtprefError of one line that names the place. It must not know what any field means.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mtpref.base.errors import MtprefError

MAX_INT = 1 << 63
MAX_DEPTH = 32
MAX_MEMORY = 128 << 20  # bytes that a document may become, by the upper bounds below
# Bytes that CPython makes of one character (in a text it makes none of it): an empty list, an empty object, an element
# with a number or a short text, a key with its place in the object and in the parser's table of keys.
_COSTS = {b"[": 72, b"{": 72, b",": 64, b":": 200}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", dict: "an object",
          list: "a list", tuple: "a list", bytes: "bytes in hex", NoneType: "null"}  # fmt: skip


@dataclass(frozen=True)
class Within:
    """A number from low to high, both included; a float is finite in any case."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.low)} .. {_short(self.high)}"


@dataclass(frozen=True)
class Sized:
    """So many characters, elements or keys."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"of length {self.least} .. {self.most}"


@dataclass(frozen=True)
class NotFinite:
    """A float that may be infinite or NaN, where the writer has them."""


Count = Annotated[int, Within(0, (1 << 31) - 1)]
Ids = list[Annotated[int, Within(0, (1 << 31) - 1)]]


# -------------------------------------------------------------------------------------------------------- JSON


def parse_json(raw: bytes, *, max_depth: int = MAX_DEPTH, max_memory: int = MAX_MEMORY, is_strict: bool = True) -> Any:
    """The value of a JSON text in UTF-8.

    is_strict  refuse halves of surrogate pairs, NaN and infinity, which JSON does not have
    Memory     about max_memory at most: brackets, commas and colons are counted before anything is made
    Errors     MtprefError of a few words ("no JSON (...)"), for a caller to put its source in front
    """
    if _cost(raw) > max_memory:
        raise MtprefError(f"JSON that would take more than {max_memory >> 20} MiB of memory")
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant if is_strict else None)
    except UnicodeDecodeError:
        raise MtprefError("no UTF-8 text") from None
    except RecursionError:
        raise MtprefError(f"JSON nested more than {max_depth} deep") from None
    except ValueError as error:
        raise MtprefError(f"no JSON ({getattr(error, 'msg', None) or _reason(error)})") from None
    if depth_of(value, max_depth) > max_depth:
        raise MtprefError(f"JSON nested more than {max_depth} deep")
    if is_strict and _SURROGATE.search(raw) and not _is_text_whole(value):
        raise MtprefError("no JSON (half of a surrogate pair in a text)")
    return value


def parse_json_at(raw: bytes, where: str, hint: str, **limits: Any) -> Any:
    """`parse_json`, its errors as a whole line: where, what is wrong, and the hint as it stands."""
    try:
        return parse_json(raw, **limits)
    except MtprefError as error:
        raise MtprefError(f"{where}: {error}{hint}") from None


def _reason(error: ValueError) -> str:
    return "a number of too many digits" if "digits" in str(error) else str(error)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _cost(raw: bytes) -> int:
    """An upper bound of the memory that a document takes when it is read: the text, its texts, its values."""
    width = 1 if raw.isascii() else 4 if re.search(rb"[\xf0-\xff]", raw) else 2
    return len(raw) * 2 * width + sum(cost * raw.count(char) for char, cost in _COSTS.items())


def depth_of(value: Any, most: int = MAX_DEPTH) -> int:
    """How deeply lists and objects are nested, without recursion; most + 1 where it is more than `most`."""
    depth, level = 0, [value]
    while depth <= most:
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            return depth
        depth += 1
        level = [x for values in level for x in (values.values() if isinstance(values, dict) else values)]
    return depth


def _is_text_whole(value: Any) -> bool:
    waiting = [value]
    while waiting:
        x = waiting.pop()
        if isinstance(x, dict):
            waiting += [*x, *x.values()]
        elif isinstance(x, list):
            waiting += x
        elif isinstance(x, str) and not is_whole(x):
            return False
    return True


def is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def describe(value: Any) -> str:
    """A value in a few characters, for an error."""
    if isinstance(value, dict | list):
        return "an empty " + _NAMES[type(value)].split()[1] if not value else _NAMES[type(value)]
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        value = value[:60]
    text = ascii(value) if not isinstance(value, int) or abs(value) < MAX_INT else "an integer of more than 64 bits"
    return text if len(text) <= 40 else text[:37] + "..."


# ------------------------------------------------------------------------------------------------------ values


def read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as `kind` says: int, float, bool, str, bytes (hex), Literal, dict[str, kind], list[kind],
    tuple[kind, ...], kind | None, a dataclass, Any; narrowed by Annotated[kind, Within or Sized].

    Rule    an integer may stand for a float, nothing else for something else; a bool is no number. Integers have 64
            bits, floats are finite, objects without a declaration are nested MAX_DEPTH deep at most
    Errors  MtprefError, one line: where, what is there, what is expected
    """
    origin = get_origin(kind)
    if origin is Annotated:
        base, *rules = get_args(kind)
        return _narrowed(base, rules, value, where)
    if origin in (UnionType, Union):
        return None if value is None else read(get_args(kind)[0], value, where)
    if origin is Literal:
        if not any(type(value) is type(x) and value == x for x in get_args(kind)):
            raise MtprefError(f"{where} is {describe(value)}, expected {name_of(kind)}")
        return value
    if origin in (list, tuple) and type(value) is list:
        return _items(kind, get_args(kind)[0], value, where)
    if origin is dict and type(value) is dict and get_args(kind)[1] is not Any:
        return {key: read(get_args(kind)[1], x, f"{where}.{describe(key)[1:-1]}") for key, x in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and type(value) is dict:
        return read_fields(kind, value, where)
    if kind is bytes and isinstance(value, str):
        return _bytes(value, where)
    return _plain(kind, value, where)


def read_fields(cls: type, record: dict[str, Any], where: str = "") -> Any:
    """An object of a dataclass. Keys that it does not declare are ignored; one with a default may be missing. A field
    `class_` is the key "class".

    Errors  as `read`
    """
    values = {}
    for field in fields(cls):
        key = field.name.removesuffix("_")
        at = f"{where}.{key}" if where else key
        if key in record:
            values[field.name] = read(_hints(cls)[field.name], record[key], at)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise MtprefError(f"{at} is missing, expected {name_of(_hints(cls)[field.name])}")
    return cls(**values)


def read_number(kind: Any, text: str, where: str) -> Any:
    """A number that stands as text, in a log or a header, as `kind` says. Errors: as `read`"""
    try:
        value = float(text) if len(text) <= 40 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MtprefError(f"{where} is {describe(text)}, expected {name_of(kind)}")
    return read(kind, int(value) if re.fullmatch(r"[+-]?\d+", text.strip()) else value, where)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _narrowed(base: Any, rules: list[Any], value: Any, where: str) -> Any:
    if any(isinstance(rule, NotFinite) for rule in rules) and type(value) is float:
        return value
    found = _plain(base, value, where, name_of(Annotated[base, *rules])) if base in _PLAIN else read(base, value, where)
    for rule in rules:
        fits = (
            rule.low <= found <= rule.high
            if isinstance(rule, Within)
            else rule.least <= len(found) <= rule.most
            if isinstance(rule, Sized)
            else True
        )
        if not fits:
            told = f"{_NAMES[get_origin(base) or base]} of length {len(found)}" if isinstance(rule, Sized) else None
            raise MtprefError(f"{where} is {told or describe(value)}, expected {name_of(base)} {rule}")
    return found


def _items(kind: Any, item: Any, values: list[Any], where: str) -> Sequence[Any]:
    accepts = _fast(item)
    if accepts is None or not accepts(values):
        values = [read(item, x, f"{where}[{i}]") for i, x in enumerate(values)]
    return tuple(values) if get_origin(kind) is tuple else values


def _fast(item: Any) -> Callable[[list[Any]], bool] | None:
    """A quick look at lists of numbers and texts, which may have a million elements."""
    base, *rules = get_args(item) if get_origin(item) is Annotated else (item,)
    if base is int:
        low, high = (rules[0].low, rules[0].high) if rules else (-MAX_INT, MAX_INT - 1)
        return lambda values: all(type(x) is int and low <= x <= high for x in values)
    if base in _PLAIN and not rules and base is not dict:
        return lambda values: all(map(_PLAIN[base], values))
    return None


def _plain(kind: Any, value: Any, where: str, expected: str = "") -> Any:
    if kind is Any:
        return value
    if kind is float and _is_int(value):
        return float(value)
    base = get_origin(kind) or kind
    if base in _PLAIN and _PLAIN[base](value):
        if base is dict and depth_of(value) > MAX_DEPTH:
            raise MtprefError(f"{where} is nested more than {MAX_DEPTH} deep, expected settings")
        return value
    raise MtprefError(f"{where} is {describe(value)}, expected {expected or name_of(kind)}")


def _is_int(value: Any) -> bool:
    return type(value) is int and -MAX_INT <= value < MAX_INT


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    int: _is_int,
    float: lambda x: type(x) is float and math.isfinite(x),
    str: lambda x: type(x) is str,
    bool: lambda x: type(x) is bool,
    dict: lambda x: type(x) is dict,
    list: lambda x: type(x) is list,
}


def _bytes(value: str, where: str) -> bytes:
    # bytes.fromhex would skip white space.
    if len(value) % 2 == 0 and value.isascii() and (value == "" or value.isalnum()):
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise MtprefError(f"{where} is {describe(value)}, expected bytes in hex, two digits each")


def name_of(kind: Any) -> str:
    """A kind in words."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *rules = get_args(kind)
        return " ".join([name_of(base), *(str(rule) for rule in rules if not isinstance(rule, NotFinite))])
    if origin in (UnionType, Union):
        return " or ".join(name_of(part) for part in get_args(kind))
    if origin is Literal:
        return " or ".join(json.dumps(x) for x in get_args(kind))
    return _NAMES.get(origin or kind, "an object")


def _short(x: float) -> str:
    return str(x) if isinstance(x, int) and abs(x) < 1 << 40 else f"{x:g}"
