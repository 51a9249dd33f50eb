"""Several heads in a chain against stock llama.cpp: the recordings in tests/data/llama_cpp/chains.

F32 files are followed decision by decision, 1 to 4 tokens asked for where there are three heads; quantised ones up to
where drafts or texts part, as in test_llama_moe.py.
"""

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
from mtpref.spec.contract import parse_contract
from mtpref.spec.ops import spec_ops
from tests.llama_recordings import agreement_of, logits_error, recorded
from tests.micro_moe import CHAINS, MOE_CHAINS, standard
from tests.test_llama_moe import NMSE_LIMITS, P_TOLERANCE

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "chains"
EXACT = [name for name in CHAINS if name.endswith("-f32")]


def loaded(name: str, recipe=None) -> mtpref.LanguageModel:
    recipe = recipe or make_recipe("ggml")
    return mtpref.LanguageModel(load(standard(name), recipe, kv_type="F32", kv_type_draft="F32"))


@lru_cache
def model_of(name: str, numerics: str = "ggml") -> mtpref.LanguageModel:
    return loaded(name, make_recipe(numerics))


@lru_cache
def runs_of(name: str) -> list[Run]:
    return recorded(RECORDINGS, name, standard(name))


def compared(model: mtpref.LanguageModel, name: str, runs: list[Run] | None = None) -> Agreement:
    return agreement_of(model, name, runs_of(name) if runs is None else runs, P_TOLERANCE)


# By default the first model of each architecture: what the others vary, test_chain_model.py compares with its oracle.
FIRST = {name.split("-")[1]: name for name in reversed(EXACT)}.values()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in EXACT]
)
def test_every_candidate_probability_and_decision_equals_llama_cpp(name):
    agreement = compared(model_of(name), name)
    print(
        f"{name}: {agreement.n_candidates} candidates, {agreement.n_rounds} rounds, "
        f"{agreement.n_near_ties} near ties, greatest p error {agreement.max_p_error:.5f}"
    )
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 100
    assert agreement.n_near_ties == 0


# llama.cpp hands on the row of a draft's first token: docs/architectures.md, hy_v3 with several heads.
THREE, TWO = MOE_CHAINS
FIRST_ROW = make_recipe("ggml", parse_contract("chain_row=first"))


def test_hy_v3_with_two_heads_equals_llama_cpp():
    agreement = compared(model_of(TWO), TWO)
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 100


def test_hy_v3_with_three_heads_equals_llama_cpp_once_the_first_row_is_handed_on():
    agreement = compared(loaded(THREE, FIRST_ROW), THREE)
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 100
    assert agreement.n_near_ties == 0


def test_with_the_last_row_hy_v3_parts_from_llama_cpp_in_the_third_step():
    mismatches = compared(model_of(THREE), THREE).mismatches
    assert mismatches
    assert "step 2" in mismatches[0]


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("name", [*CHAINS, *MOE_CHAINS])
@pytest.mark.covering
def test_trunk_logits_equal_llama_cpp(name, numerics):
    runs_of(name)
    error = logits_error(RECORDINGS, model_of(name, numerics), name)
    print(f"{name} {numerics}: NMSE {error:.1e}")
    assert error < (NMSE_LIMITS[name.rpartition("-")[2]] if numerics == "ggml" or name.endswith("f32") else 0.03)


# WHAT THE RECORDINGS CAN TELL

_OPS = spec_ops("ggml")
STEP, FUSED, MIMO, OWN = (f"micro-{n}-f32" for n in ("step35", "step35-90-fused", "mimo2", "mimo2-90-own"))


def _sink_with_a_value(q, k, v, sinks, kv_type):
    """The sink weighs the oldest cell's value in place of none."""
    out = _OPS.cell_attention(q, k, v, sinks, kv_type)
    plain = _OPS.cell_attention(q, k, v, None, kv_type)
    share = np.where(np.abs(plain) > 1e-12, 1 - out / np.where(plain == 0, 1, plain), 0)
    first = np.repeat(spec.load_kv(v, kv_type)[0], len(q) // v.shape[1], axis=0)
    return (out + share * first).astype(np.float32)


def _scale_on_values(ops, w, cfg, x, k, v, *rest):
    """Another order: the scale is laid on values before the output product; in float32 other rounding alone."""
    return _OPS.windowed_attn_layer(ops, w, replace(cfg, value_scale=0.0), x, k, v, *rest)


def _gate_of_raw_rows(ops, w, cfg, x, *rest):
    """The heads' gate made of rows that are not normed."""
    norm = np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)).astype(np.float32)
    gate = _OPS.mul_mat(w["attn_gate.weight"], x * (1 + norm))
    return _OPS.windowed_attn_layer(ops.replaced(head_gate=lambda o, logit: _OPS.head_gate(o, gate)), w, cfg, x, *rest)


def _whole_turn(pos, f, has, m):
    """Every layer turns by the widest layer's frequencies."""
    return _OPS.rope_table(pos, spec.rope_frequencies(2 * len(f), 5000.0), has, m)


MUTANTS = {
    "a window of one more": (STEP, {"window_start": lambda p, n: max(0, p - n)}),
    "a window of one less": (MIMO, {"window_start": lambda p, n: max(0, p - n + 2)}),
    "no window": (OWN, {"window_start": lambda p, n: 0}),
    "sinks forgotten": (MIMO, {"cell_attention": lambda q, k, v, s, t: _OPS.cell_attention(q, k, v, None, t)}),
    "sinks with a value": (MIMO, {"cell_attention": _sink_with_a_value}),
    "sinks scaled": (MIMO, {"cell_attention": lambda q, k, v, s, t: _OPS.cell_attention(q, k, v, s / 4, t)}),
    "scale of values forgotten": (MIMO, {"windowed_attn_layer": _scale_on_values}),
    "gates of heads forgotten": (STEP, {"head_gate": lambda o, g: o}),
    "gates by silu": (STEP, {"head_gate": lambda o, g: o * spec.silu(g)[:, :, None]}),
    "gates of raw rows": (STEP, {"windowed_attn_layer": _gate_of_raw_rows}),
    "limits forgotten": (STEP, {"limited_swiglu": lambda g, u, n: _OPS.swiglu(g, u)}),
    "silu limited on both sides": (
        STEP, {"limited_swiglu": lambda g, u, n: np.clip(spec.silu(g), -n / 8, n) * np.clip(u, -n, n)}
    ),
    "limits before silu": (STEP, {"limited_swiglu": lambda g, u, n: spec.silu(np.minimum(g, n)) * np.clip(u, -n, n)}),
    "one base": (STEP, {"rope_table": _whole_turn}),
    "weights not normalised": (MIMO, {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, False, s)}),
    "scale of experts forgotten": (FUSED, {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, n, 0.0)}),
}  # fmt: skip
FAST = ("a window of one more", "sinks forgotten", "gates of heads forgotten", "limits before silu")


@pytest.mark.parametrize("mutant", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS])
def test_the_recordings_tell_another_rule(mutant):
    name, entries = MUTANTS[mutant]
    changed = loaded(name, make_recipe("ggml").with_ops(**entries))
    assert logits_error(RECORDINGS, changed, name) > 1e-7
    assert compared(changed, name, runs_of(name)[:8]).mismatches


STEPS = {
    "head 0 in every step": {"chain_head": lambda step, n, contract: 0 if step < n else None},
    "heads in reverse": {"chain_head": lambda step, n, contract: n - 1 - step if step < n else None},
    "beyond the last head": {"chain_head": lambda step, n, contract: min(step, n - 1)},
    "caught up along the chain": {"catch_up_rows": lambda rows, before, contract: rows if before is None else before},
    "rows after the norm": {"target_hidden": lambda rows, contract: rows.post},
    "own rows after the norm": {"chain_hidden": lambda rows, contract: rows.post},
    "the pending row for every row": {
        "chain_input": lambda ids, hidden, token, row, chained: ([*ids, token], np.concatenate([hidden, hidden[:1]]))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [STEP, MIMO])
@pytest.mark.parametrize("case", STEPS)
def test_the_recordings_tell_another_chain(case, name):
    changed = loaded(name, make_recipe("ggml").with_steps(**STEPS[case]))
    assert compared(changed, name).mismatches


def test_the_recordings_tell_heads_that_are_all_loaded_from_one():
    model = model_of(STEP).core
    first = model.heads[0]
    same = replace(model, heads=(first, replace(first), replace(first)))
    assert compared(mtpref.LanguageModel(same), STEP).mismatches
