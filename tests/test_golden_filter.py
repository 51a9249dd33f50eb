"""The filter protocol and `mtpref golden`: another program answers as mtpref does, and bad programs end in one line."""

import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.front.cli import main
from mtpref.golden import Folder, Port, check_folder
from mtpref.golden.filter import Filter, reply_outputs, request, serve

GOLDEN = Path(__file__).parents[1] / "golden"


def program(tmp_path, body):
    """A program of a few lines that answers `asked`, a request, by setting `reply`."""
    path = tmp_path / "port.py"
    path.write_text(
        f"import sys, json\nfor line in sys.stdin:\n    asked = json.loads(line)\n    {body}\n"
        "    print(json.dumps(reply), flush=True)\n"
    )
    return [sys.executable, str(path)]


def one_case(suite_name):
    folder = Folder(GOLDEN)
    suite = next(folder.suites(name=suite_name))
    case = suite.cases[0]
    tensors = folder.tensors(suite)
    return suite, case, {name: tensors[t] for name, t in case.inputs.items()}


def test_mtpref_behind_the_protocol_answers_with_the_same_bits():
    port = Port(GOLDEN, use_kernels=False)
    for name in ("delta_rule", "top_candidates", "q4_k", "mtp_chain"):
        suite, case, inputs = one_case(name)
        direct = port(suite, case, inputs)
        out = io.StringIO()
        serve(port, [request(GOLDEN, suite, case, inputs)], out)
        through = reply_outputs(out.getvalue(), case.id, "self")
        assert direct.keys() == through.keys()
        for key, value in direct.items():
            assert np.array_equal(np.asarray(value), np.asarray(through[key]))


def test_a_program_that_copies_is_judged(tmp_path):
    command = program(tmp_path, 'reply = {"id": asked["id"], "out": {"y": asked["in"]["x"]}}')
    with Filter(command, GOLDEN) as port:
        results = list(check_folder(Folder(GOLDEN), port, suite="rms_norm"))
    assert {r.case.id: r.verdict for r in results}["rms_norm/zero_row"] == "PASS"
    assert [r.verdict for r in results].count("FAIL") == len(results) - 1


def test_a_program_may_skip(tmp_path):
    command = program(tmp_path, 'reply = {"id": asked["id"], "skip": "not there"}')
    with Filter(command, GOLDEN) as port:
        assert {r.verdict for r in check_folder(Folder(GOLDEN), port, suite="rms_norm")} == {"SKIP"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "ended at case rms_norm/basic"),
        ("reply = [1]", "for another case"),
        ('reply = {"id": "x"}', "for another case"),
        ('reply = {"id": asked["id"]}', "no object 'out'"),
        (
            'reply = {"id": asked["id"], "out": {"y": {"type": "F32", "shape": [3], "data": "AAAA"}}}',
            "3 bytes, expected 12",
        ),
        ('reply = {"id": asked["id"], "out": {"y": {"type": "F9", "shape": [3], "data": ""}}}', "type F9"),
        ('reply = {"id": asked["id"], "out": {"y": 7}}', "no tensor"),
    ],
)
def test_programs_that_break_the_protocol_are_refused(tmp_path, body, message):
    with pytest.raises(MtprefError, match=message), Filter(program(tmp_path, body), GOLDEN) as port:
        list(check_folder(Folder(GOLDEN), port, suite="rms_norm"))


def test_cases_that_cannot_be_answered_end_nothing_and_are_told_last(tmp_path, capsys):
    """Of a folder of another version, by mtpref itself and by a program; the exit code is that of a refusal."""
    copy = tmp_path / "g"
    shutil.copytree(GOLDEN, copy, ignore=shutil.ignore_patterns("runners", "models", "L[02-6]*"))
    suite, manifest = copy / "L1-operations" / "rms_norm.json", copy / "manifest.json"
    data = json.loads(suite.read_text())
    n, first = len(data["cases"]), data["cases"][0]
    first["params"] = {"epsilon": first["params"]["eps"]}
    suite.write_text(json.dumps(data))
    index = json.loads(manifest.read_text())
    for record in index["files"]:
        if record["path"] == "L1-operations/rms_norm.json":
            record["sha256"] = hashlib.sha256(suite.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(index))
    served = f"{sys.executable} -m mtpref golden port {copy}"
    for ask in ([], ["--cmd", served]):
        assert main(["golden", "check", str(copy), "--suite", "rms_norm", *ask]) == 2
        out, err = capsys.readouterr()
        assert out.splitlines()[0] == f"{n - 1} passed, 0 failed, 0 skipped"
        assert out.splitlines()[1].startswith("UNFIT  ")
        assert "rms_norm/basic" in out.splitlines()[1]
        assert len(out.splitlines()) == 2
        assert err.count("\n") == 1
        assert f"1 of {n} cases could not be answered (the first: rms_norm/basic)" in err
    assert main(["golden", "check", str(copy), "--suite", "rms_norm", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"UNFIT": 1, "PASS": n - 1}
    assert "parameter eps is None" in report["cases"][0]["wrong"][0]


def test_no_program_is_one_line(tmp_path):
    with pytest.raises(MtprefError, match="cannot be started"):
        Filter([str(tmp_path / "none")], GOLDEN)


def test_requests_that_cannot_be_answered_get_an_error():
    out = io.StringIO()
    lines = ["{", "[]", '{"id": 1}', json.dumps({"id": "a/b", "suite": "s", "op": "nothing", "numerics": "exact",
             "params": {}, "in": {}})]  # fmt: skip
    serve(Port(GOLDEN, use_kernels=False), lines, out)
    replies = [json.loads(line) for line in out.getvalue().splitlines()]
    assert ["error" in r for r in replies] == [True, True, True, False]
    assert replies[3] == {"id": "a/b", "skip": "no operation nothing"}


def test_golden_check_counts_and_exit_codes(capsys, tmp_path):
    assert main(["golden", "check", str(GOLDEN), "--level", "L0", "--ops", "spec"]) == 0
    assert capsys.readouterr().out.endswith(" 0 failed, 0 skipped\n")
    command = " ".join(program(tmp_path, 'reply = {"id": asked["id"], "out": {}}'))
    assert main(["golden", "check", str(GOLDEN), "--suite", "swiglu", "--cmd", command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"FAIL": 2}
    assert report["cases"][0]["wrong"] == ["y: missing in the answer"]


def test_golden_list_names_every_suite(capsys):
    assert main(["golden", "list", str(GOLDEN)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(re.match(r"L\d  ", line) is not None for line in lines) == len(list(Folder(GOLDEN).suites()))
    assert main(["golden", "list", str(GOLDEN), "--json", "--suite", "rope"]) == 0
    assert json.loads(capsys.readouterr().out)["suites"][0]["cases"][0] == "rope/basic"


@pytest.mark.parametrize(
    "arguments", [["check", "nowhere"], ["list", "nowhere"], ["check", str(GOLDEN), "--level", "L9"]]
)
def test_wrong_use_is_one_line_and_exit_code_two(capsys, arguments):
    assert main(["golden", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
