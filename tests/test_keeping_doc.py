"""The commands of docs/keeping-the-head.md that stand after a marker are run, on the embedded model as model.gguf."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.gguf import open_gguf
from mtpref.front import cli
from tests.hf_folder import read_state, write_checkpoint
from tests.quantised_folder import CASES, case_folder
from tests.range_server import serving
from tests.v3_folder import planted

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/keeping-the-head.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- ([\w-]+) -->\n```sh\n(.*?)```", PAGE, re.DOTALL))


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in BLOCKS[block].splitlines() if line.strip()]


def test_extract_strip_graft(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes((ROOT / "mtpref/data/tiny.gguf").read_bytes())
    texts = []
    for argv in commands("extract-strip-graft"):
        assert argv[0] == "mtpref"
        assert cli.main(argv[1:]) == 0, argv
        texts.append(capsys.readouterr().out)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()
    assert len(texts) == 5
    assert texts[3] == texts[4]


def test_walk_through(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state, config, tokenizer = read_state()
    write_checkpoint(tmp_path / "original", state, config, tokenizer)
    trunk = {name: x for name, x in state.items() if not name.startswith("mtp.")}
    write_checkpoint(tmp_path / "finetuned", trunk, config, tokenizer)
    said = []
    for argv in commands("walk-through"):
        expected = 1 if argv[1:] == ["check", "finetuned"] else 0
        fewer = ["--positions", "64"] if argv[1] == "check" else []  # the page has all: some seconds more
        assert cli.main([*argv[1:], *fewer]) == expected, argv
        said.append(re.sub(r"\n {8}", " ", capsys.readouterr().out))
    assert "head-dropped: mtp_num_hidden_layers: 1 declared, no mtp.* tensor there" in said[0]
    assert "a_1 0.742 [0.690, 0.793]" in said[2]
    assert "the head uses this trunk's hidden rows" in said[2]
    assert "the head is there and nothing is wrong with it" in said[3]
    assert "MTP head: 8 Q8_0; 393 kB more than llama.cpp's types" in said[4]
    assert re.search(r"against-acceptance: \d+ positions: a_1 0\.\d+ .* here, 0\.\d+ .* there, difference", said[5])
    assert cli.main(["convert", "finetuned", "-o", "refused.gguf"]) == 2


def test_the_v3_head_that_was_dropped(tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    planted(tmp_path / "v3")
    said = []
    for argv in commands("v3"):
        expected = 1 if argv[1:] == ["check", "--fast", "dropped.gguf"] else 0
        more = ["--no-probe"] if argv[1] == "graft" else []
        assert cli.main([*argv[1:], *more]) == expected, argv
        both = b"".join(capsysbinary.readouterr()).decode(errors="replace")  # the text is of made weights
        said.append(re.sub(r"\n {8}", " ", both))
    assert (
        "head-absent: deepseek2.nextn_predict_layers: no head: the key is absent or 0, and no nextn tensor is there"
        in said[1]
    )
    assert "the head is there and nothing is wrong with it" in said[3]
    assert re.search(r"^n_drafted = 57\nn_accept  = 35$", said[4], re.MULTILINE)
    with open_gguf("model.gguf") as grafted, open_gguf("anew.gguf") as anew, open_gguf("dropped.gguf") as trunk:
        for name, info in anew.tensors.items():
            assert np.array_equal(anew.data(info), grafted.data(grafted.tensors[name])), name
        assert len(anew.tensors) - len(trunk.tensors) == 24
        assert grafted.kv["deepseek2.block_count"] == trunk.kv["deepseek2.block_count"] + 1 == 5


def test_from_afar(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ROOT / "mtpref/data/tiny.gguf"
    folder = write_checkpoint(tmp_path / "checkpoint", *read_state())
    assert cli.main(["strip", str(tiny), "-o", "trunk.gguf"]) == 0
    assert cli.main(["extract", str(tiny), "-o", "extracted.gguf"]) == 0
    files = {f"/checkpoint/{path.name}": path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    said = []
    with serving({"/model.gguf": tiny.read_bytes(), **files}) as server:
        for argv in commands("from-afar"):
            assert cli.main([word.replace("https://host", server.url) for word in argv[1:]]) == 0, argv
            said.append(capsys.readouterr().out)
    assert "read 262 kB of 4.29 MB in 1 request" in said[0]
    assert (tmp_path / "mtp-model.gguf").read_bytes() == (tmp_path / "extracted.gguf").read_bytes()
    assert "verdict: the head is there" in said[2]
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == sorted(p.name for p in folder.iterdir())
    assert "17 tensors" in said[3]
    assert "MTP blocks: 1" in said[5]


def test_the_table_of_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes((ROOT / "mtpref/data/tiny.gguf").read_bytes())
    assert cli.main(["inspect", "--memory", "model.gguf"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert f"```text\n{table}\n```" in PAGE


def test_a_file_more_of_a_split_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes((ROOT / "mtpref/data/tiny.gguf").read_bytes())
    said = []
    for argv in commands("as-shard"):
        assert cli.main(argv[1:]) == 0, argv
        said.append(" ".join(capsys.readouterr().out.split()))
    assert "trunk-00001-of-00004.gguf: 55 tensors" in said[0]
    assert "whole/trunk-00001-of-00005.gguf: 5 files, 2 of them new: 15 tensors of the head" in said[2]
    assert "the head uses this trunk's hidden rows" in said[2]
    assert "other-counts" in said[3]
    assert (tmp_path / "whole/trunk-00003-of-00005.gguf").samefile(tmp_path / "trunk-00003-of-00004.gguf")
    assert cli.main(["generate", "-m", "model.gguf", "-p", "A letter came for", "-n", "16"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == said[4]


def test_a_quantised_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state, config, tokenizer = read_state()
    write_checkpoint(tmp_path / "original", state, config, tokenizer)
    trunk = {name: x for name, x in state.items() if not name.startswith("mtp.")}
    lost = {key: x for key, x in config.items() if key != "mtp_num_hidden_layers"}
    case_folder(tmp_path / "quantised", CASES["int4"], trunk, lost, tokenizer)
    (tmp_path / "text.txt").write_text((ROOT / "tests/naive.py").read_text()[:6000])
    said = []
    for argv in commands("hf"):
        assert cli.main(argv[1:]) == (1 if argv[1:] == ["check", "--fast", "quantised"] else 0), argv
        said.append(" ".join(capsys.readouterr().out.split()))
    assert "head-absent" in said[0]
    assert "7 matrices in INT4 in groups of 32; 1 file of weights is the base's" in said[1]
    assert "7 matrices in INT4 in groups of 32, 7 of them by GPTQ" in said[2]
    assert "all as the original has it" in said[3]
    assert cli.main(["generate", "-m", "calibrated.gguf", "-p", "A letter came for", "-n", "16"]) == 0


@pytest.mark.parametrize(
    "word",
    [
        "--force",
        "--progress",
        "--split-max-size",
        "--outtype",
        "--probe",
        "--as-shard",
        "--symlink",
        "--copy",
        "--hf",
        "--head-type",
        "--method",
        "--hidden",
    ],
)
def test_options_of_the_page_exist(word, capsys):
    with pytest.raises(SystemExit):
        cli.main(["graft", "--help"])
    assert word in PAGE
    assert word in capsys.readouterr().out
