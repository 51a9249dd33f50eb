"""What the pytest processes of tools/mutations.py load with -p: contexts of coverage, and which tests run.

MUTATION_RECORD  a file that gets a line of JSON for each test: id, outcome, seconds; coverage's context is the test
MUTATION_SELECT  a file with a JSON list: only these tests run, in this order
MUTATION_LEAVE   a file with a JSON list: these tests do not run
MUTATION_FIRST   a file that gets the id of the first test that fails
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_started: dict[str, float] = {}
_failed: dict[str, str] = {}


def _switch(context: str) -> None:
    import coverage

    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(context)
    os.environ["MUTATION_TEST"] = context  # the context of processes that the test starts


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    if "MUTATION_RECORD" not in os.environ:
        yield
        return
    _started[item.nodeid] = time.monotonic()
    _switch(item.nodeid)
    yield
    _switch("")
    seconds = round(time.monotonic() - _started[item.nodeid], 3)
    with Path(os.environ["MUTATION_RECORD"]).open("a") as file:
        file.write(json.dumps([item.nodeid, _failed.get(item.nodeid, "passed"), seconds]) + "\n")


def pytest_runtest_logreport(report: Any) -> None:
    if not report.failed:
        return
    _failed[report.nodeid] = "failed"
    first = Path(os.environ.get("MUTATION_FIRST", os.devnull))
    if not first.exists():
        first.write_text(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    left = set(_ids("MUTATION_LEAVE"))
    wanted = {id: i for i, id in enumerate(_ids("MUTATION_SELECT"))}
    kept: list[Any] = []
    gone: list[Any] = []
    for item in items:
        runs = item.nodeid not in left and (not wanted or item.nodeid in wanted)
        (kept if runs else gone).append(item)
    items[:] = sorted(kept, key=lambda item: wanted.get(item.nodeid, 0))
    config.hook.pytest_deselected(items=gone)


def _ids(variable: str) -> list[str]:
    path = os.environ.get(variable)
    return list(json.loads(Path(path).read_text())) if path else []
