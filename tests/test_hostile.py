"""Everything that is read from outside: it runs, or it is refused in one line, quickly, in bounded memory.

The short mode of tools/fuzz.py, in this process and with fixed seeds; files damaged by hand in ways that
chance does not find are in test_hostile_files.py, command lines in test_hostile_cli.py.
"""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MAKERS, MICRO, Target, catalogue, put
from fuzzing.edits import apply, single_edits
from fuzzing.fields import parse, write
from fuzzing.judge import Outcome, TooSlow, judge, watchdog

from mtpref.base.errors import MAX_LINE, MtprefError, one_line
from mtpref.front.api import tiny_path
from tests.samples import some_examples

# Cases of each target: about a second. A part of them runs by default, all of them and twice as many are slow.
N_CASES = {
    "container": 750, "tiny": 30, "micro": 60, "shards": 60, "head": 60, "heads": 50, "vocab": 600, "state": 100,
    "dump": 200, "d2t": 1000, "d2t-gguf": 500, "prompt": 150, "template": 8, "golden": 125, "filter": 1000,
    "options": 30, "golden-loops": 100, "trace": 100, "log": 150, "printed": 100, "run": 750, "costs": 750,
    "npz": 350, "safetensors": 750, "imatrix": 350, "imatrix-dat": 1000, "config": 125, "tokenizer": 15, "card": 75,
    "kernel": 30, "server": 60,
}  # fmt: skip
SEED = 2026
EVERY = 150  # of the tiny model's single edits; the long mode takes them all


@pytest.fixture(scope="module")
def target_of():
    made: dict[str, Target] = {}

    def find(name: str) -> Target:
        if name not in made:
            made[name] = catalogue((name,))[name]
        return made[name]

    return find


def check(target, i, edits, folder) -> Outcome:
    raw = target.build(i, edits)
    outcome = judge(lambda: target.run(raw, folder, i))
    assert outcome.verdict != "failed", f"{target.name} {i}: {[e.what for e in edits]}\n{outcome.details}"
    return outcome


def test_every_target_has_a_share():
    assert set(N_CASES) == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_sound_inputs_run(target_of, tmp_path, name):
    target = target_of(name)
    for i, raw in enumerate(target.seeds):
        outcome = judge(lambda raw=raw, i=i: target.run(raw, tmp_path, i))
        assert outcome.verdict == "ran", outcome.details


@pytest.mark.parametrize("times", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("name", MAKERS)
def test_damaged_inputs_run_or_are_refused_in_one_line(target_of, tmp_path, name, times):
    target = target_of(name)
    numbers = range(times * N_CASES[name] or max(N_CASES[name] // 3, min(N_CASES[name], 60)))
    verdicts = {check(target, *target.plan(SEED, number), tmp_path).verdict for number in numbers}
    assert "ran" in verdicts  # else the damage is so great that little is tried


def test_single_fields_of_the_tiny_model(target_of, tmp_path):
    target = target_of("tiny")
    verdicts = [check(target, *target.single(n), tmp_path).verdict for n in range(7, target.n_singles(), EVERY)]
    assert {"ran", "refused"} == set(verdicts)


MICRO_DOC = parse(MICRO.read_bytes())
EDITS = {edit.what: edit for edit in single_edits(MICRO_DOC)}


@settings(
    max_examples=some_examples(60),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=3))
def test_any_fields_together(target_of, tmp_path, names):
    check(target_of("micro"), 0, [EDITS[name] for name in names], tmp_path)


def test_fields_written_back_are_the_file():
    for path in (MICRO, tiny_path()):
        raw = path.read_bytes()
        assert write(parse(raw)) == raw
    assert apply(MICRO_DOC, [], write) == MICRO.read_bytes()


def test_every_edit_says_what_it_does_and_changes_something():
    edits = single_edits(MICRO_DOC)
    changed = sum(apply(MICRO_DOC, [edit], write) != MICRO.read_bytes() for edit in edits[::20])
    assert changed > 0.9 * len(edits[::20])
    assert len(edits) > 9000


def test_the_judge_sees_what_is_no_refusal():
    def fails(error):
        def run():
            raise error

        return judge(run)

    assert fails(MtprefError("x: 1, expected 2")).verdict == "refused"
    assert fails(KeyError("x")).signature.startswith("KeyError in ")
    assert fails(MemoryError()).verdict == "failed"
    assert fails(MtprefError("")).verdict == "failed"
    with pytest.raises(TooSlow), watchdog(0.01):
        time.sleep(5.0)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\udcff", "\u2028\u202e", "x" * 10000, "\n" * 10000])
def test_a_refusal_is_one_printable_line_whatever_it_names(text):
    line = str(MtprefError(f"file {text}: damaged, expected a sound one"))
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    assert line.startswith("file ")
    assert line.endswith("damaged, expected a sound one")
    assert one_line("\u4e2d \u00e4") == "\u4e2d \u00e4"


def test_a_case_is_the_same_every_time(target_of):
    target = target_of("container")
    one, other = ([target.build(*target.plan(3, n)) for n in range(40)] for _ in range(2))
    assert one == other
    assert len(set(one)) > 35


def test_zeros_behind_a_file_take_no_time(tmp_path):
    path = put(tmp_path, "x", b"abc", 1 << 40)
    assert path.stat().st_size == (1 << 40) + 3
