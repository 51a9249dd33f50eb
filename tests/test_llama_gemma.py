"""gemma4 and its assistant against stock llama.cpp: the recordings in tests/data/llama_cpp/gemma.

F32 files are followed decision by decision, 1 to 4 tokens asked for; quantised ones up to where drafts or texts part,
as test_llama_moe.py does it.
"""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref import spec
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.look.llama_cpp.agree import Agreement
from mtpref.look.llama_cpp.log import Run
from mtpref.spec.ops import spec_ops
from tests.llama_recordings import agreement_of, errors_up_to_a_parting, logits_error, recorded
from tests.micro_moe import GEMMA, assistant, standard
from tests.test_llama_moe import NMSE_LIMITS, P_TOLERANCE

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "gemma"
EXACT = [name for name in GEMMA if name.endswith("-f32")]
PLAIN, EDGE, MOE, APART = (f"micro-gemma4-{n}f32" for n in ("", "edge-30-", "moe-", "apart-90-"))


def loaded(name: str, recipe=None) -> mtpref.LanguageModel:
    core = load(standard(name), recipe or make_recipe("ggml"), kv_type="F32", model_draft=assistant(name))
    return mtpref.LanguageModel(core)


@lru_cache
def model_of(name: str, numerics: str = "ggml") -> mtpref.LanguageModel:
    return loaded(name, make_recipe(numerics))


@lru_cache
def runs_of(name: str) -> list[Run]:
    return recorded(RECORDINGS, name, standard(name))


def compared(model: mtpref.LanguageModel, name: str, runs: list[Run] | None = None) -> Agreement:
    return agreement_of(model, name, runs_of(name) if runs is None else runs, P_TOLERANCE)


# By default every fourth run, each time another setting; all of them are slow.
PARTS = [*((name, 4) for name in EXACT), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in EXACT)]


@pytest.mark.parametrize(("name", "every"), PARTS)
def test_every_candidate_probability_and_decision_equals_llama_cpp(name, every):
    agreement = compared(model_of(name), name, runs_of(name)[::every])
    print(
        f"{name}: {agreement.n_candidates} candidates, {agreement.n_rounds} rounds, "
        f"{agreement.n_near_ties} near ties, greatest p error {agreement.max_p_error:.5f}"
    )
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 100 / every
    assert agreement.n_near_ties == 0


# In `exact` numerics GELU is not rounded to ggml's table: 6e-8 to 9e-8. Else what is left is the order of sums, and
# where it moves a gate over the edge of a cell of the table, a number of 16 bits.
LIMITS = {"ggml": 1e-9, "exact": 2e-7}


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("name", GEMMA)
def test_target_logits_equal_llama_cpp(name, numerics):
    runs_of(name)
    error = logits_error(RECORDINGS, model_of(name, numerics), name)
    print(f"{name} {numerics}: NMSE {error:.1e}")
    is_f32 = name.endswith("f32")
    assert error < (LIMITS[numerics] if is_f32 else NMSE_LIMITS["q8_0"] if numerics == "ggml" else 0.03)
    if is_f32 and numerics == "exact":
        assert error > 1e-8  # the table shows


@pytest.mark.parametrize("name", [name for name in GEMMA if name not in EXACT])
def test_quantised_models_follow_llama_cpp_up_to_a_rounding_tie(name):
    runs = runs_of(name)[::3]
    errors = errors_up_to_a_parting(model_of(name), runs)
    close = np.mean(np.array(errors) < P_TOLERANCE)
    print(f"{name}: {len(errors)} candidates, {100 * close:.0f} % within {P_TOLERANCE}, median {np.median(errors):.5f}")
    assert len(errors) > 60
    assert close > 0.9


# WHAT THE RECORDINGS CAN TELL

_OPS = spec_ops("ggml")


def _erf(gate, up):
    x = gate.astype(np.float64)
    return (0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(np.float32) * up


def _turned_values(ops, w, cfg, x, table, tap):
    k, v = _OPS.cells_of(ops, w, cfg, x, table, tap)
    return k, ops.rope(v, *table)


def _by_root(q, k, v, kv_type):
    return _OPS.unscaled_attention(q / np.float32(math.sqrt(q.shape[1])), k, v, kv_type)


def _moved(n):
    return lambda first, size, contract: np.arange(first + n, first + n + size, dtype=np.int32)


def _keys_of_values(ops, w, cfg, x, table, tap):
    """Values normed by the keys' weight."""
    k, v = _OPS.cells_of(ops, w, cfg, x, table, tap)
    return k, v * w["attn_k_norm.weight"]


def _raw_router(ops, w, cfg, x, tap):
    ones = {**w, "ffn_gate_inp.scale": np.ones(x.shape[1], np.float32)}
    return _OPS.dense_beside_experts(ops, ones, cfg, x, tap)


MUTANTS = {
    "scores divided by the root of the width": (PLAIN, {"unscaled_attention": _by_root}),
    "a window of one less": (PLAIN, {"window_start": lambda pos, n: max(0, pos - n + 2)}),
    "gelu with erf": (PLAIN, {"geglu": _erf}),
    "silu": (MOE, {"geglu": lambda gate, up: spec.silu(gate) * up}),
    "values normed as keys": (EDGE, {"cells_of": _keys_of_values}),
    "values that are turned": (PLAIN, {"cells_of": _turned_values}),
    "embeddings as they are": (PLAIN, {"scaled_embedding": lambda x: x}),
    "the cap of 30 forgotten": (EDGE, {"soft_cap": lambda logits, cap: logits}),
    "the router's scale forgotten": (MOE, {"dense_beside_experts": _raw_router}),
    "experts as if they were dense alone": (APART, {"sum_experts": lambda x: _OPS.sum_experts(x) * np.float32(0)}),
    "the layers' own input without its gate": (EDGE, {
        "own_input": lambda ops, w, eps, x, inputs, tap: _OPS.own_input(ops, w, eps, x, np.abs(inputs), tap)}),
}  # fmt: skip
FAST = ("a window of one less", "gelu with erf", "the cap of 30 forgotten", "values that are turned")


@pytest.mark.parametrize("mutant", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS])
def test_the_recordings_tell_another_rule_of_the_target(mutant):
    name, entries = MUTANTS[mutant]
    assert logits_error(RECORDINGS, loaded(name, make_recipe("ggml").with_ops(**entries)), name) > 1e-8


def _scaled_before(ops, w, embd, hidden, eps, order, tap):
    return _OPS.assistant_input(ops, w, embd / np.float32(8), hidden, eps, order, tap)


HEAD = {
    "the halves of the input in the other order": {
        "assistant_input": lambda ops, w, e, h, eps, order, tap: _OPS.assistant_input(ops, w, e, h, eps, "he", tap)},
    "the embedding not scaled": {"assistant_input": _scaled_before},
    "the row not normed for the next step": {
        "assistant_row": lambda ops, w, post: _OPS.assistant_row(ops, w, post * np.float32(1.1))},
    "logits with the target's cap": {"head": lambda ops, w, h, n: _OPS.soft_cap(_OPS.head(ops, w, h, n), 12.0)},
}  # fmt: skip


@pytest.mark.parametrize("mutant", HEAD)
def test_the_recordings_tell_another_assistant(mutant):
    recipe = make_recipe("ggml")
    changed = loaded(PLAIN, replace(recipe, mtp_ops=recipe.ops.replaced(**HEAD[mutant])))
    assert compared(changed, PLAIN, runs_of(PLAIN)[3:5]).mismatches


def reading(model, **changes):
    """The model with an assistant whose layers are changed."""
    head = model.core.heads[0]

    def changed(layer):
        return replace(layer, cfg=replace(layer.cfg, **{k: f(layer.cfg) for k, f in changes.items()}))

    new = replace(head, layer=changed(head.layer), before=tuple(map(changed, head.before)))
    return mtpref.LanguageModel(replace(model.core, heads=(new,)))


def test_the_recordings_tell_whose_cells_are_read():
    model, runs = model_of(PLAIN), runs_of(PLAIN)[3:5]
    assert not compared(reading(model, source=lambda cfg: cfg.source), PLAIN, runs).mismatches
    first = {True: 0, False: 2}  # an earlier layer of the kind
    assert compared(reading(model, source=lambda cfg: first[bool(cfg.n_window)]), PLAIN, runs).mismatches
    assert compared(reading(model, n_window=lambda cfg: min(cfg.n_window, 5)), PLAIN, runs).mismatches


STEPS = {
    "the pending row for every step": {"chain_input": lambda ids, h, token, row, chained: ([token], h)},
    "the row of the step before, before the norm of the target": {"target_hidden": lambda rows, contract: rows.pre},
    "the position after it": {"mtp_positions": _moved(1)},
    "the position before it": {"mtp_positions": _moved(-1)},
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_the_recordings_tell_another_driver(case):
    changed = loaded(PLAIN, make_recipe("ggml").with_steps(**STEPS[case]))
    assert compared(changed, PLAIN, runs_of(PLAIN)[3:5]).mismatches
