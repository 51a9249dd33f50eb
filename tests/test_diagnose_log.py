"""mtpref diagnose --log: the mistake behind a port's run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import Decoder, Options, PolicyConfig
from mtpref.engine.model import load
from mtpref.faults import FAULTS, inject
from mtpref.faults.diagnose import PortRound, PortRun, diagnose_log, read_port_runs, render
from mtpref.faults.diagnose.evidence_log import log_likelihood
from mtpref.faults.diagnose.forced import Seen, look
from mtpref.front.cli import main
from mtpref.spec.contract import MtpContract
from tests.models import micro
from tests.samples import one_in

ROOT = Path(__file__).resolve().parent.parent
BROKEN = ROOT / "tests" / "data" / "llama_cpp" / "broken"
PROMPT = [3, 17, 4, 250, 9, 31, 77, 5, 12, 200, 8, 41]
MICRO = "tests/data/micro/micro-60-q8_0.gguf"


def run_of(model, n_predict=28, n_max=3, with_p=True, prompt=PROMPT):
    """What a port would have logged."""
    decoder = Decoder(model, model.new_state(512), Options(n_predict=n_predict, policy=PolicyConfig(n_max=n_max)))
    rounds, drafted, verified, ids = [], None, None, []

    def close():
        if drafted is not None:
            p = tuple(s.p[0] for s in drafted.steps[: len(drafted.ids)]) if with_p else None
            rounds.append(PortRound(tuple(drafted.ids), verified.n_accepted, tuple(ids), drafted.id_last, p))

    for event in decoder.run(prompt):
        if isinstance(event, Drafted):
            close()
            drafted, ids = event, []
        elif isinstance(event, Verified):
            verified = event
        elif isinstance(event, Token):
            ids.append(event.id)
    close()
    return PortRun("port", tuple(prompt), tuple(rounds))


def test_a_healthy_run_is_healthy_with_or_without_probabilities():
    for with_p in (True, False):
        report = diagnose_log(micro(60), [run_of(micro(60), with_p=with_p)])
        assert report.verdict == "healthy", render(report)
        assert "contract llama.cpp" in report.headline


@pytest.mark.parametrize(
    "id", one_in(2, ["S2-no-rollback", "C3-last-verify-row", "V1-lax-accept", "C1-chain-pre-norm"])
)
def test_faults_that_no_dump_shows_are_found_in_a_run(id):
    port = inject(micro(60, "exact"), FAULTS[id])
    report = diagnose_log(micro(60), [run_of(port)])
    assert report.verdict == "found", render(report)
    assert any(id in cause.ids for cause in report.causes[:3])


def test_a_fault_of_the_head_is_found_in_a_run_whose_prompt_was_processed_whole():
    whole = replace(micro(60).recipe, contract=MtpContract(prompt_end="whole"))
    port = inject(replace(micro(60), recipe=whole), FAULTS["C1-chain-pre-norm"])
    report = diagnose_log(micro(60), [replace(run_of(port), is_whole=True)])
    assert report.verdict == "found", render(report)
    assert any("C1-chain-pre-norm" in cause.ids for cause in report.causes[:3])


def test_the_head_only_replay_sees_what_a_whole_one_sees():
    from mtpref.faults.diagnose import evidence_log, forced

    run = run_of(micro(60, "exact"))
    base = micro(60)
    records, healthy = evidence_log._healthy(base, [run])
    again = []
    replay = forced.Replay(base, run, records[0])
    for seen in replay.play():
        again += seen
    assert again == healthy.seen


@pytest.fixture(scope="module")
def micro_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_micro import make_standard
    finally:
        sys.path.pop(0)

    def make(name):
        path = folder / f"{name}.gguf"
        if not path.exists():
            make_standard(name, path)
        return path

    return make


# By default the first run of a build whose head is another by itself, and of one whose loop feeds it the wrong row.
BROKEN_BUILDS = (
    ("concat", "G1-concat-swapped"),
    ("last-row", "C3-last-verify-row"),
    ("pre-norm", "G2-pre-norm-hidden"),
    ("chain-pre-norm", "C1-chain-pre-norm"),
    ("same-token", "C4-same-token-pairing"),
)
N_RUNS = [1, pytest.param(2, marks=pytest.mark.slow)]
LOGGED = [
    *((*build, 1) for build in BROKEN_BUILDS[:2]),
    *(pytest.param(*build, 2, marks=pytest.mark.slow) for build in BROKEN_BUILDS),
]


@pytest.mark.parametrize(("breakage", "id", "n_runs"), LOGGED)
def test_a_llama_cpp_that_was_broken_on_purpose_is_diagnosed(breakage, id, n_runs, micro_file):
    core = load(micro_file("micro-60-f32"))
    report = diagnose_log(core, read_port_runs(BROKEN / f"{breakage}.micro-60-f32.log.gz")[:n_runs])
    assert report.verdict == "found"
    assert any(id in cause.ids for cause in report.causes[:3]), render(report)


@pytest.mark.parametrize("n_runs", N_RUNS)
def test_a_mistake_that_is_not_in_the_catalogue_is_none_of_the_known(n_runs, micro_file):
    """The build that leaves hnorm out: something near it may come first, but it is not said to be it."""
    runs = read_port_runs(BROKEN / "no-hnorm.micro-60-f32.log.gz")[:n_runs]
    report = diagnose_log(load(micro_file("micro-60-f32")), runs)
    assert report.verdict == "unknown", render(report)


@pytest.mark.parametrize("n_runs", N_RUNS)
def test_a_stock_llama_cpp_is_healthy_by_its_contract(n_runs, micro_file):
    runs = read_port_runs(BROKEN / "healthy.micro-60-f32.log.gz")[:n_runs]
    report = diagnose_log(load(micro_file("micro-60-f32")), runs)
    assert report.verdict == "healthy"
    assert report.headline.startswith("HEALTHY, contract llama.cpp")


def test_a_miss_costs_less_the_nearer_the_tie():
    def one(gap):
        return log_likelihood([Seen(0, 1, 2, gap, 1.0)])

    assert one(0.001) > one(0.05) > one(5.0)
    assert log_likelihood([Seen(0, 1, 1, 0.0, 5.0)]) > -0.01


def test_look_measures_in_standard_deviations_and_survives_nan():
    row = np.asarray([0.0, 2.0, 1.0, -3.0], np.float32)
    seen = look(row, 2, 0, "draft")
    assert (seen.own, seen.port, seen.is_hit) == (1, 2, False)
    assert seen.gap == pytest.approx(1.0 / row.std())
    assert look(row * 7, 2, 0, "draft").gap == pytest.approx(seen.gap)
    assert look(np.full(4, np.nan, np.float32), 2, 0, "draft").own == 0


def write_json(path, run, **changes):
    rounds = [{"draft": list(r.draft), "n_accepted": r.n_accepted, "emitted": list(r.emitted)} for r in run.rounds]
    record = {"schema": "mtpref-run-1", "prompt_ids": list(run.prompt_ids), "rounds": rounds} | changes
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    return path


def command(capsys, *args):
    code = main(["diagnose", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_json_of_any_engine_is_read(tmp_path, capsys):
    path = write_json(tmp_path / "run.json", run_of(inject(micro(60), FAULTS["G1-concat-swapped"])))
    code, out, _ = command(capsys, "--log", path, "-m", MICRO, "--json")
    assert code == 1
    assert "G1-concat-swapped" in json.loads(out)["causes"][0]["ids"]


def test_a_trace_is_read_with_its_rollback_and_policy(tmp_path):
    path = tmp_path / "run.jsonl"
    args = ["generate", "-m", MICRO, "-p", "abc def", "-n", "24", "--spec-rollback", "replay", "--trace", str(path)]
    assert main(args) == 0
    run = read_port_runs(path)[0]
    assert (run.settings["rollback"], run.settings["n_max"]) == ("replay", 3)
    assert diagnose_log(mtpref.load(MICRO).core, [run]).verdict == "healthy"


def test_a_prompt_that_is_processed_whole_is_replayed_so(tmp_path):
    path = tmp_path / "run.jsonl"
    contract = "llama.cpp,prompt_end=whole"
    assert (
        main(["generate", "-m", MICRO, "-p", "abc def", "-n", "24", "--contract", contract, "--trace", str(path)]) == 0
    )
    run = read_port_runs(path)[0]
    assert run.is_whole
    assert diagnose_log(mtpref.load(MICRO).core, [run]).verdict == "healthy"


def a_round(**fields):
    record = {"draft": [1], "n_accepted": 0, "emitted": [2]} | fields
    return json.dumps({"schema": "mtpref-run-1", "prompt_ids": [1], "rounds": [record]})


HOSTILE = {
    "empty": "",
    "other": "hello\n",
    "no schema": '{"rounds": []}',
    "no rounds": '{"schema": "mtpref-run-1", "prompt_ids": [1], "rounds": []}',
    "no prompt": a_round().replace('"prompt_ids"', '"other"'),
    "bad id": a_round(draft=[-1]),
    "huge id": a_round(draft=[99999999]),
    "too many": a_round(n_accepted=2),
    "no tokens": a_round(emitted=[]),
    "p": a_round(p=[7]),
    "no drafts": a_round(draft=[]),
    "deep": '{"a":' * 100000,
    "trace": '{"event": "Drafted", "round": 0}\n',
    "log without prompt": "draft candidate   0, pos   0:     12 (   0.500) 'a'\n"
    "accepted 0/1 draft tokens, the last target token is: (3)\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_runs_end_in_one_line(name, tmp_path, capsys):
    path = tmp_path / "run.log"
    path.write_text(HOSTILE[name])
    code, out, err = command(capsys, "--log", path, "-m", MICRO)
    assert (code, out) == (2, "")
    assert err.startswith("mtpref diagnose: error: ")
    assert err.count("\n") == 1
    assert len(err) < 600


def test_drafts_that_were_drawn_are_refused():
    from mtpref.base.errors import MtprefError

    run = replace(run_of(micro(60)), settings={"temp": 1.0, "accept": "residual"})
    with pytest.raises(MtprefError, match="drawn at random"):
        diagnose_log(micro(60), [run])
