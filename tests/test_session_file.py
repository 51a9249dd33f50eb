"""State files: what comes back, to whom it is refused, and what a damaged file does."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Token
from mtpref.engine.decode import Options
from mtpref.engine.session import Session
from mtpref.engine.session.identity import BLOCK_BYTES, N_BLOCKS, WHOLE_BYTES, _blocks, head_id, trunk_id
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front import api
from tests.models import CONTRACTS, has_nan, micro, without_head
from tests.samples import one_in
from tests.test_session import FIRST, OTHER, check_same, new_session, options_of, run_fresh, run_in

ROOT = Path(__file__).parent.parent


def loaded(core, path, **named):
    return Session.load(core, path, poison=True, **named)


def same_checkpoints(a, b):
    for one, other in zip([a.mark, *a.checkpoints], [b.mark, *b.checkpoints], strict=True):
        assert (one.n_past, one.heads) == (other.n_past, other.heads)
        assert one.pending_h.tobytes() == other.pending_h.tobytes()
        for mine, theirs in zip(one.recurrent, other.recurrent, strict=True):
            assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("numerics", ["ggml", "exact"])
@pytest.mark.covering
def test_a_saved_session_comes_back_bit_for_bit_and_goes_on_as_a_fresh_run(tmp_path, numerics, contract):
    model, path = micro(60, numerics, contract), tmp_path / "state.gguf"
    session = new_session(model, checkpoint_every=5)
    first = run_in(session, FIRST, options_of())
    session.save(path)
    back = loaded(model, path)
    assert back.state.digest() == session.state.digest()
    assert back.ids == session.ids
    assert not has_nan(back.state)
    same_checkpoints(session, back)
    check_same(back, [*FIRST, *first.ids, *OTHER], options_of(), 23)
    # Another way out of the same file: back to the checkpoint at the end of the prompt.
    if contract != "new_prompt=stale":
        check_same(loaded(model, path), [*FIRST, 5, *OTHER], options_of(), 13 if first.ids[0] != 5 else None)


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
def test_every_type_of_kv_is_kept(tmp_path, kv_type):
    model = replace(micro(60), kv_type=kv_type, kv_type_draft="F32" if kv_type == "F16" else "F16")
    session = new_session(model)
    first = check_same(session, FIRST, options_of())
    session.save(tmp_path / "state.gguf")
    check_same(loaded(model, tmp_path / "state.gguf"), [*FIRST, *first.ids, 3], options_of(), 23)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths[:2]:
        session = new_session(micro(60))
        run_in(session, FIRST, options_of())
        session.save(path)
    loaded(micro(60), paths[1]).save(paths[2])
    assert len({path.read_bytes() for path in paths}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("start", one_in(3, range(3)))
@pytest.mark.parametrize("rollback", ["snapshot", "replay", "two-phase"])
def test_saving_in_the_middle_of_a_run_saves_a_consistent_state_and_disturbs_nothing(tmp_path, rollback, start):
    model, path = micro(60), tmp_path / "state.gguf"
    fresh, end = run_fresh(model, FIRST, options_of(12, rollback))
    for n_seen in range(start, len(fresh.events) + 1, 3):
        session = new_session(model)
        events = session.run(FIRST, options_of(12, rollback, n_batch=4))
        for _ in range(n_seen):
            next(events, None)
        session.save(path)
        back = loaded(model, path)
        assert back.ids == session.ids == [*FIRST, *fresh.ids][: len(session.ids)]
        if len(back.ids) > len(FIRST):
            rest = options_of(len(FIRST) + 12 - len(back.ids) - 1, rollback)
            check_same(back, [*FIRST, *fresh.ids][: len(back.ids) + 1], rest, len(session.ids))
            # (the first token of `rest` is the one after the opening token)
        ids = [e.id for e in events if isinstance(e, Token)]
        assert ids == fresh.ids[12 - len(ids) :]
        assert session.state.digest() == end.digest()


def test_an_empty_session_can_be_saved(tmp_path):
    new_session(micro(60)).save(tmp_path / "state.gguf")
    back = loaded(micro(60), tmp_path / "state.gguf")
    assert back.ids == []
    check_same(back, FIRST, options_of(), 0)


def test_another_process_writes_the_same_file_and_can_go_on(tmp_path):
    code = (
        "import sys, mtpref\n"
        "from mtpref import Options\n"
        "model = mtpref.load()\n"
        "session = model.new_session(64)\n"
        "run = model.generate('def f(x):', Options(n_predict=6), session=session).finish()\n"
        "session.save(sys.argv[1])\n"
        "print(run.ids)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "theirs")], capture_output=True, text=True, env=env, check=True
    )
    model = api.load()
    ours = model.new_session(64)
    run = model.generate("def f(x):", Options(n_predict=6), session=ours).finish()
    assert done.stdout.strip() == str(run.ids)
    ours.save(tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    theirs = model.load_session(tmp_path / "theirs", 64)
    prompt = [*run.prompt_ids, *run.ids, 65]
    again = model.generate(prompt, Options(n_predict=6), session=theirs).finish()
    fresh = model.generate(prompt, Options(n_predict=6)).finish()
    assert again.ids == fresh.ids
    assert again.statistics.n_reused == len(prompt) - 2


def test_more_checkpoints_than_wanted_are_thinned_out(tmp_path):
    session = new_session(micro(60), checkpoint_every=1, n_checkpoints=9)
    run_in(session, FIRST, options_of())
    session.save(tmp_path / "state.gguf")
    assert len(loaded(micro(60), tmp_path / "state.gguf", n_checkpoints=2).checkpoints) == 2


# ------------------------------------------------------------------------------------- whose it is


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state.gguf"
    session = new_session(micro(60))
    run_in(session, FIRST, options_of())
    session.save(path)
    return path


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (lambda: micro(90), "session.model is .* another model, quantisation"),
        (lambda: micro(60, "exact"), "session.numerics is ggml, expected exact"),
        (lambda: micro(60, "ggml", "training"), "session.contract is llama.cpp, expected training"),
        (lambda: replace(micro(60), kv_type="F32"), "session.kv_type is F16, expected F32"),
        (lambda: replace(micro(60), kv_type_draft="BF16"), "session.kv_type_draft is F16, expected BF16"),
        (lambda: replace(micro(60), config=replace(micro(60).config, rms_eps=1e-5)), "session.model is "),
    ],
)
def test_a_state_of_something_else_is_refused_in_one_line(saved, other, expected):
    with pytest.raises(MtprefError, match=expected) as error:
        loaded(other(), saved)
    assert "\n" not in str(error.value)


def test_a_head_with_other_weights_is_refused(saved):
    model = micro(60)
    other = model.with_head(hnorm=model.heads[0].weights.hnorm + np.float32(0.5))
    assert trunk_id(other) == trunk_id(model)
    with pytest.raises(MtprefError, match="MTP head"):
        loaded(other, saved)


def test_a_model_without_head_takes_the_trunk_and_a_model_with_head_trusts_no_empty_head(saved, tmp_path):
    bare = loaded(without_head(micro(60)), saved)
    assert bare.state.heads == []
    check_same(bare, [*bare.ids, 1, 2], options_of(spec_type="none"), 23)
    bare.save(tmp_path / "bare.gguf")
    back = loaded(micro(60), tmp_path / "bare.gguf")
    check_same(back, [*back.ids, 1, 2], options_of(spec_type="none"), len(bare.ids))
    check_same(back, [*back.ids, 1, 2], options_of(), 0)


def test_the_identity_sees_every_tensor():
    model = micro(60)
    trunk, head = trunk_id(model), head_id(model)
    assert len(trunk) == len(head) == 64
    assert head_id(without_head(model)) == ""
    seen = set()
    for il, block in enumerate(model.weights.layers):
        for name, value in block.items():
            raw = value.raw if hasattr(value, "raw") else value
            changed = raw.copy()
            changed.reshape(-1).view(np.uint8)[-1] ^= 1
            other = replace(value, raw=changed) if hasattr(value, "raw") else changed
            layers = [*model.weights.layers[:il], {**block, name: other}, *model.weights.layers[il + 1 :]]
            seen.add(trunk_id(replace(model, weights=replace(model.weights, layers=tuple(layers)))))
    assert trunk not in seen
    assert len(seen) == sum(len(block) for block in model.weights.layers)


def test_large_tensors_are_sampled_at_both_ends_and_between():
    array = np.arange(WHOLE_BYTES // 4 + 1000, dtype=np.uint32)
    blocks = list(_blocks(array))
    assert [len(b) for b in blocks] == [BLOCK_BYTES] * N_BLOCKS
    assert blocks[0] == array.tobytes()[:BLOCK_BYTES]
    assert blocks[-1] == array.tobytes()[-BLOCK_BYTES:]
    small = array[: WHOLE_BYTES // 4]
    assert list(_blocks(small)) == [small.tobytes()]


def test_the_file_names_nothing_of_this_machine(saved):
    raw = saved.read_bytes()
    for word in (os.uname().nodename, os.getcwd(), str(saved.parent), sys.version.split()[0], np.__version__):
        assert len(word) < 4 or word.encode() not in raw
    with open_gguf(saved) as file:
        assert all(key.startswith(("mtpref.session.", "general.architecture")) for key in file.kv)


def test_the_page_names_every_key_and_tensor_of_the_file(saved):
    page = (ROOT / "docs" / "sessions.md").read_text(encoding="utf-8")
    with open_gguf(saved) as file:
        names = [key.rpartition(".")[2] for key in file.kv]
        names += [re.sub(r"-\d+$", "-N", re.sub(r"^checkpoint-\d+", "checkpoint-I", name)) for name in file.tensors]
    assert [name for name in names if f"`{name}`" not in page and f".{name}`" not in page] == []


# ------------------------------------------------------------------------------------------ damage


def rewritten(path, target, *, kv=None, tensors=None, drop=(), add=()):
    """The state file with some keys and tensors replaced."""
    with open_gguf(path) as file:
        pairs = []
        for key in file.kv:
            if key not in drop:
                value = (kv or {}).get(key, file.kv[key])
                pairs.append((key, value, file.kv.kind(key)))
        items = [
            (tensors or {}).get(i.name, (i.name, i.type_name, i.shape, file.data(i)))
            for i in file.tensors.values()
            if i.name not in drop
        ]
        write_gguf(target, pairs, [*items, *add])
    return target


def changed_key(key, value):
    return lambda path, target: rewritten(path, target, kv={f"mtpref.session.{key}": value})


def with_nan(name, at=-1):
    def change(path, target):
        with open_gguf(path) as file:
            info = file.tensors[name]
            raw = file.data(info).copy()
        raw[at] |= 0x7F
        raw[at - 1] |= 0xFF
        return rewritten(path, target, tensors={name: (name, info.type_name, info.shape, raw)})

    return change


DAMAGE = [
    (changed_key("ids", [1, 2, 3]), "positions with"),
    (changed_key("ids", [256] * 23), "ids from 256 to 256"),
    (changed_key("ids", [-1] * 23), "ids from -1 to -1"),
    (changed_key("ids", np.zeros(5000, np.int32)), "5000 tokens, expected at most"),
    (changed_key("n_mtp", 24), "24 MTP cells"),
    (changed_key("n_mtp", 22), "cells from 0, expected a prefix|shape"),
    (changed_key("mtp_start", 4_000_000_000), "MTP cells from 4000000000"),
    (changed_key("checkpoint_n_past", [13, 14]), "different numbers"),
    (changed_key("checkpoint_n_past", [0]), "0 positions"),
    (changed_key("checkpoint_n_past", [24]), "24 positions"),
    (changed_key("checkpoint_n_past", np.zeros(2000, np.uint32)), "2000 entries"),
    (changed_key("checkpoint_n_mtp", [99]), "99 MTP cells"),
    (changed_key("checkpoint_mtp_start", [1]), "MTP cells from 1"),
    (changed_key("schema", "mtpref-session-9"), "schema is mtpref-session-9"),
    (changed_key("model", "x" * 5000), "session.model is x"),
    (lambda p, t: rewritten(p, t, drop=["mtpref.session.numerics"]), "numerics is missing"),
    (lambda p, t: rewritten(p, t, kv={"general.architecture": "qwen35"}), "not a state file"),
    (lambda p, t: rewritten(p, t, drop=["cache_s-1"]), "tensor cache_s-1 is missing"),
    (lambda p, t: rewritten(p, t, drop=["checkpoint-0.pending_h"]), "checkpoint-0.pending_h is missing"),
    (lambda p, t: rewritten(p, t, add=[("extra", "F32", (1,), np.zeros(1, np.float32))]), "extra belongs to nothing"),
    (
        lambda p, t: rewritten(p, t, tensors={"pending_h": ("pending_h", "F32", (3,), np.zeros(3, np.float32))}),
        "pending_h is F32 of shape",
    ),
    (
        lambda p, t: rewritten(p, t, tensors={"pending_h": ("pending_h", "F16", (128,), np.zeros(128, np.float16))}),
        "pending_h is F16 of shape",
    ),
    (with_nan("pending_h"), "pending_h holds 1 NaN"),
    (with_nan("cache_s-0"), "cache_s-0 holds 1 NaN"),
    (with_nan("cache_k-3"), "cache_k-3 holds 1 NaN"),
    (with_nan("mtp_cache_v-4"), "mtp_cache_v-4 holds 1 NaN"),
    (with_nan("checkpoint-0.cache_r-2"), "checkpoint-0.cache_r-2 holds 1 NaN"),
]


@pytest.mark.parametrize("index", range(len(DAMAGE)))
def test_a_damaged_file_is_one_line(saved, tmp_path, index):
    damage, expected = DAMAGE[index]
    path = damage(saved, tmp_path / "bad.gguf")
    with pytest.raises(MtprefError, match=expected) as error:
        loaded(micro(60), path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_nan_is_found_in_bf16_cells(tmp_path):
    model = replace(micro(60), kv_type="BF16")
    session = new_session(model)
    run_in(session, FIRST, options_of())
    session.save(tmp_path / "good.gguf")
    bad = with_nan("cache_k-3")(tmp_path / "good.gguf", tmp_path / "bad.gguf")
    with pytest.raises(MtprefError, match="cache_k-3 holds 1 NaN"):
        loaded(model, bad)


def test_a_file_cut_anywhere_or_with_any_byte_changed_is_refused_or_read_whole(saved, tmp_path):
    raw, path = saved.read_bytes(), tmp_path / "cut.gguf"
    rng = np.random.default_rng(7)
    for size in [0, 1, 3, 4, 8, 23, 24, *rng.integers(25, len(raw), 40)]:
        path.write_bytes(raw[:size])
        with pytest.raises(MtprefError) as error:
            loaded(micro(60), path)
        assert "\n" not in str(error.value)
    messages = []
    for at in [*range(0, 24), *rng.integers(24, 4096, 200)]:
        changed = bytearray(raw)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            session = loaded(micro(60), path)
        except MtprefError as error:
            messages.append(str(error))
        else:
            assert len(session.ids) == session.state.n_past
    assert messages
    assert not any("\n" in message for message in messages)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(MtprefError, match="cannot be written"):
        new_session(micro(60)).save(tmp_path / "none" / "state.gguf")
    with pytest.raises(MtprefError, match="cannot be read"):
        loaded(micro(60), tmp_path / "none.gguf")


def test_a_context_that_is_too_small_is_refused(saved):
    with pytest.raises(MtprefError, match="23 tokens, expected at most 22"):
        Session.load(micro(60), saved, 22)
    assert Session.load(micro(60), saved, 23).ids


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "state.gguf"
    session = new_session(micro(60))
    session.save(path)
    before = path.read_bytes()
    run_in(session, FIRST, options_of())

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_belongs_to_the_model_whether_its_weights_are_laid_out_anew_or_not():
    packed, in_place = (api.load(repack=repack).core for repack in (True, False))
    assert trunk_id(packed) == trunk_id(in_place)
    assert head_id(packed) == head_id(in_place)
