"""Of the cases of a test, those that run by default; the others are marked slow."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def one_in(n: int, cases: Iterable[Any]) -> list[Any]:
    """The first case and every n-th after it."""
    return [pytest.param(case, marks=pytest.mark.slow if i % n else ()) for i, case in enumerate(cases)]


def diagonal(some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Of all pairs, so many that each value of both is in one."""
    n = min(len(some), len(others))
    return [
        pytest.param(one, other, marks=pytest.mark.slow if (i - k) % n else ())
        for i, one in enumerate(some)
        for k, other in enumerate(others)
    ]


ALL_EXAMPLES = "MTPREF_ALL_EXAMPLES"


def some_examples(n: int) -> int:
    """Of n random damages or texts, how many are tried: a third by default. With --slow and --slow-slice the tests that
    ask here count as slow ones too, and try all (conftest.py)."""
    return n if os.environ.get(ALL_EXAMPLES) else n // 3
