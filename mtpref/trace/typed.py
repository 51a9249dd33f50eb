"""From JSON values to event objects, by the types that mtpref/events.py declares.

Owns the check of every field. The event classes are the only list of fields: one that is added there is read here.
"""

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from mtpref import events
from mtpref.errors import MtprefError
from mtpref.events import Drafted, Event, RunStarted, Verified

EVENTS: dict[str, type] = {cls.__name__: cls for cls in Event.__args__}
NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", dict: "an object",
         list: "a list", bytes: "bytes in hex", NoneType: "null"}  # fmt: skip
MAX_INT = 1 << 63
MAX_DEPTH = 32


def from_json(record: Any) -> Event | None:
    """The event that `events.to_json` made the record of; None for one of a name that is not known here.

    Rule    fields that are not known are ignored; one that has a default may be missing
    Errors  MtprefError for whatever is not an event: a missing field, a wrong type, bytes that are no hex, a schema
            that is not events.SCHEMA, lists of one round that do not fit together
    """
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise MtprefError(f'{describe(record)} is no event, expected an object with "event": a name')
    cls = EVENTS.get(record["event"])
    if cls is None:
        return None
    if cls is RunStarted and record.get("schema") != events.SCHEMA:
        raise MtprefError(f"schema {describe(record.get('schema'))}, expected {events.SCHEMA!r}; is it the trace of "
                          "another version of mtpref?")  # fmt: skip
    event: Event = _object(cls, record, cls.__name__)
    _check_lengths(event)
    return event


def describe(value: Any) -> str:
    """A value in a few characters, for an error."""
    if isinstance(value, dict | list):
        return "an empty " + NAMES[type(value)].split()[1] if not value else NAMES[type(value)]
    text = ascii(value) if not isinstance(value, int) or abs(value) < MAX_INT else "an integer of more than 64 bits"
    return text if len(text) <= 40 else text[:37] + "..."


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _object(cls: type, record: dict[str, Any], where: str) -> Any:
    values = {}
    for field in fields(cls):
        if field.name in record:
            values[field.name] = _value(_hints(cls)[field.name], record[field.name], f"{where}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise MtprefError(f"{where}.{field.name} is missing, expected {_name(_hints(cls)[field.name])}")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, UnionType):
        return None if value is None else _value(get_args(kind)[0], value, where)
    if get_origin(kind) is list and type(value) is list:
        (item,) = get_args(kind)
        fast = _PLAIN.get(item)
        if fast is not None and all(fast(x) for x in value):
            return value
        return [_value(item, x, f"{where}[{i}]") for i, x in enumerate(value)]
    if is_dataclass(kind) and isinstance(kind, type) and type(value) is dict:
        return _object(kind, value, where)
    if kind is float and _is_int(value):
        return float(value)
    if kind is bytes and isinstance(value, str):
        return _bytes(value, where)
    base = get_origin(kind) or kind
    if base in _PLAIN and _PLAIN[base](value):
        if base is dict and _depth(value) > MAX_DEPTH:
            raise MtprefError(f"{where}: it is nested more than {MAX_DEPTH} deep, expected settings")
        return value
    raise MtprefError(f"{where}: {describe(value)}, expected {_name(kind)}")


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        inner = [list(x.values()) if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        level = [x for values in inner for x in values]
        depth += bool(inner)
    return depth


def _is_int(value: Any) -> bool:
    return type(value) is int and -MAX_INT <= value < MAX_INT


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    int: _is_int,
    float: lambda x: type(x) is float,
    str: lambda x: type(x) is str,
    bool: lambda x: type(x) is bool,
    dict: lambda x: type(x) is dict,
}


def _bytes(value: str, where: str) -> bytes:
    # bytes.fromhex would skip white space.
    if len(value) % 2 or not value.isascii() or not (value == "" or value.isalnum()):
        raise MtprefError(f"{where}: {describe(value)}, expected bytes in hex, two digits each")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise MtprefError(f"{where}: {describe(value)}, expected bytes in hex, two digits each") from None


def _name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_name(part) for part in get_args(kind))
    base = get_origin(kind) or kind
    return NAMES.get(base, "an object")


def _check_lengths(event: Event) -> None:
    """Lists that a reader walks together."""
    if isinstance(event, Verified):
        n_rows, n_draft = len(event.target_ids), len(event.draft_ids)
        for name, found in (("margins", len(event.margins)), ("near_ties", len(event.near_ties)),
                            ("draws", len(event.draws) or n_rows)):  # fmt: skip
            if found != n_rows:
                raise MtprefError(f"Verified.{name}: {found} entries, expected {n_rows}, one for each of target_ids")
        if len(event.verdicts) != n_draft:
            raise MtprefError(f"Verified.verdicts: {len(event.verdicts)} entries, expected {n_draft}, one for each of "
                              "draft_ids")  # fmt: skip
        if not 0 <= event.n_accepted <= n_draft or event.n_accepted >= n_rows:
            raise MtprefError(f"Verified.n_accepted: {event.n_accepted} of {n_draft} drafted tokens in {n_rows} rows, "
                              "expected at most as many as were drafted, and a row more")  # fmt: skip
    if isinstance(event, Drafted):
        for i, step in enumerate(event.steps):
            if len(step.candidates) != len(step.p):
                raise MtprefError(f"Drafted.steps[{i}].p: {len(step.p)} entries, expected {len(step.candidates)}, one "
                                  "for each of candidates")  # fmt: skip
