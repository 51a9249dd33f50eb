"""Faults of parallel blocks, layer norms, layers that do not turn, Mamba-2 and experts without a gate: where each can
be, and that it does there what it says."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, load
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.look.dump import record
from mtpref.spec.ops import spec_ops
from tests import naive, naive_parallel
from tests.micro_moe import standard

FILES = {
    "cohere2moe": "micro-cohere2moe-f32",
    "cohere2moe, RMS": "micro-cohere2moe-90-rms-f32",
    "nemotron_h_moe": "micro-nemotron_h_moe-f32",
    "nemotron_h_moe, one group": "micro-nemotron_h_moe-30-biases-f32",
    "mimo2": "micro-mimo2-f32",
}
COHERE, NEMOTRON = ("cohere2moe", "cohere2moe, RMS"), ("nemotron_h_moe", "nemotron_h_moe, one group")
# Where each fault can be, and what a refusal asks for.
WHERE = {
    "G30-layer-norm-as-rms": (COHERE[:1], "layer norms in place of RMS norms"),
    "G30b-head-norm-as-rms": (NEMOTRON, "a head whose last norm alone is a layer norm"),
    "G30c-head-norms-centred": (NEMOTRON, "a head whose last norm alone is a layer norm"),
    "G31-head-turned": (NEMOTRON, "a head that does not turn"),
    "G31b-unturned-layers-turned": ((COHERE[0], *NEMOTRON), "attention layers that do not turn"),
    "G32-parallel-as-sequential": (COHERE, "attention and network side by side"),
    "G33-head-logits-unscaled": (COHERE, "logits that are scaled, and a head"),
    "G34-scan-heads-tiled": (NEMOTRON[:1], "a Mamba-2 layer with several groups of heads"),
    "G34b-step-bias-forgotten": (NEMOTRON, "a Mamba-2 layer"),
    "G35-scan-gate-after-norm": (NEMOTRON, "a Mamba-2 layer"),
    "G35b-scan-norm-ungrouped": (NEMOTRON[:1], "a Mamba-2 layer with several groups of heads"),
    "G36-rope-halves": (COHERE, "layers that turn neighbours"),
    "E20-relu-unsquared": (NEMOTRON, "experts without a gate"),
    "E21-shared-expert-summed": (COHERE[:1], "experts and a shared expert whose mean is taken"),
}
IDS = [int(i) for i in np.random.default_rng(3).integers(1, 256, 14)]


@lru_cache
def model(name: str) -> Model:
    return load(standard(FILES[name]))


@lru_cache
def dump(name: str, id: str | None) -> dict[str, np.ndarray]:
    return record(model(name) if id is None else inject(model(name), FAULTS[id]), IDS, ".").tensors


@pytest.mark.parametrize("id", WHERE)
def test_a_fault_can_be_where_its_part_is_and_is_refused_elsewhere(id):
    names, words = WHERE[id]
    assert tuple(name for name in FILES if is_possible(FAULTS[id], model(name))) == names
    with pytest.raises(MtprefError) as error:
        inject(model("mimo2"), FAULTS[id])
    assert str(error.value) == (
        f"fault {id}: it cannot be in this model (mimo2), expected one with {words}; use another model, or another "
        "fault: mtpref faults"
    )


@pytest.mark.parametrize(("id", "name"), [(id, names[0]) for id, (names, _) in WHERE.items()])
def test_a_fault_changes_what_a_model_with_its_part_computes(id, name):
    clean, faulty = dump(name, None), dump(name, id)
    apart = [one for one in clean if one not in faulty or clean[one].tobytes() != faulty[one].tobytes()]
    assert apart[0].rpartition("-")[0] in (FAULTS[id].predicted.dump, "") or apart[0] == FAULTS[id].predicted.dump
    is_of_head = FAULTS[id].predicted.dump.startswith("mtp_")
    assert all(one.startswith("mtp_") for one in apart) == is_of_head


# ---------------------------------------------------------------------------------------------- what exactly it does


def entry(id: str, name: str):
    recipe = inject(model(name), FAULTS[id]).recipe
    return recipe.ops, recipe.head_ops


def rows(*shape, shift=0.0):
    return (np.random.default_rng(1).standard_normal(shape) + shift).astype(np.float32)


def test_norms_keep_or_lose_the_mean():
    x, weight = rows(3, 16, shift=2.0), rows(16)
    centred = naive_parallel.norm({"attention.layer_norm_epsilon": 1e-5}, x, weight)
    plain = naive.rms_norm(x, weight, 1e-5)
    everywhere = entry("G30-layer-norm-as-rms", "cohere2moe")[0]
    assert naive.nmse(centred, model("cohere2moe").recipe.ops.rms_norm(x, weight, 1e-5)) < 1e-12
    assert naive.nmse(plain, everywhere.rms_norm(x, weight, 1e-5)) < 1e-12
    name = "nemotron_h_moe"
    _, last = entry("G30b-head-norm-as-rms", name)
    assert naive.nmse(plain, last.mtp_norm(last, x, weight, 1e-5)) < 1e-12
    trunk, head = entry("G30c-head-norms-centred", name)
    assert naive.nmse(centred, head.rms_norm(x, weight, 1e-5)) < 1e-12
    assert naive.nmse(plain, trunk.rms_norm(x, weight, 1e-5)) < 1e-12


def test_layers_that_do_not_turn_are_turned_as_others_are():
    turned = inject(model("cohere2moe"), FAULTS["G31b-unturned-layers-turned"])
    widths = [layer.cfg.n_rot for layer in model("cohere2moe").layers]
    assert 0 in widths
    assert {layer.cfg.n_rot for layer in turned.layers} == {max(widths)}
    head = inject(model("nemotron_h_moe"), FAULTS["G31-head-turned"]).heads[0].layer.cfg
    assert head.n_rot == head.n_embd_head
    x, pos = rows(2, 3, 8), np.int32([4, 5])
    table = spec_ops("ggml").rope_table(pos, np.linspace(1, 0.1, 4), np.ones(4, bool))
    halves = entry("G36-rope-halves", "cohere2moe")[0].rope_interleaved
    assert np.array_equal(halves(x, *table), spec.rope(x, *table))


def test_the_network_reads_what_attention_has_been_added_to():
    own = model("cohere2moe")
    layer = inject(own, FAULTS["G32-parallel-as-sequential"]).layers[0]
    x, seen = rows(2, own.config.n_embd), []
    kind = replace(layer.block.ffn, forward=lambda w, cfg, h, *rest: seen.append(h) or np.zeros_like(h))
    mixer = replace(layer.block.mixer, forward=lambda w, cfg, h, *rest: h * np.float32(2))
    changed = replace(layer, block=replace(layer.block, ffn=kind, mixer=mixer))
    w, ops = own.weights.layers[0], own.recipe.ops
    span = type("Span", (), {"ops": ops})()
    changed.forward(w, x, None, span, own.config.rms_eps, lambda name, array: None)
    h = ops.rms_norm(x, w["attn_norm.weight"], own.config.rms_eps)
    again = ops.rms_norm(x + h * np.float32(2), w["attn_norm.weight"], own.config.rms_eps)
    assert np.array_equal(seen[0], again)


def test_the_heads_logits_are_those_of_the_product():
    clean, faulty = (dump("cohere2moe", id)["mtp_result_output"] for id in (None, "G33-head-logits-unscaled"))
    scale = model("cohere2moe").config.logit_scale
    np.testing.assert_allclose(faulty * scale, clean, rtol=1e-6)
    assert np.array_equal(faulty.argmax(axis=1), clean.argmax(axis=1))


def test_scans_read_other_groups_steps_and_gates():
    x, b, c, dt = rows(4, 4, 3), rows(4, 2, 5), rows(4, 2, 5) * 2, rows(4, 4)
    a, state = -np.abs(rows(4)), rows(4, 3, 5)
    tiled = entry("G34-scan-heads-tiled", "nemotron_h_moe")[0].ssm_scan(x, b, c, dt, a, state, 1)
    order = [0, 2, 1, 3]  # the heads whose groups are 0, 0, 1, 1 by turns
    moved = spec.ssm_scan(x[:, order], b, c, dt[:, order], a[order], state[order], 1, spec.dot64)
    assert naive.nmse(moved[0][:, np.argsort(order)], tiled[0]) < 1e-12
    y, skip, z, weight = rows(2, 4, 3), rows(2, 4, 3) * 0, rows(2, 12), np.ones((2, 6), np.float32)
    given = y, skip, np.zeros(4, np.float32), z, weight, 1e-6
    normed = y.reshape(2, 2, 6) / np.sqrt((y.reshape(2, 2, 6).astype(np.float64) ** 2).mean(axis=-1, keepdims=True))
    after = entry("G35-scan-gate-after-norm", "nemotron_h_moe")[0].gated_group_norm(*given)
    assert naive.nmse(normed.reshape(2, 12) * naive.silu(z), after) < 1e-9
    gated = y.reshape(2, 12) * naive.silu(z)
    whole = entry("G35b-scan-norm-ungrouped", "nemotron_h_moe")[0].gated_group_norm(*given)
    assert naive.nmse(gated / np.sqrt((gated**2).mean(axis=-1, keepdims=True)), whole) < 1e-9


def test_experts_have_another_activation_or_sum():
    x = rows(3, 8)
    assert np.array_equal(entry("E20-relu-unsquared", "nemotron_h_moe")[0].relu_squared(x), np.maximum(x, 0))
    name = next(one for one in dump("cohere2moe", None) if one.startswith("ffn_out-1"))
    clean, faulty = (dump("cohere2moe", id)[name] for id in (None, "E21-shared-expert-summed"))
    np.testing.assert_allclose(faulty, 2 * clean, rtol=1e-5, atol=1e-6)


EVERY = [pytest.param(name, marks=[] if name == NEMOTRON[0] else pytest.mark.slow) for name in FILES]


@pytest.mark.parametrize("name", EVERY)
def test_every_fault_of_experts_and_graph_that_a_model_can_have_runs_in_it(name):
    """diagnose runs them all: experts without a gate have no gate to be swapped with up."""
    own = [fault for fault in FAULTS.values() if fault.family in "EGA" and is_possible(fault, model(name))]
    assert ("E10-gate-up-swapped" in {fault.id for fault in own}) == (name in ("mimo2", *COHERE))
    for fault in own:
        assert {"result_output", "mtp_result_output"} <= set(record(inject(model(name), fault), IDS[:3], ".").tensors)
