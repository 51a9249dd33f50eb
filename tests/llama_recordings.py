"""Recorded runs of stock llama.cpp beside ours: the steps that every family's comparison shares."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.events import Drafted, Event, Verified
from mtpref.engine.decode import NEAR_TIE, Options, PolicyConfig
from mtpref.files.gguf import open_gguf
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.log import Run, read_runs
from tests.naive import nmse


def recorded(folder: Path, name: str, model: Path) -> list[Run]:
    """The runs of a recording, which must be of this file."""
    runs = read_runs(folder / f"{name}.log.gz")
    if hashlib.sha256(model.read_bytes()).hexdigest() != runs[0].header["model_sha256"]:
        pytest.fail(f"{name}: the recording belongs to another file; run tools/record_llama_cpp.py "
                    f"--{folder.name} again")  # fmt: skip
    return runs


def events_of(model: mtpref.LanguageModel, run: Run) -> list[Event]:
    """What a run with the recorded settings gives here."""
    policy = PolicyConfig(n_max=int(run.header["n_max"]), p_min=float(run.header["p_min"]))
    options = Options(n_predict=int(run.header["n_predict"]), policy=policy)
    return list(model.generate(json.loads(run.header["prompt_ids"]), options))


def agreement_of(model: mtpref.LanguageModel, name: str, runs: Iterable[Run], tolerance: float) -> Agreement:
    """Run by run up to the first that differs. Of a chain of heads a draft is as long as there are heads at most."""
    agreement = Agreement(tolerance, NEAR_TIE)
    for run in runs:
        n_predict, n_max, p_min = (float(run.header[key]) for key in ("n_predict", "n_max", "p_min"))
        if len(model.core.heads) > 1:
            n_max = min(n_max, len(model.core.heads))
        where = f"{name} {run.header['prompt'][:40]} n {n_max:g} p_min {p_min:g}"
        compare_rounds(agreement, run.log.rounds, events_of(model, run), int(n_predict), int(n_max), p_min, where)
        if agreement.mismatches:
            break
    return agreement


def errors_up_to_a_parting(model: mtpref.LanguageModel, runs: Iterable[Run]) -> list[float]:
    """What each candidate's probability is off, run by run up to where drafts or texts differ."""
    errors = []
    for run in runs:
        events = [event for event in events_of(model, run) if isinstance(event, Drafted | Verified)]
        for theirs, drafted, verified in zip(run.log.rounds, events[::2], events[1::2], strict=False):
            for step, own in zip(theirs.steps, drafted.steps, strict=False):
                errors += [
                    abs(own.p[i] - c.p) if own.candidates[i] == c.id else 1.0 for i, c in enumerate(step.candidates)
                ]
            emitted = [*drafted.ids[: verified.n_accepted], verified.target_ids[-1]]
            if drafted.ids != theirs.draft or emitted != theirs.emitted:
                break
    return errors


def logits_error(folder: Path, model: mtpref.LanguageModel, name: str) -> float:
    """NMSE of the trunk's logits against the recorded ones."""
    with open_gguf(folder / f"{name}.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        theirs = file.data("logits").view(np.float32).reshape(len(ids), -1)
        return nmse(theirs, model.core.trunk(model.core.new_state(), ids, n_logits=len(ids)).logits)
