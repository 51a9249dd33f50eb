"""The tools that record llama.cpp: which lines are kept, whose prompts, what a broken build must show."""

import re
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.look.llama_cpp.log import read_runs
from tools.tiny import prompts

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "llama_cpp"
TEXT = """\
0.00.001.000 I spec common_specu: adding speculative implementation 'draft-mtp'
0.00.002.000 D slot launch_slot_: id  0 | task 0 | sampler params:
\trepeat_last_n = 64, repeat_penalty = 1.000
\ttop_k = 40, top_p = 0.950, temp = 0.000
0.00.003.000 D spec        draft:  - seq_id 0, draft candidate   0, pos   0:    298 (   0.317) '

'
0.00.004.000 D que  process_new_: processing task, id = 0
0.00.005.000 D slot process_toke: id  0 | task 0 | stopped by limit, n_gen = 40, n_predict = 40
0.00.006.000 I n_predict = 49
and a line without a time
0.00.007.000 I accept    = 93.168%
"""


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import record_broken
    import record_logs

    return record_broken, record_logs


def test_lines_that_tell_nothing_are_left_out_and_a_tokens_text_stays_whole(tools):
    _, logs = tools
    lines = TEXT.splitlines(keepends=True)
    assert logs.kept(TEXT, logs.RUN, logs.RUN_REST) == "".join([lines[0], *lines[3:7], lines[9]])
    assert logs.kept(TEXT, logs.COUNTS) == "".join([lines[9], lines[11]])


def prompts_of(path):
    return list(dict.fromkeys(_literal(run.header["prompt"]) for run in read_runs(path)))


def _literal(text):
    return text.rstrip("\n")


def test_the_recordings_hold_the_prompts_of_the_one_place(tools):
    broken, _ = tools
    assert prompts_of(DATA / "tiny.log.gz") == list(prompts.DECISIONS)
    for breakage in (broken.HEALTHY, *broken.BREAKAGES):
        for run in read_runs(DATA / "broken" / f"{breakage}.tiny.log.gz"):
            assert any(prompt.startswith(_literal(run.header["prompt"])) for prompt in prompts.BROKEN)


def test_patch_tool_table_and_files_have_the_same_mistakes(tools):
    broken, _ = tools
    patch = (DATA / "broken" / "broken.patch").read_text()
    table = re.findall(r"(?m)^\| `([a-z-]+)` \|", (DATA / "broken" / "README.md").read_text())
    assert set(re.findall(r'is_broken\("([a-z-]+)"\)', patch)) == set(broken.BREAKAGES)
    assert table == [broken.HEALTHY, *broken.BREAKAGES]
    files = {f"{breakage}.{model}.log.gz" for breakage in table for model in broken.MODELS}
    assert {path.name for path in (DATA / "broken").glob("*.gz")} == files


@pytest.mark.parametrize("missing", [None, "no-prime"])
def test_a_build_that_lacks_a_mistake_is_refused_and_nothing_is_written(tools, monkeypatch, tmp_path, missing):
    broken, _ = tools

    def record_log(bin_dir, model, case, cwd):
        switch = broken.os.environ[broken.SWITCH]
        return f"{model} {case.prompt} {'healthy' if switch == missing else switch}\n"

    monkeypatch.setattr(broken, "record_log", record_log)
    if missing:
        with pytest.raises(MtprefError, match=rf"LLAMA_BROKEN={missing} changes no log \(1 of 12"):
            broken.record(tmp_path, ["tiny"], tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        broken.record(tmp_path, ["tiny"], tmp_path)
        assert len(list(tmp_path.glob("*.tiny.log.gz"))) == 13
    assert broken.SWITCH not in broken.os.environ


def test_a_folder_without_the_programs_ends_in_one_line(tools, tmp_path, capsys):
    broken, logs = tools
    for tool, argv in ((broken, ["--model", "tiny"]), (logs, ["--only", "two"]), (logs, ["--only", "server-np1"])):
        assert tool.main(["--llama-bin", str(tmp_path), "-o", str(tmp_path / "out"), *argv]) == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert "cannot be run (No such file or directory)" in err[-1]
        assert err[-1].startswith(f"{tool.__name__}: ")
