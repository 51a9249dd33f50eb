"""docs/spec.md and the docstrings of mtpref/spec carry the same anchors."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import mtpref.spec

DOCS = Path(__file__).parent.parent / "docs" / "spec.md"
MODULES = [importlib.import_module(f"mtpref.spec.{m.name}") for m in pkgutil.iter_modules(mtpref.spec.__path__)]
HEADING = re.compile(r"^## (S\d+) .+$", re.MULTILINE)


def functions():
    """Public functions by name, each where it is defined."""
    return {
        name: f
        for module in MODULES
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not name.startswith("_")
    }


def anchors():
    """Function name -> the anchor that its docstring starts with."""
    found = {name: re.match(r"(S\d+)\. ", f.__doc__ or "") for name, f in functions().items()}
    return {name: match.group(1) if match else None for name, match in found.items()}


def sections():
    """Anchor -> text of its section, in the order of the document."""
    text = DOCS.read_text(encoding="utf-8")
    starts = list(HEADING.finditer(text))
    ends = [m.start() for m in re.finditer(r"^## ", text, re.MULTILINE)] + [len(text)]
    return {m.group(1): text[m.end() : min(e for e in ends if e > m.start())] for m in starts}


def test_every_public_function_has_an_anchor():
    assert len(functions()) > 40
    assert not [name for name, anchor in anchors().items() if anchor is None]


def test_anchors_of_code_and_document_are_the_same_and_contiguous():
    documented = [m.group(1) for m in HEADING.finditer(DOCS.read_text(encoding="utf-8"))]
    assert documented == [f"S{i}" for i in range(1, len(documented) + 1)]
    assert set(documented) == set(anchors().values())
    assert len(documented) == 29


def test_anchors_of_a_module_rise():
    for module in MODULES:
        lines = {
            f.__code__.co_firstlineno: anchors()[n] for n, f in functions().items() if f.__module__ == module.__name__
        }
        numbers = [int(lines[line][1:]) for line in sorted(lines)]
        assert numbers == sorted(numbers), module.__name__


def test_every_function_is_named_in_its_section():
    text = sections()
    missing = [name for name, anchor in anchors().items() if f"`{name}" not in text[anchor]]
    assert not missing


def test_no_section_names_a_function_of_another_without_need():
    """A function stands first in its own section: the name in backquotes is not in an earlier section."""
    text, order = sections(), list(sections())
    for name, anchor in anchors().items():
        earlier = [a for a in order[: order.index(anchor)] if f"`{name}`" in text[a]]
        assert not earlier, (name, earlier)


def test_public_functions_are_exported_from_the_package():
    inner = {"mul_mat_f32", "mul_mat_f16", "mul_mat_bf16", "mul_mat_legacy", "mul_mat_k", "mul_mat_tiles"}
    assert set(functions()) - inner <= set(mtpref.spec.__all__)


def test_ops_table_names_the_anchor_of_each_fine_entry():
    """The comments of the table point at the right rule."""
    from mtpref.ops import FINE, table

    source = inspect.getsource(table)
    for name in FINE:
        line = re.search(rf"^    {name}: Op  # (S\d+)$", source, re.MULTILINE)
        assert line, name
        function = "mul_mat_exact" if name == "mul_mat" else name
        assert line.group(1) == anchors()[function], name


def test_document_names_every_coarse_operation():
    from mtpref.ops import PARTS

    text = DOCS.read_text(encoding="utf-8")
    assert not [name for name in PARTS if f"`{name}`" not in text]


def test_document_is_plain_ascii():
    assert DOCS.read_text(encoding="utf-8").isascii()
