"""The graph of cb() names: what each activation is computed from, and by which step.

Owns how a name is found: kinds and residuals say what they make (`LayerKind.graph`), data sheets which block has which
weights, and rules are numbered by the docstrings of the specification. Only what stands outside of blocks is said here.
Names are those that mtpref's taps give; llama.cpp's further names (alpha, conv_input, ...) are known too, so that a
port's dump can say more. A test holds the graph to a real dump: each tapped name has an entry, and what it is computed
from comes before it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from mtpref import spec
from mtpref.architectures import ARCHITECTURES, Architecture, Block, HeadSheet, Tensor
from mtpref.engine.model.model import MTP_NAMES
from mtpref.spec.kinds import FFN, INPUT, LAYER_INPUT, MIXER, Graph, Made

_LAYERED = re.compile(r"(?P<base>.+)-(?P<il>\d{1,6})")
_ANCHOR = re.compile(r"(S\d+)\.")
TRUNK_HIDDEN = "h_nextn"


@dataclass(frozen=True)
class Producer:
    """One step. inputs: whole names ("attn_norm-3"); step: the operation, its weights and the rule in docs/spec.md."""

    inputs: tuple[str, ...]
    step: str


_GLOBAL = {
    "tokens": Made((), "the prompt: were both programs given the same ids?"),
    "model.input_embed": Made(("tokens",), "rows of token_embd.weight"),
    "result_output": Made(
        ("result_norm",), "product with output.weight, else token_embd.weight", (spec.mul_mat_exact,)
    ),
    "mtp_result_output": Made(
        ("mtp_shared_head_norm",), "product with nextn.shared_head_head, else output", (spec.mul_mat_exact,)
    ),
}
_FINAL = Made(("l_out",), "rms_norm with output_norm.weight", (spec.rms_norm,))
_MTP_FINAL = Made(
    ("mtp_l_out",), "rms_norm with nextn.shared_head_norm.weight, else output_norm.weight", (spec.rms_norm,)
)
_LAST_OF = {"h_nextn": _FINAL, "result_norm": _FINAL, "mtp_h_nextn": _MTP_FINAL, "mtp_shared_head_norm": _MTP_FINAL}
# What a head makes before its block, where its data sheet names no way of its own.
_HEAD_INPUT = {
    "tok_embd": Made(("tokens",), "rows of nextn.embed_tokens, else of token_embd; the token of its own position"),
    "hnorm": Made(
        (TRUNK_HIDDEN,),
        "the trunk's row of the position before, rms_norm with blk.{i}.nextn.hnorm.weight",
        (spec.pair_hidden, spec.rms_norm),
    ),
    "enorm": Made(("tok_embd",), "rms_norm with blk.{i}.nextn.enorm.weight", (spec.rms_norm,)),
    "concat": Made(("enorm", "hnorm"), "embedding first, hidden second", (spec.mtp_concat,)),
    "eh_proj": Made(("concat",), "product with blk.{i}.nextn.eh_proj.weight", (spec.mul_mat_exact,)),
}


# THE GRAPHS OF DATA SHEETS


def block_graph(block: Block, cb: Mapping[str, str] = MappingProxyType({})) -> dict[str, Made]:
    """What a block makes, in order: its residual's graph with those of mixer and network where they are first read.

    cb   the architecture's own names (Architecture.cb)

    Where neither has words, the weight is told that makes it by the data sheet (`Tensor.cb`).
    """
    residual: Graph = getattr(block.residual, "graph", {})
    feeds: Sequence[str] = getattr(block.residual, "feeds", ("", ""))
    parts = {MIXER: (block.mixer.graph, feeds[0]), FFN: (block.ffn.graph, feeds[1])}
    made: dict[str, Made] = {}
    for name, one in {**residual, "": Made((MIXER, FFN), "")}.items():
        for part in [part for part in parts if part in one.inputs and next(iter(parts[part][0]), "") not in made]:
            graph, feed = parts[part]
            made |= {key: _with_inputs(inner, {INPUT: feed}) for key, inner in graph.items()}
        made[name] = _with_inputs(one, {part: (list(graph) or [""])[-1] for part, (graph, _) in parts.items()})
    del made[""]
    for tensor in block.all_tensors():
        one = made.get(tensor.cb, Made(()))
        if tensor.cb and not one.step:
            made[tensor.cb] = replace(one, **_with_weight(tensor))
    return {cb.get(name, name): _with_inputs(one, cb) for name, one in made.items()}


def _with_weight(tensor: Tensor) -> dict[str, Any]:
    weight = f"with blk.{{i}}.{tensor.name}"
    if len(tensor.shape) == 2 and not tensor.keep_f32:
        return {"step": f"product {weight}", "rules": (spec.mul_mat_exact,)}
    if tensor.name.endswith("norm.weight"):
        return {"step": f"rms_norm {weight}", "rules": (spec.rms_norm,)}
    return {"step": f"made {weight}"}


def head_graph(sheet: HeadSheet, block: Block, cb: Mapping[str, str] = MappingProxyType({})) -> dict[str, Made]:
    """What a head makes up to the end of its block, by its own names. block: the sheet's, or what stands for it"""
    made = dict(_HEAD_INPUT) if sheet.enter is None else {}
    names = {**MTP_NAMES, **cb, LAYER_INPUT: "eh_proj"}
    return made | block_graph(block, names)


def _with_inputs(made: Made, names: Mapping[str, str]) -> Made:
    """The same with other names for inputs; those that become "" are left out."""

    def renamed(given: Iterable[str]) -> tuple[str, ...]:
        return tuple(new for name in given if (new := names.get(name, name)))

    return replace(made, inputs=renamed(made.inputs), instead=None if made.instead is None else renamed(made.instead))


@lru_cache(maxsize=8)
def _graphs(sheets: tuple[Architecture, ...]) -> tuple[list[dict[str, Made]], list[dict[str, Made]]]:
    """Every block's graph, and every head's."""
    blocks = [block_graph(block, sheet.cb) for sheet in sheets for block in sheet.layers.all_blocks()]
    heads = [head_graph(sheet.head, block, sheet.cb_head)
             for sheet in sheets if sheet.head is not None for block in sheet.head.blocks]  # fmt: skip
    return blocks, heads


@lru_cache(maxsize=8)
def _chosen(known: frozenset[str], sheets: tuple[Architecture, ...]) -> dict[tuple[bool, int], dict[str, Made]]:
    """The graph of each layer, of trunk (False) and head (True): the one that has most of the names at hand."""
    graphs = _graphs(sheets)
    having: list[dict[str, list[int]]] = [defaultdict(list), defaultdict(list)]
    for of_name, found in zip(having, graphs, strict=True):
        for i, graph in enumerate(found):
            for name in graph:
                of_name[name].append(i)
    counts: dict[tuple[bool, int], Counter[int]] = defaultdict(Counter)
    for name in known:
        is_head, base, il = _parts(name)
        if base:
            counts[is_head, il].update(having[is_head].get(base, ()))
    return {
        at: graphs[at[0]][max(range(len(graphs[at[0]])), key=lambda i: (count[i], -i))] for at, count in counts.items()
    }


def _parts(name: str) -> tuple[bool, str, int]:
    """Whether a name is the head's, its base name and its layer; "" for a name without a layer."""
    match = _LAYERED.fullmatch(name)
    if match is None:
        return False, "", 0
    base = match["base"]
    return base.startswith("mtp_"), base.removeprefix("mtp_"), int(match["il"])


def _graph_at(is_head: bool, il: int, known: Collection[str]) -> dict[str, Made]:
    sheets = tuple(ARCHITECTURES.values())
    return _chosen(frozenset(known), sheets).get((is_head, il)) or next(iter(_graphs(sheets)[is_head]), {})


# NAMES


def producer_of(name: str, known: Collection[str]) -> Producer | None:
    """The step that makes a tensor; None for an unknown name.

    known   the names at hand: they tell which block a layer is, and which layer is the last
    """
    if name in _LAST_OF:
        made = _LAST_OF[name]
        return _told(made, 0, lambda base: _last_output(known, base))
    if name in _GLOBAL:
        return _told(_GLOBAL[name], 0, str)
    is_head, base, il = _parts(name)
    graph = _graph_at(is_head, il, known) if base else {}
    if base not in graph:
        return None

    def whole(name: str) -> str:
        return (_mtp_name if is_head else _trunk_name)(name, il)

    found = replace(graph[base], inputs=tuple(_there(graph[base].inputs, graph, lambda name: whole(name) in known)))
    return _told(found, il, whole)


def _there(inputs: Iterable[str], graph: Graph, is_known: Callable[[str], bool]) -> dict[str, None]:
    """The inputs, each once; of what this model does not make, what stands in for it."""
    found: dict[str, None] = {}
    for name in inputs:
        instead = graph[name].instead if name in graph and not is_known(name) else None
        found |= {name: None} if instead is None else _there(instead, graph, is_known)
    return found


def _told(made: Made, il: int, whole: Callable[[str], str]) -> Producer:
    anchors = ", ".join(anchor_of(rule) for rule in made.rules)
    step = made.step.format(i=il)
    return Producer(tuple(map(whole, made.inputs)), f"{step} ({anchors})" if anchors else step)


def anchor_of(rule: Callable[..., Any]) -> str:
    """The number that a function of the specification carries."""
    match = _ANCHOR.match(rule.__doc__ or "")
    if match is None:
        raise ValueError(f"{rule.__name__} has no number")
    return match[1]


def _last_output(known: Collection[str], base: str) -> str:
    layers = [int(m["il"]) for name in known if (m := _LAYERED.fullmatch(name)) and m["base"] == base]
    return f"{base}-{max(layers)}" if layers else f"{base}-(last)"


def _trunk_name(base: str, il: int) -> str:
    if base == LAYER_INPUT:
        return f"l_out-{il - 1}" if il else "model.input_embed"
    return f"{base}-{il}"


def _mtp_name(base: str, il: int) -> str:
    return base if base in (TRUNK_HIDDEN, "tokens") else f"mtp_{base}-{il}"


def in_execution_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the graph, for files that keep none; unknown ones stand last, as they were."""
    listed = list(names)
    known = frozenset(listed)
    return sorted(listed, key=lambda name: _execution_key(name, known))


_ENDS = {"tokens": (0, 0, 0), "model.input_embed": (0, 0, 1), "h_nextn": (2, 0, 0), "result_norm": (2, 0, 1),
         "result_output": (2, 0, 2), "mtp_h_nextn": (4, 0, 0), "mtp_shared_head_norm": (4, 0, 1),
         "mtp_result_output": (4, 0, 2)}  # fmt: skip


def _execution_key(name: str, known: Collection[str]) -> tuple[int, int, int]:
    """(part of the graph, layer, place within it)."""
    if name in _ENDS:
        return _ENDS[name]
    is_head, base, il = _parts(name)
    order = list(_graph_at(is_head, il, known)) if base else []
    if base not in order:
        return (3, il, len(order)) if is_head else (5, 0, 0)
    return (3 if is_head else 1, il, order.index(base))
