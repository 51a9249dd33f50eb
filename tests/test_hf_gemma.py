"""gemma4 and its assistant against transformers' Gemma 4 in float32: recorded by tools/record_hf_gemma.py."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from tests import naive_gemma
from tests.hf_gemma_cases import CONFIGS, FIRST, IDS, N_DRAFT, N_SHORT, assistant_of, write
from tests.naive import nmse

RECORDED = np.load(Path(__file__).parent / "data" / "hf_gemma.npz")


PATHS: dict[str, tuple[Path, Path]] = {}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Target and assistant of a configuration."""
    folder = tmp_path_factory.mktemp("hf-gemma")

    @lru_cache
    def made(name):
        shapes, config = json.loads(str(RECORDED[f"{name}.shapes"])), CONFIGS[name]
        target = write(folder / f"{name}.gguf", "gemma4", config, shapes["target"], name)
        own = write(folder / f"{name}-a.gguf", "gemma4-assistant", assistant_of(config), shapes["assistant"],
                    f"{name} assistant ")  # fmt: skip
        PATHS[name] = target, own
        return load(target, make_recipe("exact"), kv_type="F32", model_draft=own)

    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_equal_transformers(name, model_of):
    model = model_of(name)
    out = model.trunk(model.new_state(poison=True), IDS, n_logits=len(IDS))
    assert not model.notes
    assert nmse(RECORDED[f"{name}.logits"], out.logits) < 5e-12
    assert nmse(RECORDED[f"{name}.rows"], out.hidden.post) < 5e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_assistants_equal_transformers(name, model_of):
    """Its own steps: a constant position, the target's cells before it, the row that it made."""
    model, token = model_of(name), FIRST
    state = model.new_state(poison=True)
    row = model.trunk(state, IDS[:N_SHORT], n_logits=0).hidden.post[-1:]
    for i in range(N_DRAFT):
        step = model.mtp(state, [token], row, N_SHORT, n_logits=1)
        assert nmse(RECORDED[f"{name}.short.logits"][i], step.logits[0]) < 5e-12
        assert nmse(RECORDED[f"{name}.short.rows"][i], step.hidden.post[0]) < 5e-12
        token, row = int(step.logits[0].argmax()), step.hidden.post


@pytest.mark.parametrize("name", CONFIGS)
def test_beyond_the_window_transformers_sees_two_cells_more_than_llama_cpp(name, model_of):
    """Cells at a distance of 1 to window + 1 there, of 1 to window - 1 in llama.cpp and here: docs/architectures.md."""
    model, found = model_of(name), {}
    (hparams, weights), own = (naive_gemma.load(path) for path in PATHS[name])
    out, cells = naive_gemma.run(weights, hparams, IDS)
    for more in (0, 1, 2):
        keys = own[0] | {"attention.sliding_window": CONFIGS[name]["sliding_window"] + more}
        step = naive_gemma.assistant((keys, own[1]), (hparams, weights), FIRST, out.h_post[-1], cells, len(IDS))
        found[more] = nmse(RECORDED[f"{name}.long.logits"][0], step.logits)
        if more == 0:
            state = model.new_state()
            model.trunk(state, IDS, n_logits=0)
            ours = model.mtp(state, [FIRST], out.h_post[-1:].astype(np.float32), len(IDS), n_logits=1)
            assert nmse(step.logits, ours.logits[0]) < 1e-11
    assert found[2] < 5e-12
    assert min(found[0], found[1]) > 1e-3
