"""`mtpref trace show` and the reader behind it: what is shown, in which width, and what is refused."""

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from mtpref import load
from mtpref.base.errors import MtprefError
from mtpref.base.events import to_json
from mtpref.engine.decode import Options, PolicyConfig, SamplingConfig
from mtpref.front.cli import main
from mtpref.front.cli.terminal import wants_color
from mtpref.look.trace import Round, TraceWriter, read_trace, rounds_of, tee
from mtpref.look.trace.names import cells, fit, quoted

ROOT = Path(__file__).parent.parent
START = {"event": "RunStarted", "model": "m", "numerics": "ggml", "contract": {}, "settings": {}, "prompt_ids": [1],
         "schema": "mtpref-trace-1"}  # fmt: skip
TOKEN = {"event": "Token", "pos": 1, "id": 5, "piece": "61", "source": "plain", "is_eog": False, "text": "61"}
VERIFIED = {"event": "Verified", "round": 0, "pos0": 0, "draft_ids": [5], "target_ids": [6], "margins": [1.0],
            "near_ties": [False], "n_accepted": 0, "verdicts": ["reject"]}  # fmt: skip
ENDED = {"event": "RunEnded", "reason": "length", "statistics": {}, "text": ""}


@pytest.fixture(scope="module")
def model():
    return load()


def write(path, model, options, prompt="Once upon a time"):
    run = model.generate(prompt, options)
    with TraceWriter(path) as writer:
        return run, list(tee(run, writer))


@pytest.fixture(scope="module")
def trace(model, tmp_path_factory):
    """Three runs in one file: greedy with cooldown, residual sampling with p_min, plain with a stop string."""
    folder = tmp_path_factory.mktemp("traces")
    runs, text = [], ""
    for i, options in enumerate((
        Options(n_predict=24, policy=PolicyConfig(n_max=3, cooldown=2)),
        Options(n_predict=16, sampling=SamplingConfig(temp=0.9, accept="residual", seed=3),
                policy=PolicyConfig(p_min=0.375)),
        Options(n_predict=8, spec_type="none", stop=("ret",)),
    )):  # fmt: skip
        runs.append(write(folder / f"{i}.jsonl", model, options))
        text += (folder / f"{i}.jsonl").read_text()
    path = folder / "all.jsonl"
    path.write_text(text)
    return path, runs


def show(capsys, *argv):
    code = main(["trace", "show", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_lines(tmp_path, *records):
    path = tmp_path / "made.jsonl"
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return path


# READ


def test_the_reader_gives_back_the_very_events(trace):
    path, runs = trace
    with read_trace(path) as events:
        found = [to_json(e) for e in events]
    assert found == [json.loads(json.dumps(to_json(e))) for _, run in runs for e in run]


def test_rounds_hold_every_event_once(trace):
    path, runs = trace
    items = list(rounds_of(read_trace(path)))
    tokens = [t.id for item in items if isinstance(item, Round) for t in item.tokens]
    assert tokens == [id for run, _ in runs for id in run.ids]
    assert sum(isinstance(i, Round) and i.rolled_back is not None for i in items) == sum(
        type(e).__name__ == "RolledBack" for _, events in runs for e in events
    )


@pytest.mark.parametrize("n_cut", range(1, 40, 3))
def test_a_trace_cut_within_its_last_line_is_read_up_to_there(tmp_path, n_cut):
    whole = b"".join(json.dumps(r).encode() + b"\n" for r in (START, TOKEN, TOKEN))
    path = tmp_path / "cut.jsonl"
    path.write_bytes(whole[:-n_cut])
    reader = read_trace(path)
    n_events = len(list(reader))
    assert n_events == (3 if n_cut == 1 else 2)
    assert reader.is_cut == (n_cut > 1)
    assert reader.is_open
    assert any("killed" in note for note in reader.notes())


def test_unknown_events_and_fields_are_left_out_and_counted(tmp_path):
    path = write_lines(tmp_path, START, {"event": "New", "x": [1]}, {**TOKEN, "new": 3}, {"event": "\x1b[2J"}, ENDED)
    reader = read_trace(path)
    assert [type(e).__name__ for e in reader] == ["RunStarted", "Token", "RunEnded"]
    (note,) = reader.notes()
    assert note.startswith("2 events of unknown names")
    assert "\x1b" not in note


def test_defaults_stand_in_for_missing_fields(tmp_path):
    token = {k: v for k, v in TOKEN.items() if k != "text"}
    assert list(read_trace(write_lines(tmp_path, START, token)))[1].text == b""


HOSTILE = {
    "empty": b"",
    "not JSON": b"hello\n",
    "binary": bytes(range(256)) * 9,
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 40 + b"\n",
    "a number": b"17\n",
    "a list": b"[1]\n",
    "no name": b"{}\n",
    "name of a wrong type": b'{"event": 3}\n',
    "token outside a run": json.dumps(TOKEN).encode() + b"\n",
    "other schema": json.dumps({**START, "schema": "mtpref-trace-9"}).encode() + b"\n",
    "no schema": b'{"event":"RunStarted"}\n',
    "schema of a wrong type": b'{"event":"RunStarted","schema":{}}\n',
    "deep": b'{"event":' + b"[" * 60000,
    "deep and whole": b'{"event":' + b"[" * 30000 + b"]" * 30000 + b"}\n",
    "deep settings": json.dumps(START)
    .replace('"settings": {}', '"settings": {"a":' + "[" * 400 + "]" * 400 + "}")
    .encode()
    + b"\n",
    "many brackets": b'{"event":[' + b"{}," * 100_000 + b"1]}\n",
    "huge line": b'{"event":"' + b"x" * (9 << 20) + b'"}\n',
    "not UTF-8": b'{"event":"\xff\xfe"}\n',
    "long number": b'{"event":' + b"9" * 5000 + b"}\n",
}
WRONG = {
    "missing field": {"event": "Token", "pos": 1},
    "string for integer": {**TOKEN, "pos": "1"},
    "true for integer": {**TOKEN, "pos": True},
    "float for integer": {**TOKEN, "pos": 1.5},
    "large integer": {**TOKEN, "pos": 1 << 64},
    "integer for bool": {**TOKEN, "is_eog": 1},
    "odd hex": {**TOKEN, "piece": "6"},
    "no hex": {**TOKEN, "piece": "zz"},
    "blank in hex": {**TOKEN, "piece": "6 1 "},
    "unicode digits": {**TOKEN, "piece": "\u0661\u0661"},
    "null": {**TOKEN, "piece": None},
    "object for list": {**VERIFIED, "draft_ids": {}},
    "string in list": {**VERIFIED, "draft_ids": ["5"]},
    "null in list": {**VERIFIED, "margins": [None]},
    "margins too short": {**VERIFIED, "margins": []},
    "verdicts too long": {**VERIFIED, "verdicts": ["accept", "accept"]},
    "draws too short": {**VERIFIED, "target_ids": [6, 7], "margins": [1, 1], "near_ties": [True, True],
                        "draws": [{"pos": 1}]},
    "accepted more than drafted": {**VERIFIED, "n_accepted": 2},
    "accepted less than none": {**VERIFIED, "n_accepted": -1},
    "no rows": {**VERIFIED, "target_ids": [], "margins": [], "near_ties": []},
    "p too short": {"event": "Drafted", "round": 0, "pos0": 0, "id_last": 1, "ids": [], "n_cooldown": 0,
                    "steps": [{"pos": 1, "candidates": [1, 2], "p": [0.5], "margin": 0.1, "is_taken": True}]},
    "step is a list": {"event": "Drafted", "round": 0, "pos0": 0, "id_last": 1, "ids": [], "n_cooldown": 0,
                       "steps": [[]]},
}  # fmt: skip


@pytest.mark.parametrize("form", [[], ["--text"], ["--json"]], ids=["rounds", "text", "json"])
@pytest.mark.parametrize("name", [*HOSTILE, *WRONG])
@pytest.mark.covering
def test_what_is_no_trace_ends_in_one_line(name, form, tmp_path, capsys):
    path = write_lines(tmp_path, *((HOSTILE[name],) if name in HOSTILE else (START, WRONG[name])))
    code, _, err = show(capsys, path, *form)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("mtpref trace: error: ")
    assert re.search(r"line \d+: ", line)
    assert len(line) < 400
    assert line.isprintable()


@pytest.mark.parametrize("argv", [["--rounds", "3-1"], ["--rounds", "x"], ["--run", "0"], ["--run", "9"]])
def test_bad_choices_end_in_one_line(argv, trace, capsys):
    code, _, err = show(capsys, trace[0], *argv)
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        code, _, err = show(capsys, path)
        assert code == 2
        assert str(path) in err


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "long.jsonl"
    drafted = {"event": "Drafted", "round": 0, "pos0": 0, "id_last": 1, "ids": [5], "steps": [], "n_cooldown": 0}
    block = b"".join(json.dumps(r).encode() + b"\n" for r in (drafted, VERIFIED, *[TOKEN] * 8))
    path.write_bytes(json.dumps(START).encode() + b"\n" + block * 3000)
    assert path.stat().st_size > 3_000_000
    tracemalloc.start()
    n_rounds = sum(isinstance(item, Round) for item in rounds_of(read_trace(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rounds == 3000
    assert peak < 1_000_000


# SHOW


def test_every_draft_verdict_roll_back_and_reason_is_shown(trace, capsys):
    path, runs = trace
    code, out, err = show(capsys, path)
    assert code == 0
    assert err == ""
    statistics = [run.statistics for run, _ in runs]
    assert out.count("  accept    ") == sum(s.n_accepted for s in statistics)
    assert len(re.findall("  (?:accept |reject |discard)   ", out)) == sum(s.n_drafted for s in statistics)
    assert len(re.findall(r"^round \d+ ", out, re.M)) == sum(s.n_rounds for s in statistics)
    assert out.count("cooldown, rounds of silence left") == statistics[0].n_cooldown_rounds > 0
    assert out.count("rolled back") == sum(type(e).__name__ == "RolledBack" for _, events in runs for e in events)
    assert re.findall(r"^ended  by (\w+)", out, re.M) == ["length", "length", runs[2][1][-1].reason]
    assert re.findall(r"^run (\d)", out, re.M) == ["1", "2", "3"]
    for word in ("u_accept", "u_residual", "p_accept", "p_target", "below p_min", "bonus", "correction", "plain"):
        assert word in out
    assert "\x1b" not in out


@pytest.mark.parametrize("width", [32, 40, 61, 80, 132])
def test_no_line_exceeds_the_width(width, trace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = show(capsys, trace[0])
    assert max(cells(line) for line in out.splitlines()) <= width
    assert out.count("reject") >= 3


def test_near_ties_are_marked(tmp_path, capsys):
    drafted = {"event": "Drafted", "round": 0, "pos0": 0, "id_last": 1, "ids": [5], "steps": [], "n_cooldown": 0}
    path = write_lines(tmp_path, START, drafted, {**VERIFIED, "near_ties": [True], "margins": [0.001]}, TOKEN, ENDED)
    assert "near tie" in show(capsys, path)[1]
    assert "near tie" not in show(capsys, write_lines(tmp_path, START, drafted, VERIFIED, TOKEN, ENDED))[1]


def test_reused_prompt_tokens_are_told(tmp_path, capsys):
    progress = {"event": "PromptProgress", "n_done": 9, "n_total": 9, "n_reused": 7}
    path = write_lines(tmp_path, {**START, "prompt_ids": [1] * 10, "n_reused": 7}, progress, ENDED)
    assert "prompt of 10 tokens, 7 of them reused" in show(capsys, path)[1]


def test_a_fault_that_was_injected_is_told(tmp_path, capsys):
    argv = ["generate", "-p", "def main", "-n", "8", "--trace", str(tmp_path / "sick.jsonl")]
    assert main([*argv, "--fault", "G1", "--fault", "K1"]) == 0
    capsys.readouterr()
    _, out, _ = show(capsys, tmp_path / "sick.jsonl")
    told = re.search(r"changed on purpose: (\S+), (\S+)", " ".join(out.split()))
    assert [id.split("-")[0] for id in told.groups()] == ["G1", "K1"]
    assert main(argv) == 0
    assert '"changes"' not in (tmp_path / "sick.jsonl").read_text()


def test_chosen_rounds_and_runs(trace, capsys):
    path, runs = trace
    _, out, _ = show(capsys, path, "--rounds", "1-2", "--run", "1")
    assert re.findall(r"^round (\d+)", out, re.M) == ["1", "2"]
    assert f"({runs[0][0].statistics.n_rounds - 3} rounds not shown)" in out
    assert re.findall(r"^run (\d)", out, re.M) == ["1"]


def test_the_text_alone_is_the_text_of_the_runs(trace, capsys):
    path, runs = trace
    _, out, err = show(capsys, path, "--text")
    assert out == "".join(run.text + "\n" for run, _ in runs)
    assert err == ""


def test_coloured_text_loses_nothing_and_tells_the_origin(trace, capsys):
    path, runs = trace
    _, out, _ = show(capsys, path, "--text", "--color", "always")
    assert re.sub(r"\x1b\[[\d;]*m", "", out) == "".join(run.text + "\n" for run, _ in runs)
    green = "".join(re.findall(r"\x1b\[32m(.*?)\x1b\[0m", out, re.S))
    tokens = [e for _, events in runs for e in events if type(e).__name__ == "Token"]
    assert green == b"".join(t.piece for t in tokens if t.source == "draft").decode()


def test_what_a_stop_string_held_back_is_not_shown(tmp_path, capsys):
    held = {**TOKEN, "piece": b"abc".hex(), "text": b"a".hex(), "source": "draft"}
    path = write_lines(tmp_path, START, held, {**TOKEN, "piece": b"de".hex(), "text": b"b".hex()}, ENDED)
    assert show(capsys, path, "--text")[1] == "ab\n"
    path = write_lines(tmp_path, START, held, {**ENDED, "text": b"bc".hex()})
    assert show(capsys, path, "--text")[1] == "abc\n"


def test_control_characters_of_model_text_never_reach_the_terminal(tmp_path, capsys):
    evil = {**TOKEN, "piece": b"\x1b]0;x\x07\xc2\x9b\xe2\x80\xae\xff".hex(), "text": b"\x1b]0;x\x07\xc2\x9b".hex()}
    start = {**START, "model": "\x1b[2J", "numerics": "\x07", "contract": {"\x1b": "\x1b"},
             "settings": {"spec_type": "x", "rollback": "\x1b", "policy": {"n_max": "\x1b"}}}  # fmt: skip
    verified = {**VERIFIED, "verdicts": ["\x1b[31m"]}
    drafted = {"event": "Drafted", "round": 0, "pos0": 0, "id_last": 1, "ids": [5], "steps": [], "n_cooldown": 0}
    rolled = {"event": "RolledBack", "round": 0, "strategy": "\x1b", "from_pos": 2, "to_pos": 1, "n_replayed": 0}
    path = write_lines(
        tmp_path, start, drafted, verified, rolled, {**evil, "source": "\x1b"}, {**ENDED, "reason": "\x07"}
    )
    for form in ([], ["--text"], ["--json"]):
        _, out, err = show(capsys, path, *form)
        assert all(c.isprintable() or c == "\n" for c in out + err)


def test_json_is_normal_form(trace, capsys):
    path, runs = trace
    _, out, _ = show(capsys, path, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert records[0]["schema"] == "mtpref-trace-show-1"
    assert [r["kind"] for r in records].count("run") == 3
    rounds = [r for r in records if r["kind"] == "round"]
    assert [t["id"] for r in rounds for t in r["tokens"]] == [id for run, _ in runs for id in run.ids]
    drafts = [d for r in rounds for d in r["draft"]]
    assert sum(d["verdict"] == "accept" for d in drafts) == sum(run.statistics.n_accepted for run, _ in runs)
    assert all(0 < d["p"] <= 1 for d in drafts if d["p"] is not None)
    _, out, _ = show(capsys, path, "--json", "--rounds", "1", "--run", "2")
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["run", "round", "end"]


def test_a_model_names_rejected_tokens(trace, tmp_path, capsys):
    path, _ = trace
    other = tmp_path / "other.jsonl"  # the embedded model's tokens are named anyway
    other.write_bytes(path.read_bytes().replace(b'"mtpref-tiny"', b'"another"'))
    _, bare, _ = show(capsys, other)
    _, named, _ = show(capsys, other, "-m", ROOT / "mtpref" / "data" / "tiny.gguf")
    _, own, _ = show(capsys, path)
    assert re.search(r" #\d+ .*reject", bare)
    assert not re.search(r" #\d+ .*reject", named)
    assert own == named.replace("another", "mtpref-tiny")


def test_standard_input_is_read(trace, tmp_path):
    command = [sys.executable, "-m", "mtpref", "trace", "show", "-", "--text"]
    done = subprocess.run(command, input=trace[0].read_bytes(), capture_output=True, cwd=ROOT, check=True)
    assert done.stdout.decode() == "".join(run.text + "\n" for run, _ in trace[1])


def test_showing_a_trace_loads_no_compiler(trace):
    code = "import sys; from mtpref.front.cli import main; main(sys.argv[1:]); print('numba' in sys.modules)"
    command = [sys.executable, "-c", code, "trace", "show", trace[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# COLOUR


class Stream:
    def __init__(self, is_tty):
        self.is_tty = is_tty

    def isatty(self):
        return self.is_tty


@pytest.mark.parametrize(
    ("mode", "is_tty", "env", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", False, {"FORCE_COLOR": "0"}, False),
        ("auto", False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colours_are_where_they_are_wanted(mode, is_tty, env, expected, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wants_color(mode, Stream(is_tty)) == expected


def test_widths_count_columns_not_characters():
    assert cells("abc") == 3
    assert cells("\u4e2d\u6587") == 4
    assert cells("e\u0301") == 1
    assert fit("\u4e2d\u6587\u4e2d\u6587", 6) == "\u4e2d..."
    assert cells(fit("\u4e2d\u6587\u4e2d\u6587", 6)) <= 6


def test_quoted_pieces_are_one_line():
    assert quoted(b"a\n\t'\\") == r"'a\n\t\'\\'"
    assert quoted(b"\xe4\xbd") == r"'\xe4\xbd'"
    assert quoted("\u4e2d".encode()) == "'\u4e2d'"


def test_no_event_is_an_error_everywhere(tmp_path):
    with pytest.raises(MtprefError, match="holds no event"):
        list(read_trace(write_lines(tmp_path, b"\n\n")))
