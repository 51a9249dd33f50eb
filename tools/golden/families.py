"""L3 to L5 of small models: trunk, MTP block, chain, rounds and runs, the same for every family of architectures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from golden import l3_trunk, l5_loop
from golden.moe_models import N_VOCAB, path_of
from golden.moe_models import prompt as tokens_of
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.golden.build import SuiteBuilder, close, value
from tests import naive_loop
from tests.portable import usual_arithmetic

GOLDEN = l3_trunk.GOLDEN
SAFE_GAP = 1e-4  # of routers and indexers; float32 leaves 1e-6
SAFE_MARGIN = l5_loop.SAFE_MARGIN


@dataclass(frozen=True)
class Member:
    """One architecture of a family.

    oracle     a module of tests/ with load, trunk and mtp
    draft      in place of naive_loop's
    features   what its cases require beside the family's
    of_trunk, of_head, of_rounds  faults that fail its cases
    hidden     the trunk's rows that its head is given: h_post or h_pre
    drafts     "" where its head is in its own file, else the name of the model that drafts for it
    has_cells  whether its head keeps cells of the text
    """

    oracle: Any
    features: tuple[str, ...] = ()
    of_trunk: tuple[str, ...] = ()
    of_head: tuple[str, ...] = ()
    of_rounds: tuple[str, ...] = ("basic",)
    hidden: str = "h_post"
    draft: Callable[..., Any] | None = None
    drafts: str = ""
    has_cells: bool = True


@dataclass(frozen=True)
class Family:
    """Architectures whose cases stand in suites of their own, `trunk_NAME` and so on.

    members   architecture -> its own
    features  what every case requires
    in_all    faults that fail every trunk and head
    faint     of those, what quantised activations hide in so small a model: the class of `ggml` cases is wider
    kept      the activations of each layer that cases compare
    names     our name of an activation -> the oracle's
    batches   of the trunk's prompt
    """

    name: str
    members: Mapping[str, Member]
    features: tuple[str, ...]
    kept: tuple[str, ...]
    in_all: tuple[str, ...] = ()
    faint: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    batches: tuple[int, ...] = (5, 2, 1)

    def needs(self, arch: str, *more: str) -> tuple[str, ...]:
        return (*self.features, "q8_0", *self.members[arch].features, *more)


def files(arch: str, member: Member) -> dict[str, str]:
    """The models of a case that drafts, as its parameters name them."""
    return {"model": path_of(arch)} | ({"model_draft": path_of(member.drafts)} if member.drafts else {})


def slug(arch: str) -> str:
    """An architecture in a case's id."""
    return arch.replace("-", "_")


@lru_cache(maxsize=16)
def oracle(arch: str, module: Any) -> tuple[dict[str, Any], dict[str, NDArray]]:
    found: tuple[dict[str, Any], dict[str, NDArray]] = module.load(str(GOLDEN / path_of(arch)))
    return found


@lru_cache(maxsize=16)
def model(arch: str) -> Model:
    """The specification on the same file."""
    return load(GOLDEN / path_of(arch), make_recipe("exact", use_kernels=False), kv_type="F32", kv_type_draft="F32")


def ours(op: str, params: Mapping[str, Any], inputs: Mapping[str, NDArray], numerics: str) -> dict[str, Any]:
    """What the specification gives; no choice of experts or cells hangs on a near tie.

    Errors  ValueError where one does: choose another prompt
    """
    given = l3_trunk.ours(op, dict(params), dict(inputs), numerics)
    near = [name for name, x in given.items() if "_gap" in name and x.min() < SAFE_GAP]
    if near:
        raise ValueError(f"{op}: {near} hang on near ties: choose another prompt")
    return given


def add(
    suite: SuiteBuilder, family: Family, arch: str, comment: str, inputs: Mapping[str, NDArray],
    params: Mapping[str, Any], tensors: Mapping[str, NDArray], last: tuple[str, ...], flags: tuple[str, ...],
    need: tuple[str, ...], id: str = "",
) -> None:  # fmt: skip
    """Exact numerics against the oracle's tensors, `ggml` numerics against the specification's bits (of `last`)."""
    params = {"model": path_of(arch), **params, "kv_type": "F32"}
    given, id = ours(suite.op, params, inputs, "exact"), id or slug(arch)
    out = {}
    for name, x in given.items():
        theirs = _their_name(family, name)
        if theirs in tensors and (name in last or name.rpartition("-")[0].endswith(family.kept)):
            out[name] = close("model_f32", tensors[theirs].reshape(x.shape), x)
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=family.needs(arch, *need))
    bits = ours(suite.op, params, inputs, "ggml")
    flags = tuple(flag for flag in flags if flag not in family.faint)
    out = {name: close("model_ggml", bits[name]) for name in last}
    suite.case(f"{id}_ggml", f"{comment}; quantised activations", inputs=inputs, out=out, params=params,
               numerics="ggml", requires=family.needs(arch, "ggml", *need), flags=flags)  # fmt: skip


def _their_name(family: Family, name: str) -> str:
    kind, dash, layer = name.rpartition("-")
    front = "mtp_" if kind.startswith("mtp_") else ""
    own = kind.removeprefix(front)
    return f"{front}{family.names.get(own, own)}{dash}{layer}" if dash else name


def trunk(family: Family, about: str, rules: tuple[str, ...]) -> SuiteBuilder:
    suite = SuiteBuilder("L3", f"trunk_{family.name}", "trunk", rules, about)
    n = sum(family.batches)
    for arch, member in family.members.items():
        tokens = tokens_of(f"trunk_{family.name}/{arch}", n)
        hparams, w = oracle(arch, member.oracle)
        found = member.oracle.trunk(w, hparams, tokens)
        tensors = found.tensors | {"result_output": found.logits, "result_norm": found.h_post}
        add(suite, family, arch, f"{NUMBERS[n]} tokens", {"tokens": np.array(tokens, np.int32)},
            {"batches": list(family.batches)}, tensors, ("result_output",),
            ("basic", *family.in_all, *member.of_trunk), ())  # fmt: skip
    return suite


NUMBERS = {1: "one", 2: "two", 3: "three", 7: "seven", 8: "eight", 10: "ten", 12: "twelve", 14: "fourteen"}


def block(family: Family, about: str, rules: tuple[str, ...]) -> SuiteBuilder:
    suite = SuiteBuilder("L4", f"mtp_block_{family.name}", "mtp", rules, about)
    for arch, member in family.members.items():
        tokens = tokens_of(f"mtp_{family.name}/{arch}", 7)
        hparams, w = oracle(arch, member.oracle)
        rows = getattr(member.oracle.trunk(w, hparams, tokens), member.hidden).astype(np.float32)
        paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
        found = member.oracle.mtp(w, hparams, tokens, paired, list(range(len(tokens))))
        tensors = found.tensors | {"mtp_result_output": found.logits}
        inputs = {"tokens": np.array(tokens, np.int32), "hidden": paired}
        add(suite, family, arch, "seven pairs", inputs, {"first_pos": 0, "contract": "llama.cpp"}, tensors,
            ("mtp_result_output",), ("basic", "G1-concat-swapped", *family.in_all, *member.of_head),
            ("mtp",))  # fmt: skip
    return suite


def naively(member: Member) -> AbstractContextManager[Any]:
    """naive_loop on this architecture's layers."""
    own: dict[str, Any] = {"trunk": member.oracle.trunk}
    if hasattr(member.oracle, "mtp"):
        own["mtp"] = member.oracle.mtp
    if member.draft is not None:
        own["draft"] = member.draft
    patched: AbstractContextManager[Any] = mock.patch.multiple(naive_loop, **own)
    return patched


def chain(family: Family, about: str, rules: tuple[str, ...], flags: tuple[str, ...], stream: int = 2) -> SuiteBuilder:
    suite = SuiteBuilder("L4", f"mtp_chain_{family.name}", "mtp_chain", rules, about)
    for arch, member in family.members.items():
        tokens = tokens_of(f"mtp_chain_{family.name}/{arch}/{stream}", 8)
        hparams, w = oracle(arch, member.oracle)
        inputs = {"tokens": np.array(tokens, np.int32)}
        params = {**files(arch, member), "contract": "llama.cpp", "n": 3, "batches": [4, 3], "kv_type": "F32"}
        with naively(member):
            ids, candidates = naive_loop.draft(w, hparams, tokens, 3)
        given = ours("mtp_chain", params, inputs, "exact")
        p = np.array([c.p for c in candidates])
        if (p[:, 0] - p[:, 1]).min() < SAFE_GAP:
            raise ValueError(f"chain {arch} hangs on a near tie: choose another prompt")
        suite.case(slug(arch), f"{NUMBERS[len(ids)]} tokens", inputs=inputs, params=params,
                   requires=family.needs(arch, "mtp"), flags=("basic", *flags, *member.of_head),
                   out={"ids": value(ids), "p": close("model_f32", p, given["p"])})  # fmt: skip
    return suite


@lru_cache(maxsize=16)
def continuation(name: str, arch: str, member: Member, n_prompt: int, n: int) -> tuple[list[int], list[int]]:
    """A prompt and the oracle's greedy continuation: the first stream whose margins and gaps are safe.

    Errors  ValueError where none of many is
    """
    hparams, w = oracle(arch, member.oracle)
    for i in range(50):
        prompt = tokens_of(f"loop_{name}/{arch}/{i}", n_prompt)
        with usual_arithmetic(), naively(member):
            ids = naive_loop.greedy(w, hparams, prompt, n)
            found = member.oracle.trunk(w, hparams, prompt + ids)
        top = np.sort(found.logits[n_prompt - 1 : -1], axis=1)[:, -2:]
        gaps = [*gaps_of(arch, prompt + ids), *(x.min() for key, x in found.tensors.items() if "_gap" in key)]
        if (top[:, 1] - top[:, 0]).min() >= SAFE_MARGIN and min(gaps) >= SAFE_GAP and len(set(ids)) > n // 2:
            return prompt, ids
    raise ValueError(f"{arch}: no prompt without a near tie")


def gaps_of(arch: str, tokens: Sequence[int]) -> list[float]:
    """The least gap of each router."""
    m = model(arch)
    return [r.gap.min() for r in m.trunk(m.new_state(len(tokens)), tokens, n_logits=1).routings]


def state_after(arch: str, tokens: Sequence[int], pending: str = "post") -> dict[str, NDArray]:
    """What the trunk holds after these tokens, run one by one from nothing, with no roll back."""
    m = model(arch)
    state = m.new_state(len(tokens))
    for token in tokens:
        row = getattr(m.trunk(state, [token], n_logits=0).hidden, pending)
    held = {}
    for il, layer in enumerate(state.layers):
        for spec in layer.specs:
            if not spec.positional:
                held[f"{spec.name}_l{il}"] = layer.arrays[spec.name].copy()
            elif spec.stride > 1 and len(tokens) >= spec.stride:
                held[f"{spec.name}_l{il}"] = layer.arrays[spec.name][: len(tokens) // spec.stride].copy()
    return held | {"pending_h": row[-1]}


def rollback(family: Family, about: str, rules: tuple[str, ...], left_out: tuple[str, ...] = ()) -> SuiteBuilder:
    """left_out: state arrays that cases do not compare."""
    suite = SuiteBuilder("L5", f"rollback_{family.name}", "rounds", rules, about)
    for arch, member in family.members.items():
        prompt, ids = continuation(family.name, arch, member, 6, 8)
        drafts = [[ids[0], (ids[1] + 1) % N_VOCAB, ids[2]], [ids[2], ids[3]]]
        emitted, accepted = l5_loop.expected_rounds(ids, drafts)
        held = [*prompt, *emitted][:-1]
        for strategy in ("snapshot", "replay"):
            params = {**files(arch, member), "kv_type": "F32", "rollback": strategy, "n_max": 3, "drafts": drafts,
                      "n_predict": 99}  # fmt: skip
            inputs = {"tokens": np.array(prompt, np.int32)}
            given = ours("rounds", params, inputs, "exact")
            out = {"ids": value(emitted), "n_accepted": value(accepted), "n_past": value(len(held)),
                   "n_mtp": value(len(held) if member.has_cells else 0)}  # fmt: skip
            after = state_after(arch, held, member.hidden.removeprefix("h_"))
            out |= {name: close("model_f32", x, given[name]) for name, x in after.items() if name not in left_out}
            suite.case(f"{slug(arch)}_{strategy}", f"the second of three is rejected; {strategy}", inputs=inputs,
                       out=out, params=params, flags=member.of_rounds,
                       requires=family.needs(arch, "mtp", strategy))  # fmt: skip
    return suite


def runs(family: Family, about: str, rules: tuple[str, ...]) -> SuiteBuilder:
    suite = SuiteBuilder("L5", f"runs_{family.name}", "generate", rules, about)
    for arch, member in family.members.items():
        prompt, ids = continuation(family.name, arch, member, 6, 12)
        params = {**files(arch, member), "kv_type": "F32", "n_max": 3, "n_predict": 12}
        inputs = {"tokens": np.array(prompt, np.int32)}
        given = ours("generate", params, inputs, "exact")
        with usual_arithmetic():
            check_drafts(arch, member, prompt, ids, given)
        out = {name: value(given[name]) for name in ("ids", "drafts", "n_accepted", "reason")}
        suite.case(slug(arch), "drafts of three", inputs=inputs, params=params, out=out, flags=("basic",),
                   requires=family.needs(arch, "mtp"))  # fmt: skip
    return suite


def check_drafts(arch: str, member: Member, prompt: Sequence[int], ids: Sequence[int], given: dict[str, Any]) -> None:
    """As l5_loop.check_drafts, by this model's oracle."""
    own = oracle(arch, member.oracle)
    with naively(member), mock.patch.object(l5_loop, "weights", return_value=own):
        l5_loop.check_drafts(prompt, ids, given, {})


def head_cells(
    suite: SuiteBuilder, family: Family, arch: str, cells: Callable[[Mapping[str, NDArray]], Mapping[str, NDArray]],
    flags: tuple[str, ...],
) -> None:  # fmt: skip
    """The cells that a run leaves in the head. cells: the oracle's activations over what is held -> k, v"""
    member = family.members[arch]
    hparams, w = oracle(arch, member.oracle)
    prompt, ids = continuation(family.name, arch, member, 6, 12)
    held = [*prompt, *ids[:10]][:-1]
    rows = getattr(member.oracle.trunk(w, hparams, held), member.hidden)
    paired = np.concatenate([0 * rows[:1], rows[:-1]])
    taps = member.oracle.mtp(w, hparams, held, paired, list(range(len(held)))).tensors
    params = {"model": path_of(arch), "kv_type": "F32", "n_max": 3, "n_predict": 10}
    inputs = {"tokens": np.array(prompt, np.int32)}
    given = ours("head_cells", params, inputs, "exact")
    out = {"ids": value(list(ids[:10])), "n_mtp": value(len(held))}
    out |= {name: close("model_f32", x, given[name]) for name, x in cells(taps).items()}
    suite.case(slug(arch), "drafts of three, some rejected", inputs=inputs, params=params, out=out, flags=flags,
               requires=family.needs(arch, "mtp"))  # fmt: skip
