"""Where in a tree an edit belongs, and which functions stand above a line that Python itself never runs."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LIST = Path(__file__).parent / "mutations.toml"
PACKAGE = "mtpref"
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Mutation:
    """An edit as the list has it: `where` names the function or class, pairs are (old, new) in order of
    trial, with a third element where the function has another name; equivalent: why no test can notice it."""

    id: str
    where: str
    pairs: tuple[tuple[str, ...], ...]
    equivalent: str = ""

    @property
    def area(self) -> str:
        return self.id.partition("-")[0]


@dataclass(frozen=True)
class Place:
    """The edit in one tree. path: below the tree; lines: first and last (from 1) that it changes; names: of the
    functions, classes or constants that hold them, the innermost last."""

    path: str
    lines: tuple[int, int]
    names: tuple[str, ...]
    before: str
    after: str


def read_list(path: Path = LIST) -> list[Mutation]:
    """The mutations, in the order of the list."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    return [
        Mutation(r["id"], r["in"], ((r["old"], r["new"]), *map(tuple, r.get("others", ()))), r.get("equivalent", ""))
        for r in rows
    ]


def read_areas(path: Path = LIST) -> dict[str, list[str]]:
    """Area -> its own test files, the quickest first; "hashes" -> tests that notice any edit of a source."""
    return {k: list(v) for k, v in tomllib.loads(path.read_text(encoding="utf-8"))["areas"].items()}


@dataclass(frozen=True)
class Module:
    """A file of the package: its text and every function and class in it, with the names of what holds them."""

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    @cached_property
    def definitions(self) -> list[tuple[tuple[str, ...], _Function]]:
        return list(_definitions(ast.parse(self.text), ()))


def _definitions(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Function]]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, _Function):
            inner = (*names, child.name)
            yield inner, child
        yield from _definitions(child, inner)


def modules_of(tree: Path) -> list[Module]:
    """All modules of a tree's package."""
    paths = sorted((tree / PACKAGE).rglob("*.py"))
    return [Module(path.relative_to(tree).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def find(mutation: Mutation, modules: list[Module]) -> Place | None:
    """The one place of a mutation, by the first of its pairs that has one.

    Errors   ValueError where a pair has several places; None where no pair has any
    """
    for old, new, *where in mutation.pairs:
        name = where[0] if where else mutation.where
        found = [place for module in modules for place in _places(name, old, new, module)]
        if len(found) > 1:
            places = ", ".join(f"{place.path}:{place.lines[0]}" for place in found)
            raise ValueError(f"mutation {mutation.id}: {len(found)} places ({places}), expected one; make `old` longer")
        if found:
            return found[0]
    return None


def _places(where: str, old: str, new: str, module: Module) -> Iterator[Place]:
    if old not in module.text:
        return
    spans = [(d.lineno, d.end_lineno or d.lineno, names) for names, d in module.definitions]
    at = module.text.find(old)
    while at >= 0:
        first = module.text.count("\n", 0, at) + 1
        last = first + old.count("\n")
        holders = [names for begin, end, names in spans if begin <= first and last <= end]
        names = max(holders, key=len, default=())
        if where in names or (not where and not names):
            after = module.text[:at] + new + module.text[at + len(old) :]
            yield Place(module.path, (first, last), names or _assigned(module, first), module.text, after)
        at = module.text.find(old, at + 1)


def _assigned(module: Module, line: int) -> tuple[str, ...]:
    """The names that a statement outside of all functions gives a value to."""
    for node in ast.parse(module.text).body:
        if node.lineno <= line <= (node.end_lineno or node.lineno):
            return tuple(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return ()


def users(names: tuple[str, ...], modules: list[Module]) -> list[tuple[tuple[str, ...], str, range]]:
    """Functions that name one of `names`: their own names, the file, the lines of the body.

    By name alone, whatever it is bound to: too many rather than too few.
    """
    wanted, found = set(names), []
    for module in modules:
        for own, node in module.definitions:
            if isinstance(node, ast.ClassDef) or own[-1] in wanted or not wanted & _named(node):
                continue
            found.append((own, module.path, range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)))
    return found


def _named(node: ast.AST) -> set[str]:
    named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return named | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
