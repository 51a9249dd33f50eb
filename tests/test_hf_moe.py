"""Trunks with experts against transformers, in float32: every layer and the logits, of files that `convert` wrote."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.heads.convert import Settings, convert
from mtpref.spec.ops import spec_ops
from tests import oracle_hf_moe as hf
from tests.moe_folder import N_LAYER
from tests.naive import nmse

RECORDED = Path(__file__).parent / "data" / "hf_moe.npz"
NAMES = (*(f"l_out-{il}" for il in range(N_LAYER)), "h_nextn", "result_output")
# Where llama.cpp's graph has other names for them: its hidden row there is the one before the norm.
OTHER_NAMES = {
    "deepseek4": {"h_nextn": "result_norm", **{f"l_out-{il}": f"l_last-{il}" for il in range(N_LAYER)}},
    "mimo2": {"h_nextn": "result_norm"},
    "nemotron_h_moe": {f"l_out-{il}": f"nemotron_h_block_out-{il}" for il in range(N_LAYER)},
}
# transformers runs in float32, the delta rule in chunks of 64: measured 1e-14 to 7e-12.
LIMIT = 1e-10


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(architecture, entries that stand in for a rule) -> name -> rows at every position."""

    @lru_cache
    def file(arch):
        path = tmp_path_factory.mktemp(arch)
        convert(hf.folder(path / "Tiny-5M", arch), path / "out.gguf", Settings(outtype="f32", which="trunk"))
        return path / "out.gguf"

    def run(arch, **entries):
        model = load(file(arch), make_recipe("exact").with_ops(**entries), kv_type="F32")
        found, ids = {}, hf.tokens(arch)
        model.trunk(
            model.new_state(len(ids)),
            ids,
            n_logits=len(ids),
            tap=lambda name, x: found.__setitem__(name, np.asarray(x).copy()),
        )
        names = OTHER_NAMES.get(arch, {})
        return {name: found[names.get(name, name)].reshape(len(ids), -1) for name in NAMES}

    return run


def errors(ours, theirs, rows):
    return {name: nmse(theirs[name], ours[name][rows]) for name in NAMES}


def recorded(arch):
    with np.load(RECORDED) as file:
        return {name: file[f"{arch}.{name}"] for name in NAMES}


@pytest.mark.parametrize("arch", hf.ARCHS)
def test_every_layer_equals_what_transformers_gave(arch, ours):
    found = errors(ours(arch), recorded(arch), hf.chosen_rows(arch))
    print(arch, ", ".join(f"{name} {x:.1e}" for name, x in found.items()))
    assert max(found.values()) < LIMIT


_OPS = spec_ops("exact")


def _levelled(g, beta):
    """One decay for all channels of a head."""
    return np.repeat(g.mean(axis=2, keepdims=True), g.shape[2], axis=2), beta


MUTANTS = {
    "qwen35moe": {"shared_gate": lambda y, g: y},
    "qwen3next": {"split_beta_alpha": lambda ba, n: (ba[:, : ba.shape[1] // 2], ba[:, ba.shape[1] // 2 :])},
    "glm4moe": {"expert_scores": lambda p, b: p},
    "hy_v3": {"expert_weights": lambda p, i, n, s: _OPS.expert_weights(p, i, n, 0.0)},
    "deepseek2": {"rope_interleaved": lambda x, cos, sin: _OPS.rope(x, cos, sin)},
    "deepseek32": {"rope": lambda x, cos, sin: _OPS.rope_interleaved(x, cos, sin)},
    "glm-dsa": {"select_cells": lambda scores, first, n: _OPS.select_cells(-scores, first, n)},
    "deepseek4": {"n_compressed": lambda n, ratio: _OPS.n_compressed(n - 1, ratio)},
    "deepseek4, no indexer": {"best_rows": lambda scores, n: np.arange(len(scores))},
    "deepseek4, clamped after": {"clamped_swiglu": lambda g, u, limit: np.clip(_OPS.swiglu(g, u), -limit, limit)},
    "deepseek4, values not turned back": {
        "rope_last": lambda x, cos, sin, is_back=False: x if is_back else _OPS.rope_last(x, cos, sin)
    },
    "mimo2": {"window_start": lambda p, n: max(0, p - n)},
    "nemotron_h_moe": {"gated_group_norm": lambda y, x, d, z, w, eps: _OPS.gated_group_norm(y, x, 0 * d, z, w, eps)},
    "bailingmoe3": {"sigmoid_gated_norm": _OPS.gated_norm},
    "bailingmoe3, one decay": {"channel_gates": lambda *given: _levelled(*_OPS.channel_gates(*given))},
    "cohere2moe": {"layer_norm": lambda x, w, b, eps: _OPS.rms_norm(x, w, eps)},
    "cohere2moe, halves": {"rope_interleaved": lambda x, cos, sin: _OPS.rope(x, cos, sin)},
    "cohere2moe, sums": {"scaled_output": lambda y, scale: y},
    "mimo2, no sinks": {"cell_attention": lambda q, k, v, s, t: _OPS.cell_attention(q, k, v, None, t)},
}


@pytest.mark.parametrize("case", MUTANTS)
def test_the_recorded_rows_tell_another_rule(case, ours):
    arch = case.partition(",")[0]
    found = errors(ours(arch, **MUTANTS[case]), recorded(arch), hf.chosen_rows(arch))
    assert found["result_output"] > 1e4 * LIMIT
    assert found["l_out-3"] > 1e4 * LIMIT


@pytest.mark.oracle
@pytest.mark.parametrize("arch", hf.ARCHS)
def test_every_layer_equals_transformers_now(arch, ours, tmp_path):
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {missing[0]} is not installed (extra: oracle)")
        pytest.skip(f"{missing[0]} is not installed (extra: oracle)")
    theirs = hf.trunk(hf.folder(tmp_path / "Tiny-5M", arch), hf.tokens(arch))
    found = errors(ours(arch), theirs, slice(None))
    print(arch, ", ".join(f"{name} {x:.1e}" for name, x in found.items()))
    assert max(found.values()) < LIMIT
    for name, x in recorded(arch).items():
        assert np.allclose(x, theirs[name][hf.chosen_rows(arch)], rtol=1e-3, atol=1e-5), name
