"""deepseek32 and glm-dsa against stock llama.cpp beyond test_llama_moe.py: what recordings can tell of an indexer."""

import gzip
import re
from dataclasses import replace

import numpy as np
import pytest

from mtpref import spec
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.look.compare import compare_log
from mtpref.spec.ops import compose_indexer, spec_ops
from tests.llama_recordings import events_of, logits_error
from tests.micro_moe import standard
from tests.naive import nmse
from tests.test_llama_moe import RECORDINGS, compared, model_of, mutated, runs_of

_OPS = spec_ops("ggml")
D32, D32_YARN, GLM, GLM_YARN = (f"micro-{n}-f32" for n in ("deepseek32", "deepseek32-yarn", "glm-dsa", "glm-dsa-yarn"))


def results(name):
    with open_gguf(RECORDINGS / f"{name}.results.gguf") as file:
        ids = file.data("tokens").view(np.int32).tolist()
        return ids, file.data("logits").view(np.float32).reshape(len(ids), -1).copy()


@pytest.mark.parametrize("name", [D32, D32_YARN, GLM, GLM_YARN])
def test_the_recordings_are_of_texts_that_an_indexer_chooses_from(name):
    ids, _ = results(name)
    core = model_of(name).core
    selections = core.trunk(core.new_state(), ids, n_logits=0).selections
    assert all((selection.cells[-1] != spec.NO_CELL).all() for selection in selections)
    assert all(selection.cells.shape[1] * 3 < len(ids) for selection in selections)
    # No choice is so near that a last bit could turn it.
    assert min(selection.gap.min() for selection in selections) > 1e-6


# ANOTHER RULE


def _with_cfg(**fields):
    """index_cells with other hyper-parameters."""
    return {"index_cells": lambda ops, w, cfg, *rest: _OPS.index_cells(ops, w, replace(cfg, **fields), *rest)}


def _no_relu(products, weights, first):
    return spec.index_scores(products, weights, first) + spec.index_scores(-products, -weights, first)


def _turned_at_the_end(ops, w, cfg, x, *rest):
    """The last dimensions of a key turned, as in the layer's own heads."""
    flipped = ops.replaced(rope=lambda y, cos, sin: _OPS.rope(y[..., ::-1], cos, sin)[..., ::-1])
    return _OPS.index_cells(flipped, w, cfg, x, *rest)


def _newest(scores, first, n_top):
    return _OPS.select_cells(np.broadcast_to(np.arange(scores.shape[1], dtype=np.float32), scores.shape), first, n_top)


def _queries_not_normed(ops, w, cfg, x, *rest):
    return _OPS.index_cells(ops.replaced(rms_norm=lambda y, weight, eps: y), w, cfg, x, *rest)


MUTANTS = {
    "an RMS norm of keys": (D32, {"layer_norm": lambda x, w, b, eps: _OPS.rms_norm(x, w, eps) + b}),
    "a norm without its bias": (D32, {"layer_norm": lambda x, w, b, eps: _OPS.layer_norm(x, w, 0 * b, eps)}),
    "deepseek32 without an epsilon": (D32, _with_cfg(index_eps=0.0)),
    "the file's epsilon": (D32_YARN, _with_cfg(index_eps=1e-5)),
    "glm-dsa with an epsilon": (GLM, _with_cfg(index_eps=1e-6)),
    "neighbours in deepseek32": (D32, _with_cfg(is_index_interleaved=True)),
    "halves in glm-dsa": (GLM, _with_cfg(is_index_interleaved=False)),
    "the last dimensions turned": (D32, {"index_cells": _turned_at_the_end}),
    "negative products counted": (D32, {"index_scores": _no_relu}),
    "heads without weights": (GLM, {"index_scores": lambda p, w, first: _OPS.index_scores(p, np.ones_like(w), first)}),
    "a latent of queries not normed": (GLM, {"index_cells": _queries_not_normed}),
    "the least scores": (D32, {"select_cells": lambda s, first, n: _OPS.select_cells(-s, first, n)}),
    "one cell more": (GLM_YARN, {"select_cells": lambda s, first, n: _OPS.select_cells(s, first, n + 1)}),
    "every cell": (D32, {"select_cells": lambda s, first, n: _OPS.select_cells(s, first, s.shape[1])}),
    "the newest cells": (GLM_YARN, {"select_cells": _newest}),
}  # fmt: skip
FAST = ("an RMS norm of keys", "glm-dsa with an epsilon", "neighbours in deepseek32", "one cell more", "every cell")


@pytest.mark.parametrize("mutant", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MUTANTS])
def test_the_recordings_tell_another_rule(mutant):
    name, entries = MUTANTS[mutant]
    changed = mutated(name, **entries)
    assert logits_error(RECORDINGS, changed, name) > 1e-6
    assert compared(changed, name).mismatches


def test_a_sharing_layer_that_saw_every_cell_would_be_told():
    core = model_of(GLM).core
    dense = core.heads[0].layer.block.mixer
    layers = [
        layer if layer.cfg.has_indexer else replace(layer, block=replace(layer.block, mixer=dense))
        for layer in core.layers
    ]
    ids, theirs = results(GLM)
    changed = replace(core, layers=tuple(layers))
    assert nmse(theirs, core.trunk(core.new_state(), ids, n_logits=len(ids)).logits) < 1e-11
    assert nmse(theirs, changed.trunk(changed.new_state(), ids, n_logits=len(ids)).logits) > 1e-5


# 16-BIT CELLS


def test_the_rotation_makes_keys_of_16_bits_those_of_llama_cpp(monkeypatch):
    ids, theirs = results("micro-deepseek32-f16-cells")
    model = load(standard(D32), make_recipe("ggml"), kv_type="F16")

    def rows_that_differ():
        ours = model.trunk(model.new_state(), ids, n_logits=len(ids)).logits
        errors = np.array([nmse(a, b) for a, b in zip(theirs, ours, strict=True)])
        print(f"median NMSE {np.median(errors):.1e}, {np.sum(errors > 1e-5)} of {len(ids)} rows above 1e-5")
        return int(np.sum(errors > 1e-5))

    with_rotation = rows_that_differ()
    same = spec.Matrix("", "F32", 64, 64, np.eye(64, dtype=np.float32).view(np.uint8).reshape(-1))
    monkeypatch.setattr(compose_indexer, "hadamard", lambda size: same)
    without = rows_that_differ()
    assert with_rotation == 0
    assert without >= 5


# TIES

TIES = "micro-deepseek32-ties-f32"


# The diagnosis of all runs of the recording takes half a minute, that of the first run that parts some seconds.
@pytest.mark.parametrize("all_runs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_parts_after_an_exact_tie_of_scores_is_explained_and_nobody_is_accused(tmp_path, capsys, all_runs):
    model, runs, parted = model_of(TIES), runs_of(TIES), []
    for i, run in enumerate(runs):
        found = compare_log(run.log, events_of(model, run), p_min=float(run.header["p_min"]), p_limit=0.001)
        assert found.first_divergence is None
        if found.is_rerouted:
            assert "a near tie of a router or indexer at position" in found.first.text()
            assert "gap 0, explains it" in found.first.text()
            parted.append(i)
    assert parted  # llama.cpp takes other cells of those with a score of 0
    text = gzip.decompress((RECORDINGS / f"{TIES}.log.gz").read_bytes()).decode()
    first, *pieces = re.split(r"(?m)^(?=# run\n)", text)
    assert (first, len(pieces)) == ("", len(runs))
    (tmp_path / "ties.log").write_text(text if all_runs else pieces[parted[0]])
    words = ["diagnose", "-m", str(standard(TIES)), "-ctk", "f32", "-ctv", "f32", "-ctkd", "f32", "-ctvd", "f32"]
    main([*words, "--log", str(tmp_path / "ties.log")])
    verdict = capsys.readouterr().out.splitlines()[0]
    assert verdict.startswith(("HEALTHY", "CANNOT TELL")), verdict
