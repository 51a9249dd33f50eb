"""Settings that a caller builds: every field is held to its declaration when the object is made.

Owns the check and its refusal, which names a setting in the library's words (`PolicyConfig.n_max`) and lets a command
line put its own flag there. Values that come as JSON are read by typed.py.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from mtpref.base.errors import MtprefError, one_line, with_flags
from mtpref.base.typed import describe


class SettingError(MtprefError):
    """A setting that is refused.

    setting  its name: `PolicyConfig.n_max`, `numerics`
    problem  what is wrong with it; `{name}` stands for another setting, given as name=SETTING
    """

    def __init__(self, setting: str, problem: str, **others: str) -> None:
        self._parts = (setting, problem, others)
        super().__init__(self.told({}))

    def told(self, flags: Mapping[str, str]) -> str:
        """The line with a flag in place of each setting that has one."""
        setting, problem, others = self._parts
        for key, name in others.items():
            problem = problem.replace(f"{{{key}}}", flags.get(name, name))
        return with_flags(one_line(f"{flags.get(setting, setting)}: {problem}"), flags)


@dataclass(frozen=True)
class Bounds:
    """A finite number from low to high, both included. words: the range as an error tells it, where there are better.

    Rule  a field of this kind takes a whole number where it is an int, any real number where it is a float
    """

    low: float
    high: float = math.inf
    words: str = ""

    def __str__(self) -> str:
        return self.words or (
            f"{self.low:g} or more" if self.high == math.inf else f"{_g(self.low)} .. {_g(self.high)}"
        )


ANY = Bounds(-math.inf, math.inf, "a finite number")


@dataclass(frozen=True)
class OneOf:
    """One of some words."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


def _g(x: float) -> str:
    return str(x) if isinstance(x, int) else f"{x:g}"


def check_fields(built: Any, label: str = "") -> None:
    """Hold the fields of a frozen dataclass to their type hints; call it in __post_init__.

    label   what an error calls the class (default: its name)
    Rule    a bool is no number and text is no list of texts; numbers become Python's own, lists tuples. The hints are
            int, float, bool, str, classes, Callable, tuple[kind, ...], Sequence[kind], kind | None,
            Annotated[kind, Bounds or OneOf]
    Errors  SettingError
    """
    cls: Any = type(built)
    hints = _hints(cls)
    for field in fields(cls):
        where = f"{label or cls.__name__}.{field.name}"
        object.__setattr__(built, field.name, checked(hints[field.name], getattr(built, field.name), where))


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Hold arguments to a function's type hints, as check_fields does; those that are not given are left out.

    Errors  SettingError, which names the argument
    """
    return {name: checked(kind, given[name], name) for name, kind in _hints(function).items() if name in given}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def checked(kind: Any, value: Any, where: str) -> Any:
    """A value as `kind` says, see `check_fields`."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, rule = get_args(kind)
        if isinstance(rule, Bounds):
            return _number(base, value, where, rule)
        if not isinstance(value, str) or value not in rule.names:
            raise SettingError(where, f"{named(value)} is unknown, expected one of {rule}")
        return value
    if origin in (UnionType, Union):
        return _one_of_kinds(get_args(kind), value, where)
    if origin in (tuple, Sequence):
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise SettingError(
                where, f"{named(value)} is no list, expected a list, each item {_named(get_args(kind)[0])}"
            )
        item, *others = get_args(kind)
        if others and others[-1] is not Ellipsis and len(value) != 1 + len(others):
            raise SettingError(where, f"{len(value)} values, expected {1 + len(others)}")
        if item is int and all(type(x) is int for x in value):  # a draft vocabulary has many
            return tuple(value)
        return tuple(checked(item, x, where) for x in value)
    if kind in (int, float):
        return _number(kind, value, where, ANY)
    fits = callable(value) if origin is Callable else kind is Any or isinstance(value, kind)
    if not fits:
        raise SettingError(where, f"{named(value)} is out of place, expected {_named(kind)}")
    return value


def _one_of_kinds(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not NoneType]
    for kind in kinds[:-1]:
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if isinstance(base, type) and isinstance(value, base):
            return value if base is kind else checked(kind, value, where)
    if len(kinds) > 1 and all(isinstance(kind, type) for kind in kinds) and not isinstance(value, kinds[-1]):
        raise SettingError(where, f"{named(value)} is out of place, expected {' or '.join(map(_named, kinds))}")
    return checked(kinds[-1], value, where)


def _number(kind: Any, value: Any, where: str, bounds: Bounds) -> Any:
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        what = "an integer" if kind is int else "a number"
        expected = what if bounds is ANY else f"{what}, {bounds}"
        raise SettingError(where, f"{named(value)} is no {what.split()[1]}, expected {expected}")
    own: int | float = int(value) if isinstance(value, numbers.Integral) else float(value)
    if (isinstance(own, float) and not math.isfinite(own)) or not bounds.low <= own <= bounds.high:
        shown = f"{own:g}" if isinstance(own, float) else own if abs(own) < 1 << 70 else describe(own)
        raise SettingError(where, f"{shown} is out of range, expected {bounds}")
    return kind(own)


def _named(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Callable:
        return "a function"
    names = {str: "a string", int: "an integer", float: "a number", bool: "True or False"}
    kinds = get_args(kind) or (kind,)
    return names.get(kind) or " or ".join(names.get(k) or str(getattr(k, "__name__", k)) for k in kinds)


def named(value: Any) -> str:
    """A value as an error tells it, however large it is: itself, or what kind of object."""
    if isinstance(value, bool | NoneType):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return describe(value) if isinstance(value, str | int | float | list) else f"a {type(value).__name__} object"


def check_path(value: Any, where: str) -> None:
    """Refuse what cannot be a file's name; whether there is such a file is not asked.

    Errors  SettingError
    """
    if value == "" or not isinstance(value, str | PathLike):
        raise SettingError(where, f"{named(value)} is out of place, expected a file's name")
