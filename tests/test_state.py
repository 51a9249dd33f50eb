"""Model state: what is kept, copied, cut, compared, and what is poisoned."""

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.spec import steps
from mtpref.spec.contract import MtpContract
from mtpref.spec.state import KV_DTYPES, KV_POISON, ModelState, StateSpec
from tests.models import cells_as_float, has_nan, micro, prompt_of, trunk_digest

IDS = prompt_of(12)


def small_state(kv_type="F16", n_ctx=100, poison=True):
    recurrent = StateSpec("cache_s", (2, 3), positional=False)
    cell = StateSpec("cache_k", (4,), positional=True, kv_type=kv_type)
    return ModelState([(recurrent,), (cell,)], [(cell,)], 5, n_ctx, poison=poison)


def test_a_new_state_is_empty_and_its_recurrent_arrays_are_zero():
    state = small_state()
    assert (state.n_past, state.heads[0].n_cells, state.heads[0].pos) == (0, 0, 0)
    assert not state.layers[0].arrays["cache_s"].any()
    assert not state.pending_h.any()
    assert {name for name, _ in state.live_arrays()} == {"cache_s_l0", "cache_k_l1", "cache_k_l2", "pending_h"}


@pytest.mark.parametrize("kv_type", sorted(KV_DTYPES))
def test_poison_is_nan_in_every_cache_type(kv_type):
    cells = np.full((2, 3), KV_POISON[kv_type], KV_DTYPES[kv_type])
    assert np.isnan(cells_as_float(cells, kv_type)).all()


@pytest.mark.parametrize("kv_type", sorted(KV_DTYPES))
def test_room_that_was_never_written_is_poisoned_and_grows_without_losing_cells(kv_type):
    state = small_state(kv_type, n_ctx=1000)
    state.reserve(3)
    cells = state.layers[1].arrays["cache_k"]
    assert (cells.view(np.uint8) == np.full_like(cells, KV_POISON[kv_type]).view(np.uint8)).all()
    cells[:3] = np.arange(12).reshape(3, 4)
    state.n_past = 3
    state.reserve(500)
    grown = state.layers[1].arrays["cache_k"]
    assert grown.shape[0] >= 503
    assert (grown[:3] == np.arange(12).reshape(3, 4)).all()
    assert (grown[3:].view(np.uint8) == np.full_like(grown[3:], KV_POISON[kv_type]).view(np.uint8)).all()


def test_the_context_is_never_exceeded():
    state = small_state(n_ctx=10)
    state.reserve(10)
    state.n_past = 10
    with pytest.raises(MtprefError, match="context: 11 positions needed, expected at most 10"):
        state.reserve(1)


def test_the_last_position_of_the_context_can_be_used_by_a_model():
    model = micro()
    state = model.new_state(len(IDS))
    model.trunk(state, IDS, n_logits=0)
    assert state.n_past == len(IDS)
    with pytest.raises(MtprefError, match="context"):
        model.trunk(state, IDS[:1], n_logits=0)


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
def test_restore_brings_back_every_bit_and_the_checkpoint_stays_usable(numerics):
    model = micro(60, numerics)
    state = model.new_state(poison=True)
    model.trunk(state, IDS[:5], n_logits=0, keep=3)
    model.mtp(state, IDS[:5], np.zeros((5, model.config.n_embd), np.float32), 0, n_logits=0)
    state.pending_h = np.arange(model.config.n_embd, dtype=np.float32)
    before, saved = state.digest(), state.checkpoint()
    for ids in (IDS[5:9], IDS[8:]):
        hidden = model.trunk(state, ids, n_logits=0).hidden.post
        model.mtp(state, ids, hidden, 5, n_logits=0)
        state.pending_h += 1
        assert state.digest() != before
        state.restore(saved)
        assert state.digest() == before
        assert not has_nan(state)


def test_a_checkpoint_is_a_copy():
    model = micro()
    state = model.new_state()
    model.trunk(state, IDS[:5], n_logits=0)
    saved = state.checkpoint()
    copies = [{name: array.copy() for name, array in layer.items()} for layer in saved.recurrent]
    model.trunk(state, IDS[5:], n_logits=0)
    state.layers[0].arrays["cache_s"][:] = 7
    for layer, kept in zip(saved.recurrent, copies, strict=True):
        for name, array in layer.items():
            assert (array == kept[name]).all()


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.parametrize("n_drop", range(1, 5))
def test_choosing_a_plane_equals_a_state_that_never_saw_the_dropped_tokens(numerics, n_drop):
    model = micro(60, numerics)
    state, expected = model.new_state(poison=True), model.new_state()
    model.trunk(state, IDS[:7], n_logits=0)
    model.trunk(state, IDS[7:12], n_logits=0, keep=5)
    state.choose_plane(n_drop)
    model.trunk(expected, IDS[: 12 - n_drop], n_logits=0)
    assert state.digest() == expected.digest()
    after = [model.trunk(s, [3, 4], n_logits=2).logits for s in (state, expected)]
    assert after[0].tobytes() == after[1].tobytes()


def test_planes_are_used_once_and_no_further_back_than_they_reach():
    model = micro()
    state = model.new_state()
    model.trunk(state, IDS[:5], n_logits=0, keep=3)
    with pytest.raises(MtprefError, match="roll back: 3 tokens, expected fewer than the 3 planes"):
        state.choose_plane(3)
    state.choose_plane(1)
    with pytest.raises(MtprefError, match="kept no planes"):
        state.choose_plane(1)
    state.choose_plane(0)
    assert state.n_past == 4


def test_a_refused_roll_back_changes_nothing():
    model = micro()
    state = model.new_state()
    model.trunk(state, IDS[:5], n_logits=0, keep=2)
    before = state.digest()
    with pytest.raises(MtprefError):
        state.choose_plane(2)
    assert state.digest() == before


def test_trimming_the_head_cuts_cells_at_and_behind_a_position_only():
    model = micro()
    state = model.new_state(poison=True)
    rows = np.ones((6, model.config.n_embd), np.float32)
    model.mtp(state, IDS[:6], rows, 1, n_logits=0)
    kept = [a.copy() for name, a in state.live_arrays() if name.endswith("_l4")]
    trunk = trunk_digest(state)
    state.trim_heads(99)
    assert (state.heads[0].start, state.heads[0].n_cells, state.heads[0].pos) == (1, 6, 7)
    state.trim_heads(4)
    assert (state.heads[0].start, state.heads[0].n_cells, state.heads[0].pos) == (1, 3, 4)
    for old, new in zip(kept, [a for name, a in state.live_arrays() if name.endswith("_l4")], strict=True):
        assert (old[:3] == new).all()
    assert np.isnan(state.heads[0].layer.arrays["cache_k"][3:].view(np.float16)).all()
    state.trim_heads(0)
    assert state.heads[0].n_cells == 0
    assert trunk_digest(state) == trunk


def test_the_head_refuses_a_hole_in_its_positions():
    model = micro()
    state = model.new_state()
    rows = np.zeros((2, model.config.n_embd), np.float32)
    model.mtp(state, IDS[:2], rows, 0, n_logits=0)
    with pytest.raises(ValueError, match="end at position 2, the batch starts at 3"):
        model.mtp(state, IDS[:2], rows, 3, n_logits=0)


@pytest.mark.parametrize("empty", ["clear", "trim", "restore"])
def test_an_emptied_head_remembers_no_start(empty):
    model = micro()
    state, fresh = model.new_state(poison=True), model.new_state()
    saved = state.checkpoint()
    model.mtp(state, IDS[:2], np.ones((2, model.config.n_embd), np.float32), 1, n_logits=0)
    {"clear": state.clear, "trim": lambda: state.trim_heads(1), "restore": lambda: state.restore(saved)}[empty]()
    assert state.digest() == fresh.digest()


def test_clear_empties_everything_but_the_pending_row():
    model = micro()
    state, fresh = model.new_state(poison=True), model.new_state()
    model.trunk(state, IDS, n_logits=0)
    model.mtp(state, IDS, np.ones((12, model.config.n_embd), np.float32), 0, n_logits=0)
    state.clear()
    assert state.digest() == fresh.digest()
    state.pending_h += 1
    state.clear()
    assert state.pending_h.all()


def test_the_digest_sees_every_live_bit_and_no_dead_one():
    model = micro()
    state = model.new_state()
    model.trunk(state, IDS, n_logits=0)
    model.mtp(state, IDS, np.ones((12, model.config.n_embd), np.float32), 0, n_logits=0)
    before = state.digest()
    for _, array in state.live_arrays():
        view = array.reshape(-1).view(np.uint8)
        assert np.shares_memory(view, array)
        view[-1] ^= 1
        assert state.digest() != before
        view[-1] ^= 1
    assert state.digest() == before
    for layer in (*state.layers, state.heads[0].layer):
        for spec in layer.specs:
            if spec.positional:
                layer.arrays[spec.name][12:] = 1
    assert state.digest() == before
    state.heads[0].start += 1
    assert state.digest() != before


def test_poison_does_not_leak_from_cut_cells():
    model = micro()
    state, clean = model.new_state(poison=True), model.new_state()
    model.trunk(state, IDS, n_logits=0, keep=8)
    state.choose_plane(7)
    assert np.isnan(state.layers[3].arrays["cache_k"][5:].view(np.float16)).all()
    model.trunk(clean, IDS[:5], n_logits=0)
    logits = [model.trunk(s, IDS[:3], n_logits=3).logits for s in (state, clean)]
    assert not np.isnan(logits[0]).any()
    assert logits[0].tobytes() == logits[1].tobytes()


def test_a_replayed_batch_starts_from_the_rounds_row_or_from_the_last_rejected_one():
    """S32: stale is what stock llama.cpp does, whose replay starts from the last row of the rejected batch."""
    pending, rejected = np.full(4, 7, np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)
    assert steps.pending_at_replay(pending, rejected, MtpContract(replay="right")) is pending
    stale = steps.pending_at_replay(pending, rejected, MtpContract(replay="stale"))
    assert np.array_equal(stale, [8, 9, 10, 11])
    rejected[:] = 0
    assert stale.any()
