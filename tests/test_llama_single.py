"""Single heads with parts of their own against stock llama.cpp: the recordings in tests/data/llama_cpp/single.

F32 files are followed decision by decision; quantised ones up to where drafts or texts part, as in test_llama_moe.py.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.look.llama_cpp.agree import Agreement
from mtpref.look.llama_cpp.log import Run
from mtpref.spec.ops import spec_ops
from tests.llama_recordings import agreement_of, errors_up_to_a_parting, logits_error, recorded
from tests.micro_moe import SINGLE, standard
from tests.samples import one_in
from tests.test_llama_moe import NMSE_LIMITS, P_TOLERANCE

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "single"
EXACT = [name for name in SINGLE if name.endswith("-f32")]
QUANTISED = [name for name in SINGLE if name not in EXACT]
# Recorded over twenty runs each: the whole of them is slow, two runs are not.
LONG = [name for name in SINGLE if "bailingmoe3" in name]


def slow_where_long(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in names]


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


@pytest.mark.parametrize("name", slow_where_long(EXACT))
def test_every_candidate_probability_and_decision_equals_llama_cpp(name):
    agreement = compared(model_of(name), name)
    print(
        f"{name}: {agreement.n_candidates} candidates, {agreement.n_rounds} rounds, "
        f"{agreement.n_near_ties} near ties, greatest p error {agreement.max_p_error:.5f}"
    )
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 80
    assert agreement.n_near_ties == 0


def test_two_of_the_long_runs_equal_llama_cpp():
    """Drafts of up to two and to four tokens; the others: --slow."""
    agreement = compared(model_of(KDA), KDA, [runs_of(KDA)[i] for i in (1, 8)])
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 25


@pytest.mark.parametrize("name", slow_where_long(QUANTISED))
def test_quantised_models_follow_llama_cpp_up_to_a_rounding_tie(name):
    errors = errors_up_to_a_parting(model_of(name), runs_of(name))
    assert len(errors) > 60
    assert np.median(errors) < 0.005


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.covering
def test_trunk_logits_equal_llama_cpp(name, numerics):
    runs_of(name)
    error = logits_error(RECORDINGS, model_of(name, numerics), name)
    print(f"{name} {numerics}: NMSE {error:.1e}")
    assert error < (NMSE_LIMITS[name.rpartition("-")[2]] if numerics == "ggml" or name.endswith("f32") else 0.03)


# WHAT THE RECORDINGS CAN TELL

_OPS = spec_ops("ggml")
COHERE, RMS, EVERY = (f"micro-cohere2moe-{n}f32" for n in ("", "90-rms-", "30-every-"))


def _unscaled(entry):
    """Scales left out: those of logits (by one number in all of these models) and of the sum of two networks."""
    return lambda y, scale: y if scale == entry else _OPS.scaled_output(y, scale)


TRUNK_MUTANTS = {
    "RMS norms": (COHERE, {"layer_norm": lambda x, w, b, eps: _OPS.rms_norm(x, w, eps)}),
    "layer norms": (RMS, {"rms_norm": lambda x, w, eps: _OPS.layer_norm(x, w, None, eps)}),
    "halves paired": (COHERE, {"rope_interleaved": _OPS.rope}),
    "logits not scaled": (COHERE, {"scaled_output": _unscaled(0.75)}),
    "sum for mean": (COHERE, {"scaled_output": _unscaled(0.5)}),
    "a window of one more": (COHERE, {"window_start": lambda p, n: max(0, p - n)}),
    "a window of one less": (EVERY, {"window_start": lambda p, n: max(0, p - n + 2)}),
    "weights normalised": (EVERY, {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, True, s)}),
    "sigmoid for softmax": (EVERY, {"expert_probs": lambda x, g: _OPS.expert_probs(x, "sigmoid")}),
    "weights not normalised": (COHERE, {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, False, s)}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", TRUNK_MUTANTS)
def test_the_recordings_tell_another_rule(mutant):
    name, entries = TRUNK_MUTANTS[mutant]
    changed = loaded(name, make_recipe("ggml").with_ops(**entries))
    assert logits_error(RECORDINGS, changed, name) > 1e-7
    assert compared(changed, name, runs_of(name)).mismatches


def _changed(name, **fields):
    """The model with other hyper-parameters of its attention layers, in trunk and head."""
    core = loaded(name).core
    layers = tuple(replace(one, cfg=replace(one.cfg, **fields)) for one in core.layers)
    model = replace(core, layers=layers)
    head = model.heads[0].layer
    return mtpref.LanguageModel(model.with_head(layer=replace(head, cfg=replace(head.cfg, **fields))))


def _in_a_row(x, around, mixer, ffn, tap):
    x = x + mixer(around.norm("attn_norm.weight", x))
    return x + ffn(around.norm("attn_norm.weight", x))


def _sequential(name):
    core = loaded(name).core
    layers = tuple(replace(one, block=replace(one.block, residual=_in_a_row)) for one in core.layers)
    return mtpref.LanguageModel(replace(core, layers=layers))


WIRINGS = {
    "every layer turns": lambda: _changed(COHERE, n_rot=16),
    "no layer turns": lambda: _changed(COHERE, n_rot=0),
    "one after the other": lambda: _sequential(COHERE),
}


@pytest.mark.parametrize("case", WIRINGS)
def test_the_recordings_tell_another_wiring(case):
    changed = WIRINGS[case]()
    assert logits_error(RECORDINGS, changed, COHERE) > 1e-7
    assert compared(changed, COHERE).mismatches


def test_the_recordings_tell_a_head_that_does_not_turn():
    model = loaded(COHERE).core
    head = model.heads[0].layer
    still = model.with_head(layer=replace(head, cfg=replace(head.cfg, n_rot=0)))
    assert compared(mtpref.LanguageModel(still), COHERE).mismatches


# MAMBA-2

MAMBA, WIDE = "micro-nemotron_h_moe-f32", "micro-nemotron_h_moe-90-wide-f32"


def _scan(**changes):
    """The scan with some of its arguments made anew: functions of all of them, by name."""

    def entry(x, b, c, dt, a, state, keep):
        given = {"x": x, "b": b, "c": c, "dt": dt, "a": a}
        given |= {name: made(**given) for name, made in changes.items()}
        return _OPS.ssm_scan(*given.values(), state, keep)

    return {"ssm_scan": entry}


def _norm_of_all(y, x, d, z, weight, eps):
    rows = _OPS.gated_group_norm(y, x, d, z, weight.reshape(1, -1), eps)
    return rows


MAMBA_MUTANTS = {
    "relu not squared": (MAMBA, {"relu_squared": lambda x: np.maximum(x, np.float32(0))}),
    "no bias of the convolution": (MAMBA, {"conv_bias_silu": lambda w, k, b: _OPS.conv_silu(w, k)}),
    "no bias of the step": (MAMBA, {"add_bias": lambda y, b: y if y.shape[1] == 4 else _OPS.add_bias(y, b)}),
    "another decay": (MAMBA, _scan(a=lambda a, **_: a * np.float32(0.9))),
    "groups in turn": (WIDE, {"ssm_scan": lambda x, b, c, *rest: _OPS.ssm_scan(
        x, *(np.tile(part, (1, x.shape[1] // part.shape[1], 1)) for part in (b, c)), *rest)}),
    "b for c": (MAMBA, _scan(c=lambda b, **_: b)),
    "no skip": (MAMBA, {"gated_group_norm": lambda y, x, d, z, w, e: _OPS.gated_group_norm(y, x, 0 * d, z, w, e)}),
    "one norm for all groups": (MAMBA, {"gated_group_norm": _norm_of_all}),
    "weights not normalised": (MAMBA, {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, False, s)}),
    "no bias of experts": (MAMBA, {"expert_scores": lambda p, b: p}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MAMBA_MUTANTS)
def test_the_recorded_logits_tell_another_mamba(mutant):
    name, entries = MAMBA_MUTANTS[mutant]
    assert logits_error(RECORDINGS, loaded(name, make_recipe("ggml").with_ops(**entries)), name) > 1e-7


def test_the_recordings_tell_an_rms_norm_behind_the_head():
    core = loaded(MAMBA).core
    plain = core.recipe.head_ops.composed["mtp_norm"]
    ops = core.recipe.head_ops.replaced(mtp_norm=plain)
    assert compared(mtpref.LanguageModel(replace(core, recipe=replace(core.recipe, mtp_ops=ops))), MAMBA).mismatches


# KIMI DELTA ATTENTION

KDA, SECTIONS, GROUPS = (f"micro-bailingmoe3-{n}f32" for n in ("", "90-sections-", "30-groups-"))


def _gates(**changes):
    """The gates of channels with some arguments made anew: functions of all of them, by name."""

    def entry(f, beta, dt_bias, a, lower_bound):
        given = {"f": f, "beta": beta, "dt_bias": dt_bias, "a": a, "lower_bound": lower_bound}
        return _OPS.channel_gates(*(given | {name: made(**given) for name, made in changes.items()}).values())

    return {"channel_gates": entry}


def _one_decay(*given):
    g, beta = _OPS.channel_gates(*given)
    return np.repeat(g.mean(axis=2, keepdims=True), g.shape[2], axis=2), beta


def _as_delta_net(f, beta, dt_bias, a, lower_bound):
    g, beta = _OPS.delta_gates(f + dt_bias, beta, np.zeros_like(dt_bias), -np.repeat(a, f.shape[1] // len(a)))
    return g.reshape(len(f), len(a), -1), beta


def _decayed_rows(q, k, v, g, beta, state, keep):
    """The decay on rows of the state, which are channels of the value, token by token."""
    rows, kept = [], []
    for t in range(len(v)):
        state = state * np.exp(g[t])[:, :, None]
        one = [x[t : t + 1] for x in (q, k, v)]
        out, states = _OPS.channel_delta_rule(*one, np.zeros_like(g[:1]), beta[t : t + 1], state, 1)
        state = states[-1]
        rows.append(out[0])
        kept.append(state)
    return np.stack(rows), np.stack(kept[-keep:])


# Of healthy logits the error is below 4e-13.
KDA_MUTANTS = {
    "the decay of DeltaNet": (KDA, {"channel_gates": _as_delta_net}),
    "one decay a head": (KDA, {"channel_gates": _one_decay}),
    "rows decayed": (KDA, {"channel_delta_rule": _decayed_rows}),
    "no bias of the decay": (KDA, _gates(dt_bias=lambda dt_bias, **_: 0 * dt_bias)),
    "another bound": (GROUPS, _gates(lower_bound=lambda **_: -5.0)),
    "rates left out": (KDA, _gates(a=lambda a, **_: np.ones_like(a))),
    "silu for sigmoid": (KDA, {"sigmoid_gated_norm": _OPS.gated_norm}),
    "no norm of q and k": (KDA, {"l2_norm": lambda x, eps: x}),
    "no gate of heads": (KDA, {"head_gate": lambda o, logit: o}),
    "halves paired": (KDA, {"rope_interleaved": _OPS.rope}),
    "neighbours paired": (SECTIONS, {"rope": _OPS.rope_interleaved}),
    "every pair turned": (SECTIONS, {"rope_table": lambda pos, f, has, m: _OPS.rope_table(pos, f, has | True, m)}),
    "no limits": (GROUPS, {"limited_swiglu": lambda gate, up, limit: _OPS.swiglu(gate, up)}),
    "no groups of experts": (GROUPS, {"limit_groups": lambda scores, groups, n: scores}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", one_in(7, KDA_MUTANTS))
def test_the_recorded_logits_tell_another_kimi_delta_attention(mutant):
    name, entries = KDA_MUTANTS[mutant]
    assert logits_error(RECORDINGS, loaded(name, make_recipe("ggml").with_ops(**entries)), name) > 1e-10


def test_the_recordings_tell_the_trunks_norm_behind_the_head():
    core = loaded(KDA).core
    other = core.with_head(shared_head_norm=core.weights.output_norm)
    assert compared(mtpref.LanguageModel(other), KDA, runs_of(KDA)[:1]).mismatches
