"""`trace html`: what the page holds is what the trace says, nothing of it can run, and bad input is refused."""

import base64
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, RolledBack, Token, Verified
from mtpref.files.vocab import terminal_safe
from mtpref.front.cli import main
from mtpref.look.html import Side, divergence, read_side, render_page, rows
from mtpref.look.trace import read_trace
from tests.report_traces import HOSTILE, long_side, trace_of


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    return {
        "healthy": trace_of(folder / "healthy.jsonl"),
        "faulty": trace_of(folder / "faulty.jsonl", "--fault", "S2"),
        "replay": trace_of(folder / "replay.jsonl", "--spec-rollback", "replay"),
        "drawn": trace_of(folder / "drawn.jsonl", "--temp", "1", "--spec-accept", "residual"),
    }


def data_of(page):
    return json.loads(re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("name", ["healthy", "faulty", "replay", "drawn"])
def test_rows_say_what_the_trace_says(traces, name):
    side = read_side(str(traces[name]))
    with read_trace(traces[name]) as reader:
        events = list(reader)
    tokens = [e for e in events if isinstance(e, Token)]
    assert side.ids == [t.id for t in tokens]
    assert "".join(text for _, text, _, _ in side.tokens) == terminal_safe(
        b"".join(t.piece for t in tokens).decode("utf-8", "replace")
    )
    drafted = [e for e in events if isinstance(e, Drafted)]
    verified = [e for e in events if isinstance(e, Verified)]
    shown = [r for r in side.rounds if r["n"] is not None]
    assert [[d[0] for d in r["d"]] for r in shown] == [e.ids for e in drafted]
    assert [[d[2] for d in r["d"]] for r in shown] == [e.verdicts for e in verified]
    assert [r["a"] for r in shown] == [e.n_accepted for e in verified]
    assert [r["c"] for r in shown] == [e.n_cooldown for e in drafted]
    assert sum(r["b"] is not None for r in shown) == sum(isinstance(e, RolledBack) for e in events) > 0
    assert sum(n for n, _, _ in side.per_pos) == sum(len(e.ids) for e in drafted)
    assert sum(n for _, _, n in side.per_pos) == sum(e.n_accepted for e in verified)
    assert len(side.near_ties) == sum(sum(e.near_ties) for e in verified)
    assert {origin for _, _, origin, _ in side.tokens} >= {"draft", "correction", "cooldown"}
    assert sum(r["t"] for r in side.rounds) == len(side.tokens)
    assert any(len(d[3]) == 10 for r in shown for d in r["d"])
    if name == "drawn":
        assert all(len(d[4]) == 3 for r in shown for d in r["d"] if d[2] != "discard")


def test_a_roll_back_names_the_state_that_was_restored(traces):
    told = {name: [r["b"] for r in read_side(str(traces[name])).rounds if r["b"]] for name in ("healthy", "replay")}
    with read_trace(traces["healthy"]) as reader:
        events = list(reader)
    first = next(e for e in events if isinstance(e, RolledBack))
    drafted = next(e for e in events if isinstance(e, Drafted) and e.round == first.round)
    kept = f"after token {first.to_pos - drafted.pos0} of {len(drafted.ids) + 1} of the batch was chosen"
    assert kept in told["healthy"][0]
    assert f"from position {first.from_pos} to {first.to_pos}" in told["healthy"][0]
    assert "the checkpoint before position" in told["replay"][0]


def test_where_two_runs_part(traces):
    healthy, faulty, replay = (read_side(str(traces[name])) for name in ("healthy", "faulty", "replay"))
    found = divergence(healthy, faulty)
    at = next(i for i, (a, b) in enumerate(zip(healthy.ids, faulty.ids, strict=False)) if a != b)
    assert (found["kind"], found["at"]) == ("text", at)
    assert [side.tokens[at][3] for side in (healthy, faulty)] == found["rounds"]
    assert found["started"] == ["changed on purpose"]
    assert dict(faulty.facts)["changed on purpose"].startswith("S2-")
    assert divergence(healthy, healthy) == {"kind": "none", "at": None, "rounds": None, "started": []}
    found = divergence(healthy, replay)  # the same text, other words for the roll back
    assert (found["kind"], found["started"]) == ("rounds", ["roll back"])
    assert healthy.rounds[found["at"]]["b"] != replay.rounds[found["at"]]["b"]
    other = Side("other", prompt_ids=[*healthy.prompt_ids, 1])
    found = divergence(healthy, other)
    assert (found["kind"], found["at"], found["rounds"]) == ("prompt", len(healthy.prompt_ids), None)
    short = Side("short", prompt_ids=healthy.prompt_ids, ids=healthy.ids[:5], tokens=healthy.tokens[:5])
    assert divergence(healthy, short)["at"] == 5
    assert divergence(healthy, Side("empty", prompt_ids=healthy.prompt_ids))["rounds"] == [healthy.tokens[0][3], None]


def test_runs_that_differ_in_numbers_alone_are_not_called_the_same(traces):
    healthy, other = (read_side(str(traces["healthy"])) for _ in range(2))
    drafting = [i for i, r in enumerate(other.rounds) if r["d"]]
    other.rounds[drafting[3]]["d"][0][3][1][2] *= 1.01  # a probability of a token that was not taken
    found = divergence(healthy, other)
    assert (found["kind"], found["at"], found["started"]) == ("numbers", drafting[3], [])


def test_acceptance_over_time_is_that_of_the_window():
    rounds = [(2, i % 3) for i in range(100)] + [(0, 0)] * 40
    points = rows._over_time(rounds)
    assert len(points) <= rows.N_POINTS
    for at, rate in points:
        part = rounds[max(0, int(at) - 4) : int(at) + 5]
        assert rate == pytest.approx(sum(a for _, a in part) / sum(n for n, _ in part), abs=1e-4)
    assert max(at for at, _ in points) < 110  # nothing was drafted after that


def test_the_policy_admits_the_pages_own_style_and_script_and_nothing_else(traces):
    page = render_page([read_side(str(traces["healthy"]))]).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    style, script = re.search(r"<style>(.*?)</style>", page, re.S)[1], re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(script) == 1
    for kind, text in (("style", style), ("script", script[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_hostile_text_cannot_leave_the_data():
    side = Side(HOSTILE, [("model", HOSTILE)], [1], [2], [[2, HOSTILE, HOSTILE, 0]], notes=[HOSTILE])
    page = render_page([side, side])
    assert data_of(page)["sides"][0]["label"] == HOSTILE
    assert page.count(b"<script") == 2
    assert page.count(b"</script>") == 2
    assert b"<img" not in page
    assert not re.search("[\u2028\u2029\u202e]", page.decode())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("x\u202ey", "x\\u202ey"),
        ("x\u200by\ufeff", "x\\u200by\\ufeff"),
        ("\U000e0041", "\\ue0041"),
        ("e\u0301 \u4e2d \U0001f469\u200d\U0001f680", "e\u0301 \u4e2d \U0001f469\u200d\U0001f680"),
    ],
)
def test_what_hides_or_steers_is_made_visible(text, shown):
    assert rows.visible(text) == shown


def test_the_command_writes_one_file_the_same_each_time(traces, tmp_path, capsys):
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        assert main(["trace", "html", str(traces["healthy"]), str(traces["faulty"]), "-o", str(page)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert data_of(pages[0].read_bytes())["divergence"]["kind"] == "text"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_model_names_the_tokens_that_the_trace_does_not(traces, tmp_path):
    from mtpref.front.api import tiny_path

    bare, named, own = (tmp_path / f"{name}.html" for name in ("bare", "named", "own"))
    other = tmp_path / "other.jsonl"  # the embedded model's tokens are named anyway
    other.write_bytes(traces["healthy"].read_bytes().replace(b'"mtpref-tiny"', b'"another"'))
    assert main(["trace", "html", str(other), "-o", str(bare)]) == 0
    assert main(["trace", "html", str(other), "-o", str(named), "-m", str(tiny_path())]) == 0
    assert main(["trace", "html", str(traces["healthy"]), "-o", str(own)]) == 0
    names = [
        [c[1] for r in data_of(path.read_bytes())["sides"][0]["rounds"] for d in r["d"] for c in d[3]]
        for path in (bare, named, own)
    ]
    assert any(name.startswith("#") for name in names[0])
    assert not any(name.startswith("#") for name in names[1])
    assert names[2] == names[1]
    prompts = [data_of(path.read_bytes())["sides"][0]["prompt"] for path in (bare, named, own)]
    assert prompts[1] == prompts[2] == "Once upon a time"
    assert prompts[0] in ("", prompts[1])


def test_the_commands_of_the_docs_run(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs/trace.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for line in re.search(r"<!-- page -->\n```sh\n(.*?)```", page, re.DOTALL)[1].splitlines():
        program, *argv = shlex.split(line)
        assert (program, main(argv)) == ("mtpref", 0)
    assert data_of((tmp_path / "both.html").read_bytes())["divergence"]["kind"] == "text"
    assert len(data_of((tmp_path / "part.html").read_bytes())["sides"][0]["rounds"]) == 11


def test_a_killed_runs_trace_is_shown_up_to_its_end(traces, tmp_path, capsys):
    whole = traces["healthy"].read_bytes()
    cut, page = tmp_path / "cut.jsonl", tmp_path / "cut.html"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    assert main(["trace", "html", str(cut), "-o", str(page)]) == 0
    assert "the last run has no RunEnded" in capsys.readouterr().err
    shown = data_of(page.read_bytes())["sides"][0]
    assert len(shown["rounds"]) > 5
    assert any("RunEnded" in note for note in shown["notes"])


def test_rounds_and_runs_are_chosen(traces, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_bytes(traces["healthy"].read_bytes() + traces["replay"].read_bytes())
    second = read_side(str(both), run=2, rounds=(3, 6))
    assert [r["n"] for r in second.rounds] == [3, 4, 5, 6]
    assert ("roll back", "replay") in second.facts
    assert "run 2 of 2 in this file; --run shows another" in second.notes


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["missing.jsonl", "-o", "p.html"], "missing.jsonl: cannot be read"),
        (["text.txt", "-o", "p.html"], "text.txt: line 1: no JSON"),
        (["empty.jsonl", "-o", "p.html"], "empty.jsonl: line 0: it holds no event"),
        (["run.jsonl", "-o", "p.html", "--run", "2"], "--run: 2 is out of range, run.jsonl holds 1 runs"),
        (["run.jsonl", "-o", "p.html", "--run", "0"], "--run: 0 is out of range"),
        (["run.jsonl", "-o", "p.html", "--rounds", "9-3"], "--rounds: '9-3' is no range"),
        (["run.jsonl", "-o", "run.jsonl"], "run.jsonl: is one of the inputs"),
        (["run.jsonl", "-o", "folder"], "folder"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(traces, tmp_path, monkeypatch, capsys, argv, named):
    monkeypatch.chdir(tmp_path)
    trace = traces["healthy"].read_bytes()
    (tmp_path / "run.jsonl").write_bytes(trace)
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    assert main(["trace", "html", *argv]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "p.html").exists()
    assert (tmp_path / "run.jsonl").read_bytes() == trace


def test_a_run_of_too_many_rounds_is_refused_and_a_part_of_it_shown(traces, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROUNDS", 10)
    with pytest.raises(MtprefError, match=r"more than 10 rounds, .* choose some with `rounds`"):
        read_side(str(traces["healthy"]))
    assert len(read_side(str(traces["healthy"]), rounds=(0, 8)).rounds) <= 10


def test_ten_thousand_rounds_make_a_page_of_a_few_megabytes():
    assert len(render_page([long_side(10_000)])) < 16 << 20
