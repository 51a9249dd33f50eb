"""The house, proved: architectures of other kinds of layer, block, stream and head, defined in tests/toys.py alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, RolledBack
from mtpref.engine.decode import STRATEGIES, ScriptedDrafter
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import write_gguf
from mtpref.golden.loops import head_cells
from mtpref.measure.probe import Variant, Window, walk
from mtpref.spec.contract import MtpContract
from tests import toys
from tests.models import decode_plainly, has_nan, run_decoder

PROMPT = [7, 3, 3, 40, 12, 9, 30]
ROLLBACKS = sorted(STRATEGIES)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, sheet in toys.TOYS.items():
        monkeypatch.setitem(ARCHITECTURES, name, sheet)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    for name, sheet in toys.TOYS.items():
        write_gguf(folder / f"{name}.gguf", toys.keys(sheet), toys.tensors(sheet))
    return {name: folder / f"{name}.gguf" for name in toys.TOYS}


@pytest.fixture(params=list(toys.TOYS))
def name(request):
    return request.param


@pytest.fixture(params=["ggml", "exact"])
def toy(request, name, files):
    return load(files[name], make_recipe(request.param))


def test_an_architecture_that_is_not_registered_is_refused_with_those_that_are(files, monkeypatch):
    for sheet in toys.TOYS:
        monkeypatch.delitem(ARCHITECTURES, sheet)
    with pytest.raises(
        MtprefError,
        match="architecture 'toy' is not supported, expected one of: bailingmoe3, cohere2moe, deepseek2, deepseek32",
    ):
        load(files["toy"])


def test_a_registered_architecture_loads_with_every_tensor_read(toy, name):
    kinds = ["ema", "latent", "compressed", "ema", "latent", "compressed"] if name != "toywide" else ["ema"] * 6
    assert [layer.kind.name for layer in toy.layers] == kinds
    assert len(toy.heads) == toys.TOYS[name].n_heads
    assert toy.notes == ()


def test_state_arrays_are_named_by_their_kinds(files):
    names = {name for name, _ in load(files["toychain"]).new_state().live_arrays()}
    assert {"cache_ema_l0", "cache_latent_l1", "cache_raw_l2", "cache_latent_l6", "cache_latent_l7"} <= names
    assert {name for name, _ in load(files["toyreads"]).new_state().live_arrays()} == names - {
        "cache_latent_l6",
        "cache_latent_l7",
    }


def test_a_value_that_differs_by_block_is_each_blocks_own(files):
    model = load(files["toychain"])
    windows = [layer.cfg.window for layer in model.layers if layer.kind is toys.LATENT]
    assert (windows, [head.layer.cfg.window for head in model.heads]) == ([4, 7], [9, 10])


def test_its_own_layers_can_be_tapped(files):
    toy, seen = load(files["toy"]), []
    toy.trunk(toy.new_state(), PROMPT, n_logits=1, tap=lambda name, array: seen.append(name))
    wanted = ("ema", "latent", "ffn_moe_topk")
    assert [n for n in seen if n.rpartition("-")[0] in wanted] == [
        "ema-0", "latent-1", "ffn_moe_topk-1", "ema-3", "latent-4", "ffn_moe_topk-4",
    ]  # fmt: skip


def test_a_head_takes_the_row_that_its_architecture_says(files):
    rows = {name: load(path).own_rows for name, path in files.items()}
    assert rows == {"toy": ("post",) * 2, "toychain": ("pre",) * 2, "toywide": ("pre",) * 2, "toyreads": ("post",) * 2}
    wide = load(files["toywide"])
    assert wide.heads[0].n_hidden == wide.new_state().pending_h.size == 2 * toys.N_EMBD
    assert load(files["toychain"]).contract_name == "llama.cpp"
    chain = load(files["toychain"])
    overridden = replace(chain, recipe=replace(chain.recipe, contract=replace(chain.recipe.contract, chain="post")))
    assert overridden.contract_name == "llama.cpp,chain=post"
    with pytest.raises(MtprefError, match=r"chain is post, expected pre: .* 64 values, and a normed row has 32"):
        replace(wide, recipe=replace(wide.recipe, contract=replace(wide.recipe.contract, chain="post")))


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.covering(2)
def test_all_roll_backs_give_the_tokens_and_the_state_of_plain_decoding(toy, rollback):
    plain = decode_plainly(toy, PROMPT, 21, warm_head=True)
    run = run_decoder(toy, PROMPT, 20, rollback=rollback, n_max=3)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 20]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 19]
    assert run.statistics["n_drafted"] > 0
    assert not has_nan(run.decoder.state)


@pytest.mark.parametrize("rollback", ROLLBACKS)
@pytest.mark.covering(2)
def test_partial_acceptance_is_rolled_back_in_recurrent_and_positional_state(toy, rollback):
    plain = decode_plainly(toy, PROMPT, 21, warm_head=False)
    pattern = [[True, False, True], [False], [True, True, True], [True, True, False]]
    drafter = ScriptedDrafter(plain.ids[len(PROMPT) :], pattern, len(PROMPT), toys.N_VOCAB)
    run = run_decoder(toy, PROMPT, 20, rollback=rollback, n_max=3, drafter=drafter)
    assert run.ids == plain.ids[len(PROMPT) : len(PROMPT) + 20]
    assert run.decoder.state.digest() == plain.digests[len(PROMPT) + 19]
    assert run.statistics["n_accept"] >= 6
    assert bool([e for e in run.events if isinstance(e, RolledBack)]) == (rollback != "two-phase")


# THE CHAIN


def test_a_chain_drafts_by_the_full_prefix_rule_and_no_head_runs_twice(files):
    """Step i: head i over all of the draft so far, with the pending row and the rows of the heads before it."""
    toy = load(files["toychain"], make_recipe("exact"))
    run = run_decoder(toy, PROMPT, 12, n_max=5)
    drafts = [event for event in run.events if isinstance(event, Drafted) and event.ids]
    assert max(len(d.ids) for d in drafts) == 2
    text = [*PROMPT, *run.ids]
    for event in drafts:
        state, pos0 = toy.new_state(), event.pos0
        hidden = toy.trunk(state, text[:pos0], n_logits=0).hidden.pre
        pairs = pair(toy, text[:pos0], hidden, 0, np.zeros(toys.N_EMBD, np.float32))
        for head in range(2):
            toy.mtp(state, pairs.ids, pairs.rows, 0, head=head, n_logits=0)
        first = toy.mtp(state, [event.id_last], hidden[-1:], pos0, head=0, n_logits=1)
        d0 = int(np.argmax(first.logits[0]))
        rows = np.concatenate([hidden[-1:], first.hidden.pre])
        second = toy.mtp(state, [event.id_last, d0], rows, pos0, head=1, n_logits=1)
        assert event.ids == [d0, int(np.argmax(second.logits[0]))][: len(event.ids)]


def test_every_head_of_a_chain_catches_up_with_the_trunks_rows(files):
    """The other rule that one could think of, head 1 fed with head 0's rows, gives other cells."""
    toy = load(files["toychain"], make_recipe("exact"))
    run = run_decoder(toy, PROMPT, 1, n_max=2)
    state = toy.new_state()
    ids = PROMPT[: run.decoder.state.heads[1].n_cells]
    hidden = toy.trunk(state, ids, n_logits=0).hidden.pre
    pairs = pair(toy, ids, hidden, 0, np.zeros(toys.N_EMBD, np.float32))
    first = toy.mtp(state, pairs.ids, pairs.rows, 0, head=0, n_logits=0)
    toy.mtp(state, pairs.ids, pairs.rows, 0, head=1, n_logits=0)
    other = toy.new_state()
    toy.mtp(other, pairs.ids, np.concatenate([pairs.rows[:1], first.hidden.pre[:-1]]), 0, head=1, n_logits=0)

    def cells(one):
        return one.heads[1].layer.arrays["cache_latent"][: len(ids)]

    assert np.array_equal(cells(run.decoder.state), cells(state))
    assert not np.array_equal(cells(other), cells(state))


def test_a_file_with_one_head_of_a_chain_runs_it_as_a_single_head(tmp_path):
    one = replace(toys.CHAIN, n_heads=1)
    write_gguf(tmp_path / "one.gguf", toys.keys(one), toys.tensors(one))
    run = run_decoder(load(tmp_path / "one.gguf"), PROMPT, 12, n_max=3)
    assert max(len(event.ids) for event in run.events if isinstance(event, Drafted)) == 3


def test_more_heads_than_the_architecture_has_are_refused(tmp_path):
    three = replace(toys.CHAIN, n_heads=3)
    write_gguf(tmp_path / "three.gguf", toys.keys(three), toys.tensors(three))
    with pytest.raises(MtprefError, match=r"nextn_predict_layers is 3, expected 0 \.\. 2"):
        load(tmp_path / "three.gguf")


def test_a_head_that_reads_the_trunk_leaves_no_cells_and_stays_at_its_position(files):
    toy = load(files["toyreads"], make_recipe("exact"))
    run = run_decoder(toy, PROMPT, 12, n_max=3)
    assert [head.n_cells for head in run.decoder.state.heads] == [0]
    assert "mtp_catch_up" not in run.statistics["passes"]
    event = next(e for e in run.events if isinstance(e, Drafted) and len(e.ids) > 1)
    assert [step.pos for step in event.steps] == [event.pos0 + 1 + i for i in range(len(event.steps))]


def test_a_key_of_its_own_is_checked(files, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(files["toy"].read_bytes().replace(np.float32(0.75).tobytes(), np.float32(1.5).tobytes(), 1))
    with pytest.raises(MtprefError, match=r"toy\.ema_decay is 1\.5, expected a number from 0\.0 to 1\.0"):
        load(bad)


# THE PROBE


@pytest.mark.parametrize("prime", ["prompt", "none"])
def test_a_probe_of_a_head_with_one_row_a_token_drafts_what_the_loop_drafts(files, prime):
    toy = load(files["toy"], make_recipe("ggml", MtpContract(prime=prime)))
    run = run_decoder(toy, PROMPT, 24, n_max=4)
    ids = [*PROMPT, *run.ids]
    window = Window(0, "text", 0, tuple(ids), tuple(range(1, len(ids))))
    for n_batch in (512, 5):
        seen = walk(toy, window, [Variant("head", toy, 4)], n_batch=n_batch, whole_chains=True, poison=True)
        rounds = [event for event in run.events if isinstance(event, Drafted) and event.ids]
        assert sum(len(event.ids) > 1 for event in rounds) > 0
        for event in rounds if prime == "prompt" else rounds[:1]:  # unprimed, later rounds see what was generated
            assert seen.heads["head"].draft[event.pos0 - 1, : len(event.ids)].tolist() == event.ids
            assert seen.heads["head"].p[event.pos0 - 1, : len(event.ids)].tolist() == [s.p[0] for s in event.steps]


def test_a_head_that_a_probe_cannot_walk_is_refused(files):
    toy = load(files["toyreads"])
    with pytest.raises(MtprefError, match="block reads the trunk's cells, expected"):
        walk(toy, Window(0, "text", 0, (1, 2, 3), (1,)), [Variant("head", toy, 2)])


@pytest.mark.parametrize("name", ["toywide", "toychain"])
def test_a_probe_takes_a_row_wider_than_an_embedding_and_a_chain_of_heads(files, name):
    toy = load(files[name])
    run = run_decoder(toy, PROMPT, 16, n_max=3)
    ids = [*PROMPT, *run.ids]
    window = Window(0, "text", 0, tuple(ids), tuple(range(1, len(ids))))
    seen = walk(toy, window, [Variant("head", toy, 3)], whole_chains=True).heads["head"]
    for event in (event for event in run.events if isinstance(event, Drafted) and event.ids):
        assert seen.draft[event.pos0 - 1, : len(event.ids)].tolist() == event.ids


def test_golden_cells_are_those_of_any_positional_array(files):
    toy = load(files["toy"], kv_type_draft="F16")  # its latent rows are float32 whatever the KV type is
    inputs = {"tokens": SimpleNamespace(values=lambda: np.array(PROMPT))}
    out = head_cells(toy, {"n_predict": 8, "n_max": 3}, inputs)
    run = run_decoder(toy, PROMPT, 8, n_max=3)
    assert out["ids"] == run.ids
    cells = run.decoder.state.heads[0].layer.arrays["cache_latent"][: out["n_mtp"]]
    assert np.array_equal(out["latent"], cells)
    assert cells.any()
