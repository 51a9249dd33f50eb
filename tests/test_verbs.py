"""Every verb on every architecture with experts: one table, one small model of each, a value asserted of each run.

By default each verb runs on one architecture, the next verb on the next one; --slow runs the whole product. The page
docs/architectures.md has the same table.
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
from tests import chain_folder
from tests.gguf_copy import copy_of
from tests.micro_moe import standard
from tests.moe_folder import TOKENIZERS, folder

ROOT = Path(__file__).parent.parent
CHAINED = ("step35", "mimo2")  # of three heads each
ARCHS = (*TOKENIZERS, *CHAINED)
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


@verb
def check(b):
    """Planted models read no text; that is all that there is to say of them."""
    found = json.loads(b.run("check", b.model, "--json", code=(0, 1))[0])["findings"]
    bad = {f["id"] for f in found if f["severity"] in ("fail", "warning", "cannot-judge")}
    assert bad <= {"trunk-odd", "trunk-useless"}
    text = next(f["text"] for f in found if f["id"] == "acceptance")
    assert 0.4 < float(re.search(r"a_1 (\S+)", text)[1]) < 0.9


@verb
def extract(b):
    trunk, head = b.parts()
    with open_gguf(b.model) as whole, open_gguf(trunk) as t, open_gguf(head) as h:
        assert set(t.tensors) | set(h.tensors) == set(whole.tensors)
        assert set(filter(b.is_of_a_head, whole.tensors)) == set(whole.tensors) - set(t.tensors)
        assert t.kv[f"{b.arch}.block_count"] == 4
        assert h.kv[f"{b.arch}.nextn_predict_layers"] == b.n_heads
    assert "MTP head: present" in b.run("inspect", head)[0]


@verb
def graft(b):
    trunk, head = b.parts()
    b.run("graft", trunk, head, "-o", b.at("whole.gguf"), "--no-probe")
    assert b.at("whole.gguf").read_bytes() == b.model.read_bytes()


@verb
def graft_from_a_checkpoint(b):
    source = b.checkpoint("F32")
    for which, flag in (("whole", []), ("trunk", ["--no-mtp"])):
        b.run("convert", source, "-o", b.at(f"{which}.gguf"), "--outtype", "f32", *flag, *b.pre)
    b.run("graft", b.at("trunk.gguf"), source, "-o", b.at("made.gguf"), "--outtype", "f32", "--no-probe")
    assert b.at("made.gguf").read_bytes() == b.at("whole.gguf").read_bytes()


@verb
def convert(b):
    out, err = b.run("convert", b.checkpoint(), "-o", b.at("out.gguf"), "--outtype", "q8_0", *b.pre)
    assert f"MTP blocks: {b.n_heads}" in out + err
    assert "problems (0)" in b.run("inspect", b.at("out.gguf"))[0]


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


@verb
def shards(b):
    b.run("strip", b.model, "-o", b.at("part.gguf"), "--split-max-tensors", 20)
    first = next(b.folder.glob("part-00001-of-*.gguf"))
    b.run("graft", first, b.model, "-o", b.at("again.gguf"), "--no-probe")
    assert b.at("again.gguf").read_bytes() == b.model.read_bytes()


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


@verb
def dump(b):
    for name, numerics in (("a", "ggml"), ("b", "exact")):
        b.run("dump", "-m", b.model, "-p", PROMPT, "-o", b.at(f"{name}.gguf"), "--numerics", numerics)
    with open_gguf(b.at("a.gguf")) as file:
        names = {name.split(".")[-1] for name in file.tensors}
    assert {"ffn_moe_topk-2", "ffn_moe_weights-2", "ffn_moe_out-2", "mtp_eh_proj-4", "result_output"} <= names


@verb
def compare(b):
    b.run("dump", "-m", b.model, "-p", PROMPT, "-o", b.at("a.gguf"))
    b.run("dump", "-m", b.model, "-p", PROMPT, "-o", b.at("b.gguf"), "--numerics", "exact")
    assert "no tensor differs" in b.run("compare", b.at("a.gguf"), b.at("a.gguf"))[0]
    assert "first divergence" in b.run("compare", b.at("a.gguf"), b.at("b.gguf"), code=1)[0]


@verb
def probe(b):
    out, _ = b.run("probe", "-m", b.model, "-f", ROOT / "README.md", "--positions", 32, "--no-controls", "--json")
    assert 0.3 < json.loads(out)["against_trunk"]["unconditional"][0]["value"] < 0.95


@verb
def selftest(b):
    out, _ = b.run("selftest", "-m", b.model, "--quick", "--json")
    found = {row["check"]: row["result"] for row in json.loads(out)["checks"]}
    assert "FAIL" not in found.values()
    assert list(found.values()).count("PASS") >= 12


@verb
def story(b):
    out, _ = b.run("story", "-m", b.model, "-p", PROMPT, "-n", 12)
    assert re.search(r"no draft accepted, cooldown .* 12 / 12 = 1\.00", out)


@verb
def plan(b):
    out, _ = b.run("plan", "-m", b.model, "-f", ROOT / "README.md", "--prompts", 1, "-n", 12, "--prompt-tokens", 12)
    assert f"if every draft were right (n={8 if b.n_heads == 1 else b.n_heads})" in out
    assert "best: " in out


@verb
def golden_gen(b):
    b.run("golden", "gen", "-m", b.model, "-p", PROMPT, "-o", b.at("golden"), "-n", 6)
    assert "passed" in "".join(b.run("golden", "check", b.at("golden"), "-m", b.model)).lower()


CHOSEN = [(name, ARCHS[i % len(ARCHS)]) for i, name in enumerate(VERBS)]
EVERY = [
    pytest.param(name, arch, marks=() if (name, arch) in CHOSEN else pytest.mark.slow, id=f"{name}-{arch}")
    for name in VERBS
    for arch in ARCHS
]


@pytest.mark.parametrize(("name", "arch"), EVERY)
def test_a_verb_on_an_architecture(tmp_path, capsys, name, arch):
    VERBS[name](Bench(arch, standard(f"micro-{arch}-q8_0"), tmp_path, capsys))


def test_the_architectures_are_those_with_experts():
    """gemma4 is test_gemma_verbs.py's."""
    with_experts = {name for name, sheet in ARCHITECTURES.items() if any(h.name == "n_expert" for h in sheet.hypers)}
    assert set(ARCHS) == with_experts - {"gemma4"}


def test_the_page_has_this_table():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text.split("<!-- verbs -->\n")[1].split("<!-- /verbs -->")[0]
    head = f"| verb | {' | '.join(ARCHS)} |\n|---|{'---|' * len(ARCHS)}\n"
    assert table == head + "".join(f"| {name} |{' yes |' * len(ARCHS)}\n" for name in VERBS)
    assert all(f"`{name}`" in text for name in ARCHITECTURES)
