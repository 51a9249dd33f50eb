"""Every verb on every architecture with experts: one table, one small model of each, a value asserted of each run.

By default each verb runs on one architecture, the next verb on the next one; --slow runs the whole product. The page
docs/architectures.md has the same table. gemma4 stands in it with its assistant: where its head is no block of the
target's file, a verb that is about such blocks is asserted to refuse it, in a line (APART).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from tests import chain_folder, gemma_folder
from tests.gguf_copy import copy_of
from tests.micro_moe import assistant, standard
from tests.moe_folder import TOKENIZERS, folder

ROOT = Path(__file__).parent.parent
CHAINED = ("step35", "mimo2")  # of three heads each
ASSISTED = "gemma4"
ARCHS = (*TOKENIZERS, *CHAINED, ASSISTED)
PROMPT = "hello world of things"
BLOCKS = {"qwen35moe": "3 delta_net, 1 attention, 1 mtp", "qwen3next": "3 delta_net, 1 attention, 1 mtp",
          "glm4moe": "1 dense, 3 moe, 1 mtp", "hy_v3": "1 dense, 3 moe, 1 mtp",
          "deepseek2": "1 dense, 3 moe, 1 mtp", "deepseek32": "1 dense, 3 moe, 1 mtp",
          "glm-dsa": "1 dense, 3 moe, 1 mtp",
          "deepseek4": "1 selected, hashed, 1 compressed, 1 window, 1 selected, 1 mtp",
          "cohere2moe": "1 dense, 3 moe, 1 mtp", "nemotron_h_moe": "1 ssm, 1 attention, 2 moe, 1 mtp",
          "bailingmoe3": "1 kda_dense, 2 kda_moe, 1 mla_moe, 1 mtp",
          **dict.fromkeys(CHAINED, "2 dense, 2 moe, 3 mtp")}  # fmt: skip
VERBS: dict[str, Callable] = {}
# What is said of a verb in the column of gemma4 in place of "yes", and what shows it.
APART: dict[str, tuple[str, Callable]] = {}


@dataclass
class Bench:
    """One model and what runs verbs on it."""

    arch: str
    model: Path
    folder: Path
    capsys: pytest.CaptureFixture

    def run(self, *words: object, code: int | tuple[int, ...] = 0) -> tuple[str, str]:
        """stdout and stderr of a verb."""
        self.capsys.readouterr()
        got = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        assert got in (code if isinstance(code, tuple) else (code,)), err[-2000:]
        return out, err

    @property
    def both(self) -> tuple[object, ...]:
        """The model, and what drafts for it where that is a file of its own."""
        md = ("-md", assistant(self.model.stem)) if self.arch == ASSISTED else ()
        return ("-m", self.model, *md)

    def refused(self, *words: object) -> str:
        """The one line of a refusal."""
        out, err = self.run(*words, code=2)
        assert out == ""
        (line,) = err.strip().splitlines()
        return line

    @property
    def n_heads(self) -> int:
        return 3 if self.arch in CHAINED else 1

    def is_of_a_head(self, name: str) -> bool:
        return name.startswith(tuple(f"blk.{4 + i}." for i in range(self.n_heads)))

    def checkpoint(self, dtype: str = "BF16") -> Path:
        make = chain_folder.folder if self.arch in CHAINED else folder
        return Path(make(self.at("hf"), self.arch, dtype=dtype))

    @property
    def pre(self) -> list[str]:
        """The chains' checkpoints have a tokenizer that no name of llama.cpp is found for."""
        return ["--pre", chain_folder.PRE] if self.arch in CHAINED else []

    def at(self, name: str) -> Path:
        return self.folder / name

    def parts(self) -> tuple[Path, Path]:
        """The trunk and the head apart."""
        trunk, head = self.at("trunk.gguf"), self.at("mtp-head.gguf")
        self.run("strip", self.model, "-o", trunk)
        self.run("extract", self.model, "-o", head)
        return trunk, head


def verb(made: Callable) -> Callable:
    VERBS[made.__name__.replace("_", " ").strip()] = made
    return made


def apart(cell: str) -> Callable[[Callable], Callable]:
    """What is true of gemma4 in place of the verb before."""

    def made(shows: Callable) -> Callable:
        APART[list(VERBS)[-1]] = (cell, shows)
        return shows

    return made


# FILES


@verb
def inspect(b):
    out, _ = b.run("inspect", b.model)
    assert f"layers: {BLOCKS[b.arch]}" in out
    assert "MTP head: present" in out
    assert out.rstrip().endswith("problems (0)\n  none")
    report = json.loads(b.run("inspect", b.model, "--json")[0])
    assert report["mtp_memory"]["on"]["weights"] == sum(
        t["bytes"] for t in report["tensors"] if b.is_of_a_head(t["name"])
    )


@apart("yes")
def inspect_both(b):
    out, _ = b.run("inspect", b.model)
    assert "layers: 3 window, 2 full" in out
    assert "MTP head: not in this file: an assistant drafts for such models" in out
    assert "MTP head: the file is one" in b.run("inspect", assistant(b.model.stem))[0]


@verb
def check(b):
    """Planted models read no text; that is all that there is to say of them."""
    found = json.loads(b.run("check", b.model, "--json")[0])["findings"]
    bad = {f["id"] for f in found if f["severity"] in ("fail", "warning", "cannot-judge")}
    assert bad == {"no-text"}
    text = next(f["text"] for f in found if f["id"] == "acceptance")
    assert 0.4 < float(re.search(r"a_1 (\S+)", text)[1]) < 0.9


@apart("tensors")
def check_both(b):
    """Of tensors and values, not of acceptance."""
    found = json.loads(b.run("check", b.model, "-md", assistant(b.model.stem), "--json")[0])
    assert found["is_sound"] is True
    assert not found["was_run"]


@verb
def extract(b):
    trunk, head = b.parts()
    with open_gguf(b.model) as whole, open_gguf(trunk) as t, open_gguf(head) as h:
        assert set(t.tensors) | set(h.tensors) == set(whole.tensors)
        assert set(filter(b.is_of_a_head, whole.tensors)) == set(whole.tensors) - set(t.tensors)
        assert t.kv[f"{b.arch}.block_count"] == 4
        assert h.kv[f"{b.arch}.nextn_predict_layers"] == b.n_heads
    assert "MTP head: present" in b.run("inspect", head)[0]


@apart("refused")
def nothing_to_extract(b):
    for word in ("extract", "strip"):
        assert "nothing to extract or to strip" in b.refused(word, b.model, "-o", b.at("x.gguf"))
    assert not b.at("x.gguf").exists()


@verb
def graft(b):
    trunk, head = b.parts()
    b.run("graft", trunk, head, "-o", b.at("whole.gguf"), "--no-probe")
    assert b.at("whole.gguf").read_bytes() == b.model.read_bytes()


@apart("refused")
def no_place_for_a_head(b):
    own = assistant(b.model.stem)
    assert "have no place for an MTP head" in b.refused("graft", b.model, own, "-o", b.at("x.gguf"), "--no-probe")


@verb
def graft_from_a_checkpoint(b):
    source = b.checkpoint("F32")
    for which, flag in (("whole", []), ("trunk", ["--no-mtp"])):
        b.run("convert", source, "-o", b.at(f"{which}.gguf"), "--outtype", "f32", *flag, *b.pre)
    b.run("graft", b.at("trunk.gguf"), source, "-o", b.at("made.gguf"), "--outtype", "f32", "--no-probe")
    assert b.at("made.gguf").read_bytes() == b.at("whole.gguf").read_bytes()


@apart("refused")
def no_place_for_a_checkpoints_head(b):
    source = gemma_folder.folder(b.at("hf"), "E2B-assistant")
    line = b.refused("graft", b.model, source, "-o", b.at("x.gguf"), "--no-probe")
    assert "an assistant of gemma4 models, which is a head and nothing else" in line


@verb
def convert(b):
    out, err = b.run("convert", b.checkpoint(), "-o", b.at("out.gguf"), "--outtype", "q8_0", *b.pre)
    assert f"MTP blocks: {b.n_heads}" in out + err
    assert "problems (0)" in b.run("inspect", b.at("out.gguf"))[0]


@apart("yes")
def convert_both(b):
    for part, says in (("E2B", "not in this file"), ("E2B-assistant", "the file is one")):
        b.run("convert", gemma_folder.folder(b.at(part), part), "-o", b.at(f"{part}.gguf"), "--outtype", "q8_0")
        out = b.run("inspect", b.at(f"{part}.gguf"))[0]
        assert f"MTP head: {says}" in out
        assert "problems (0)" in out


@verb
def a_head_that_is_counted_and_not_there(b):
    """What llama.cpp does with such a file differs by architecture, and is said before it is tried."""
    keys, tensors = copy_of(b.model)
    write_gguf(b.at("trunk.gguf"), keys, [t for t in tensors if not b.is_of_a_head(t[0])])
    out, _ = b.run("inspect", b.at("trunk.gguf"))
    assert "MTP head: MISSING" in out
    does = (
        "does not load it"
        if b.arch.startswith(("qwen", "deepseek4", "nemotron"))
        else "aborts with --spec-type draft-mtp"
    )
    assert does in " ".join(out.split())
    found = json.loads(b.run("check", b.at("trunk.gguf"), "--fast", "--json", code=1)[0])
    assert "head-dropped" in {f["id"] for f in found["findings"] if f["severity"] == "fail"}
    assert does in next(f["text"] for f in found["findings"] if f["id"] == "head-dropped")


@apart("cannot be")
def no_head_is_counted(b):
    """A target counts none; an assistant that counts another number of heads than it has layers is refused."""
    keys, tensors = copy_of(assistant(b.model.stem))
    keys = [(k, 1 if k.endswith("nextn_predict_layers") else v, kind) for k, v, kind in keys]
    write_gguf(b.at("a.gguf"), keys, tensors)
    line = b.refused("generate", "-m", b.model, "-md", b.at("a.gguf"), "-p", PROMPT, "-n", 2)
    assert "nextn_predict_layers is 1, expected 3 = block_count" in line


@verb
def shards(b):
    b.run("strip", b.model, "-o", b.at("part.gguf"), "--split-max-tensors", 20)
    first = next(b.folder.glob("part-00001-of-*.gguf"))
    b.run("graft", first, b.model, "-o", b.at("again.gguf"), "--no-probe")
    assert b.at("again.gguf").read_bytes() == b.model.read_bytes()


@apart("refused")
def no_shards_without_a_head(b):
    assert "nothing to extract or to strip" in b.refused(
        "strip", b.model, "-o", b.at("part.gguf"), "--split-max-tensors", 20
    )


# RUNS


def counts(err: str) -> str:
    """The lines of n_drafted and n_accept."""
    return "".join(re.findall(r"^n_(?:drafted|accept) .*$", err, re.MULTILINE))


@verb
def generate(b):
    out, err = b.run("generate", "-m", b.model, "-p", PROMPT, "-n", 32, "--spec-draft-n-max", 3)
    assert out == b.run("generate", "-m", b.model, "-p", PROMPT, "-n", 32, "--spec-type", "none")[0]
    trunk, head = b.parts()
    apart, err2 = b.run("generate", "-m", trunk, "-md", head, "-p", PROMPT, "-n", 32, "--spec-draft-n-max", 3)
    assert apart == out
    assert counts(err) == counts(err2) != ""


@apart("yes")
def generate_with_an_assistant(b):
    out, err = b.run("generate", *b.both, "-p", PROMPT, "-n", 24, "--spec-draft-n-max", 3)
    assert out == b.run("generate", "-m", b.model, "-p", PROMPT, "-n", 24, "--spec-type", "none")[0]
    n_drafted, n_accept = (int(re.search(rf"^{n} +=? *(\d+)", err, re.MULTILINE)[1]) for n in ("n_drafted", "n_accept"))
    assert 0 < n_accept < n_drafted


def dumped(b) -> set[str]:
    for name, numerics in (("a", "ggml"), ("b", "exact")):
        b.run("dump", *b.both, "-p", PROMPT, "-o", b.at(f"{name}.gguf"), "--numerics", numerics)
    with open_gguf(b.at("a.gguf")) as file:
        return {name.split(".")[-1] for name in file.tensors}


@verb
def dump(b):
    names = dumped(b)
    assert {"ffn_moe_topk-2", "ffn_moe_weights-2", "ffn_moe_out-2", "mtp_eh_proj-4", "result_output"} <= names


@apart("yes")
def dump_of_an_assistants_first_step(b):
    assert {"mtp_pre_proj-0", "mtp_Qcur_pos-1", "mtp_h_nextn", "inp_scaled", "result_output"} <= dumped(b)


@verb
def compare(b):
    dumped(b)
    assert "no tensor differs" in b.run("compare", b.at("a.gguf"), b.at("a.gguf"))[0]
    assert "first divergence" in b.run("compare", b.at("a.gguf"), b.at("b.gguf"), code=1)[0]


@verb
def probe(b):
    out, _ = b.run("probe", *b.both, "-f", ROOT / "README.md", "--positions", 32, "--no-controls", "--json")
    assert 0.3 < json.loads(out)["against_trunk"]["unconditional"][0]["value"] < 0.95


@verb
def selftest(b):
    out, _ = b.run("selftest", *b.both, "--quick", "--json")
    found = {row["check"]: row["result"] for row in json.loads(out)["checks"]}
    assert "FAIL" not in found.values()
    assert list(found.values()).count("PASS") >= 12


@verb
def story(b):
    out, _ = b.run("story", *b.both, "-p", PROMPT, "-n", 12)
    assert re.search(r"no draft accepted, cooldown .* 12 / 12 = 1\.00", out)


@verb
def plan(b):
    out, _ = b.run("plan", *b.both, "-f", ROOT / "README.md", "--prompts", 1, "-n", 12, "--prompt-tokens", 12)
    assert f"if every draft were right (n={8 if b.n_heads == 1 else b.n_heads})" in out
    assert "best: " in out


@verb
def golden_gen(b):
    b.run("golden", "gen", "-m", b.model, "-p", PROMPT, "-o", b.at("golden"), "-n", 6)
    assert "passed" in "".join(b.run("golden", "check", b.at("golden"), "-m", b.model)).lower()


@apart("target")
def golden_gen_of_the_target(b):
    assert "-md" in b.refused("golden", "gen", *b.both, "-p", PROMPT, "-o", b.at("golden"), "-n", 2)
    VERBS["golden gen"](b)


CHOSEN = [(name, ARCHS[i % len(ARCHS)]) for i, name in enumerate(VERBS)]
EVERY = [
    pytest.param(name, arch, marks=() if (name, arch) in CHOSEN else pytest.mark.slow, id=f"{name}-{arch}")
    for name in VERBS
    for arch in ARCHS
]


@pytest.mark.parametrize(("name", "arch"), EVERY)
def test_a_verb_on_an_architecture(tmp_path, capsys, name, arch):
    shows = APART[name][1] if arch == ASSISTED and name in APART else VERBS[name]
    shows(Bench(arch, standard(f"micro-{arch}-q8_0"), tmp_path, capsys))


def test_the_architectures_are_those_with_experts():
    """What else is true of gemma4 and its assistant is test_gemma_verbs.py's."""
    with_experts = {name for name, sheet in ARCHITECTURES.items() if any(h.name == "n_expert" for h in sheet.hypers)}
    assert set(ARCHS) == with_experts


def test_the_page_has_this_table():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text.split("<!-- verbs -->\n")[1].split("<!-- /verbs -->")[0]
    head = f"| verb | {' | '.join(ARCHS)} |\n|---|{'---|' * len(ARCHS)}\n"
    last = {name: APART[name][0] if name in APART else "yes" for name in VERBS}
    assert table == head + "".join(f"| {name} |{' yes |' * (len(ARCHS) - 1)} {last[name]} |\n" for name in VERBS)
    assert all(f"`{name}`" in text for name in ARCHITECTURES)
