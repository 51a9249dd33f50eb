"""Faults of indexers, of windows and compressed rows, of residual streams: where each can be, and that it does there
what it says, and nothing else."""

from functools import lru_cache

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted
from mtpref.engine.model import Model, load
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.look.dump import record
from mtpref.spec import NO_CELL, hadamard
from mtpref.spec.ops import spec_ops
from tests.micro_moe import standard
from tests.models import run_decoder

FILES = {
    "deepseek32": ("micro-deepseek32-yarn-f32",),
    "glm-dsa": ("micro-glm-dsa-f32",),
    "deepseek4": ("micro-deepseek4-own-f32",),
    "deepseek4, two files": ("micro-deepseek4-trunk-f32", "micro-deepseek4-head-f32"),
    "mimo2": ("micro-mimo2-f32",),
    "deepseek2": ("micro-deepseek2-f32",),
}
CELLS, V4 = ("deepseek32", "glm-dsa"), ("deepseek4", "deepseek4, two files")
# Where each fault can be, and what a refusal asks for.
WHERE = {
    "A5-indexer-ignored": ((*CELLS, *V4), "an indexer"),
    "A5b-indexer-one-fewer": ((*CELLS, *V4), "an indexer"),
    "A5c-indexer-cell-before": ((*CELLS, *V4), "an indexer"),
    "A6-indexer-no-relu": ((*CELLS, *V4), "an indexer"),
    "A7-indexer-rope-exchanged": (CELLS, "an indexer of cells"),
    "A7b-indexer-rope-at-end": (CELLS, "an indexer of cells"),
    "A7c-indexer-key-mean-kept": (CELLS, "an indexer of cells"),
    "A8-choice-not-shared": (("glm-dsa",), "layers that share what an indexer before them chose"),
    "A8b-first-choice-shared": (("glm-dsa",), "layers that share what a later indexer than the first chose"),
    "A9-sink-forgotten": ((*V4, "mimo2"), "sinks"),
    "A10-window-narrow": ((*V4, "mimo2"), "a window of two cells or more"),
    "A10b-window-wide": ((*V4, "mimo2"), "a window of two cells or more"),
    "A11-block-late": (V4, "compressed rows"),
    "A12-not-turned-back": (V4, "values that are turned by position"),
    "A12b-turned-in-front": (V4, "values that are turned by position"),
    "A12c-turned-in-halves": (V4, "values that are turned by position"),
    "E14-clamp-after-silu": (V4, "experts whose gate is clamped before silu"),
    "H1-hnorm-of-mean": (V4, "a head of several residual streams"),
    "H1b-streams-interleaved": (V4, "a head of several residual streams"),
    "H2-concat-across-streams": (V4, "a head of several residual streams"),
    "H3-hidden-after-head": (V4, "a head of several residual streams"),
    "H3b-chain-after-head": (V4, "a head of several residual streams"),
    "H3c-hidden-normed": (V4, "a head of several residual streams"),
    "H4-hc-head-of-trunk": (V4[1:], "an MTP block whose output_hc_* are not the trunk's"),
    "H5-comb-transposed": (V4, "several residual streams"),
    "H5b-sinkhorn-skipped": (V4, "several residual streams"),
    "H5c-post-not-doubled": (V4, "several residual streams"),
    "L16-indexer-unrotated": (CELLS, "an indexer of cells"),
}
IDS = [int(i) for i in np.random.default_rng(3).integers(1, 256, 20)]
_OPS = spec_ops("ggml")


@lru_cache
def model(name: str) -> Model:
    trunk, *head = map(standard, FILES[name])
    return load(trunk, model_draft=head[0] if head else None)


@lru_cache
def dump(name: str, id: str | None) -> dict[str, np.ndarray]:
    return record(model(name) if id is None else inject(model(name), FAULTS[id]), IDS, ".").tensors


def test_every_fault_of_these_parts_is_here():
    places = {"indexer", "indexer of cells", "shared choice", "later shared choice", "sinks", "window", "streams",
              "head streams", "own hc_head", "compressed rows", "turned values", "clamps"}  # fmt: skip
    assert {id for id, fault in FAULTS.items() if places & set(fault.where)} == set(WHERE)


@pytest.mark.parametrize("id", WHERE)
def test_a_fault_can_be_where_its_part_is_and_is_refused_elsewhere(id):
    names, words = WHERE[id]
    assert tuple(name for name in FILES if is_possible(FAULTS[id], model(name))) == names
    with pytest.raises(MtprefError) as error:
        inject(model("deepseek2"), FAULTS[id])
    assert str(error.value) == (
        f"fault {id}: it cannot be in this model (deepseek2), expected one with {words}; use another model, or another "
        "fault: mtpref faults"
    )


@pytest.mark.parametrize(
    ("id", "name"), [(id, name) for id, (names, _) in WHERE.items() for name in names if not id.startswith("H3b")]
)
def test_a_fault_changes_what_a_model_with_its_part_computes(id, name):
    clean, faulty = dump(name, None), dump(name, id)
    apart = [one for one in clean if one not in faulty or clean[one].tobytes() != faulty[one].tobytes()]
    assert apart
    is_of_head = FAULTS[id].predicted.dump.startswith("mtp_")
    assert all(one.startswith("mtp_") for one in apart) == is_of_head


def test_a_fault_of_the_chain_changes_later_drafts_alone():
    clean, faulty = (
        run_decoder(one, IDS, 12, n_max=3)
        for one in (model("deepseek4"), inject(model("deepseek4"), FAULTS["H3b-chain-after-head"]))
    )
    assert clean.ids == faulty.ids
    drafts = ([e for e in one.events if isinstance(e, Drafted) and len(e.steps) > 1] for one in (clean, faulty))
    pairs = list(zip(*drafts, strict=True))
    assert all(a.steps[0] == b.steps[0] for a, b in pairs)
    assert any(a.steps[1] != b.steps[1] for a, b in pairs)


# ---------------------------------------------------------------------------------------------- what exactly it does


def entry(id: str, name: str = "deepseek4"):
    recipe = inject(model(name), FAULTS[id]).recipe
    return recipe.ops, recipe.head_ops


def test_other_numbers_of_cells_are_chosen():
    scores = np.float32([[5, 4, 3, 2, 9], [5, 1, 3, 2, 4]])
    chosen = {id: entry(f"A5{id}", "deepseek32")[0] for id in ("-indexer-ignored", "b-indexer-one-fewer")}
    ignored, fewer = (ops.select_cells(scores, 3, 3).tolist() for ops in chosen.values())
    assert ignored == [[0, 1, 2, 3, NO_CELL], [0, 1, 2, 3, 4]]
    assert fewer == [[0, 1], [0, 4]]
    rows = [ops.best_rows(scores[1], 3).tolist() for ops in chosen.values()]
    assert rows == [[0, 1, 2, 3, 4], [0, 4]]


def test_cells_in_front_of_the_chosen_ones_are_seen_where_there_is_a_choice():
    ops = entry("A5c-indexer-cell-before", "deepseek32")[0]
    scores = np.float32([[5, 4, 3, 2, 9], [5, 1, 3, 2, 4], [5, 1, 3, 2, 4]])
    # Token 2 sees three cells, all of them; token 3 would see 0, 2 and 3, token 4 cells 0, 2 and 4.
    assert ops.select_cells(scores, 2, 3).tolist() == [[0, 1, 2], [1, 2, NO_CELL], [1, 3, NO_CELL]]
    assert ops.best_rows(scores[1], 3).tolist() == [1, 3]
    assert ops.best_rows(scores[1][:3], 3).tolist() == [0, 1, 2]


def test_negative_products_count():
    ops, random = entry("A6-indexer-no-relu", "deepseek32")[0], np.random.default_rng(0)
    products, weights = random.standard_normal((2, 3, 4)), random.standard_normal((2, 3))
    expected = np.where(
        np.arange(4) <= 2 + np.arange(2)[:, None], (products * weights[:, :, None]).sum(axis=1), -np.inf
    )
    found = ops.index_scores(products.astype(np.float32), weights.astype(np.float32), 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    q, rows = random.standard_normal((3, 8)), random.standard_normal((5, 8))
    found = ops.row_scores(*(x.astype(np.float32) for x in (q, rows, weights[0])))
    np.testing.assert_allclose(found, np.einsum("hd,rd,h->r", q, rows, weights[0]), rtol=1e-4)


def test_an_indexers_rope_turns_the_last_dimensions():
    own, random = model("deepseek32"), np.random.default_rng(1)
    cfg, w, n_rot = own.layers[0].cfg, own.weights.layers[0], own.layers[0].cfg.n_rot
    h, key = (random.standard_normal((1, n)).astype(np.float32) for n in (own.config.n_embd, cfg.n_index_key))
    cos_sin = _OPS.rope_table(np.int32([7]), np.linspace(1, 0.1, n_rot // 2), np.ones(n_rot // 2, bool))

    def stored(ops) -> np.ndarray:
        cells, ops = np.zeros((1, 1, cfg.n_index_key), np.float32), ops.replaced(layer_norm=lambda *_: key)
        ops.index_cells(ops, w, cfg, h, cells, "F32", 0, cos_sin, lambda name, array: None)
        return _OPS.mul_mat(hadamard(cfg.n_index_key), cells[0])[0]  # the rotation is its own inverse

    front, at_end = stored(own.recipe.ops), stored(entry("A7b-indexer-rope-at-end", "deepseek32")[0])
    for found, kept, turned in ((front, np.s_[n_rot:], np.s_[:n_rot]), (at_end, np.s_[:-n_rot], np.s_[-n_rot:])):
        np.testing.assert_allclose(found[kept], key[0, kept], atol=1e-5)
        expected = _OPS.rope(np.ascontiguousarray(key[:, None, turned]), *cos_sin)[0, 0]
        np.testing.assert_allclose(found[turned], expected, atol=1e-5)


def test_a_window_has_one_cell_more_or_fewer():
    narrow = entry("A10-window-narrow")[0].window_start
    assert [narrow(pos, 5) for pos in (0, 3, 4, 9)] == [0, 0, 1, 6]
    wide = inject(model("deepseek4"), FAULTS["A10b-window-wide"])
    n = model("deepseek4").layers[0].cfg.n_window
    assert {layer.cfg.n_window for layer in (*wide.layers, wide.heads[0].layer)} == {n + 1}
    assert wide.new_state(8).layers[0].arrays["window_k"].shape[0] == n
    # In one batch or token by token: the state keeps what the wider window sees.
    whole, state = wide.trunk(wide.new_state(32), IDS, n_logits=1).logits, wide.new_state(32)
    for id in IDS:
        last = wide.trunk(state, [id], n_logits=1).logits
    assert whole.tobytes() == last.tobytes()


def test_a_sink_has_no_share_and_a_row_comes_late():
    ops, random = entry("A9-sink-forgotten")[0], np.random.default_rng(4)
    q, cells, sinks = random.standard_normal((2, 8)), random.standard_normal((6, 8)), random.standard_normal(2)
    e = np.exp(q @ cells.T / 8**0.5)
    found = ops.sink_attention(*(x.astype(np.float32) for x in (q, cells, sinks)), "F32")
    np.testing.assert_allclose(found, e @ cells / e.sum(axis=1, keepdims=True), rtol=1e-4)
    late = entry("A11-block-late")[0].n_compressed
    assert [late(n, 4) for n in (3, 4, 5, 8, 9)] == [0, 0, 1, 1, 2]


def test_heads_are_turned_in_front_in_halves_or_not_back():
    x = np.random.default_rng(5).standard_normal((2, 3, 16)).astype(np.float32)
    cos, sin = _OPS.rope_table(np.int32([3, 4]), np.linspace(1, 0.1, 4), np.ones(4, bool))
    front, halves, not_back = (entry(f"A12{id}")[0].rope_last for id in ("b-turned-in-front", "c-turned-in-halves",
                                                                       "-not-turned-back"))  # fmt: skip
    assert (front(x, cos, sin)[..., 8:] == x[..., 8:]).all()
    assert (halves(x, cos, sin)[..., :8] == x[..., :8]).all()
    np.testing.assert_array_equal(halves(x, cos, sin)[..., 8:], _OPS.rope(np.ascontiguousarray(x[..., 8:]), cos, sin))
    for turned in (front, halves):  # back is the inverse
        np.testing.assert_allclose(turned(turned(x, cos, sin), cos, sin, True), x, atol=1e-6)
    assert not_back(x, cos, sin, True) is x
    assert (not_back(x, cos, sin) == _OPS.rope_last(x, cos, sin)).all()


def test_streams_are_mixed_by_another_matrix():
    random, n = np.random.default_rng(6), 4
    of = random.standard_normal((3, 24)), random.standard_normal(3), random.standard_normal(24)
    of = (*(x.astype(np.float32) for x in of), n, 1e-6, 20)
    _, post, comb = _OPS.stream_weights(*of)
    names = ("H5-comb-transposed", "H5b-sinkhorn-skipped", "H5c-post-not-doubled")
    (_, _, turned), (_, _, softmax), (_, half, same) = (entry(id)[0].stream_weights(*of) for id in names)
    assert (turned == comb.transpose(0, 2, 1)).all()
    np.testing.assert_allclose(softmax.sum(axis=2), 1, rtol=1e-6)
    assert np.abs(softmax.sum(axis=1) - 1).max() > 0.05
    assert np.abs(comb.sum(axis=1) - 1).max() < 1e-4
    assert (half * 2 == post).all()
    assert (same == comb).all()
    logits = (of[0][:, 8:] * of[1][2] + of[2][8:]).reshape(3, n, n)
    np.testing.assert_allclose(np.log(softmax[:, :, 1:] / softmax[:, :, :1]), logits[:, :, 1:] - logits[:, :, :1],
                               atol=1e-4)  # fmt: skip


def head_input(id: str, hidden: np.ndarray) -> dict[str, np.ndarray]:
    """What the head's input makes, of these hidden rows (T, n, n_embd)."""
    own, seen = model("deepseek4"), {}
    ops = entry(id)[1] if id else own.recipe.head_ops
    embd = np.random.default_rng(8).standard_normal((len(hidden), own.config.n_embd)).astype(np.float32)
    rows = hidden.reshape(len(hidden), -1)
    seen["eh_proj"] = ops.streams_input(ops, own.heads[0].weights, embd, rows, 1e-6, "eh", seen.__setitem__)
    return seen


def test_the_head_is_given_other_rows():
    n_embd = model("deepseek4").config.n_embd
    hidden = np.random.default_rng(7).standard_normal((2, 4, n_embd)).astype(np.float32)
    clean, mean = head_input("", hidden), head_input("H1-hnorm-of-mean", hidden)
    expected = head_input("", np.repeat(hidden.mean(axis=1, keepdims=True), 4, axis=1))
    np.testing.assert_allclose(mean["hnorm"], expected["hnorm"], rtol=1e-5)
    read = head_input("H1b-streams-interleaved", hidden)
    expected = head_input("", hidden.reshape(2, n_embd, 4).transpose(0, 2, 1))
    assert (read["hnorm"] == expected["hnorm"]).all()
    across = head_input("H2-concat-across-streams", hidden)
    assert (across["hnorm"] == clean["hnorm"]).all()
    e, h, joined = clean["enorm"][0], clean["hnorm"][0], across["concat"][0]
    assert (joined == np.stack([np.concatenate(pair) for pair in ((e[0], e[1]), (e[2], e[3]), (h[0], h[1]),
                                                                  (h[2], h[3]))])).all()  # fmt: skip


def test_rows_are_handed_on_from_after_hc_head():
    name = "deepseek4, two files"
    seen: dict[str, np.ndarray] = {}
    own = model(name)
    out = own.trunk(own.new_state(32), IDS, n_logits=1, tap=seen.__setitem__)
    for id, one in (("H3-hidden-after-head", seen["hc_head"]), ("H3c-hidden-normed", seen["result_norm"])):
        recipe = inject(own, FAULTS[id]).recipe
        assert (recipe.steps.target_hidden(out.hidden, recipe.contract) == np.tile(one, (1, 4))).all()
    recipe = inject(own, FAULTS["H3b-chain-after-head"]).recipe
    carried = recipe.steps.chain_hidden(out.hidden, recipe.contract).reshape(len(IDS), 4, -1)
    assert (carried == carried[:, :1]).all()
    assert (carried[:, 0] != seen["hc_head"]).any()  # the head's own hc_head
    of_trunk = inject(own, FAULTS["H4-hc-head-of-trunk"])
    assert of_trunk.heads[0].weights.roots is own.weights.roots is not own.heads[0].weights.roots
