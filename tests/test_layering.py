"""The import contract: rooms stand in one order, and arrows go down it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import mtpref

PACKAGE = Path(mtpref.__file__).parent
SELF = "mtpref"  # mtpref/__init__.py and __main__.py: the package's own door

# A room may import those before it.
ROOMS = (
    *("base", "spec", "files", "architectures", "kernels", "engine"),
    *("measure", "look", "heads", "golden", "faults", "front"),
)
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The recipe chooses kernels; the command line sets threads and says what it waits for; bench and self test vary both.
KERNEL_USERS = {"engine/recipe", "front/cli", "look/selftest", "measure/bench"}
FAULT_USERS = {"front/cli", "front/learn"}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else SELF


def part_of(path: Path) -> str:
    """A room's folder or file: engine/decode, engine/recipe."""
    return "/".join(path.relative_to(PACKAGE).with_suffix("").parts[:2])


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their room"
            module = node.module or ""
            if module == SELF:
                found |= {f"{SELF}.{alias.name}" for alias in node.names}
            elif module.startswith(f"{SELF}."):
                found.add(module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == SELF}
    return found


@cache
def tree_of(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


@cache
def imports() -> dict[Path, set[str]]:
    """Not made where this file is only collected or imported: every worker does that."""
    return {path: imported(tree_of(path)) for path in SOURCES}


def rooms_of(modules: set[str]) -> set[str]:
    parts = {module.split(".")[1] if "." in module else SELF for module in modules}
    return {part if part in ROOMS else SELF for part in parts}


def test_every_folder_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_before_it(room):
    below = {*ROOMS[: ROOMS.index(room) + 1], *([SELF] if room == "front" else [])}
    for path, modules in imports().items():
        if room_of(path) == room:
            assert rooms_of(modules) <= below, path


def test_no_module_outside_the_architectures_tests_a_name_of_one():
    """Names of pre-tokenizers ("qwen35") are no architecture names."""
    compared = re.compile(r"""(==|!=|\bin|startswith)\s*\(?\[?\s*["'](qwen|glm|deepseek|mimo|step3|gemma|hy_v)""")
    for path in SOURCES:
        if room_of(path) != "architectures" and "vocab" not in path.parts:
            assert not compared.search(path.read_text()), path


def users_of(room: str) -> set[str]:
    return {part_of(path) for path, modules in imports().items() if room in rooms_of(modules) and room_of(path) != room}


def test_only_the_recipe_chooses_kernels():
    assert users_of("kernels") <= KERNEL_USERS


def test_only_the_command_line_knows_faults():
    assert users_of("faults") <= FAULT_USERS


def test_nothing_imports_the_command_line_but_the_package_itself():
    for path, modules in imports().items():
        if any(module.startswith(f"{SELF}.front.cli") for module in modules):
            assert part_of(path) == "front/cli" or room_of(path) == SELF


def test_only_kernels_import_numba():
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("numba", "llvmlite") for name in names):
                assert room_of(path) == "kernels", path


def test_the_model_never_decides_and_the_loop_never_touches_weights():
    """Decode reads no weights and no operation but the two that turn logits into choices."""
    allowed_ops = {"argmax", "top_candidates"}
    for path in (PACKAGE / "engine/decode").glob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                assert node.attr != "weights", path
                if isinstance(node.value, ast.Attribute) and node.value.attr == "ops":
                    assert node.attr in allowed_ops, path
    for path in (PACKAGE / "engine/model").glob("*.py"):
        assert not any(
            module.startswith((f"{SELF}.engine.decode", f"{SELF}.base.events")) for module in imports()[path]
        )


def test_policy_has_no_arrays():
    tree = ast.parse((PACKAGE / "spec/policy.py").read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"collections.abc", "dataclasses", "mtpref.base.settings", "mtpref.spec", "typing"}


def test_the_parser_of_this_test_sees_every_way_to_import():
    lines = ["import mtpref.files.vocab.bpe", "from mtpref import kernels", "from mtpref import __version__"]
    lines += ["def f():", "    from mtpref.front.cli import main", "import numpy"]
    found = imported(ast.parse("\n".join(lines)))
    assert found == {"mtpref.files.vocab.bpe", "mtpref.kernels", "mtpref.__version__", "mtpref.front.cli"}
    assert rooms_of(found) == {"files", "kernels", "front", SELF}
