"""deepseek4 against stock llama.cpp: the recordings in tests/data/llama_cpp/streams.

F32 files are followed decision by decision, quantised ones up to a rounding tie, as in test_llama_moe.py. The prompts
are longer than the blocks of 128 tokens; the second one ends before such a block does, so that drafts close it.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref import spec
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import NEAR_TIE, Options, PolicyConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf
from mtpref.kernels.fused import window
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.log import Run, read_runs
from mtpref.spec.ops import OpEntries, compose_compressed, spec_ops
from tests.micro_moe import standard
from tests.naive import nmse

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "streams"
P_TOLERANCE = 0.0006  # of a printed probability, which has three decimals
PLAIN, OWN, QUANTISED, TWO = (f"micro-deepseek4-{n}" for n in ("f32", "own-f32", "q8_0", "two-files-f32"))
FILES = {TWO: ("micro-deepseek4-trunk-f32", "micro-deepseek4-head-f32")}
NMSE_LIMITS = {"f32": 1e-10, "q8_0": 1e-3}


@lru_cache(maxsize=4)
def model_of(name: str, numerics: str = "ggml") -> mtpref.LanguageModel:
    trunk, head = FILES.get(name, (name, None))
    draft = standard(head) if head else None
    recipe = make_recipe(numerics)
    return mtpref.LanguageModel(load(standard(trunk), recipe, kv_type="F32", kv_type_draft="F32", model_draft=draft))


@lru_cache(maxsize=4)
def runs_of(name: str) -> list[Run]:
    runs = read_runs(RECORDINGS / f"{name}.log.gz")
    own = hashlib.sha256(standard(FILES.get(name, (name,))[0]).read_bytes()).hexdigest()
    if own != runs[0].header["model_sha256"]:
        pytest.fail(f"{name}: the recording belongs to another file; run tools/record_llama_cpp.py --streams again")
    return runs


def events_of(model: mtpref.LanguageModel, run: Run, **options):
    policy = PolicyConfig(n_max=int(run.header["n_max"]), p_min=float(run.header["p_min"]))
    asked = Options(n_predict=int(run.header["n_predict"]), policy=policy, **options)
    return list(model.generate(json.loads(run.header["prompt_ids"]), asked))


def compared(model: mtpref.LanguageModel, name: str, runs: list[Run] | None = None) -> Agreement:
    agreement = Agreement(P_TOLERANCE, NEAR_TIE)
    for run in runs_of(name) if runs is None else runs:
        n_predict, n_max, p_min = (float(run.header[key]) for key in ("n_predict", "n_max", "p_min"))
        where = f"{name} {run.header['prompt'][:9]} n {n_max:g} p_min {p_min:g}"
        events = events_of(model, run)
        compare_rounds(agreement, run.log.rounds, events, int(n_predict), int(n_max), p_min, where)
        if agreement.mismatches:
            break
    return agreement


@pytest.mark.parametrize("name", [PLAIN, OWN, TWO])
def test_every_candidate_probability_and_decision_equals_llama_cpp(name):
    agreement = compared(model_of(name), name)
    print(
        f"{name}: {agreement.n_candidates} candidates, {agreement.n_rounds} rounds, "
        f"{agreement.n_near_ties} near ties, greatest p error {agreement.max_p_error:.5f}"
    )
    assert not agreement.mismatches, "\n".join(agreement.mismatches[:5])
    assert agreement.n_rounds >= 60
    assert agreement.n_near_ties == 0


def test_quantised_models_follow_llama_cpp_up_to_a_rounding_tie():
    errors = []
    for run in runs_of(QUANTISED)[:3]:
        events = [event for event in events_of(model_of(QUANTISED), run) if isinstance(event, Drafted | Verified)]
        for theirs, drafted, verified in zip(run.log.rounds, events[::2], events[1::2], strict=False):
            for step, own in zip(theirs.steps, drafted.steps, strict=False):
                errors += [
                    abs(own.p[i] - c.p) if own.candidates[i] == c.id else 1.0 for i, c in enumerate(step.candidates)
                ]
            if (
                drafted.ids != theirs.draft
                or [*drafted.ids[: verified.n_accepted], verified.target_ids[-1]] != theirs.emitted
            ):
                break
    close = np.mean(np.array(errors) < P_TOLERANCE)
    print(f"{QUANTISED}: {len(errors)} candidates, {100 * close:.0f} % close, median {np.median(errors):.5f}")
    assert len(errors) > 60
    assert np.median(errors) < 0.005


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("name", [PLAIN, OWN, QUANTISED])
def test_trunk_logits_equal_llama_cpp(name, numerics):
    core = model_of(name, numerics).core
    with open_gguf(RECORDINGS / f"{name}.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1)
        ours = core.trunk(core.new_state(), ids, n_logits=len(ids)).logits
        errors, whole = [nmse(a, b) for a, b in zip(theirs, ours, strict=True)], nmse(theirs, ours)
    print(f"{name} {numerics}: NMSE {whole:.1e}, first token {errors[0]:.1e}")
    assert len(ids) > 110
    assert whole < (NMSE_LIMITS[name.rpartition("-")[2]] if numerics == "ggml" or name.endswith("f32") else 0.03)
    assert errors[0] < 1e-11 or numerics == "exact"


def test_the_rotation_makes_an_indexers_rows_of_16_bits_those_of_llama_cpp(monkeypatch):
    """With cells of F16 other rows win where keys are rounded without it (S61)."""
    with open_gguf(RECORDINGS / "micro-deepseek4-f16-cells.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1)
    model = load(standard(PLAIN), make_recipe("ggml"), kv_type="F16")

    def rows_that_differ():
        ours = model.trunk(model.new_state(), ids, n_logits=len(ids)).logits
        errors = np.array([nmse(a, b) for a, b in zip(theirs, ours, strict=True)])
        print(f"median NMSE {np.median(errors):.1e}, {np.sum(errors > 1e-5)} of {len(ids)} rows above 1e-5")
        return int(np.sum(errors > 1e-5))

    assert rows_that_differ() == 0
    same = spec.Matrix("", "F32", 64, 64, np.eye(64, dtype=np.float32).view(np.uint8).reshape(-1))
    for module in (compose_compressed, window):
        monkeypatch.setattr(module, "hadamard", lambda size: same)
    assert rows_that_differ() >= 4


# WHAT THE RECORDINGS CAN TELL

_OPS = spec_ops("ggml")


def mutated(name: str, **entries) -> mtpref.LanguageModel:
    """The model with other rules in trunk and head."""
    core = model_of(name).core
    recipe = core.recipe.with_ops(**OpEntries(**entries))
    return mtpref.LanguageModel(load(standard(name), recipe, kv_type="F32", kv_type_draft="F32"))


def _transposed(*args):
    pre, post, comb = _OPS.stream_weights(*args)
    return pre, post, np.ascontiguousarray(comb.swapaxes(1, 2))


def _single_post(*args):
    pre, post, comb = _OPS.stream_weights(*args)
    return pre, post / np.float32(2), comb


def _one_round_less(mixes, scale, base, n, eps, n_iterations):
    return _OPS.stream_weights(mixes, scale, base, n, eps, n_iterations - 1)


def _not_turned_back(x, cos, sin, is_back=False):
    return x if is_back else _OPS.rope_last(x, cos, sin)


def _first_dimensions(x, cos, sin, is_back=False):
    return _OPS.rope_interleaved(x, cos, -sin if is_back else sin)


def _clamped_after(gate, up, limit):
    hidden = _OPS.swiglu(gate, up)
    return np.clip(hidden, -limit, limit) if limit > 1e-6 else hidden


def _one_softmax(values, scores):
    mean = np.where(np.isinf(scores), scores, scores.mean(axis=2, keepdims=True))
    return _OPS.compress_rows(values, mean.astype(np.float32))


MUTANTS = {
    "comb transposed": {"stream_weights": _transposed},
    "post once": {"stream_weights": _single_post},
    "a round of Sinkhorn less": {"stream_weights": _one_round_less},
    "pre without epsilon in front of the head": {"head_weights": lambda m, s, b, eps: _OPS.head_weights(m, s, b, 0.0)},
    "values not turned back": {"rope_last": _not_turned_back},
    "the first dimensions turned": {"rope_last": _first_dimensions},
    "a window too wide": {"window_start": lambda pos, n: _OPS.window_start(pos, n - 1)},
    "a block seen late": {"n_compressed": lambda n, ratio: _OPS.n_compressed(n - 1, ratio)},
    "no indexer": {"best_rows": lambda scores, n: np.arange(len(scores))},
    "scores without relu": {"row_scores": lambda q, rows, w: np.einsum("hd,rd,h->r", q, rows, w)},
    "a softmax for all dimensions": {"compress_rows": _one_softmax},
    "no sink": {"sink_attention": lambda q, cells, sinks, kind: _OPS.sink_attention(q, cells, sinks - 90, kind)},
    "the sink scaled": {"sink_attention": lambda q, cells, sinks, kind: _OPS.sink_attention(
        q, cells, sinks / np.float32(32**0.5), kind)},
    "clamp after silu": {"clamped_swiglu": _clamped_after},
    "a router of sigmoids": {"expert_probs": lambda x, gating: _OPS.expert_probs(x, "sigmoid")},
    "experts of the next token": {"hashed_experts": lambda table, ids: _OPS.hashed_experts(table, np.roll(ids, 1))},
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_recorded_logits_tell_another_rule(mutant):
    core = mutated(PLAIN, **MUTANTS[mutant]).core
    with open_gguf(RECORDINGS / f"{PLAIN}.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1)
        error = nmse(theirs, core.trunk(core.new_state(), ids, n_logits=len(ids)).logits)
    print(f"{mutant}: {error:.1e}")
    assert error > 1e-12  # the rules give 1e-13


HEAD_MUTANTS = {
    "the trunk's streams for a head of another file": (TWO, None),
    "halves of eh_proj exchanged": (PLAIN, {"mtp_concat": lambda e, h: _OPS.mtp_concat(h, e)}),
    "hidden rows of another stream": (PLAIN, {"streams_input": lambda ops, w, e, h, *rest: _OPS.streams_input(
        _OPS, w, e, np.roll(h, 64, axis=1), *rest)}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", HEAD_MUTANTS)
def test_the_recorded_drafts_tell_another_rule_of_the_head(mutant):
    name, entries = HEAD_MUTANTS[mutant]
    if entries is None:
        core = model_of(name).core
        changed = mtpref.LanguageModel(core.with_head(roots=core.weights.roots))
    else:
        changed = mutated(name, **entries)
    assert compared(changed, name, runs_of(name)[:1]).mismatches
