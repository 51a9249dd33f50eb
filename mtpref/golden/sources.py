"""What decides the values of a suite: the definitions that its operation reaches, as one hash.

Owns the walk. It starts at the function that answers the operation's cases and goes from name to name: definitions of
the same module, those that imports name, and the reference entry wherever code calls one of the recipe's tables
(`ops.rms_norm`, `steps.emitted`). Docstrings, comments, annotations, imports and the place of a file count for nothing,
so a definition may be documented, typed or moved. Left out is what cannot change a value of a given model: what reads
files, names and counts things, or computes the same bits faster.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mtpref.base import errors, events
from mtpref.engine.decode import statistics
from mtpref.engine.model import Head, Layer, Model
from mtpref.files import gguf, vocab
from mtpref.golden import format, loops, models, port, taps
from mtpref.spec import scaled_embedding, soft_cap
from mtpref.spec.kinds import (
    AVERAGED_MOE_FFN,
    CLAMPED_MOE_FFN,
    COMPRESSED_ATTENTION,
    DENSE_BESIDE_EXPERTS,
    GATED_ATTENTION,
    GATED_DELTA_NET,
    GEGLU_FFN,
    GROUPED_DELTA_NET,
    HALF_ROTARY_ATTENTION,
    HALF_ROTARY_HEAD_ATTENTION,
    HALVES_ALL_CELLS,
    HALVES_INDEXED,
    HASHED_MOE_FFN,
    LATENT_ATTENTION,
    LIMITED_FFN,
    LIMITED_MOE_FFN,
    MOE_FFN,
    PAIRS_ALL_CELLS,
    PAIRS_INDEXED,
    PAIRS_SHARING,
    PLAIN_MOE_FFN,
    SHARING_ATTENTION,
    SHARING_WINDOW,
    SIGMOID_MOE_FFN,
    SOFTMAX_MOE_FFN,
    SSM,
    STILL_ATTENTION,
    SWIGLU_FFN,
    TARGET_ATTENTION,
    TARGET_WINDOW,
    TEXT_ATTENTION,
    TURNED_ATTENTION,
    TURNED_HEAD_ATTENTION,
    UNSCALED_ATTENTION,
    UNSCALED_WINDOW,
    UNTURNED_ATTENTION,
    WHOLE_ROTARY_ATTENTION,
    WINDOW_ATTENTION,
    WINDOWED_ATTENTION,
    WINDOWED_HEAD_ATTENTION,
    HyperConnected,
    NormedAfter,
    Parallel,
    Sequential,
    Single,
)
from mtpref.spec.ops import Ops, spec_ops
from mtpref.spec.ops.compose import layer_normed_ops
from mtpref.spec.ops.compose_ssm import head_normed_ops
from mtpref.spec.ops.compose_streams import enter_streams, leave_streams, streams_input
from mtpref.spec.ops.compose_unscaled import assistant_input, assistant_row, layer_inputs
from mtpref.spec.steps import Steps

PACKAGE = __name__.partition(".")[0]
ROOT = Path(str(sys.modules[PACKAGE].__file__)).parent.parent
NOT_FOLLOWED: tuple[ModuleType, ...] = (errors, events, gguf, vocab, statistics, format, taps)
# What a run of a whole model reaches through objects, beside what code names: the layers of the vectors' models. Other
# architectures, and the list of them, decide nothing here.
WHOLE_MODEL = {
    "Model": Model,
    "Layer": Layer,
    "Head": Head,
    "Sequential": Sequential,
    "GATED_DELTA_NET": GATED_DELTA_NET,
    "GATED_ATTENTION": GATED_ATTENTION,
    "SWIGLU_FFN": SWIGLU_FFN,
    "GROUPED_DELTA_NET": GROUPED_DELTA_NET,
    "TEXT_ATTENTION": TEXT_ATTENTION,
    "WHOLE_ROTARY_ATTENTION": WHOLE_ROTARY_ATTENTION,
    "SOFTMAX_MOE_FFN": SOFTMAX_MOE_FFN,
    "MOE_FFN": MOE_FFN,
    "LATENT_ATTENTION": LATENT_ATTENTION,
    "HALVES_INDEXED": HALVES_INDEXED,
    "HALVES_ALL_CELLS": HALVES_ALL_CELLS,
    "PAIRS_INDEXED": PAIRS_INDEXED,
    "PAIRS_SHARING": PAIRS_SHARING,
    "PAIRS_ALL_CELLS": PAIRS_ALL_CELLS,
    "HyperConnected": HyperConnected,
    "enter_streams": enter_streams,
    "leave_streams": leave_streams,
    "streams_input": streams_input,
    "COMPRESSED_ATTENTION": COMPRESSED_ATTENTION,
    "WINDOW_ATTENTION": WINDOW_ATTENTION,
    "CLAMPED_MOE_FFN": CLAMPED_MOE_FFN,
    "HASHED_MOE_FFN": HASHED_MOE_FFN,
    "WINDOWED_ATTENTION": WINDOWED_ATTENTION,
    "WINDOWED_HEAD_ATTENTION": WINDOWED_HEAD_ATTENTION,
    "HALF_ROTARY_ATTENTION": HALF_ROTARY_ATTENTION,
    "HALF_ROTARY_HEAD_ATTENTION": HALF_ROTARY_HEAD_ATTENTION,
    "LIMITED_FFN": LIMITED_FFN,
    "LIMITED_MOE_FFN": LIMITED_MOE_FFN,
    "SIGMOID_MOE_FFN": SIGMOID_MOE_FFN,
    "UNSCALED_ATTENTION": UNSCALED_ATTENTION,
    "UNSCALED_WINDOW": UNSCALED_WINDOW,
    "SHARING_ATTENTION": SHARING_ATTENTION,
    "SHARING_WINDOW": SHARING_WINDOW,
    "TARGET_ATTENTION": TARGET_ATTENTION,
    "TARGET_WINDOW": TARGET_WINDOW,
    "GEGLU_FFN": GEGLU_FFN,
    "DENSE_BESIDE_EXPERTS": DENSE_BESIDE_EXPERTS,
    "NormedAfter": NormedAfter,
    "scaled_embedding": scaled_embedding,
    "layer_inputs": layer_inputs,
    "soft_cap": soft_cap,
    "assistant_input": assistant_input,
    "assistant_row": assistant_row,
    "TURNED_ATTENTION": TURNED_ATTENTION,
    "UNTURNED_ATTENTION": UNTURNED_ATTENTION,
    "TURNED_HEAD_ATTENTION": TURNED_HEAD_ATTENTION,
    "AVERAGED_MOE_FFN": AVERAGED_MOE_FFN,
    "Parallel": Parallel,
    "layer_normed_ops": layer_normed_ops,
    "SSM": SSM,
    "STILL_ATTENTION": STILL_ATTENTION,
    "PLAIN_MOE_FFN": PLAIN_MOE_FFN,
    "Single": Single,
    "head_normed_ops": head_normed_ops,
}
IGNORED = {"ctx", "annotation", "returns", "type_comment", "type_params", "kind", "simple"}


@dataclass(frozen=True)
class Definition:
    """A name at the top of a module."""

    module: str
    name: str


@dataclass
class Source:
    """A module as text: its definitions by name, and what its imports name (None: a module as a whole)."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


@cache
def source_sha256(op: str) -> str:
    """The hash of the definitions that decide the values of an operation's cases.

    Errors  KeyError for an operation that no case can have
    """
    parts = sorted(map(_text, reached(op)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def reached(op: str) -> frozenset[Definition]:
    """The definitions that an operation's answer reaches, itself included."""
    waiting = list(_roots(op))
    found: set[Definition] = set()
    while waiting:
        definition = waiting.pop()
        if definition not in found:
            found.add(definition)
            waiting += _named(definition)
    return frozenset(found)


def _roots(op: str) -> Iterator[Definition]:
    if op in models.MODEL_ANSWERS:
        for name in WHOLE_MODEL:
            found = _resolve(__name__, name)
            assert isinstance(found, Definition), name
            yield found
    answers: dict[str, Any] = {**port.ANSWERS, **loops.MODELLESS_ANSWERS, **models.MODEL_ANSWERS}
    answer = answers[op]
    yield Definition(answer.__module__, answer.__name__)


# ---------------------------------------------------------------------------------------------- names


@cache
def _named(definition: Definition) -> tuple[Definition, ...]:
    """The definitions that a definition's code names."""
    nodes = _source(definition.module).definitions[definition.name]
    out = []
    for node in _walk(nodes):
        found: Definition | str | None = None
        if isinstance(node, ast.Name):
            found = _resolve(definition.module, node.id)
        elif isinstance(node, ast.Attribute):
            out += _entry(node)
            if isinstance(node.value, ast.Name):
                module = _resolve(definition.module, node.value.id)
                found = _resolve(module, node.attr) if isinstance(module, str) else None
        if isinstance(found, Definition):
            out.append(found)
    return tuple(out)


def _entry(node: ast.Attribute) -> list[Definition]:
    """The reference's own function, where code calls an entry of one of the recipe's tables."""
    owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    table, maker = (Ops, spec_ops) if owner.endswith("ops") else (Steps, Steps)
    if not owner.endswith(("ops", "steps")) or node.attr not in table.__dataclass_fields__:
        return []
    home = Definition(maker.__module__, maker.__name__)
    values = [value for child in _walk(_source(home.module).definitions[home.name]) for value in _set(child, node.attr)]
    names = [_resolve_chain(home.module, inner) for value in values for inner in _walk([value])]
    return [found for found in names if isinstance(found, Definition)]


def _set(node: ast.AST, name: str) -> list[ast.expr]:
    """What the keyword, or the class's field, of this name is given."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
        return [node.value] if node.value is not None else []
    return [node.value] if isinstance(node, ast.keyword) and node.arg == name else []


def _resolve_chain(module: str, node: ast.AST) -> Definition | str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = _resolve(module, node.value.id)
        return _resolve(owner, node.attr) if isinstance(owner, str) else None
    return _resolve(module, node.id) if isinstance(node, ast.Name) else None


def _resolve(module: str, name: str) -> Definition | str | None:
    """What a name means in a module: a definition, another module, or nothing that is followed."""
    if any(module == m.__name__ or module.startswith(f"{m.__name__}.") for m in NOT_FOLLOWED):
        return None
    source = _source(module)
    if name in source.definitions:
        return Definition(module, name)
    if name not in source.imports:
        return None
    owner, attribute = source.imports[name]
    if attribute is None:
        return owner
    inner = f"{owner}.{attribute}"
    return inner if _path(inner) is not None else _resolve(owner, attribute)


# ---------------------------------------------------------------------------------------------- text


@cache
def _source(module: str) -> Source:
    path = _path(module)
    source = Source()
    if path is not None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            _bind(node, source)
    return source


def _bind(node: ast.stmt, source: Source) -> None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        source.definitions.setdefault(node.name, []).append(node)
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}:
            source.definitions.setdefault(name, []).append(node)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
        for alias in node.names:
            source.imports[alias.asname or alias.name] = (str(node.module), alias.name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE and alias.asname:
                source.imports[alias.asname] = (alias.name, None)
    elif not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):  # it may change what it names
        for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & set(source.definitions):
            source.definitions[name].append(node)


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node of the code; annotations are none."""
    for node in nodes:
        yield node
        for name, value in ast.iter_fields(node):
            if name not in IGNORED:
                children = value if isinstance(value, list) else [value]
                yield from _walk(child for child in children if isinstance(child, ast.AST))


@cache
def _text(definition: Definition) -> str:
    return _canonical(_source(definition.module).definitions[definition.name])


def _canonical(node: Any) -> str:
    """Code as text that no layout, comment, docstring or annotation changes, nor the version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, _without_docstrings(node))) + "]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!r}"
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in IGNORED and value not in (None, [])]
    if isinstance(node, ast.Constant):
        fields = [("value", node.value)]
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"


def _without_docstrings(nodes: list[Any]) -> list[Any]:
    """Statements, texts that stand alone left out."""
    return [n for n in nodes if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
