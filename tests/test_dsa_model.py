"""Models with an indexer, deepseek32 and glm-dsa: against the naive oracle, and what only they have.

Batches, roll backs, kernels: test_moe_model.py, which has them too.
"""

import hashlib
from functools import lru_cache

import numpy as np
import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.architectures.indexer import by_length, flags_of_checkpoint
from mtpref.base.errors import MtprefError
from mtpref.base.events import PromptProgress, Verified
from mtpref.engine.decode import STRATEGIES
from mtpref.engine.memory import head_memory
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.engine.session import Session
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.spec import NO_CELL
from mtpref.spec.config import Metadata
from mtpref.spec.kinds import rope_constants
from tests import naive, naive_dsa
from tests.gguf_copy import copy_of
from tests.micro_moe import standard
from tests.models import decode_plainly, prompt_of, run_decoder
from tests.test_moe_model import edited
from tests.test_session import check_same, new_session, options_of, run_in

D32, D32_YARN, GLM, GLM_YARN = (f"micro-{n}-f32" for n in ("deepseek32", "deepseek32-yarn", "glm-dsa", "glm-dsa-yarn"))
FILES = (D32, D32_YARN, GLM, GLM_YARN)
N_TOP = {D32: 12, D32_YARN: 7, GLM: 12, GLM_YARN: 9}
FULL = {D32: [0, 1, 2, 3], D32_YARN: [0, 1, 2, 3], GLM: [0, 2], GLM_YARN: [0, 3]}
PROMPT = prompt_of(40, 3)


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32"):
    return load(standard(name), make_recipe(numerics), kv_type=kv_type, kv_type_draft=kv_type)


@lru_cache
def oracle(name):
    hparams, weights = naive_dsa.load(standard(name))
    out = naive_dsa.trunk(weights, hparams, PROMPT)
    shifted = np.concatenate([np.zeros((1, out.h_post.shape[1])), out.h_post[:-1]])
    return out, naive_dsa.mtp(weights, hparams, PROMPT, shifted, list(range(len(PROMPT))))


def seen_cells(cells, n):
    """(T, n) booleans of a choice."""
    seen = np.zeros((len(cells), n), np.bool_)
    for row, own in zip(seen, cells, strict=True):
        row[own[own != NO_CELL]] = True
    return seen


# AGAINST THE ORACLE


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", FILES)
def test_choices_activations_and_logits_equal_the_oracle_with_cells_left_out(name, numerics):
    theirs, their_head = oracle(name)
    taken, model = {}, model_of(name, numerics)
    state = model.new_state()
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=lambda n, x: taken.setdefault(n, np.array(x)))
    pairs = pair(model, PROMPT, out.hidden.post, 0, state.pending_h)
    head = model.mtp(state, pairs.ids, pairs.rows, 0, n_logits=len(PROMPT))
    assert naive.nmse(theirs.logits, out.logits) < 1e-11
    assert naive.nmse(their_head.logits, head.logits) < 1e-11
    assert len(out.selections) == len(FULL[name])
    assert not head.selections
    for il, selection in zip(FULL[name], out.selections, strict=True):
        seen = seen_cells(selection.cells, len(PROMPT))
        assert np.array_equal(seen, theirs.tensors[f"cells-{il}"])
        assert seen.sum(axis=1).tolist() == [min(t + 1, N_TOP[name]) for t in range(len(PROMPT))]
        assert np.isinf(selection.gap).tolist() == [t < N_TOP[name] for t in range(len(PROMPT))]
        assert np.array_equal(taken[f"top_k-{il}"], selection.cells)
        assert naive.nmse(theirs.tensors[f"indexer_weights-{il}"], taken[f"indexer_weights-{il}"]) < 1e-11
    for il in range(4):
        assert naive.nmse(theirs.tensors[f"kv_cmpr-{il}"], taken[f"kv_cmpr-{il}"]) < 1e-11
        assert naive.nmse(theirs.tensors[f"l_out-{il}"], taken[f"l_out-{il}"]) < 1e-11


@pytest.mark.parametrize("name", [GLM, GLM_YARN])
def test_a_layer_without_an_indexer_sees_what_the_last_one_with_one_chose(name):
    theirs, _ = oracle(name)
    for il in sorted(set(range(4)) - set(FULL[name])):
        last = max(full for full in FULL[name] if full < il)
        assert np.array_equal(theirs.tensors[f"cells-{il}"], theirs.tensors[f"cells-{last}"])
    model = model_of(name)
    assert [layer.cfg.has_indexer for layer in model.layers] == [il in FULL[name] for il in range(4)]
    assert not np.array_equal(*(theirs.tensors[f"cells-{il}"] for il in FULL[name]))


@pytest.mark.parametrize("name", [D32, GLM])
def test_with_as_many_places_as_cells_it_is_attention_over_all_bit_for_bit(name, tmp_path):
    outs = []
    for n_top in (len(PROMPT), 4096):
        keys = {"attention.indexer.top_k": (n_top, "u32")}
        model = load(edited(standard(name), tmp_path / f"{n_top}.gguf", keys), make_recipe("ggml"), kv_type="F32")
        outs.append(model.trunk(model.new_state(), PROMPT, n_logits=len(PROMPT)).logits)
    narrow = model_of(name).trunk(model_of(name).new_state(), PROMPT, n_logits=len(PROMPT)).logits
    assert np.array_equal(*outs)
    n_top = N_TOP[name]
    assert np.array_equal(outs[0][:n_top], narrow[:n_top])  # nothing is left out yet
    assert naive.nmse(outs[0][n_top:], narrow[n_top:]) > 1e-4


# STATE


def test_a_layer_with_an_indexer_keeps_a_key_and_a_row_a_token():
    model = model_of(GLM, kv_type="F16")
    state = model.new_state()
    model.trunk(state, PROMPT, n_logits=0)
    shapes = [{name: array.shape[1:] for name, array in layer.arrays.items()} for layer in state.layers]
    whole = {"cache_k": (1, 40), "cache_indexer_k": (1, 64)}
    assert shapes == [whole, {"cache_k": (1, 40)}, whole, {"cache_k": (1, 40)}]
    assert {"cache_indexer_k_l0", "cache_indexer_k_l2"} <= {name for name, _ in state.live_arrays()}
    assert head_memory(model).kv_cell == 2 * 40  # the head has no indexer


@pytest.mark.parametrize("rollback", sorted(STRATEGIES))
@pytest.mark.parametrize("name", [D32_YARN, GLM_YARN])
def test_a_long_text_is_that_of_plain_decoding_with_the_same_state(name, rollback):
    model = model_of(name, kv_type="F16")
    plain = decode_plainly(model, PROMPT, 31, warm_head=True)
    run = run_decoder(model, PROMPT, 30, rollback=rollback, n_max=3)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 30]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 29]
    assert 0 < run.statistics["n_accept"] < run.statistics["n_drafted"]


@pytest.mark.parametrize("kv_type", ["F32", "F16"])
@pytest.mark.parametrize("name", [D32, GLM])
def test_a_saved_session_comes_back_bit_for_bit_and_goes_on_as_a_fresh_run(name, kv_type, tmp_path):
    model, path = model_of(name, kv_type=kv_type), tmp_path / "state.gguf"
    session = new_session(model, checkpoint_every=5)
    first = run_in(session, PROMPT[:25], options_of())
    session.save(path)
    back = Session.load(model, path, poison=True)
    assert back.state.digest() == session.state.digest()
    assert "cache_indexer_k_l0" in dict(back.state.live_arrays())
    check_same(back, [*PROMPT[:25], *first.ids, *PROMPT[25:]], options_of())
    check_same(Session.load(model, path, poison=True), PROMPT, options_of())  # back to the prompt's end, and on


# TIES


@pytest.fixture
def tied():
    """A model whose indexer has one head: where its product is not positive every score is 0."""
    return model_of("micro-deepseek32-ties-f32")


def test_exact_ties_of_scores_are_recorded_and_the_lowest_cells_win(tied):
    taken = {}
    out = tied.trunk(tied.new_state(), PROMPT, n_logits=0, tap=lambda n, x: taken.setdefault(n, np.array(x)))
    n_ties = 0
    for il, selection in enumerate(out.selections):
        scores = taken[f"indexer_score-{il}"]
        for t in np.nonzero(selection.gap == 0)[0]:
            own = selection.cells[t][selection.cells[t] != NO_CELL]
            edge = scores[t, own].min()
            equal = np.nonzero(scores[t, : t + 1] == edge)[0]
            taken_of_equal = [cell for cell in equal if cell in own]
            assert taken_of_equal == equal[: len(taken_of_equal)].tolist()
            assert len(taken_of_equal) < len(equal)
            n_ties += edge == 0
    assert n_ties > 20
    assert np.all(np.min([selection.gap for selection in out.selections], axis=0) >= out.gaps)


def test_ties_are_in_events_and_statistics_and_do_not_touch_the_text(tied):
    run = run_decoder(tied, PROMPT, 20, n_max=3)
    assert run.ids == decode_plainly(tied, PROMPT, 21, warm_head=False).ids[len(PROMPT) : len(PROMPT) + 20]
    assert run.statistics["min_router_gap"] == 0
    assert run.statistics["n_router_ties"] > 20
    assert any(e.router_gap == 0 for e in run.events if isinstance(e, PromptProgress))
    assert any(0 in e.router_gaps for e in run.events if isinstance(e, Verified))


# DUMPS


@pytest.mark.parametrize("name", [D32, GLM])
def test_a_dump_shows_choices_and_a_right_one_is_healthy(name, tmp_path, capsys):
    text = "a text that is longer than what an indexer chooses"
    assert main(["dump", "-m", str(standard(name)), "-p", text, "-o", str(tmp_path / "d.gguf")]) == 0
    with open_gguf(tmp_path / "d.gguf") as file:
        names = {n.rpartition(".")[2] if "-" in n else n for n in file.tensors}
    parts = ("indexer_q", "indexer_k", "indexer_weights", "indexer_score", "top_k", "top_k_gap")
    assert {f"{part}-{il}" for part in parts for il in FULL[name]} <= names
    assert not [n for n in names if n.startswith(("mtp_indexer", "mtp_top_k"))]
    capsys.readouterr()
    assert main(["diagnose", "-m", str(standard(name)), "--dump", str(tmp_path / "d.gguf")]) == 0
    assert capsys.readouterr().out.startswith("HEALTHY")


# KEYS


def with_log(value):
    return {"rope.scaling.yarn_log_multiplier": (value, "f32")}


YARN = {"rope.scaling.type": ("yarn", "str"), "rope.scaling.factor": (40.0, "f32"),
        "rope.scaling.original_context_length": (4096, "u32")}  # fmt: skip
G = 1 + 0.1 * np.log(40.0)
G7 = 1 + 0.0707 * np.log(40.0)
# magnitude of cosine and sine, and what it is together with mscale_all_dim's sharpness
SCALES = {
    "deepseek32, none": (D32, {}, 1.0, 1.0),
    "deepseek32, yarn": (D32, YARN, G, G),
    "deepseek32, yarn 1": (D32, YARN | with_log(0.1), 1.0, G),
    "deepseek32, yarn 0.707": (D32, YARN | with_log(0.0707), G / G7, G),  # mscale is 1 there
    "glm-dsa, yarn 0.707": (GLM, YARN | with_log(0.0707), G, G),  # which does not read it
}


@pytest.mark.parametrize("case", SCALES)
def test_yarn_is_llama_cpps_for_each(case, tmp_path):
    name, keys, magnitude, sharpness = SCALES[case]
    model = load(edited(standard(name), tmp_path / "m.gguf", keys))
    for cfg in (model.layers[0].cfg, model.heads[0].layer.cfg):
        assert rope_constants(cfg.rotary)[2] == pytest.approx(magnitude, rel=1e-6)
        assert cfg.scale / np.sqrt(40) == pytest.approx(sharpness**2 / np.sqrt(72), rel=1e-6)
    is_unread = "glm" in case and "0.707" in case
    assert any("yarn_log_multiplier" in note and "not read" in note for note in model.notes) == is_unread


def test_which_layers_share_without_a_key():
    assert by_length((1 << 20) - 1, 7) == [True] * 7
    assert by_length(1 << 20, 12) == [True, True, True, *[False] * 3, True, *[False] * 3, True, False]
    keys = {"general.architecture": "glm-dsa", "glm-dsa.context_length": 1 << 20}
    names = [b.name for b in ARCHITECTURES["glm-dsa"].layers.blocks(Metadata(keys, "x"), 5, frozenset())]
    assert names == ["moe", "moe", "moe", "moe_sharing", "moe_sharing"]
    keys |= {"glm-dsa.attention.indexer.types": True, "glm-dsa.leading_dense_block_count": 1}
    names = [b.name for b in ARCHITECTURES["glm-dsa"].layers.blocks(Metadata(keys, "x"), 3, frozenset())]
    assert names == ["dense", "moe", "moe"]


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, "FFFFF"),
        ({"index_topk_pattern": "FSSFS"}, "FSSFS"),
        ({"index_topk_freq": 2}, "FFSFS"),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, "FFFSS"),
        ({"indexer_types": ["full", "shared", "full", "shared", "shared"], "index_topk_freq": 2}, "FSFSS"),
    ],
)
def test_which_layers_share_by_a_checkpoint(fields, flags):
    assert flags_of_checkpoint({"num_hidden_layers": 5} | fields) == [letter == "F" for letter in flags]


@pytest.mark.parametrize(("name", "keys"), [(GLM, {}), (D32, {"expert_gating_func": (2, "u32")})])
def test_a_router_of_glm_dsa_is_a_sigmoid_where_no_key_says_so(name, keys, tmp_path):
    model = load(edited(standard(name), tmp_path / "m.gguf", keys))
    assert {layer.ffn_cfg.gating for layer in model.layers[1:]} == {"sigmoid"}


TYPES = "attention.indexer.types"
BAD = {
    "a width of no rotation": (
        D32,
        {"attention.indexer.key_length": (96, "u32")},
        "expected a power of two from 64 on",
    ),
    "a narrow key": (D32, {"attention.indexer.key_length": (32, "u32")}, "expected a power of two from 64 on"),
    "another width": (D32, {"attention.indexer.key_length": (128, "u32")}, r"indexer\.\S+ has shape"),
    "no top_k": (D32, {"attention.indexer.top_k": None}, r"indexer\.top_k is missing"),
    "a top_k of 0": (GLM, {"attention.indexer.top_k": (0, "u32")}, "top_k is 0, expected an integer from 1"),
    "no heads": (GLM, {"attention.indexer.head_count": None}, r"indexer\.head_count is missing"),
    "no gating": (D32, {"expert_gating_func": None}, "expert_gating_func is missing"),
    "an older form": (D32, {"attention.key_length_mla": None}, "key_length_mla is missing"),
    "queries at once": (GLM, {"attention.q_lora_rank": None}, "q_lora_rank is missing"),
    "few types": (GLM, {TYPES: ([True, False, True], "arr:bool")}, "3 items"),
    "types of the head too": (GLM, {TYPES: ([True, False, True, False, True], "arr:bool")}, "one bool for each of 4"),
    "nothing chosen before": (GLM, {TYPES: ([False, True, True, True], "arr:bool")}, "an indexer in layer 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line_and_told_by_inspect(case, tmp_path, capsys):
    name, keys, message = BAD[case]
    path = edited(standard(name), tmp_path / "bad.gguf", keys)
    with pytest.raises(MtprefError, match=message) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    main(["inspect", str(path)])
    assert "problems (0)" not in capsys.readouterr().out


def without(path, out, start):
    keys, tensors = copy_of(path)
    write_gguf(out, keys, [t for t in tensors if not t[0].startswith(start)])
    return out


def test_an_indexer_that_is_missing_is_refused(tmp_path):
    with pytest.raises(MtprefError, match=r"blk\.2\.indexer\.proj\.weight"):
        load(without(standard(D32), tmp_path / "a.gguf", "blk.2.indexer.proj"))
    # llama.cpp loads no head of deepseek32 without one, though it reads none.
    with pytest.raises(MtprefError, match=r"blk\.4\.indexer\.attn_k\.weight"):
        load(without(standard(D32), tmp_path / "b.gguf", "blk.4.indexer.attn_k"))


def test_an_indexer_that_no_graph_reads_changes_nothing(tmp_path):
    lean = load(without(standard(GLM_YARN), tmp_path / "lean.gguf", "blk.4.indexer."), kv_type="F32")
    whole = load(standard(GLM_YARN), kv_type="F32")
    a, b = (run_decoder(model, PROMPT, 12, n_max=3) for model in (whole, lean))
    assert a.ids == b.ids
    assert a.decoder.state.digest() == b.decoder.state.digest()
    with pytest.raises(MtprefError, match=r"blk\.4\.indexer\.attn_q_b\.weight"):  # all or none of them
        load(without(standard(GLM_YARN), tmp_path / "part.gguf", "blk.4.indexer.attn_q_b"))


DIGESTS = {D32: "59eb2f2534be07c9", D32_YARN: "69b8b2008f8d8e0b", GLM: "d782066fb0f976fc", GLM_YARN: "0fdaa1ce05108226"}


@pytest.mark.parametrize("name", FILES)
def test_the_planted_models_are_the_same_bytes_everywhere(name):
    assert hashlib.sha256(standard(name).read_bytes()).hexdigest().startswith(DIGESTS[name])
