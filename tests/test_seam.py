"""The seam between reference and replacement: typed, and the types are those of the reference's own functions."""

import inspect
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_type_hints

import pytest

from mtpref import kernels
from mtpref.engine.recipe import kernel_ops
from mtpref.spec.ops import PARTS, CoarseEntries, OpEntries, Ops, spec_ops, table
from mtpref.spec.ops import types as op_types
from mtpref.spec.steps import StepEntries, Steps

ROOT = Path(__file__).parents[1]
WRONG = ROOT / "tests" / "data" / "mypy" / "wrong_replacements.py"
OP_TYPES = {f.name: getattr(op_types, str(f.type).split(".")[-1]) if isinstance(f.type, str) else f.type
            for f in fields(Ops) if f.name != "composed"}  # fmt: skip
STEP_TYPES = {f.name: f.type for f in fields(Steps)}


def test_a_replacement_that_takes_other_arguments_is_refused_by_mypy(tmp_path):
    api = pytest.importorskip("mypy.api", reason="mypy is not installed (extra: dev)")
    config = str(ROOT / "pyproject.toml")
    out, errors, _ = api.run([str(WRONG), "--config-file", config, "--cache-dir", str(tmp_path), "--no-error-summary"])
    assert not errors
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error: " in line}
    lines = WRONG.read_text().splitlines()
    expected = {i for i, line in enumerate(lines, 1) if "# wrong" in line}
    assert len(expected) >= 10
    assert found == expected, out


def test_records_of_replacements_name_the_entries_of_the_tables():
    assert OpEntries.__annotations__ == {f.name: f.type for f in fields(Ops) if f.name != "composed"}
    assert set(CoarseEntries.__annotations__) == set(PARTS)
    assert StepEntries.__annotations__ == STEP_TYPES


def arguments(function):
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


@pytest.mark.parametrize("name", STEP_TYPES)
def test_a_steps_type_has_the_arguments_of_its_reference(name):
    protocol, reference = STEP_TYPES[name].__call__, getattr(Steps(), name)
    assert [(p.name, p.default) for p in arguments(protocol)] == [(p.name, p.default) for p in arguments(reference)]


@pytest.mark.parametrize("name", OP_TYPES)
@pytest.mark.parametrize("numerics", ["exact", "ggml"])
def test_an_operations_type_has_the_arguments_of_the_specification_and_of_the_kernel(name, numerics):
    """A kernel has no signature that a type checker sees: it is named when it is first used."""
    wanted = [p.name for p in arguments(OP_TYPES[name].__call__)]
    for ops in [spec_ops(numerics), *([kernel_ops(numerics)] if kernels.available() else [])]:
        entry = getattr(ops, name)
        bound = set(entry.keywords) if isinstance(entry, partial) else set()
        function = entry.func if isinstance(entry, partial) else entry
        found = [p for p in arguments(function) if p.name not in bound]
        names = [p.name for p in found]
        assert len(names) == len(wanted), (name, names)


def test_types_are_those_of_the_reference():
    """Return types too, where the reference says them."""
    for name, protocol in STEP_TYPES.items():
        given = get_type_hints(getattr(Steps(), name)).get("return")
        assert get_type_hints(protocol.__call__)["return"] == given, name


def test_the_line_of_a_step_names_its_reference():
    """An editor that goes to a step finds its function on the line."""
    source = inspect.getsource(Steps)
    for name in STEP_TYPES:
        line = next(line for line in source.splitlines() if line.startswith(f"    {name}: "))
        assert getattr(Steps(), name).__name__ in line.split("=")[1], name
    assert table.Ops is Ops
