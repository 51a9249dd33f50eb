"""Command lines with bad files and bad options: exit code 2, one line of error, nothing on stdout.

Most run in this process (fuzzing.catalogue.cli_outcome checks what a refusal may print); some as processes whose memory
is limited from the start.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MICRO, cli_outcome
from fuzzing.fields import ARR, F32, STR, U32, Doc, Key, Tensor, array, parse, scalar, text, u64, write

from mtpref.front.api import tiny_path
from tests.hostile_files import GB, with_long_value

ROOT = Path(__file__).parent.parent
DOC = parse(MICRO.read_bytes())


def changed(name: str, kind: int, value: bytes) -> bytes:
    """The micro model with another value of a key."""
    keys = tuple(k for k in DOC.keys if k.name != name.encode())
    return write(Doc((*keys, Key(name.encode(), kind, value)), DOC.tensors, DOC.data))


def number(name: str, n: float, kind: int = U32) -> bytes:
    return changed(f"qwen35.{name}", kind, scalar(kind, n))


def without(name: str) -> bytes:
    """The model without a tensor and its bytes: what leaves a gap is refused for the gap."""
    (at,) = (t.offset for t in DOC.tensors if t.name == name.encode())
    end = min((t.offset for t in DOC.tensors if t.offset > at), default=len(DOC.data))
    kept = (t for t in DOC.tensors if t.name != name.encode())
    tensors = tuple(replace(t, offset=t.offset - (end - at) * (t.offset > at)) for t in kept)
    return write(Doc(DOC.keys, tensors, DOC.data[:at] + DOC.data[end:]))


def reshaped(name: str, ne: tuple[int, ...]) -> bytes:
    tensors = tuple(Tensor(t.name, ne, t.type_id, t.offset) if t.name == name.encode() else t for t in DOC.tensors)
    return write(Doc(DOC.keys, tensors, DOC.data))


NAN = float("nan")
# Model files: bytes, and what the refusal says.
MODELS = {
    "empty": (b"", "the file is empty"),
    "cut in the magic": (b"GG", "begins with 'GG', expected 'GGUF'"),
    "cut in the header": (MICRO.read_bytes()[:900], "expected"),
    "cut in the data": (MICRO.read_bytes()[:-40], "it is cut short"),
    "html": (b"<!DOCTYPE html><html>", "perhaps an HTML page"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(40), "big-endian"),
    "version 9": (b"GGUF\x09\0\0\0" + bytes(40), "GGUF version 9, expected 2 or 3"),
    "a trillion keys": (b"GGUF\3\0\0\0" + bytes(8) + (10**12).to_bytes(8, "little") + bytes(99), "1000000000000 keys"),
    "unknown architecture": (changed("general.architecture", STR, text(b"llama")), "'llama' is not supported"),
    "architecture with an escape": (changed("general.architecture", STR, text(b"\x1b[31m\n")), "is not supported"),
    "text that is not UTF-8": (changed("general.architecture", STR, text(b"\xff\xfe")), "is not UTF-8"),
    "no layers": (number("block_count", 0), "qwen35.block_count is 0, expected an integer from 1 to 4096"),
    "10**9 layers": (number("block_count", 10**9), "qwen35.block_count is 1000000000"),
    "more heads than blocks": (number("nextn_predict_layers", 99), "nextn_predict_layers is 99"),
    "context 0": (number("context_length", 0), "context_length is 0, expected an integer from 1"),
    "context 2**31": (number("context_length", 1 << 31), "context_length is 2147483648"),
    "no embedding": (number("embedding_length", 0), "embedding_length is 0"),
    "half the embedding": (number("embedding_length", 96), "expected"),
    "heads that do not divide": (number("attention.head_count", 3), "expected"),
    "0 heads": (number("attention.head_count", 0), "attention.head_count is 0"),
    "negative heads": (changed("qwen35.attention.head_count", 5, scalar(5, -4)), "attention.head_count is -4"),
    "epsilon NaN": (number("attention.layer_norm_rms_epsilon", NAN, F32), "rms_epsilon is nan, expected a number"),
    "epsilon negative": (number("attention.layer_norm_rms_epsilon", -1.0, F32), "rms_epsilon is -1.0"),
    "epsilon an integer text": (changed("qwen35.attention.layer_norm_rms_epsilon", STR, text(b"1e-6")), "is '1e-6'"),
    "rope base 0": (number("rope.freq_base", 0.0, F32), "rope.freq_base is 0.0"),
    "rope base infinite": (number("rope.freq_base", float("inf"), F32), "rope.freq_base is inf"),
    "odd rope dimension": (number("rope.dimension_count", 3), "rope.dimension_count 3"),
    "two rope sections": (changed("qwen35.rope.dimension_sections", ARR, array(U32, bytes(8), 2)), "is '2 items'"),
    "rope scaling of no kind": (changed("qwen35.rope.scaling.type", STR, text(b"spiral")), "is 'spiral'"),
    "state size 0": (number("ssm.state_size", 0), "ssm.state_size is 0"),
    "state size 3": (number("ssm.state_size", 3), "expected"),
    "inner size of another model": (number("ssm.inner_size", 7), "ssm.inner_size is 7, expected"),
    "value heads that do not divide": (number("ssm.time_step_rank", 3), "ssm.time_step_rank 3 is no multiple"),
    "kernel of a gigabyte": (number("ssm.conv_kernel", 1 << 30), "ssm.conv_kernel is 1073741824"),
    "feed-forward of 2**32 - 1": (number("feed_forward_length", -1), "feed_forward_length is 4294967295"),
    "vocabulary of one": (changed("tokenizer.ggml.tokens", ARR, array(STR, text(b"a") * 300, 300)), "300 tokens"),
    "no tokenizer model": (changed("tokenizer.ggml.model", STR, text(b"")), "tokenizer.ggml.model"),
    "a missing tensor": (without("output_norm.weight"), "tensor output_norm.weight is missing"),
    "a tensor of another shape": (reshaped("output_norm.weight", (32, 2)), "output_norm.weight"),
    "a tensor past the end": (reshaped("output_norm.weight", (1 << 40,)), "the file has"),
    "alignment 3": (changed("general.alignment", U32, scalar(U32, 3)), "general.alignment is 3"),
    "split in 2": (changed("split.count", 2, scalar(2, 2)), "split.no is missing"),
    "a LoRA": (changed("general.type", STR, text(b"adapter")), "an adapter (LoRA), not a model"),
}
BLOCK = next(t.name.decode() for t in DOC.tensors if t.name.endswith(b"nextn.eh_proj.weight"))
MODELS["a missing head tensor"] = (without(BLOCK), f"tensor {BLOCK} is missing")


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_one_line_for_every_verb(tmp_path, name):
    raw, expected = MODELS[name]
    (tmp_path / "model.gguf").write_bytes(raw)
    verbs = (["generate", "-p", "a", "-n", "2"], ["dump", "-p", "a", "-o", "out.gguf"], ["story", "-p", "a", "-n", "2"])
    for verb in verbs:
        code, _, err = cli_outcome([*verb, "-m", "model.gguf"], tmp_path)
        assert code == 2
        assert expected in err.splitlines()[-1]
    code, _, err = cli_outcome(["generate", "-p", "a", "-n", "2", "-m", str(MICRO), "-md", "model.gguf"], tmp_path)
    assert code == 2 or "MTP: on" in err  # what only the trunk needs may be wrong in a head
    assert cli_outcome(["inspect", "model.gguf"], tmp_path)[0] in (0, 2)
    assert not (tmp_path / "out.gguf").exists()


# Other files: the command line (FILE stands for the file), its bytes, what the refusal says.
FILES = {
    "ids that are words": (["--spec-draft-vocab", "FILE"], b"one\ntwo\n", "line 1 is 'one', expected one token id"),
    "ids of no vocabulary": (["--spec-draft-vocab", "FILE"], b"1\n99999999\n", "id 99999999, expected each of"),
    "ids twice": (["--spec-draft-vocab", "FILE"], b"[1, 1]", "id 1 twice"),
    "ids nested": (["--spec-draft-vocab", "FILE"], b"[" * 100000, "JSON nested more than 32 deep"),
    "ids that are true": (["--spec-draft-vocab", "FILE"], b"[true]", "item 0 is True, expected a token id"),
    "ids of no text": (["--spec-draft-vocab", "FILE"], b"\xff\xff", "is not UTF-8"),
    "ids in a model": (["--spec-draft-vocab", "FILE"], MICRO.read_bytes(), "tensor d2t is missing"),
    "an empty list of ids": (["--spec-draft-vocab", "FILE"], b"", "no id, expected"),
    "a state that is a model": (["--prompt-cache", "FILE"], MICRO.read_bytes(), "not a state file of mtpref"),
    "a state that is text": (["--prompt-cache", "FILE"], b"state", "expected 'GGUF'"),
    "a template that escapes": (["--chat", "--chat-template", "FILE"], b"{{ ''.__class__ }}", "refused"),
    "a template without end": (["--chat", "--chat-template", "FILE"], b"{% for m in messages %}", "expected jinja2's"),
    "a template of no text": (["--chat", "--chat-template", "FILE"], b"\xff\xfe{{ 1 }}", "UTF-8"),
    "kwargs of no JSON": (["--chat", "--chat-template-kwargs", "{a}"], b"", "no JSON"),
    "kwargs that are a list": (["--chat", "--chat-template-kwargs", "[1]"], b"", "expected a JSON object"),
    "a trace that is a folder": (["--trace", "."], b"", "cannot be written"),
    "a contract with a line break": (["--contract", "a\nb"], b"", "expected one of"),
    "a flag with an escape": (["--\x1b[31m"], b"", "unrecognized argument --\\x1b[31m"),
    "a number with a line break": (["-n", "1\n2"], b"", "found '1\\n2', expected a whole number"),
    "threads without number": (["-t", "-5"], b"", "--threads: -5 is out of range"),
    "a draft without end": (["--spec-draft-n-max", str(1 << 70)], b"", "--spec-draft-n-max"),
    "a cooldown before the start": (["--spec-cooldown", "-1"], b"", "--spec-cooldown: -1 is out of range"),
    "cool after none": (["--spec-cooldown-after", "0"], b"", "--spec-cooldown-after: 0 is out of range"),
    "a scale of nothing": (["--rope-scale", "nan"], b"", "--rope-scale: nan is out of range"),
    "a base below 1": (["--rope-freq-base", "0.5"], b"", "--rope-freq-base: 0.5 is out of range"),
    "no original context": (["--yarn-orig-ctx", "0"], b"", "--yarn-orig-ctx: 0 is out of range"),
    "checkpoints below 0": (["--checkpoint-every", "-1"], b"", "--checkpoint-every: -1 is out of range"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_or_option_of_generate_is_one_line(tmp_path, name):
    argv, raw, expected = FILES[name]
    (tmp_path / "file").write_bytes(raw)
    argv = ["file" if a == "FILE" else a for a in argv]
    code, _, err = cli_outcome(["generate", "-m", str(MICRO), "-p", "a", "-n", "2", *argv], tmp_path)
    assert code == 2
    assert expected in err.splitlines()[-1]


COMMANDS = {
    "compare a text": (["compare", str(MICRO), "file"], b"text", "of no known kind"),
    "compare nothing in common": (["compare", str(MICRO), "file"], write(Doc((), (), bytes(32))), "no tensor name"),
    "compare with no limit": (["compare", str(MICRO), str(MICRO), "--limit", "nan"], b"", "--limit: nan is"),
    "compare below zero": (["compare", str(MICRO), str(MICRO), "--limit=-1"], b"", "--limit: -1.0 is out of range"),
    "golden of no folder": (["golden", "check", "file"], b"", "cannot be read"),
    "golden of a level": (["golden", "check", str(ROOT / "golden"), "--level", "L9"], b"", "no case matches"),
    "golden of no program": (["golden", "check", str(ROOT / "golden"), "--cmd", "/no/such"], b"", "cannot be started"),
    "inspect a folder": (["inspect", "."], b"", "expected a GGUF file"),
    "inspect a device": (["inspect", "/dev/null"], b"", "not a regular file"),
    "dump into a folder": (["dump", "-m", str(MICRO), "-p", "a", "-o", "/"], b"", "expected"),
    "trace of a model": (["trace", "show", str(MICRO)], b"", "expected"),
    "trace of no file": (["trace", "show", "/no/such\n"], b"", "/no/such\\n: cannot be read"),
    "trace of nothing": (["trace", "show", "file"], b"", "it holds no event"),
    "trace of brackets": (["trace", "show", "file"], b"[" * 70000 + b"\n", "JSON nested more than 34 deep"),
    "trace of another thing": (["trace", "show", "file"], b'{"event": 1}\n', "expected"),
    "no verb": (["\n"], b"", "is no verb, expected one of"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_file_or_option_of_other_verbs_is_one_line(tmp_path, name):
    argv, raw, expected = COMMANDS[name]
    (tmp_path / "file").write_bytes(raw)
    code, _, err = cli_outcome(argv, tmp_path)
    assert code == 2
    assert expected in err.splitlines()[-1]


def golden_copy(folder: Path, change) -> Path:
    manifest = json.loads((ROOT / "golden" / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(format="x\ny"), "format x\\ny, expected mtpref-golden-1"),
        (lambda m: m.update(classes=[1]), "classes is a list, expected an object"),
        (
            lambda m: m["classes"].update(op_f32={"nmse": "much"}),
            "classes.op_f32.nmse is 'much', expected a number",
        ),
        (lambda m: m.update(suites=3), "suites is 3, expected a list"),
        (lambda m: m["suites"][0].update(path="../../x"), "not in manifest.json"),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, change, expected):
    folder = golden_copy(tmp_path, change)
    code, _, err = cli_outcome(["golden", "list", str(folder)], tmp_path)
    assert code == 2
    assert expected in err.splitlines()[-1]


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
import mtpref.front.cli, mtpref.front.api  # what every run holds
from fuzzing.judge import limit_memory
mtpref.front.api.load()
limit_memory()
sys.exit(mtpref.front.cli.main(sys.argv[1:]))
"""
PROCESSES = {
    "general.name of 8 GB": "long",
    "cut": "cut",
    "64 MB of prompt": "prompt",
    "a billion ids": "ids",
}


EXPECTED = {
    "long": "expected at most 16777216",
    "cut": "cut short",
    "prompt": "more than 8 MiB",
    "ids": "more than 8 MiB",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_of_limited_memory_refuses(tmp_path, name):
    argv = ["generate", "-m", str(MICRO), "-p", "a", "-n", "2"]
    kind = PROCESSES[name]
    if kind == "long":
        argv[2] = str(with_long_value(tmp_path / "m.gguf", b"general.name", STR, u64(8 * GB), 8 * GB))
    elif kind == "cut":
        shutil.copy(tiny_path(), tmp_path / "m.gguf")
        os.truncate(tmp_path / "m.gguf", 100_000)
        argv[2] = str(tmp_path / "m.gguf")
    elif kind == "prompt":
        (tmp_path / "p").write_bytes(b"ab " * (22 << 20))
        argv[3:5] = ["-f", str(tmp_path / "p")]
    else:
        (tmp_path / "ids").write_bytes(b"1\n" * (20 << 20))
        argv += ["--spec-draft-vocab", str(tmp_path / "ids")]
    done = subprocess.run([sys.executable, "-c", LIMITED, str(ROOT / "tools"), *argv], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("mtpref generate: error: ")
    assert "Traceback" not in done.stderr
    assert EXPECTED[kind] in done.stderr
