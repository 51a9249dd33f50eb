"""The benchmark: what it counts, what it prints, the llama-bench beside it, and refusals. No time is judged."""

import json
import os
import stat
import subprocess
import sys

import pytest

from mtpref import kernels, spec
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import MtpDrafter, Options, PolicyConfig, ScriptedDrafter, Statistics
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.front import cli
from mtpref.measure.bench.llama import LlamaBench
from mtpref.measure.bench.passes import Passes
from mtpref.measure.bench.render import lines
from mtpref.measure.bench.report import Bench, Row, Settings, bench, head_bytes, some_ids, trunk_bytes
from mtpref.measure.bench.scripted import WorkingDrafter, script
from tests.micro_moe import standard
from tests.models import micro, without_head

SMALL = Settings(n_prompt=16, n_gen=6, widths=(2, 3), n_depth=8, drafts=(1, 2), n_rounds=2)


@pytest.fixture(scope="module")
def found():
    model = micro(60)
    return bench(model, [("full", model), ("first 64", model.with_draft_ids(range(64)))], SMALL, 1)


def test_every_part_has_its_rows_and_a_time_of_every_round(found):
    names = {(row.part, row.name) for row in found.rows}
    heads = ("full", "first 64")
    assert names == {
        ("prompt", "16"), ("decode", "1"), ("verify", "2"), ("verify", "3"),
        *(("draft", head) for head in heads),
        *(("rollback", f"{way} n={n}") for way in ("snapshot", "replay") for n in (1, 2)),
        ("mtp", "plain"), *(("mtp", f"{head} n={n}") for head in heads for n in (1, 2)),
    }  # fmt: skip
    assert all(len(row.ms) == 2 and min(row.ms) > 0 for row in found.rows)
    assert found.row("prompt", "16").n_tokens == 16
    assert found.row("decode", "1").n_tokens == 6


def test_bandwidth_is_measured_around_every_round(found):
    assert len(found.read_gb) == 3
    assert min(found.read_gb) > 0


def test_the_page_and_the_json_say_the_same(found):
    text = "\n".join(lines(found))
    for words in (
        "1 threads, medians of 2",
        "verify: so many tokens",
        "first 64",
        "right with probability 0.8",
        "of plain",
    ):
        assert words in text
    record = found.to_json()
    assert record["schema"] == "mtpref-bench-1"
    assert len(record["rows"]) == len(found.rows)
    json.dumps(record)


def test_a_model_without_a_head_is_measured_without():
    found = bench(without_head(micro(60)), [], SMALL, 1)
    assert {row.part for row in found.rows} == {"prompt", "decode", "verify"}


def test_of_a_chain_every_step_is_timed_and_no_draft_is_longer():
    model = load(standard("micro-step35-f32"), make_recipe("ggml"))
    parts = Settings(parts=("draft", "mtp"), n_gen=6, widths=(2,), n_depth=8, drafts=(2, 3, 5), n_rounds=1)
    found = bench(model, [("full", model)], parts, 1)
    names = [row.name for row in found.rows]
    assert names == ["full", "full step 2", "full step 3", "plain", "full n=2", "full n=3"]
    by_head = [row.n_bytes for row in found.rows[:3]]
    assert by_head == [head_bytes(model, i) for i in range(3)]
    assert len(set(by_head)) > 1  # the second head has experts


def test_bytes_of_a_pass_are_those_of_its_matrices():
    model = micro(60)
    w = model.weights
    matrices = [m for layer in w.layers for m in layer.values() if isinstance(m, spec.Matrix)]
    assert trunk_bytes(model, 0) == sum(m.n_out * m.row_bytes for m in [*matrices, w.output])
    trimmed = model.with_draft_ids(range(64))
    rows = model.n_head_rows - 64
    assert head_bytes(model) - head_bytes(trimmed) == rows * model.heads[0].weights.shared_head_head.row_bytes


def test_rates_shares_and_ratios():
    row = Row("verify", "4", 4, 2_000_000, [1.0, 2.0, 9.0], [3.0, 5.0])
    assert row.rate == 2000
    assert row.ratio == 2
    assert row.share_of(4.0) == pytest.approx(0.25)
    assert row.share_of(None) is None
    assert Row("mtp", "x", 1, 0, [1.0]).share_of(4.0) is None


def test_rows_beside_llama_bench_show_the_ratio():
    rows = (Row("decode", "1", 10, 0, [100.0], [150.0]), Row("rollback", "snapshot n=1", 1, 0, [1.0]),
            Row("verify", "2", 2, 0, [20.0]))  # fmt: skip
    text = "\n".join(lines(Bench(Settings(), 2, rows, (10.0,), "build abc")))
    assert "1.50 x (150 ms)" in text
    assert "5.0 % of the pass" in text
    assert "build abc" in text


# --------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.8, 1.0])
def test_a_script_is_right_as_often_as_asked_and_the_same_every_time(acceptance):
    rounds = script(acceptance, 3, 2000)
    flat = [right for round in rounds for right in round]
    assert sum(flat) / len(flat) == pytest.approx(acceptance, abs=0.02)
    assert rounds == script(acceptance, 3, 2000)


def test_a_working_drafter_runs_the_head_and_proposes_the_script():
    from mtpref.engine.decode import Decoder

    model = micro(30)
    ids, statistics = some_ids(model, 8), Statistics()
    plain = Decoder(model, model.new_state(64), Options(n_predict=12, spec_type="none"))
    text = [event.id for event in plain.run(ids) if hasattr(event, "source")]
    policy = PolicyConfig(n_max=2)
    scripted = ScriptedDrafter(text, [[True, True]], len(ids), model.n_vocab)
    drafter = WorkingDrafter(MtpDrafter(model, statistics), scripted)
    decoder = Decoder(model, model.new_state(64), Options(n_predict=12, policy=policy), drafter)
    assert [event.id for event in decoder.run(ids) if hasattr(event, "source")] == text
    assert decoder.statistics.acceptance == 1.0
    assert statistics.passes["mtp_draft"] >= decoder.statistics.n_drafted


def test_measuring_leaves_the_state_as_it_was():
    model = micro(60)
    passes = Passes(model, [model], some_ids(model, 8), 2)
    before = passes.state.digest()
    passes.trunk(3, keep=3)
    passes.draft(model)
    passes.catch_up(2)
    passes.choose(1)
    assert passes.state.digest() == before


def test_reading_reads_every_word():
    import numpy as np

    for n in (1, 7, 1000):
        values = np.zeros(n, np.int64)
        assert kernels.read_all(values) == 0
        for at in {0, n // 2, n - 1}:
            values[at] = 1 << (at % 60)
        assert kernels.read_all(values) == np.bitwise_or.reduce(values)


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(own, expected):
    code = "import os; from mtpref.kernels.compiling import compile; compile.start_threads();"
    code += "print(compile.threading_layer());"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    settings = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | own
    settings |= {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    layer, left = done.stdout.split()
    assert left == str(own.get("GOMP_SPINCOUNT"))  # the environment of the host process is as it was
    if layer == "omp" and "GOMP_SPINCOUNT" in done.stderr:  # libgomp tells what it read
        assert (f"GOMP_SPINCOUNT = '{expected}'" in done.stderr) == (expected is not None)


# ----------------------------------------------------------------------------------------- llama-bench


FAKE = """#!{python}
import json, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert args["-m"] == "model.gguf" and args["-t"] == "3" and args["-r"] == "1" and args["-fa"] == "1"
rows = [{{"n_prompt": int(p), "n_gen": 0, "avg_ns": 1e6 * int(p)}} for p in args["-p"].split(",") if int(p)]
if int(args["-n"]):
    rows.append({{"n_prompt": 0, "n_gen": int(args["-n"]), "avg_ns": 7e6}})
for row in rows:
    row |= {{"build_commit": "abc", "n_threads": 3, "type_k": "f16", "type_v": "f16"}}
    row |= {{"flash_attn": 1, "cpu_info": "CPU"}}
print(json.dumps(rows))
"""


def program(tmp_path, text):
    path = tmp_path / "llama-bench"
    path.write_text(text.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_llama_bench_is_asked_for_the_same_passes(tmp_path):
    llama = LlamaBench(program(tmp_path, FAKE), "model.gguf", 3, ["-fa", "1"])
    found = llama.run(512, 32, (2, 8), 64, ("prompt", "decode", "verify"))
    assert found == {"prompt 512": 512.0, "decode 1": 7.0, "verify 2": 2.0, "verify 8": 8.0}
    assert llama.about == "build abc, 3 threads, KV f16/f16, -fa 1, CPU"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!{python}\nprint('no JSON')\n", "printed 'no JSON', expected llama-bench's JSON"),
        ("#!{python}\nprint('[{{}}]')\n", "expected llama-bench's JSON"),
        ("#!{python}\nimport sys\nsys.exit('cannot load')\n", "exit code 1: cannot load"),
    ],
)
def test_another_program_is_refused(tmp_path, text, words):
    llama = LlamaBench(program(tmp_path, text), "model.gguf", 1)
    with pytest.raises(MtprefError, match="`llama_bench`") as refused:
        llama.run(8, 8, (2,), 8, ("prompt",))
    assert words in str(refused.value)


# ---------------------------------------------------------------------------------------- command line


def test_the_command_prints_a_table(capsys):
    arguments = ["bench", "-p", "8", "-n", "4", "-d", "4", "-r", "1", "--widths", "2", "--drafts", "1"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "decode: a token at a time" in out
    assert "first 512" in out


def test_the_command_prints_json(capsys):
    assert cli.main(["bench", "-n", "4", "-d", "4", "-r", "1", "--parts", "decode", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in record["rows"]] == ["decode"]


def test_warmup_says_where_and_how_long(capsys):
    assert cli.main(["warmup"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("kernels ready in ")
    assert str(kernels.cache_folder()) in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--parts", "decode,sing"], "--parts: 'sing' is unknown"),
        (["bench", "--widths", "1"], "--widths: 1 is out of range"),
        (["bench", "--widths", "x"], "--widths: 'x' is no list"),
        (["bench", "--drafts", "0"], "--drafts: 0 is out of range"),
        (["bench", "--acceptance", "1.5"], "--acceptance: 1.5 is out of range"),
        (["bench", "-r", "0"], "--repetitions: 0 is out of range"),
        (["bench", "-p", "4096"], "4096 positions, expected at most 2048"),
        (["bench", "--vs-llama-bench", "/nowhere/llama-bench"], "is no program"),
        (["warmup", "--ops", "spec"], "nothing is to be compiled"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
