"""Verbs on gemma4 and its assistant: what works, and what is refused in one line. The table: docs/architectures.md."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from tests.micro_moe import assistant, standard

TARGET, MOE = "micro-gemma4-q8_0", "micro-gemma4-moe-q8_0"
PROMPT = "hello world of things"
ROOT = Path(__file__).parent.parent
QUANTISED = json.loads((Path(__file__).parent / "data" / "quantized_gemma.json").read_text())


@pytest.fixture
def run(capsys):
    def made(*words, code=0):
        capsys.readouterr()
        got = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert got == code, (out + err)[-2000:]
        return out, err

    return made


@pytest.fixture
def both():
    return "-m", standard(TARGET), "-md", assistant(TARGET)


def refusal(run, *words):
    """The one line of a refusal."""
    out, err = run(*words, code=2)
    assert out == ""
    (line,) = err.strip().splitlines()
    return line


LAYERS = {TARGET: "3 window, 2 full", MOE: "2 window_moe, 2 full_moe"}


@pytest.mark.parametrize("name", LAYERS)
def test_inspect(run, name):
    out, _ = run("inspect", standard(name))
    assert f"layers: {LAYERS[name]}" in out
    assert "MTP head: not in this file: an assistant drafts for such models" in out
    assert out.rstrip().endswith("problems (0)\n  none")
    out, _ = run("inspect", assistant(name))
    assert "this is an assistant of gemma4 models" in out
    assert "MTP head: this whole file: an assistant, which drafts for its target" in " ".join(out.split())
    assert out.rstrip().endswith("problems (0)\n  none")
    assert json.loads(run("inspect", assistant(name), "--json")[0])["mtp"]["status"] == "assistant"


def test_check_accuses_no_healthy_file(run):
    found = json.loads(run("check", standard(TARGET), "--json", code=3)[0])
    assert found["is_sound"] is None
    assert [f["id"] for f in found["findings"] if f["severity"] == "cannot-judge"] == ["head-apart"]
    assert "mtpref check TARGET -md ASSISTANT" in found["verdict"]
    found = json.loads(run("check", standard(TARGET), "-md", assistant(TARGET), "--json")[0])
    assert found["is_sound"] is True
    assert not found["was_run"]
    assert {f["severity"] for f in found["findings"]} <= {"ok", "note"}
    assert "an assistant of gemma4 models" in refusal(run, "check", assistant(TARGET))


def test_check_finds_a_weight_that_is_zero(run, tmp_path):
    path = tmp_path / "a.gguf"
    data = bytearray(assistant(TARGET).read_bytes())
    with open_gguf(assistant(TARGET)) as file:
        info = file.tensors["blk.1.attn_output.weight"]
        start = info.offset
        data[start : start + info.n_bytes] = bytes(info.n_bytes)
    path.write_bytes(data)
    found = json.loads(run("check", standard(TARGET), "-md", path, "--json", code=1)[0])
    assert ("tensor-zero", "blk.1.attn_output.weight") in {(f["id"], f["what"]) for f in found["findings"]}


def test_heads_are_neither_taken_out_nor_put_in(run, tmp_path):
    target, own, out = standard(TARGET), assistant(TARGET), tmp_path / "x.gguf"
    for verb in ("extract", "strip"):
        assert "nothing to extract or to strip" in refusal(run, verb, target, "-o", out)
        assert "a head in a file of its own already" in refusal(run, verb, own, "-o", out)
    assert "have no place for an MTP head" in refusal(run, "graft", target, own, "-o", out, "--no-probe")
    assert "a head in a file of its own already" in refusal(run, "graft", own, target, "-o", out, "--no-probe")
    assert not out.exists()


def test_generate(run, both):
    out, err = run("generate", *both, "-p", PROMPT, "-n", 20, "--spec-draft-n-max", 3)
    plain, _ = run("generate", "-m", standard(TARGET), "-p", PROMPT, "-n", 20, "--spec-type", "none")
    assert out == plain
    n_drafted, n_accept = (int(re.search(rf"^{n} +=? *(\d+)", err, re.MULTILINE)[1]) for n in ("n_drafted", "n_accept"))
    assert 0 < n_accept < n_drafted
    assert "give its target with -m" in refusal(run, "generate", "-m", assistant(TARGET), "-p", PROMPT, "-n", 4)


def test_dump_has_the_assistants_first_step(run, both, tmp_path):
    run("dump", *both, "-p", PROMPT, "-o", tmp_path / "a.gguf")
    with open_gguf(tmp_path / "a.gguf") as file:
        names = {name.split(".")[-1] for name in file.tensors}
    assert {"mtp_pre_proj-0", "mtp_Qcur_pos-1", "mtp_l_out-2", "mtp_h_nextn", "inp_scaled", "out_scaled-4"} <= names
    assert "no tensor differs" in run("compare", tmp_path / "a.gguf", tmp_path / "a.gguf")[0]
    run("dump", *both, "-p", PROMPT, "-o", tmp_path / "b.gguf", "--numerics", "exact")
    assert "first divergence" in run("compare", tmp_path / "a.gguf", tmp_path / "b.gguf", code=1)[0]


def test_what_cannot_follow_an_assistant_says_so(run, both, tmp_path):
    assert "-md" in refusal(run, "golden", "gen", *both, "-p", PROMPT, "-o", tmp_path / "g", "-n", 2)
    assert "no MTP head" in refusal(run, "probe", "-m", standard(TARGET), "-f", ROOT / "README.md")
    dumped = tmp_path / "a.gguf"
    run("dump", "-m", standard(TARGET), "-p", PROMPT, "-o", dumped)
    assert "no MTP head" in refusal(run, "diagnose", "-m", standard(TARGET), "--dump", dumped)


def test_probe(run, both):
    out, _ = run("probe", *both, "-f", ROOT / "LICENSE", "--positions", 20, "-c", 64, "--spec-draft-n-max", 2, "--json")
    found = json.loads(out)
    assert found["n_positions"] > 0
    assert len(found["against_trunk"]["unconditional"]) == 2
    assert "prime=none" not in {control["name"] for control in found["controls"]}


@pytest.mark.slow
def test_diagnose_of_a_dump_a_trace_and_rates(run, both, tmp_path):
    dumped, trace = tmp_path / "a.gguf", tmp_path / "t.jsonl"
    run("dump", *both, "-p", PROMPT, "-o", dumped)
    assert run("diagnose", *both, "--dump", dumped)[0].startswith("HEALTHY, contract llama.cpp")
    run("dump", *both, "-p", PROMPT, "-o", dumped, "--fault", "G20")
    assert run("diagnose", *both, "--dump", dumped, code=1)[0].startswith("FOUND: G20-embedding-unscaled")
    run("generate", *both, "-p", PROMPT, "-n", 24, "--trace", trace)
    assert run("diagnose", *both, "--log", trace)[0].startswith("HEALTHY, contract llama.cpp")
    run("generate", *both, "-p", PROMPT, "-n", 24, "--trace", trace, "--fault", "K16", "--spec-draft-n-max", 4)
    assert "K16-position-advances" in run("diagnose", *both, "--log", trace, code=1)[0].splitlines()[0]
    assert run("diagnose", *both, "--stats", "0.7,0.5")[0]


@pytest.mark.slow
def test_selftest_story_and_golden_of_the_target(run, both, tmp_path):
    found = json.loads(run("selftest", *both, "--quick", "--json")[0])["checks"]
    assert "FAIL" not in {row["result"] for row in found}
    assert sum(row["result"] == "PASS" for row in found) >= 12
    assert "12 / 12 = 1.00" in run("story", *both, "-p", PROMPT, "-n", 12)[0]
    run("golden", "gen", "-m", standard(TARGET), "-p", PROMPT, "-o", tmp_path / "g", "-n", 3)
    assert "passed" in "".join(run("golden", "check", tmp_path / "g", "-m", standard(TARGET))).lower()


@pytest.mark.slow
def test_plan_prices_no_catching_up(run, both):
    out, _ = run("plan", *both, "-f", ROOT / "README.md", "--prompts", 1, "-n", 12, "--prompt-tokens", 12)
    assert "best: " in out


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_files_are_llama_quantizes(run, case, tmp_path):
    """Recorded: llama-quantize of 0c1e57098 on the same files."""
    name, kind = case.rsplit(" ", 1)
    out = tmp_path / "x.gguf"
    run("quantize", standard(name), out, kind, "--pure-llama")
    assert hashlib.sha256(out.read_bytes()).hexdigest() == QUANTISED[case]


def test_an_assistants_layers_are_kept_in_eight_bits_unless_told_otherwise(run, tmp_path):
    out = tmp_path / "x.gguf"
    run("quantize", assistant("micro-gemma4-f32"), out, "Q4_0")
    with open_gguf(out) as file:
        kinds = {
            info.type_name for name, info in file.tensors.items() if name.startswith("blk.") and len(info.shape) > 1
        }
    assert kinds == {"Q8_0"}
