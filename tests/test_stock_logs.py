"""Logs of stock llama.cpp as people have them: sampled, quantised, several runs in one file, llama-server's slots."""

import gzip
import json
import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import Decoder, Options
from mtpref.faults.diagnose import PortRound, PortRun, diagnose_log, evidence_log, of_log, read_port_runs, render
from mtpref.faults.diagnose.forced import Seen
from mtpref.faults.diagnose.hypotheses import list_hypotheses
from mtpref.faults.diagnose.unexplained import unexplained
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.look.llama_cpp import log_events
from mtpref.look.llama_cpp.log import parse, parse_all, read_runs
from tests.models import micro
from tests.test_diagnose_log import MICRO, PROMPT, write_json
from tools.tiny.prompts import FIRST, FOURTH, SAMPLED, SECOND, THIRD
from tools.tiny.prompts import LOGS as ASKED

LOGS = Path(__file__).resolve().parent / "data" / "llama_cpp" / "logs"


def text_of(name):
    return gzip.decompress((LOGS / f"{name}.log.gz").read_bytes()).decode()


@cache
def size(prompt):
    """Its number of tokens."""
    return len(mtpref.load().encode(prompt))


def command(capsys, *args):
    code = main([*map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("quantised")

    def make(kind):
        path = folder / f"{kind}.gguf"
        if not path.exists():
            assert main(["quantize", "--allow-requantize", str(tiny_path()), str(path), kind]) == 0
        return path

    return make


# ---------------------------------------------------------------------------------- what the files hold


def test_runs_that_were_appended_to_one_file_are_told_apart():
    runs = read_runs(LOGS / "two.log.gz")
    assert [(r.log.n_prompt, r.log.is_complete) for r in runs] == [(size(FIRST), True), (size(SECOND), True)]


LOSSES = {
    "first lines": lambda line: "adding spec" in line or "n_max=" in line,
    "counts": lambda line: " n_predict " in line,
    "first lines and counts": lambda line: "adding spec" in line or "n_max=" in line or " = " in line,
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_seam_shows_by_any_of_first_lines_counts_and_times(what):
    lines = [line for line in text_of("two").split("\n") if not LOSSES[what](line)]
    found = parse_all("\n".join(lines))
    assert [log.ids for log in found] == [run.log.ids for run in read_runs(LOGS / "two.log.gz")]


def test_a_run_that_was_cut_does_not_leak_into_the_next():
    first, second = read_runs(LOGS / "two.log.gz")
    text = text_of("two")
    at = text.index("adding speculative", 100)
    start = text.rindex("\n", 0, at) + 1
    cut = text.rindex("draft candidate   1, pos   1", 0, start)
    found = parse_all(text[: text.rindex("\n", 0, cut) + 1] + text[start:])
    assert [len(log.rounds) for log in found] == [len(first.log.rounds) - 1, len(second.log.rounds)]
    assert found[0].unfinished
    assert found[1].rounds == second.log.rounds


def test_several_runs_are_not_parsed_as_one():
    with pytest.raises(MtprefError, match="2 runs"):
        parse(text_of("two"))


def test_a_servers_requests_are_told_apart_by_slot_and_task():
    found = [(r.log.n_prompt, r.log.request.is_first, r.log.temp) for r in read_runs(server(2))]
    assert sorted(found) == sorted((size(prompt), prompt in (FIRST, SECOND), 0.0) for prompt in ASKED)
    assert sorted(r.log.request.slot for r in read_runs(server(2))) == [0, 0, 1, 1]
    alone = read_runs(server(1))
    assert [(r.log.request.is_first, r.log.temp) for r in alone] == [(True, 0.0), (False, 0.0), (False, 0.8)]
    assert all(r.log.is_complete and not r.log.damage for r in [*read_runs(server(2)), *alone])
    # Forty tokens each: the one after the prompt, then those of the rounds.
    assert all(len(r.log.ids) >= 39 for r in alone)


def server(n_parallel):
    return LOGS / f"server-np{n_parallel}.log.gz"


def test_slots_side_by_side_give_what_each_gives_alone():
    alone = {r.log.n_prompt: r.log for r in read_runs(server(1)) if r.log.request.is_first}
    beside = next(r.log for r in read_runs(server(2)) if r.log.request.is_first and r.log.n_prompt == size(FIRST))
    assert beside.ids == alone[size(FIRST)].ids
    assert [r.draft for r in beside.rounds] == [r.draft for r in alone[size(FIRST)].rounds]


def test_a_request_without_its_beginning_or_with_lines_missing_is_not_judged():
    text = text_of("server-np1")
    late = parse_all(text[text.index("add accepted tokens") :])
    assert "beginning" in late[0].damage
    assert not late[1].damage
    lines = text.split("\n")
    i = next(i for i, line in enumerate(lines) if "add accepted tokens" in line)
    assert parse_all("\n".join(lines[:i] + lines[i + 1 :]))[0].damage
    shifted = text.replace("add accepted tokens: sampled", "slot context shift, n_keep = 1; sampled", 1)
    assert "shifted" in parse_all(shifted)[0].damage


def test_a_restarted_server_has_fresh_slots():
    assert Counter(log.request.is_first for log in parse_all(text_of("server-np1") * 2)) == {True: 2, False: 4}


# ------------------------------------------------------------------------------------------ compare-log

TYPES = ("BF16", "Q4_0", "Q4_K_M")


@pytest.mark.parametrize("kind", TYPES)
def test_quantised_files_agree_with_stock_llama_cpp_by_their_own_limits(kind, quantised, capsys):
    log, model = LOGS / f"greedy-{kind}.log.gz", quantised(kind)
    capsys.readouterr()
    code, out, err = command(capsys, "compare-log", "-m", model, "-p", THIRD, log, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["p_limit"] == {"BF16": 0.03}.get(kind, 0.12)
    assert record["max_p_error"] < record["p_limit"] / 3
    assert not record["is_hardly_compared"]
    assert record["is_parted"] or record["n_tokens"] == record["n_tokens_theirs"] > 40
    assert command(capsys, "compare-log", "-m", model, "-p", SECOND, log)[0] == 1


def test_a_sampled_run_is_hinted_at(capsys):
    args = ("compare-log", "-p", SAMPLED, LOGS / "sampled.log.gz", "--numerics", "ggml", "--p-limit", "0.02")
    code, out, _ = command(capsys, *args)
    assert code == 0  # a near tie comes first
    assert re.search(r"HARDLY ANYTHING WAS COMPARED: \d+ of \d+ tokens", out)
    assert out.count("--temp 0") == 1
    assert "\nthe texts part at" not in out
    code, out, _ = command(capsys, *args, "--json")
    assert json.loads(out)["is_hardly_compared"]


def test_a_sampled_run_of_a_quantised_file_is_hinted_at(quantised, capsys):
    model = quantised("Q4_0")
    capsys.readouterr()
    code, out, _ = command(capsys, "compare-log", "-m", model, "-p", SAMPLED, LOGS / "sampled.log.gz")
    assert code == 0
    assert re.search(r"HARDLY ANYTHING WAS COMPARED: \d+ of \d+ tokens", out)


def test_one_of_several_runs_is_chosen_by_its_prompt_or_by_its_number(capsys):
    log = LOGS / "two.log.gz"
    for prompt, which in ((FIRST, 0), (SECOND, 1)):
        code, out, _ = command(capsys, "compare-log", "-p", prompt, log)
        assert code == 0
        assert out.startswith(f"run {which}: prompt of ")
    assert command(capsys, "compare-log", "-p", SECOND, "--run", "1", log)[0] == 0
    code, _, err = command(capsys, "compare-log", "-p", "x", log)
    assert (code, err.count("\n")) == (2, 1)
    assert f"run 0 (prompt of {size(FIRST)} tokens), run 1 (prompt of {size(SECOND)} tokens)" in err
    assert "expected 0 .. 1 or all" in command(capsys, "compare-log", "-p", SECOND, "--run", "7", log)[2]


def test_a_prompt_that_two_runs_could_have_had_is_asked_about(capsys, tmp_path):
    path = tmp_path / "twice.log"
    path.write_text(text_of("server-np1") * 2)
    code, _, err = command(capsys, "compare-log", "-p", SECOND, path)
    assert code == 2
    assert "--run N" in err


@pytest.mark.parametrize(("n_parallel", "prompt", "run"), [(1, FIRST, 0), (2, FIRST, 0), (2, SECOND, 1)])
def test_a_servers_first_requests_agree_event_by_event(n_parallel, prompt, run, capsys):
    code, out, err = command(capsys, "compare-log", "-p", prompt, "--run", run, server(n_parallel), "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["n_tokens"] == record["n_tokens_theirs"] == 39
    assert record["max_p_error"] < record["p_limit"] / 2
    assert not record["is_blurred"]


def test_of_a_later_request_the_tokens_are_compared_alone(capsys):
    """Its first token is paired with what the request before left: p is off by more than any limit."""
    found = enumerate(read_runs(server(2)))
    run = next(str(i) for i, r in found if not r.log.request.is_first and r.log.n_prompt == size(FOURTH))
    code, out, _ = command(capsys, "compare-log", "-p", FOURTH, "--run", run, server(2), "--json")
    record = json.loads(out)
    assert (code, record["is_blurred"], record["differences"]) == (0, True, [])
    assert record["n_tokens"] == 39
    assert record["max_p_error"] > record["p_limit"]


def test_a_wrong_first_token_of_a_request_is_a_divergence(capsys, tmp_path):
    path = tmp_path / "run.log"
    text = text_of("server-np1")
    ((shown, token),) = re.findall(r"(next token: +(\d+) )", text)[:1]
    path.write_text(text.replace(shown, "next token:   999 ", 1))
    code, out, _ = command(capsys, "compare-log", "-p", FIRST, path)
    assert code == 1
    at = f"round 0, position {size(FIRST)}, token 0"
    assert f"first divergence: {at}: token {token}, llama.cpp 999; margin" in out


def test_a_request_at_a_temperature_is_refused(capsys):
    code, _, err = command(capsys, "compare-log", "-p", THIRD, "--run", "2", server(1))
    assert (code, err.count("\n")) == (2, 1)
    assert "temp = 0.8" in err


# --------------------------------------------------------------------------------------------- diagnose


def test_a_sampled_run_is_not_called_healthy(capsys, tmp_path):
    """Its first rounds are enough."""
    path, lines = tmp_path / "run.log", text_of("sampled").splitlines(keepends=True)
    verified = [i for i, line in enumerate(lines) if "draft tokens, the last target token is" in line]
    path.write_text("".join(lines[: verified[8]]))
    code, out, _ = command(capsys, "diagnose", "-p", SAMPLED, "--log", path)
    assert code == 1, out
    assert out.startswith("NONE OF THE KNOWN: ")
    assert "emitted tokens are not the target's best" in out
    assert "was it run with --temp 0?" in out


@pytest.mark.parametrize("kind", ["Q4_K_M", pytest.param("BF16", marks=pytest.mark.slow)])
def test_a_stock_run_of_a_quantised_file_is_healthy(kind, quantised, capsys):
    log, model = LOGS / f"greedy-{kind}.log.gz", quantised(kind)
    capsys.readouterr()
    code, out, _ = command(capsys, "diagnose", "-m", model, "-p", THIRD, "--log", log)
    assert code == 0, out
    assert out.startswith("HEALTHY, contract llama.cpp: every token")


def test_a_servers_slot_is_healthy(capsys):
    code, out, _ = command(capsys, "diagnose", "-p", SECOND, "--run", "1", "--log", server(2))
    assert code == 0, out
    assert "40 of 40 emitted ones" in out


def test_later_requests_are_refused_as_they_cannot_be_known(capsys):
    code, _, err = command(capsys, "diagnose", "-p", SECOND, "--run", "1", "--log", server(1))
    assert (code, err.count("\n")) == (2, 1)
    assert "not the first request of its slot" in err


def test_a_mistake_of_the_target_outside_the_catalogue_is_not_called_healthy():
    """An engine that never emits a certain token: its drafts are right, its tokens are not the target's best."""
    model = micro(60)
    common = Counter(i for r in run_under(model).rounds for i in r.emitted).most_common(1)[0][0]
    port = run_under(model, never=common)
    report = diagnose_log(model, [port])
    assert report.verdict == "unknown", render(report)
    assert "emitted tokens" in report.headline
    assert report.divergence is not None
    assert "emitted" in report.divergence


def test_one_emitted_token_that_is_no_near_tie_is_neither_healthy_nor_an_accusation(tmp_path, capsys):
    """An engine that once emits the second best, a quarter to half a standard deviation below the best."""
    model = micro(60)
    healthy, port = run_under(model), run_under(model, turns=(0.25, 0.5))
    assert port != healthy
    path = write_json(tmp_path / "run.json", port)
    code, out, err = command(capsys, "diagnose", "--log", path, "-m", MICRO)
    assert (code, err) == (3, ""), out
    headline = out.splitlines()[0]
    assert headline.startswith("CANNOT TELL: healthy but for 1 of ")
    ((i, token),) = [
        (s.round, s.port) for s in replayed(model, port) if s.kind == "target" and s.gap > 0.1 and not s.is_hit
    ]
    assert f"; round {i}: the port emitted {token}, the healthy run " in headline
    assert all(word in out for word in ("-m the very file", "--temp 0", "a longer log"))
    assert command(capsys, "diagnose", "--log", write_json(path, healthy), "-m", MICRO)[0] == 0


def replayed(model, run):
    return evidence_log._healthy(model, [run])[1].seen


@pytest.mark.parametrize(("gain", "verdict"), [(3.9, "healthy"), (4.3, "undecided"), (4.8, "found")])
def test_a_fault_that_explains_a_little_more_than_healthy_is_in_doubt(gain, verdict):
    """Of two hypotheses one must gain 4 + log(2) nats to be named."""
    healthy, *others = list_hypotheses(micro(60))
    fault = next(h for h in others if not h.is_harmless)
    found = {
        h.id: evidence_log.Replayed(h, [seen("draft", 0.05)], x) for h, x in ((healthy, -10.0), (fault, gain - 10))
    }
    diagnosis = evidence_log._judge(found, [], micro(60), [])
    assert diagnosis.verdict == verdict
    if verdict == "undecided":
        assert of_log._headline(diagnosis).startswith(f"CANNOT TELL: {fault.id} explains more than healthy by 4.3 nats")


def run_under(model, never=-1, turns=None):
    """turns: once, the second best is emitted where it is so far below the best, in standard deviations."""
    decoder = Decoder(model, model.new_state(512), Options(n_predict=24))
    greedy, left = decoder.sampler.greedy, [1] * (turns is not None)

    def choose(logits):
        rows = np.where(np.arange(logits.shape[-1]) == never, -1e9, logits)
        row = rows.reshape(-1, rows.shape[-1])[0]
        second, best = np.sort(row)[-2:]
        if left and turns[0] < (best - second) / row.std() < turns[1]:
            left.clear()
            row[row.argmax()] = -1e9
        return greedy(rows)

    decoder.sampler.greedy = choose
    rounds = []
    for event in decoder.run(PROMPT):
        if isinstance(event, Drafted):
            p = tuple(s.p[0] for s in event.steps[: len(event.ids)])
            rounds.append(PortRound(tuple(event.ids), 0, (), event.id_last, p))
        elif isinstance(event, Verified):
            rounds[-1] = replace(rounds[-1], n_accepted=event.n_accepted)
        elif isinstance(event, Token):
            rounds[-1] = replace(rounds[-1], emitted=(*rounds[-1].emitted, event.id))
    return PortRun("port", tuple(PROMPT), tuple(rounds))


def seen(kind, gap, p_error=float("nan"), own=1, port=2):
    return Seen(0, own, port, gap, 1.0, 0.5, 0.5 + p_error, kind)


def test_what_is_a_near_tie_of_an_emitted_token_is_told_by_the_errors_of_p():
    exact = [seen("draft", 0.0, 0.0005, port=1)] * 20
    coarse = [seen("draft", 0.0, 0.02, port=1)] * 20
    assert unexplained([*exact, seen("target", 0.04)]) is None
    assert is_doubt([*exact, seen("target", 0.2)])
    assert is_doubt([*exact, seen("target", 0.2)] * 2) is False
    assert unexplained([*coarse, *[seen("target", 0.2)] * 2]) is None
    assert is_doubt([*coarse, seen("target", 0.435)])
    assert is_doubt([*coarse, seen("target", 0.7)]) is False
    assert unexplained([seen("target", 0.08)] * 9) is None
    assert is_doubt([seen("target", 0.2)] * 2)
    assert is_doubt([seen("target", 0.2)] * 3) is False
    assert unexplained([seen("target", 0.2)] * 3).n == 3


def test_drafted_tokens_and_lengths_that_nothing_explains_are_in_doubt():
    exact = [seen("draft", 0.0, 0.0005, port=1)] * 20
    assert unexplained([*exact, seen("draft", 0.09)]) is None
    assert is_doubt([*exact, seen("draft", 0.2)])
    assert is_doubt([*exact, *[seen("draft", 0.2)] * 3]) is False
    longer, shorter = (seen("length", float("inf"), own=3, port=n) for n in (4, 2))
    assert is_doubt([longer] * 2)
    assert is_doubt([longer] * 3) is False
    assert unexplained([longer] * 3).kind == "length"
    assert unexplained([shorter] * 3) is None


def is_doubt(seen):
    found = unexplained(seen)
    assert found is not None
    return found.is_doubt


def test_a_log_that_says_its_temperature_is_judged_by_its_drafts():
    run = read_port_runs(LOGS / "sampled.log.gz", mtpref.load().encode(SAMPLED))[0]
    run = replace(run, rounds=run.rounds[:8], settings={"temp": 0.8})
    report = diagnose_log(mtpref.load().core, [run])
    assert report.verdict == "healthy"
    assert "every drafted token" in report.headline
    assert any("drawn" in line for line in report.evidence)


# ----------------------------------------------------------------------------------------------- limits

LONG = {
    "open pieces": "draft candidate   0, pos   0:     12 (   0.500) 'x" * 20000,
    "near pieces": "draft candidate   0, pos   0:     12 (   0.500) '\n" * 20000,
    "rates": "#acc rate/pos = (" + "0.111" * 200000,
    "rate lines": "statistics        draft-mtp: #acc rate/pos = (0.111.111.111.111\n" * 15000,
    "spaces": "n_predict " + " " * 1000000,
    "slots": "slot   operator(): id  0 | task 0 | " * 30000,
    "times": "0.00.000.001 " * 80000,
}


@pytest.mark.parametrize("name", LONG)
def test_reading_is_linear_whatever_the_text_holds(name):
    text = LONG[name]
    at = time.process_time()
    list(log_events.events(text))
    assert time.process_time() - at < 1.0
