"""The import contract: which room may import which. Arrows go one way; every arrow is in the table."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtpref

PACKAGE = Path(mtpref.__file__).parent
SELF = "mtpref"  # mtpref/__init__.py and __main__.py: the package's own door

# Room -> the rooms that it may import. A room is a file or a folder of mtpref/.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "typed": {"errors"},
    "events": {"typed"},
    "files": {"errors"},
    "quants": {"errors"},
    "gguf": {"files", "errors", "quants"},
    "transforms": {"errors"},
    "contract": {"errors"},
    "rope_scaling": {"errors"},
    "config": {"errors", "rope_scaling"},
    "tensor_names": set(),
    "vocab": {"errors"},
    "chat": {"files", "errors", "gguf", "vocab"},
    "spec": {"errors", "quants"},
    "draft_vocab": {"errors", "files", "gguf", "typed"},
    "weights": {"errors", "gguf", "quants", "spec"},
    "ops": {"config", "spec"},
    "kernels": {"errors", "ops", "spec"},
    "state": {"errors"},
    "policy": {"errors", "spec"},
    "step_types": {"contract", "policy", "spec", "state"},
    "steps": {"contract", "policy", "spec", "state", "step_types"},
    "recipe": {"contract", "errors", "kernels", "ops", "spec", "steps"},
    "model": {
        "check_tensors",
        "config",
        "draft_vocab",
        "errors",
        "gguf",
        "identify",
        "ops",
        "recipe",
        "rope_scaling",
        "spec",
        "state",
        "steps",
        "vocab",
        "weights",
    },
    "decode": {"errors", "events", "model", "policy", "spec", "state", "steps", "vocab"},
    "trace": {"errors", "events", "files", "typed", "vocab"},
    "dump": {"contract", "errors", "gguf", "model"},
    "tensor_files": {"errors", "files", "gguf", "typed"},
    "compare": {"dump", "errors", "events", "files", "gguf", "llama_cpp", "quants", "tensor_files"},
    "golden": {
        "files",
        "policy",
        "config",
        "contract",
        "decode",
        "errors",
        "events",
        "gguf",
        "model",
        "ops",
        "quants",
        "recipe",
        "spec",
        "state",
        "llama_cpp",
        "steps",
        "tensor_files",
        "typed",
        "vocab",
    },
    "llama_cpp": {"errors", "events", "files", "gguf", "tensor_files", "typed"},
    "probe": {
        "files",
        "contract",
        "draft_vocab",
        "errors",
        "gguf",
        "model",
        "ops",
        "spec",
        "state",
        "steps",
        "tensor_files",
        "vocab",
    },
    "bench": {"decode", "errors", "events", "files", "gguf", "kernels", "model", "spec", "state", "typed"},
    "plan": {
        "bench",
        "decode",
        "draft_vocab",
        "errors",
        "events",
        "gguf",
        "model",
        "policy",
        "probe",
        "spec",
        "state",
    },
    # Chapters use the library as a reader would.
    "learn": {"api", "errors", "faults", "mtpref", "spec", "story"},
    "identify": {"gguf"},
    "report": {"errors", "events", "trace", "vocab"},
    "memory": {"model", "spec", "state"},
    "heads": {"convert", "errors", "gguf", "hf", "identify", "model", "probe", "quants", "tensor_names"},
    "check": {
        "chat",
        "check_tensors",
        "convert",
        "errors",
        "gguf",
        "heads",
        "hf",
        "inspect",
        "model",
        "probe",
        "quants",
        "spec",
        "tensor_names",
        "vocab",
        "weights",
    },
    "quantize": {"files", "errors", "gguf", "heads", "identify", "model", "probe", "quants", "spec", "weights"},
    "check_tensors": {"errors", "gguf", "quants"},
    "inspect": {"errors", "gguf", "identify", "tensor_names"},
    "hf": {"errors", "files", "gguf", "tensor_files", "transforms", "typed"},
    "convert": {"errors", "files", "gguf", "hf", "quants", "tensor_names", "typed", "vocab"},
    "faults": {
        "contract",
        "errors",
        "model",
        "ops",
        "policy",
        "quants",
        "recipe",
        "rope_scaling",
        "spec",
        "state",
        "step_types",
        "steps",
        "weights",
    },
    "diagnose": {
        "files",
        "compare",
        "policy",
        "contract",
        "decode",
        "errors",
        "events",
        "faults",
        "gguf",
        "llama_cpp",
        "model",
        "recipe",
        "spec",
        "state",
        "steps",
        "trace",
        "typed",
    },
    "story": {"decode", "errors", "events", "model", "state"},
    "session": {"contract", "decode", "errors", "events", "gguf", "model", "state"},
    "selftest": {
        "contract",
        "decode",
        "errors",
        "events",
        "kernels",
        "llama_cpp",
        "model",
        "ops",
        "recipe",
        "session",
        "spec",
        "state",
    },
    "api": {"chat", "contract", "decode", "errors", "events", "model", "recipe", "rope_scaling", "session", "state"},
    SELF: {"api", "cli", "contract", "decode", "errors", "rope_scaling", "session"},
}
# The command line may use everything.
ALLOWED["cli"] = set(ALLOWED)

# The recipe chooses them; the command line sets threads and says what it waits for; the self test varies both.
KERNEL_USERS = {"recipe", "cli", "selftest", "bench"}
FAULT_USERS = {"cli", "diagnose", "learn"}


def room_of(path: Path) -> str:
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return SELF if top.startswith("__") else top


def imported_modules(tree: ast.AST, rooms: set[str]) -> set[str]:
    """Rooms that a file imports anywhere, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their room"
            parts = (node.module or "").split(".")
            if parts[0] == "mtpref":
                names = [alias.name for alias in node.names]
                found |= {parts[1]} if len(parts) > 1 else {name if name in rooms else SELF for name in names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "mtpref":
                    found.add(parts[1] if len(parts) > 1 else SELF)
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {room_of(path) for path in SOURCES}
IMPORTS: dict[str, set[str]] = {room: set() for room in ROOMS}
for source in SOURCES:
    IMPORTS[room_of(source)] |= imported_modules(ast.parse(source.read_text()), ROOMS) - {room_of(source)}


def test_every_room_is_in_the_table():
    assert set(ALLOWED) == ROOMS


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_the_table_allows(room):
    assert IMPORTS.get(room, set()) <= ALLOWED[room]


def test_arrows_go_one_way():
    graph = {room: allowed - {room} for room, allowed in ALLOWED.items() if room != "cli"}
    graph[SELF] = graph[SELF] - {"cli"}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("spec") < order.index("ops") < order.index("model") < order.index("decode")


def test_only_the_recipe_chooses_kernels():
    assert {room for room, imports in IMPORTS.items() if "kernels" in imports} <= KERNEL_USERS


def test_only_the_command_line_knows_faults():
    assert {room for room, imports in IMPORTS.items() if "faults" in imports} <= FAULT_USERS


def test_nothing_imports_the_command_line_but_the_package_itself():
    assert {room for room, imports in IMPORTS.items() if "cli" in imports} <= {SELF}


def test_only_kernels_import_numba():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("numba", "llvmlite") for name in names):
                assert room_of(path) == "kernels", path


def test_the_model_never_decides_and_the_loop_never_touches_weights():
    """Decode reads no weights and no operation but the two that turn logits into choices."""
    allowed_ops = {"argmax", "top_candidates"}
    for path in (PACKAGE / "decode").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr != "weights", path
                if isinstance(node.value, ast.Attribute) and node.value.attr == "ops":
                    assert node.attr in allowed_ops, path
    assert not {"decode", "events", "api"} & IMPORTS["model"]


def test_policy_has_no_arrays():
    tree = ast.parse((PACKAGE / "policy.py").read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"collections.abc", "dataclasses", "mtpref.errors", "mtpref.spec"}


def test_the_parser_of_this_test_sees_every_way_to_import():
    text = "\n".join(
        ["import mtpref.vocab.bpe", "from mtpref import kernels", "def f():", "    from mtpref.cli.main import x",
         "from mtpref import __version__", "import numpy"]
    )  # fmt: skip
    assert imported_modules(ast.parse(text), {"kernels", "vocab", "cli"}) == {"vocab", "kernels", "cli", SELF}
