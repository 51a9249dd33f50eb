"""Checking answers against expected values: one verdict per case, and what is first wrong in it.

Owns the comparison rules of golden/README.md: bits for the class "exact", NMSE limits for the others, `either` lists
at near ties. Who answers (mtpref, another program) is given as a function.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.golden.digest import digest_difference
from mtpref.golden.format import Case, Expected, Folder, Suite, Tensor, UnfitError
from mtpref.golden.inputs import Inputs, Outputs
from mtpref.look.compare.measures import nmse

Answers = Callable[[Suite, Case, Inputs], Outputs | None]


@dataclass(frozen=True)
class Wrong:
    """One output that is not what it should be. nmse: None where bits, ids or shapes were compared."""

    output: str
    reason: str
    nmse: float | None = None


@dataclass(frozen=True)
class CaseResult:
    """What checking one case gave.

    verdict  PASS, FAIL, SKIP or UNFIT: of another version than who answers, or answered with an error
    skipped  why it was not answered
    """

    suite: Suite
    case: Case
    verdict: str
    wrong: tuple[Wrong, ...] = ()
    skipped: str = ""
    nmse: Mapping[str, float] = field(default_factory=dict)


def check_folder(
    folder: Folder, answers: Answers, *, level: str | None = None, suite: str | None = None
) -> Iterator[CaseResult]:
    """Check every case of the chosen suites, one result each, in the order of the manifest. A case that cannot be
    answered ends nothing.

    Errors  MtprefError for a folder that is damaged, or a program that ends
    """
    for one in folder.suites(level, suite):
        tensors = folder.tensors(one)
        for case in one.cases:
            try:
                yield check_case(folder, one, case, tensors, answers)
            except UnfitError as error:
                yield CaseResult(one, case, "UNFIT", skipped=str(error))


def check_case(folder: Folder, suite: Suite, case: Case, tensors: Mapping[str, Tensor], answers: Answers) -> CaseResult:
    """Ask for one case and judge the answer. An answer that lacks an output, or is None, is no pass.

    Errors  UnfitError for a case that cannot be answered
    """
    inputs = {name: _named(suite, tensors, tensor) for name, tensor in case.inputs.items()}
    given = answers(suite, case, inputs)
    if given is None:
        return CaseResult(suite, case, "SKIP", skipped=f"the port has no {suite.op}")
    wrong: list[Wrong] = []
    measured: dict[str, float] = {}
    for expected in case.expected:
        if expected.name not in given:
            wrong.append(Wrong(expected.name, "missing in the answer"))
            continue
        found = _judge(folder, suite, expected, given[expected.name], tensors)
        if isinstance(found, Wrong):
            wrong.append(found)
        elif found is not None:
            measured[expected.name] = found
    return CaseResult(suite, case, "FAIL" if wrong else "PASS", tuple(wrong), nmse=measured)


def _named(suite: Suite, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UnfitError(
            f"golden suite {suite.name}: tensor {name} is missing in {suite.tensors}; fetch the folder again"
        )
    return tensors[name]


def _judge(
    folder: Folder, suite: Suite, expected: Expected, found: Any, tensors: Mapping[str, Tensor]
) -> Wrong | float | None:
    if expected.digest is not None:
        return _judge_digest(folder, expected, found)
    if expected.tensor is None:
        return _judge_value(expected, found)
    wanted = _named(suite, tensors, expected.tensor).values()
    array = np.asarray(found)
    if array.size != wanted.size:
        return Wrong(expected.name, f"shape {array.shape}, expected {wanted.shape}")
    if expected.tolerance == "exact":
        same = np.array_equal(_bits(wanted), _bits(array.astype(wanted.dtype)))
        return None if same else Wrong(expected.name, _first_different(wanted, array))
    limit, error = folder.limit(expected.tolerance), nmse(wanted, array)
    if error <= limit:
        return error
    return Wrong(expected.name, f"NMSE {error:.2e}, at most {limit:.0e}", error)


def _judge_digest(folder: Folder, expected: Expected, found: Any) -> Wrong | None:
    reason = digest_difference(
        dict(expected.digest or {}), np.asarray(found, np.float32), folder.limit(expected.tolerance)
    )
    return None if reason is None else Wrong(expected.name, reason)


def _judge_value(expected: Expected, found: Any) -> Wrong | None:
    wanted = expected.value
    if isinstance(found, np.ndarray):
        return Wrong(expected.name, f"an array, expected {_short(wanted)}")
    if _is_same(wanted, found):
        return None
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        bad = [
            i
            for i, (w, f) in enumerate(zip(wanted, found, strict=True))
            if not _is_same(w, f) and f not in expected.either.get(i, ())
        ]
        if not bad:
            return None
        i = bad[0]
        return Wrong(expected.name, f"[{i}] is {found[i]!r}, expected {wanted[i]!r}")
    return Wrong(expected.name, f"{_short(found)}, expected {_short(wanted)}")


def _is_same(wanted: Any, found: Any) -> bool:
    """Equal JSON values; hex floats by their value, as libraries write them in several ways ("0x1p-1", "0x1.0p-1")."""
    if isinstance(wanted, str) and isinstance(found, str) and wanted != found:
        try:
            return wanted[:3].lstrip("-").startswith("0x") and float.fromhex(wanted) == float.fromhex(found)
        except (ValueError, OverflowError):
            return False
    return bool(wanted == found)


def _bits(array: NDArray) -> NDArray:
    """The values to compare: bit patterns, all NaN alike."""
    if array.dtype != np.float32:
        return array.reshape(-1)
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    return np.where(np.isnan(array.reshape(-1)), np.uint32(0x7FC00000), bits)


def _first_different(wanted: NDArray, found: NDArray) -> str:
    a, b = wanted.reshape(-1), found.astype(wanted.dtype).reshape(-1)
    i = int(np.flatnonzero(_bits(wanted) != _bits(b))[0])
    return f"element {i} is {b[i]!r}, expected {a[i]!r}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
