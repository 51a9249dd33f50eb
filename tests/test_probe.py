"""The probe: its chains are the loop's drafts, its counts are what they say, its controls are what they claim."""

import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Verified
from mtpref.engine.model import load
from mtpref.measure.probe import Settings, Text, Variant, Window, probe, read_texts, walk, windows_of
from mtpref.measure.probe import head as head_room
from mtpref.measure.probe.controls import (
    MAIN,
    Control,
    compare_controls,
    contracts,
    controls,
    head_without,
    verdict,
    with_contract,
)
from mtpref.measure.probe.count import Estimate, Judged, difference, jackknife, judge
from mtpref.measure.probe.render import lines
from mtpref.measure.probe.tables import by_context, by_label, calibration, language, ranks
from mtpref.measure.probe.walk import HeadSeen, Seen, TrunkSeen
from mtpref.spec.contract import parse_contract
from tests import naive_loop, naive_model
from tests.models import CONTRACTS, MICRO, micro, prompt_of, run_decoder, without_head

ROOT = Path(__file__).parent.parent
PROMPT = prompt_of(9)
TEXT = prompt_of(40, seed=3)


@lru_cache(maxsize=8)
def naive_micro(accept):
    return naive_model.load_gguf(str(MICRO / f"micro-{accept}-q8_0.gguf"))


def window_of(ids, positions=None, label="text"):
    return Window(0, label, 0, tuple(ids), tuple(range(1, len(ids)) if positions is None else positions))


def whole(model, ids, n_draft, **settings):
    """One window, drafts to the end from every position, candidates kept."""
    settings = {"whole_chains": True, "keep_candidates": True, "poison": True} | settings
    return walk(model, window_of(ids), [Variant(MAIN, model, n_draft)], **settings)


# ------------------------------------------------------------------------------------------------ the loop


def assert_same_drafts(run, seen, rounds):
    """At every position where a round started, the probe's candidates and probabilities are the loop's, to the bit."""
    ids, p = seen.heads[MAIN].candidates
    rounds = [event for event in rounds if event.pos0 >= 1]
    assert sum(len(event.steps) for event in rounds) > 0
    for event in rounds:
        for k, step in enumerate(event.steps):
            assert ids[event.pos0 - 1, k].tolist() == step.candidates
            assert p[event.pos0 - 1, k].tolist() == step.p
            assert seen.heads[MAIN].draft[event.pos0 - 1, k] == step.candidates[0]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_chains_are_the_loops_drafts_to_the_bit(contract):
    model = micro(60, "ggml", contract)
    run = run_decoder(model, PROMPT, 30, n_max=4)
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    if model.recipe.contract.prime == "none":
        rounds = rounds[
            :1
        ]  # later ones see the cells of what was generated; the probe shows the first draft of a prompt
    for n_batch in (512, 7):
        assert_same_drafts(run, whole(model, PROMPT + run.ids, 4, n_batch=n_batch), rounds)


@pytest.mark.parametrize("accept", [30, 90])
@pytest.mark.parametrize("numerics", ["ggml", "exact"])
def test_on_the_models_own_text_the_probe_accepts_what_the_loop_accepts(accept, numerics):
    model = micro(accept, numerics)
    run = run_decoder(model, PROMPT, 40, n_max=3)
    seen = whole(model, PROMPT + run.ids, 3)
    assert_same_drafts(run, seen, [event for event in run.events if isinstance(event, Drafted)])
    judged = judge([seen], MAIN, "trunk", 8)
    for event in run.events:
        if isinstance(event, Verified):
            n = len(event.draft_ids)
            right = (judged.reached & judged.right)[event.pos0 - 1, :n].tolist()
            assert right == [True] * event.n_accepted + [False] * (n - event.n_accepted)
            assert seen.trunk.target[event.pos0] == event.target_ids[0]
            assert seen.trunk.margin[event.pos0] == event.margins[0]


def test_a_trimmed_heads_drafts_are_the_loops():
    ids = tuple(range(0, 256, 3))
    model = micro(60).with_draft_ids(ids)
    run = run_decoder(micro(60), PROMPT, 24, n_max=3, draft_ids=ids)
    seen = whole(model, PROMPT + run.ids, 3)
    found, p = seen.heads[MAIN].candidates
    for event in run.events:
        if isinstance(event, Drafted):
            for k, step in enumerate(event.steps):
                assert found[event.pos0 - 1, k].tolist() == step.candidates
                assert p[event.pos0 - 1, k].tolist() == step.p
    unnamed = ~np.isin(seen.trunk.target[1:], ids)
    assert unnamed.any()
    assert ((seen.heads[MAIN].rank == 0) == unnamed).all()
    assert np.isneginf(seen.heads[MAIN].lp_target[unnamed]).all()


# ---------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("contract", ["llama.cpp", "training"])
@pytest.mark.parametrize("accept", [30, 90])
def test_every_position_is_what_a_naive_model_drafts_from_scratch(accept, contract):
    model, (hparams, weights) = micro(accept, "exact", contract), naive_micro(accept)
    ids = TEXT[:14]
    seen = whole(model, ids, 3, n_batch=5)
    found, p = seen.heads[MAIN].candidates
    trunk = naive_model.trunk(weights, hparams, ids).logits
    assert seen.trunk.target[1:].tolist() == trunk.argmax(axis=1)[1:].tolist()  # row 0 judges no draft
    log_p = trunk - np.log(np.exp(trunk - trunk.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    log_p -= trunk.max(axis=1, keepdims=True)
    for pos in range(1, len(ids)):
        drafted, candidates = naive_loop.draft(weights, hparams, ids[: pos + 1], 3, contract=contract)
        assert seen.heads[MAIN].draft[pos - 1].tolist() == drafted
        for k, candidate in enumerate(candidates):
            np.testing.assert_allclose(p[pos - 1, k], candidate.p, atol=1e-5)
            assert found[pos - 1, k, 0] == candidate.ids[0]
        if pos + 1 < len(ids):
            assert seen.trunk.lp_text[pos] == pytest.approx(log_p[pos, ids[pos + 1]], abs=1e-4)


def test_rank_and_probabilities_of_step_1_are_those_of_the_heads_logits():
    model, (hparams, weights) = micro(30, "exact"), naive_micro(30)
    ids = TEXT[:12]
    seen = whole(model, ids, 1)
    out = naive_model.trunk(weights, hparams, ids)
    hidden = np.concatenate([np.zeros((1, out.h_post.shape[1])), out.h_post[:-1]])
    logits = naive_model.mtp(weights, hparams, ids, hidden, list(range(len(ids)))).logits[1:]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    target, head, rows = seen.trunk.target[1:], seen.heads[MAIN], np.arange(len(logits))
    assert head.rank.tolist() == [1 + int((row > row[t]).sum()) for row, t in zip(logits, target, strict=True)]
    assert head.rank.max() > 1
    np.testing.assert_allclose(head.p_full, p.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(np.exp(head.lp_target), p[rows, target], rtol=1e-3)
    np.testing.assert_allclose(np.exp(head.lp_text[:-1]), p[rows[:-1], ids[2:]], rtol=1e-3)
    assert np.isneginf(head.lp_text[-1])


# -------------------------------------------------------------------------------------------- independence


def test_nothing_depends_on_chunks_strides_or_the_length_of_drafts(monkeypatch):
    model = micro(60)
    full = whole(model, TEXT, 4).heads[MAIN]
    monkeypatch.setattr(head_room, "LOGIT_BYTES", 3 * 4 * 256)  # three rows at a time
    for n_batch in (1, 2, 9):
        other = whole(model, TEXT, 4, n_batch=n_batch)
        for name in ("draft", "p", "p_full", "rank", "lp_target", "lp_text"):
            np.testing.assert_array_equal(getattr(other.heads[MAIN], name), getattr(full, name))
    sampled = walk(model, window_of(TEXT, range(1, 40, 5)), [Variant(MAIN, model, 2)], whole_chains=True, n_batch=8)
    np.testing.assert_array_equal(sampled.heads[MAIN].draft, full.draft[::5, :2])
    np.testing.assert_array_equal(sampled.heads[MAIN].p, full.p[::5, :2])


def test_a_chain_that_ends_where_the_text_turns_away_loses_no_count():
    model = micro(90)
    run = run_decoder(model, PROMPT, 40)
    ids = [*PROMPT, *run.ids[:20], 7, *run.ids[20:]]
    full = whole(model, ids, 4)
    short = walk(model, window_of(ids), [Variant(MAIN, model, 4)], poison=True)
    assert (short.heads[MAIN].draft[:, 1:] == -1).any()
    assert (short.heads[MAIN].draft[:, 3] != -1).any()
    for against in ("trunk", "text"):
        a, b = judge([full], MAIN, against, 8), judge([short], MAIN, against, 8)
        assert a.reached.tolist() == b.reached.tolist()
        assert a.right.tolist() == b.right.tolist()


# ------------------------------------------------------------------------------------------------ counting


def seen_of(ids, positions, target, draft):
    n = len(positions)
    draft = np.array(draft)
    trunk = TrunkSeen(np.array(target), np.ones(len(ids)), np.zeros(len(ids)))
    head = HeadSeen(draft, draft * 0.0, np.zeros(n), np.ones(n, int), np.zeros(n), np.zeros(n))
    return Seen(window_of(ids, positions), trunk, {MAIN: head})


def test_a_step_is_judged_only_where_the_text_went_the_drafts_way():
    ids, target = [5, 1, 2, 3, 4, 9], [0, 2, 3, 8, 9, 6]
    draft = [
        [2, 3, 8],  # all three are the trunk's; the text follows for two of them
        [3, 7, 7],  # second step wrong
        [8, 4, 4],  # right, but the text went to 4: step 2 says nothing
        [9, 6, 6],  # step 2 is the trunk's guess after the text's last token
        [6, 6, 6],  # a guess after the end: the trunk can judge it, the text cannot
    ]
    seen = seen_of(ids, range(1, 6), target, draft)
    trunk, text = (judge([seen], MAIN, against, 2) for against in ("trunk", "text"))
    assert trunk.reached.astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert trunk.right.astype(int).tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert text.reached.astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert text.right.astype(int).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert trunk.n_reached == [5, 3, 1]
    assert [e.value for e in trunk.conditional()] == [1.0, pytest.approx(2 / 3), 1.0]
    assert [e.value for e in trunk.unconditional()] == [1.0, pytest.approx(2 / 3), pytest.approx(2 / 3)]
    assert trunk.mean_length().value == pytest.approx(1 + 1 + 4 / 3)
    assert trunk.blocks.tolist() == [0, 1, 1, 2, 2]


def test_where_nothing_is_right_later_steps_are_0_and_where_nothing_is_reached_they_are_unknown():
    blocks = np.arange(3)
    dead = Judged(np.array([[1, 0]] * 3, bool), np.zeros((3, 2), bool), blocks)
    assert [e.value for e in dead.unconditional()] == [0.0, 0.0]
    assert [e.value for e in dead.conditional()] == [0.0, None]
    turned = Judged(np.array([[1, 0]] * 3, bool), np.array([[1, 0]] * 3, bool), blocks)
    assert [e.value for e in turned.unconditional()] == [1.0, None]
    assert turned.mean_length().value is None


def test_the_jackknife_leaves_one_block_out_at_a_time():
    rng = np.random.default_rng(5)
    right, blocks = rng.random((60, 1)) < 0.6, np.repeat(np.arange(12), 5)
    judged = Judged(np.ones((60, 1), bool), right, blocks)
    estimate = judged.unconditional()[0]
    without = [right[blocks != b].mean() for b in range(12)]
    spread = (11 / 12 * sum((x - np.mean(without)) ** 2 for x in without)) ** 0.5
    assert estimate.value == pytest.approx(right.mean())
    assert estimate.low == pytest.approx(right.mean() - 1.959964 * spread)
    assert estimate.high == pytest.approx(min(1.0, right.mean() + 1.959964 * spread))
    few = judged.where(blocks < 9).unconditional()[0]
    assert few.value is not None
    assert few.low is None


def test_differences_are_paired_by_block():
    rng = np.random.default_rng(6)
    luck = np.repeat(rng.random(20) < 0.5, 10)[:, None]  # blocks that are easy or hard for both
    worse = luck & (np.arange(200) % 10 != 0)[:, None]
    blocks, all_reached = np.repeat(np.arange(20), 10), np.ones((200, 1), bool)
    a, b = Judged(all_reached, luck, blocks), Judged(all_reached, worse, blocks)
    less = difference(a, b)
    assert less.value == pytest.approx(luck.mean() - worse.mean())
    assert less.low > 0
    own = a.unconditional()[0]
    assert own.high - own.low > 4 * (less.high - less.low)


def test_an_interval_is_of_a_statistic_of_sums():
    sums = np.arange(1.0, 13.0)[:, None]
    estimate = jackknife(sums, lambda s: s)[0]
    assert estimate.value == 78
    assert estimate.high - 78 == pytest.approx(78 - estimate.low)


def test_calibration_is_the_mean_gap_weighted_by_count():
    p = np.array([0.05, 0.05, 0.95, 0.95, 1.0, np.nan])
    right = np.array([1, 0, 1, 1, 0, 1], bool)
    found = calibration("x", p, np.ones(6, bool), right)
    assert [b.n for b in found.bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found.bins[0].right == 0.5
    assert found.ece == pytest.approx((2 * 0.45 + 3 * abs(2.9 / 3 - 2 / 3)) / 5)


def test_ranks_count_what_a_trimmed_head_cannot_name():
    found = ranks(np.array([1, 1, 0, 4, 2000]), np.array([-1.0, -1.0, -np.inf, -3.0, -9.0]))
    assert (found.n, found.n_unnamed, found.median) == (5, 1, 2.5)
    assert [n for _, _, n in found.bins] == [2, 0, 1, 0, 0, 0, 1]
    assert found.mean_p == pytest.approx((2 * np.exp(-1) + np.exp(-3) + np.exp(-9)) / 5)
    assert found.geometric_mean_p is None


def test_domains_and_contexts_part_the_positions():
    model = micro(60)
    texts = [Text("a", tuple(TEXT)), Text("b", tuple(prompt_of(50, seed=8))), Text("a", tuple(prompt_of(20, seed=9)))]
    windows = windows_of(texts, 64)
    seen = [walk(model, w, [Variant(MAIN, model, 2)]) for w in windows]
    judged = judge(seen, MAIN, "trunk", 16)
    domains, contexts = by_label(seen, judged), by_context(seen, judged)
    assert [(g.name, g.n) for g in domains] == [("a", 39 + 19), ("b", 49)]
    assert [(g.name, g.n) for g in contexts] == [("1-31", 31 + 31 + 19), ("32-127", 8 + 18)]
    rates = [g.n * g.unconditional[0].value for g in domains]
    assert sum(rates) == pytest.approx(judged.n_right[0])
    own = language(seen, MAIN)
    assert own.n == 39 + 49 + 19 - 3
    assert own.head_nats > 0


# ------------------------------------------------------------------------------------------------ controls


def test_a_planted_head_is_above_every_control_that_breaks_it():
    model = micro(90)
    run = run_decoder(model, PROMPT, 240, n_max=3, n_ctx=512)
    report = probe(model, [Text("own", tuple(PROMPT + run.ids))], Settings(block=16))
    rates = {control.name: control.rate.value for control in report.controls}
    assert set(rates) == {
        "hidden=pre", "concat=he", "prime=none", "no-attention", "other-hidden",
        "shifted-target", "shuffled-drafts", "constant", "random",
    }  # fmt: skip
    a1 = report.trunk.unconditional[0].value
    assert a1 > 0.8
    for name in ("concat=he", "shifted-target", "shuffled-drafts", "constant", "random"):
        assert rates[name] < a1 - 0.3, name
    assert report.verdict.startswith("verdict: ")


def test_unprimed_is_the_first_draft_behind_a_prompt():
    model = micro(60)
    unprimed = next(v for v in controls(model) if v.name == "prime=none")
    seen = walk(model, window_of(TEXT), [unprimed, Variant(MAIN, model, 1)])
    for n_prompt in (2, 9, 25):
        run = run_decoder(micro(60, "ggml", "prime=none"), TEXT[:n_prompt], 3, n_max=1)
        first = next(event for event in run.events if isinstance(event, Drafted))
        assert seen.heads["prime=none"].draft[n_prompt - 2, 0] == first.steps[0].candidates[0]
        assert seen.heads["prime=none"].p[n_prompt - 2, 0] == first.steps[0].p[0]
    assert (seen.heads["prime=none"].p != seen.heads[MAIN].p).any()


def test_without_attention_a_draft_knows_only_its_own_pair():
    model = micro(60)
    variants = [v for v in controls(model) if v.name == "no-attention"]
    a = walk(model, window_of(TEXT), variants)
    # The same pairs with other cells before them: without the one at position 0.
    later = with_contract(model, replace(model.recipe.contract, first="none"))
    blind = [replace(v, model=head_without(later, "mixer")) for v in variants]
    b = walk(model, window_of(TEXT), blind)
    np.testing.assert_array_equal(a.heads["no-attention"].p, b.heads["no-attention"].p)
    seeing = [walk(model, window_of(TEXT), [Variant(MAIN, m, 1)]).heads[MAIN].p for m in (model, later)]
    assert (seeing[0] != seeing[1]).any()


def test_a_delayed_hidden_row_is_that_of_an_earlier_position_whatever_the_chunks():
    model = micro(60)
    late = [Variant("late", model, 1, "", 3)]
    a, b = (walk(model, window_of(TEXT), late, n_batch=n).heads["late"] for n in (512, 2))
    np.testing.assert_array_equal(a.p, b.p)
    straight = walk(model, window_of(TEXT), [Variant("late", model, 1)]).heads["late"]
    assert (a.p != straight.p).mean() > 0.9


def test_guesses_are_counted_at_the_same_positions():
    ids, target = [0, 1, 2, 3, 4], [9, 7, 7, 8, 7]
    seen = seen_of(ids, range(1, 5), target, [[7], [8], [8], [7]])
    found = {c.name: c.rate.value for c in compare_controls([seen], [], 2)}
    assert found["shifted-target"] == 0.5  # drafts 7 8 8 against 7 8 7, and the last has none after it
    assert found["constant"] == 0.75
    assert found["shuffled-drafts"] == 0.25
    assert found["random"] <= 1


def test_a_head_that_is_no_better_than_a_control_is_told_so():
    model = micro(90)
    run = run_decoder(model, PROMPT, 240, n_max=3, n_ctx=512)
    swapped = with_contract(model, parse_contract("concat=he"))
    report = probe(swapped, [Text("own", tuple(PROMPT + run.ids))], Settings(block=16))
    assert "NOT better than" in report.verdict
    assert "concat=eh" in report.verdict
    assert "--contracts" in report.verdict
    assert "too little text" in probe(model, [Text("x", tuple(TEXT))], Settings()).verdict
    assert verdict(report.controls) == report.verdict


def control(name, rate, low, high):
    """A control that the head is above by low .. high."""
    return Control(name, "", Estimate(rate), Estimate((low + high) / 2, low, high))


BEATEN = control("constant", 0.1, 0.5, 0.7)


@pytest.mark.parametrize(
    ("found", "says", "says_not"),
    [
        (control("hidden=pre", 0.785, -0.011, 0.001), "near miss by nature", "NOT"),
        (control("hidden=pre", 0.81, -0.015, -0.005), "near miss by nature", "NOT"),  # surely above it, and by little
        (control("hidden=post", 0.9, -0.2, -0.1), "NOT better than hidden=post (0.900); is the contract", "near miss"),
        (control("prime=none", 0.7, -0.01, 0.02), "its attention adds nothing sure on this text", "NOT"),
        (control("no-attention", 0.9, -0.2, -0.1), "NOT better than no-attention (0.900)", "nothing sure"),
        (control("concat=eh", 0.7, -0.01, 0.02), "NOT better than concat=eh", "near miss"),
        (control("other-hidden", 0.7, -0.01, 0.02), "NOT better than other-hidden", "contract"),
        (control("constant", 0.97, -0.01, 0.02), "take another text", "contract"),
    ],
)
def test_a_verdict_accuses_no_head_of_a_near_miss(found, says, says_not):
    text = verdict([found, BEATEN])
    assert says in text
    assert says_not not in text
    assert "--contracts" not in verdict([found, BEATEN], contracts_shown=True)


def test_the_readmes_command_finds_its_own_model_sound():
    model = load(ROOT / "mtpref" / "data" / "tiny.gguf")
    texts = read_texts([str(ROOT / "README.md"), str(ROOT / "docs" / "glossary.md")], model.vocab)
    report = probe(model, texts, Settings(n_positions=200))
    assert report.verdict.startswith("verdict: the head is above every")


def test_contracts_are_every_visible_change_once_and_the_probed_one_first():
    names = [v.name for v in contracts(micro(60), 2)]
    assert names[0] == "llama.cpp"
    assert len(set(names)) == len(names)
    assert "training" in names
    assert {"llama.cpp,hidden=pre", "llama.cpp,chain=pre", "llama.cpp,concat=he", "llama.cpp,prime=none"} <= set(names)
    assert not any("prompt_end" in name or "replay" in name for name in names)


def test_each_contract_is_counted_as_if_it_were_probed_alone():
    model, texts = micro(60), [Text("x", tuple(TEXT))]
    report = probe(model, texts, Settings(n_draft=2, with_contracts=True, with_controls=False))
    assert report.contracts[0].is_probed
    for line in report.contracts:
        alone = probe(micro(60, "ggml", line.contract), texts, Settings(n_draft=2, with_controls=False))
        assert line.group.conditional == alone.trunk.conditional, line.contract
        assert line.a1_less_probed.value == pytest.approx(
            alone.trunk.unconditional[0].value - report.trunk.unconditional[0].value
        )


# ------------------------------------------------------------------------------------------------ the page


def test_the_measured_page_is_what_the_embedded_model_gives():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_probe
        from tiny.data import load_corpus
    finally:
        sys.path.pop(0)
    corpus = load_corpus()
    page = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
    if corpus.sha256_held_out[:16] not in page:
        pytest.skip(f"the page was measured on the library of another CPython than {corpus.python_version}")
    model = mtpref.load().core
    texts = [text for text in write_probe.texts_of(model, corpus) if text.label == write_probe.STORIES]
    alone = replace(write_probe.SETTINGS, with_contracts=False, with_controls=False)
    row = write_probe.row(probe(model, texts, alone).trunk)
    assert "| " + " | ".join([write_probe.STORIES, *row[1:]]) + " |" in page, "run: python tools/write_probe.py"


# -------------------------------------------------------------------------------------------------- limits


def test_windows_cut_a_text_and_space_positions_over_all_of_it():
    texts = [Text("a", tuple(range(10))), Text("b", tuple(range(4)))]
    windows = windows_of(texts, 4)
    assert [(w.label, w.start, w.ids, w.positions) for w in windows] == [
        ("a", 0, (0, 1, 2, 3), (1, 2, 3)),
        ("a", 4, (4, 5, 6, 7), (1, 2, 3)),
        ("a", 8, (8, 9), (1,)),
        ("b", 0, (0, 1, 2, 3), (1, 2, 3)),
    ]
    assert [w.positions for w in windows_of(texts[:1], 100, stride=4)] == [(1, 5, 9)]
    assert [w.positions for w in windows_of(texts[:1], 100, n_positions=2)] == [(1, 6)]
    assert windows_of([Text("c", (1,))], 4) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"n_draft": 0}, "Settings.n_draft: 0"),
        ({"n_draft": 17}, "expected 1 .. 16"),
        ({"stride": 0}, "Settings.stride"),
        ({"n_positions": -1}, "Settings.n_positions"),
        ({"n_ctx": 1}, "Settings.n_ctx: 1"),
        ({"n_batch": 0}, "Settings.n_batch"),
        ({"block": 0}, "Settings.block"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(MtprefError) as refused:
        Settings(**settings)
    assert expected in str(refused.value)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(MtprefError, match="no MTP head"):
        probe(without_head(micro(60)), [Text("x", tuple(TEXT))], Settings())


def test_a_report_is_lines_and_json_of_the_same_numbers():
    report = probe(micro(60), [Text("x", tuple(TEXT)), Text("y", tuple(PROMPT))], Settings(with_contracts=True))
    text, record = "\n".join(lines(report)), report.to_json()
    assert record["schema"] == "mtpref-probe-1"
    a1 = record["against_trunk"]["unconditional"][0]["value"]
    assert f"{a1:.3f}" in text
    assert record["n_positions"] == 47
    assert "verdict: " in text
    assert "by domain" in text
    assert all(line.isascii() for line in lines(report))


def test_a_model_given_as_a_text_is_refused():
    with pytest.raises(MtprefError, match="this is a GGUF file, expected a text"):
        read_texts([str(ROOT / "mtpref" / "data" / "tiny.gguf")], load(ROOT / "mtpref" / "data" / "tiny.gguf").vocab)
