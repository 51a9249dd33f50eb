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
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import NEAR_TIE, Options, PolicyConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.log import Run, read_runs
from tests.micro_moe import standard
from tests.naive import nmse

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "streams"
P_TOLERANCE = 0.0015  # of a printed probability, which has three decimals
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
