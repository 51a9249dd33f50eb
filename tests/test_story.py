"""The story: its counts, its ceilings and laws, and the page that tells it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import mtpref
from mtpref import kernels
from mtpref.base.errors import MtprefError
from mtpref.front.cli import main
from mtpref.front.cli.story import DEFAULT_N_PREDICT, ceilings, table
from mtpref.measure import story
from tests.models import StubVocab, micro, without_head

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pr-20700.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(not kernels.available(), reason="hundreds of runs: with the kernels only")


@pytest.fixture(scope="module")
def short():
    return story.tell(mtpref.load().core, story.PROMPTS[:2], 24)


def test_every_combination_is_a_line(short):
    setups = [line.setup for line in short.lines]
    assert len(setups) == len(set(setups)) == 18
    assert {(s.row, s.cooldown) for s in setups} == {("last", 0), ("last", 1), ("right", 0)}
    assert {s.n_draft_vocab for s in setups} == {None, short.n_draft_vocab}
    assert {s.decoding for s in setups} == set(story.DECODINGS)


def test_only_a_missing_roll_back_changes_text(short):
    for line in short.lines:
        is_same = line.setup.decoding != "no roll back"
        assert (line.n_same == short.n_prompts) == is_same
        assert (line.differs_at is None) == is_same


def test_a_pass_gives_one_token_and_one_for_each_accepted_draft(short):
    for line in short.lines:
        saved = 0 if line.setup.decoding == "two-phase" else line.n_accepted
        assert line.n_passes == line.n_tokens - saved
        assert 0 < line.n_accepted <= line.n_drafted


def test_stale_drafts_are_those_of_the_last_row_without_cooldown_in_one_phase(short):
    for line in short.lines:
        s = line.setup
        assert (line.stale[1] > 0) == (s.row == "last" and s.cooldown == 0 and s.decoding != "two-phase")


def test_one_rejection_makes_one_draft_stale(short):
    """But for the rejection that a run ends with."""
    for line in short.lines:
        if line.stale[1]:
            assert 0 <= line.n_drafted - line.n_accepted - line.stale[1] <= short.n_prompts


def test_two_phase_makes_every_row_the_right_one(short):
    for n_draft_vocab in (None, short.n_draft_vocab):
        last, right = (
            next(line for line in short.lines if line.setup == story.Setup("two-phase", row, 0, n_draft_vocab))
            for row in ("last", "right")
        )
        assert replace(last, setup=right.setup) == right


def test_ceilings_are_reached_exactly(short):
    assert [c.rule for c in short.ceilings] == [(2, 1), (3, 2), (4, 3), (2, 2), (2, 2)]
    for ceiling in short.ceilings:
        assert ceiling.n_tokens == 24
        assert ceiling.n_passes * ceiling.rule[0] == ceiling.n_tokens * ceiling.rule[1]


def test_ceilings_are_left_out_where_every_text_is_short():
    model = micro(60)
    vocab = StubVocab(model.n_vocab, frozenset(range(256)))
    vocab.encode = lambda text, limit=0: list(text.encode())
    told = story.tell(replace(model, vocab=vocab), ["abc"], 12)
    assert told.ceilings == ()
    assert ceilings(told) == ["(no ceilings: every text ended within 12 tokens)"]
    assert [line.n_tokens for line in told.lines] == [1] * 18
    assert table(told)[2].count("0 / 0") == 1


# ------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_speed_with_cooldown_is_tokens_over_passes(a):
    tokens, passes = a * 2 + (1 - a) * (1 + 1), a * 1 + (1 - a) * 2
    assert story.speed_with_cooldown(a) == pytest.approx(tokens / passes)
    assert story.speed_with_cooldown(0.5) == 4 / 3


@pytest.mark.parametrize(("p", "s"), [(0.95, 0.0075), (0.9, 0.2), (0.5, 0.5), (1.0, 0.0), (0.3, 0.0), (1.0, 0.5)])
def test_stale_acceptance_is_where_the_chain_of_rows_settles(p, s):
    fresh = 1.0
    for _ in range(20000):
        fresh = p * fresh + s * (1 - fresh)
    assert story.stale_acceptance(p, s) == pytest.approx(fresh, abs=1e-9)


def test_the_two_figures_of_the_pr_fix_the_third():
    s = story.stale_from(0.13, 0.95)
    assert story.stale_acceptance(0.95, s) == pytest.approx(0.13)
    assert 0.0074 < s < 0.0076


# ------------------------------------------------------------------------- the page and the command


def test_a_line_of_the_page_is_what_a_run_gives():
    """One line of eighteen, to the last digit; the slow test below compares the page."""
    model = mtpref.load().core
    prompts = [model.vocab.encode(prompt) for prompt in story.PROMPTS]
    options = mtpref.Options(n_predict=DEFAULT_N_PREDICT, spec_type="none")
    plain = [mtpref.load().generate(ids, options).finish().ids for ids in prompts]
    line = story.run_setup(model, story.Setup("one-phase", "last", 0, None), prompts, plain, DEFAULT_N_PREDICT)
    row = next(row for row in PAGE.splitlines() if row.replace(" ", "").startswith("|full|one-phase|last|0|"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[5:7] == ["{} / {}".format(*line.fresh), "{} / {}".format(*line.stale)]
    assert cells[8] == f"{len(prompts)} of {len(prompts)}"
    assert cells[9].startswith(f"{line.n_passes} / {line.n_tokens} = ")


@pytest.mark.slow
def test_the_page_is_what_a_run_gives():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import write_story
    finally:
        sys.path.pop(0)
    assert write_story.render() == PAGE, "run: python tools/write_story.py"


def test_the_command_prints_the_tables_or_one_json_object(capsys):
    assert main(["story", "-n", "12", "-p", "def f(x):\n"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n| ") == 18 + 1 + 5
    assert "| 1.33x |" in out.replace("  ", "")
    assert main(["story", "-n", "12", "-p", "def f(x):\n", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "mtpref-story-1"
    assert len(record["lines"]) == 18
    assert record["lines"][0]["setup"] == {"decoding": "one-phase", "row": "last", "cooldown": 0, "n_draft_vocab": None}


def test_too_few_tokens_and_a_missing_head_are_refused():
    with pytest.raises(MtprefError, match="`n_predict`: 11 is out of range, expected 12 or more"):
        story.tell(micro(60), ["x"], 11)
    with pytest.raises(MtprefError, match="no MTP head"):
        story.tell(without_head(micro(60)), ["x"], 12)
