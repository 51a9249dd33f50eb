"""inspect: layer kinds, the MTP head and its fallbacks, missing and unexpected tensors, safe printing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.architectures import ARCHITECTURES, numbers
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import write_gguf, write_shards
from mtpref.front.api import tiny_path
from mtpref.heads.inspect import inspect_file, render, run
from tests.samples import some_examples

VALUES = {
    "n_embd": 8, "n_ff": 12, "n_head": 2, "n_head_kv": 1, "n_embd_head": 4, "d_conv": 4, "d_state": 4,
    "n_k_head": 1, "n_v_head": 2, "n_vocab": 5,
}  # fmt: skip
KEYS = {
    "qwen35.block_count": (5, "u32"),
    "qwen35.nextn_predict_layers": (1, "u32"),
    "qwen35.full_attention_interval": (4, "u32"),
    "qwen35.context_length": (64, "u32"),
    "qwen35.embedding_length": (8, "u32"),
    "qwen35.feed_forward_length": (12, "u32"),
    "qwen35.attention.head_count": (2, "u32"),
    "qwen35.attention.head_count_kv": (1, "u32"),
    "qwen35.attention.key_length": (4, "u32"),
    "qwen35.attention.layer_norm_rms_epsilon": (1e-6, "f32"),
    "qwen35.rope.dimension_sections": ([1, 1, 0, 0], "arr:i32"),
    "qwen35.ssm.conv_kernel": (4, "u32"),
    "qwen35.ssm.state_size": (4, "u32"),
    "qwen35.ssm.group_count": (1, "u32"),
    "qwen35.ssm.time_step_rank": (2, "u32"),
    "qwen35.ssm.inner_size": (8, "u32"),
    "tokenizer.ggml.model": ("gpt2", "str"),
    "tokenizer.ggml.pre": ("qwen35", "str"),
    "tokenizer.ggml.tokens": (list("abcde"), "arr:str"),
    "tokenizer.ggml.merges": (["a b"], "arr:str"),
    "tokenizer.ggml.eos_token_id": (4, "u32"),
}
KINDS = ("delta_net", "delta_net", "delta_net", "attention", "mtp")
QWEN35 = ARCHITECTURES["qwen35"]
LAYERS = {block.name: tuple(block.all_tensors()) for block in QWEN35.layers.all_blocks()}
LAYERS["mtp"] = QWEN35.head.all_tensors()
OPTIONAL = {tensor.at(4).name for tensor in LAYERS["mtp"] if not tensor.required}


def model_tensors(kinds=KINDS) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the tables know, optional ones too."""
    specs = list(QWEN35.tensors)
    for i, kind in enumerate(kinds):
        specs += [tensor.at(i) for tensor in LAYERS[kind]]
    shapes = {s.name: numbers(s.shape, VALUES) for s in specs}
    assert None not in shapes.values()
    return shapes


def save(path, keys=KEYS, tensors=None, arch="qwen35"):
    tensors = model_tensors() if tensors is None else tensors
    kv = [("general.architecture", arch, "str"), *((k, v, kind) for k, (v, kind) in keys.items())]
    write_gguf(path, kv, [(n, "F32", s, np.zeros(s, np.float32)) for n, s in tensors.items()])
    return inspect_file(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


def without(tensors, *parts):
    return {n: s for n, s in tensors.items() if not n.startswith(parts)}


def test_a_whole_model_has_no_problem_and_its_kinds(path):
    report = save(path)
    assert report["problems"] == []
    assert report["fallbacks"] == []
    assert report["layers"]["counts"] == {"delta_net": 3, "attention": 1, "mtp": 1}
    assert report["layers"]["declared_by"] == "full_attention_interval"
    assert [b["kind"] for b in report["layers"]["blocks"]] == [b["found"] for b in report["layers"]["blocks"]]
    assert report["mtp"]["status"] == "present"
    assert (report["mtp"]["declared"], report["mtp"]["trunk"]) == (1, True)
    assert {t["source"] for t in report["mtp"]["blocks"][0]["tensors"]} == {"own"}


def test_the_keys_of_the_report_are_stable(path):
    report = save(path)
    assert list(report) == [
        "schema", "file", "what", "architecture", "supported", "general", "hyper_parameters", "tokenizer", "other_keys",
        "layers", "mtp", "mtp_memory", "fallbacks", "quantisation", "tensors", "problems",
    ]  # fmt: skip
    assert report["schema"] == "mtpref-inspect-1"
    assert list(report["mtp"]) == ["status", "declared", "trunk", "blocks", "unexpected"]
    assert list(report["tensors"][0]) == ["name", "type", "shape", "bytes", "offset", "shard"]
    assert list(report["layers"]["blocks"][0]) == ["index", "kind", "found", "n_tensors", "bytes"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_head_names_where_each_tensor_comes_from(path):
    report = save(path, tensors=without(model_tensors(), *OPTIONAL, "output.weight"))
    rows = {t["name"]: t for t in report["mtp"]["blocks"][0]["tensors"]}
    assert report["mtp"]["status"] == "present"
    assert {n: rows[n]["from"] for n in OPTIONAL} == {
        "blk.4.nextn.shared_head_norm.weight": "output_norm.weight",
        "blk.4.nextn.embed_tokens.weight": "token_embd.weight",
        "blk.4.nextn.shared_head_head.weight": "token_embd.weight",
    }
    assert {rows[n]["source"] for n in OPTIONAL} == {"fallback"}
    assert rows["blk.4.nextn.eh_proj.weight"]["shape"] == [8, 16]
    assert {"tensor": "output.weight", "from": "token_embd.weight"} in report["fallbacks"]
    assert report["problems"] == []
    assert "falls back to output_norm.weight" in render(report, 200)


def test_an_untied_output_serves_the_head_before_the_embeddings_do(path):
    report = save(path, tensors=without(model_tensors(), *OPTIONAL))
    rows = {t["name"]: t["from"] for t in report["mtp"]["blocks"][0]["tensors"]}
    assert rows["blk.4.nextn.shared_head_head.weight"] == "output.weight"


def test_a_declared_head_without_tensors_is_missing(path):
    report = save(path, tensors=without(model_tensors(), "blk.4."))
    assert report["mtp"]["status"] == "missing"
    assert any("blk.4 has no nextn tensor" in p and "dropped the head" in p for p in report["problems"])
    assert "MTP head: MISSING" in render(report)


@pytest.mark.parametrize(
    "name", ["nextn.eh_proj.weight", "nextn.enorm.weight", "attn_k_norm.weight", "ffn_down.weight"]
)
def test_a_head_without_a_required_tensor_is_incomplete(path, name):
    report = save(path, tensors=without(model_tensors(), f"blk.4.{name}"))
    assert report["mtp"]["status"] == "incomplete"
    assert report["mtp"]["blocks"][0]["missing"] == [f"blk.4.{name}"]
    assert f"blk.4.{name} is missing" in report["problems"]


def test_head_tensors_without_the_key_are_undeclared(path):
    keys = {k: v for k, v in KEYS.items() if k != "qwen35.nextn_predict_layers"} | {"qwen35.block_count": (4, "u32")}
    report = save(path, keys)
    assert report["mtp"]["status"] == "undeclared"
    assert any("key qwen35.nextn_predict_layers is absent or 0" in p for p in report["problems"])


def test_a_model_without_head_is_absent_and_that_is_no_problem(path):
    keys = {k: v for k, v in KEYS.items() if "nextn" not in k} | {"qwen35.block_count": (4, "u32")}
    report = save(path, keys, without(model_tensors(), "blk.4."))
    assert (report["mtp"]["status"], report["problems"]) == ("absent", [])


def test_a_head_only_file_is_told_from_a_broken_model(path):
    report = save(path, tensors=without(model_tensors(), "blk.0.", "blk.1.", "blk.2.", "blk.3."))
    assert (report["mtp"]["status"], report["mtp"]["trunk"], report["problems"]) == ("present", False, [])
    assert "the file has no trunk" in render(report)


def test_unexpected_tensors_of_the_head_are_named(path):
    extra = {"blk.4.nextn.fc2.weight": (3,), "blk.4.attn_q.bias": (3,), "blk.2.nextn.enorm.weight": (8,), "odd": (1,)}
    report = save(path, tensors=model_tensors() | extra)
    assert set(report["mtp"]["unexpected"]) == {
        "blk.4.nextn.fc2.weight",
        "blk.4.attn_q.bias",
        "blk.2.nextn.enorm.weight",
    }
    assert "tensor odd is unexpected and not used" in report["problems"]
    assert "blk.2 is declared delta_net, its tensors are those of kind mtp" in report["problems"]


def test_a_wrong_shape_names_found_expected_and_formula(path):
    report = save(path, tensors=model_tensors() | {"blk.4.nextn.eh_proj.weight": (8, 8)})
    assert report["problems"] == ["blk.4.nextn.eh_proj.weight: shape (8, 8), expected (8, 16) = (n_embd, 2*n_embd)"]


def test_recurrent_layers_win_over_the_interval_and_are_checked_against_the_tensors(path):
    keys = KEYS | {"qwen35.attention.recurrent_layers": ([False, True, True, True, False], "arr:bool")}
    right = ("attention", "delta_net", "delta_net", "delta_net", "mtp")
    report = save(path, keys, model_tensors(right))
    assert [b["kind"] for b in report["layers"]["blocks"]] == list(right)
    assert (report["problems"], report["layers"]["declared_by"]) == ([], "attention.recurrent_layers")
    report = save(path, keys)
    assert report["problems"] == [
        "blk.0 is declared attention, its tensors are those of kind delta_net",
        "blk.3 is declared delta_net, its tensors are those of kind attention",
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("qwen35.block_count", (2**32 - 1, "u32"), "block_count is 4294967295, expected an integer from 1 to 4096"),
        ("qwen35.block_count", ("5", "str"), "block_count is '5', expected an integer"),
        ("qwen35.block_count", ([5], "arr:u32"), "block_count is an array of 1, expected an integer"),
        ("qwen35.nextn_predict_layers", (9, "u32"), "nextn_predict_layers is 9, expected less than block_count = 5"),
        ("qwen35.full_attention_interval", (0, "u32"), "full_attention_interval is 0, expected at least 1"),
        ("qwen35.attention.recurrent_layers", ([True], "arr:bool"), "has 1 elements, expected one bool for each of 5"),
        ("qwen35.attention.recurrent_layers", ("x", "str"), "recurrent_layers"),
        ("qwen35.attention.recurrent_layers", ([True] * 5, "arr:bool"), "marks an MTP block recurrent"),
        ("qwen35.full_attention_interval", ([4] * 5, "arr:u32"), "full_attention_interval is an array of 5"),
        ("qwen35.attention.head_count", ([2] * 5, "arr:u32"), "head_count is an array of 5, expected an integer"),
        ("qwen35.ssm.state_size", ([2], "arr:u32"), "state_size is an array of 1, expected an integer"),
    ],
)
def test_odd_keys_are_problems_not_crashes(path, key, value, problem):
    report = save(path, KEYS | {key: value})
    assert any(problem in p for p in report["problems"])
    render(report)


@pytest.mark.parametrize("n_blocks", [2, 3])
def test_a_declared_head_without_tensors_is_a_problem_of_any_architecture(path, n_blocks):
    keys = {"ernie4_5.block_count": (n_blocks, "u32"), "ernie4_5.nextn_predict_layers": (1, "u32")}
    report = save(path, keys, {"blk.0.attn_q.weight": (2, 2), "blk.1.attn_q.weight": (2, 2)}, arch="ernie4_5")
    [problem] = report["problems"]
    assert "ernie4_5.nextn_predict_layers is 1, and no tensor is named nextn" in problem
    assert "mtpref strip" in problem
    keys["ernie4_5.nextn_predict_layers"] = (0, "u32")
    assert save(path, keys, {"blk.0.attn_q.weight": (2, 2)}, arch="ernie4_5")["problems"] == []


def test_an_unsupported_architecture_is_listed_and_only_its_head_is_judged(path):
    keys = {"llama.block_count": (2, "u32"), "llama.rope.freq_base": (float("inf"), "f32")}
    report = save(path, keys, {"blk.0.attn_q.weight": (2, 2), "blk.1.nextn.enorm.weight": (2,)}, arch="llama")
    assert (report["supported"], report["mtp"]["status"]) == (False, "unknown")
    [problem] = report["problems"]
    assert "mtpref graft FILE FILE" in problem
    assert report["hyper_parameters"] == {"llama.block_count": 2, "llama.rope.freq_base": "inf"}
    assert report["mtp"]["unexpected"] == ["blk.1.nextn.enorm.weight"]
    assert "not supported" in render(report)


def test_an_unknown_tensor_type_is_listed(path):
    save(path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    raw[at : at + 4] = (333).to_bytes(4, "little")
    path.write_bytes(raw)
    report = inspect_file(path)
    assert any("output_norm.weight has type id 333, which mtpref does not know" in p for p in report["problems"])
    assert next(q for q in report["quantisation"] if q["type"] == "type-333")["bytes"] == 32
    assert "type-333" in render(report)


SPLIT = {"split.no": (0, "u16"), "split.count": (2, "u16"), "split.tensors.count": (len(model_tensors()), "i32")}


def test_one_file_of_a_split_model_is_not_called_broken(tmp_path):
    path = tmp_path / "m-00001-of-00002.gguf"
    report = save(path, KEYS | SPLIT, without(model_tensors(), "blk.3.", "blk.4."))
    assert report["mtp"]["status"] == "partial"
    assert len(report["problems"]) == 1
    assert "one file of a split model, described alone" in report["problems"][0]
    assert "m-00002-of-00002.gguf" in report["problems"][0]


def test_a_split_model_is_described_as_a_whole(tmp_path):
    kv = [("general.architecture", "qwen35", "str"), *((k, v, kind) for k, (v, kind) in KEYS.items())]
    tensors = [(n, "F32", s, np.zeros(s, np.float32)) for n, s in model_tensors().items()]
    paths = write_shards(tmp_path / "m", kv, tensors, max_tensors=30)
    report = inspect_file(paths[0])
    assert (report["problems"], report["mtp"]["status"]) == ([], "present")
    assert [s["path"] for s in report["file"]["shards"]] == [str(p) for p in paths]
    assert [s["bytes"] for s in report["file"]["shards"]] == [p.stat().st_size for p in paths]
    assert [s["n_tensors"] for s in report["file"]["shards"]][:-1] == [30] * (len(paths) - 1)
    assert report["file"]["bytes"] == sum(p.stat().st_size for p in paths)
    assert report["tensors"][-1]["shard"] == len(paths) - 1
    assert f"in {len(paths)} files" in render(report)
    second = inspect_file(paths[1])
    assert "file 2 of" in second["problems"][-1] or any("file 2 of" in p for p in second["problems"])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"general.type": ("mmproj", "str")}, "a vision or audio projector"),
        ({"general.type": ("adapter", "str")}, "an adapter (LoRA)"),
        ({"general.type": ("imatrix", "str")}, "an importance matrix"),
        ({"imatrix.chunk_count": (3, "u32")}, "an importance matrix"),
        ({"general.type": ("dataset", "str")}, "of general.type 'dataset'"),
    ],
)
def test_a_file_that_is_no_language_model_is_named(path, keys, expected):
    report = save(path, KEYS | keys)
    assert expected in report["what"]
    assert f"this is {report['what']}" in render(report, 400)


def test_long_values_are_counted_not_copied(path):
    keys = KEYS | {
        "tokenizer.ggml.tokens": ([f"t{i}" for i in range(5000)], "arr:str"),
        "tokenizer.chat_template": ("x" * 5000, "str"),
        "general.tags": (["a", "b"], "arr:str"),
        "x.long": ("y" * 5000, "str"),
        "x.numbers": (list(range(5000)), "arr:u32"),
    }
    report = save(path, keys)
    assert (report["tokenizer"]["n_tokens"], report["tokenizer"]["n_merges"]) == (5000, 1)
    assert report["tokenizer"]["chat_template_bytes"] == 5000
    assert report["tokenizer"]["special"] == {"eos": 4}
    assert report["general"]["general.tags"] == ["a", "b"]
    assert report["other_keys"]["x.long"] == {"kind": "str", "bytes": 5000}
    assert report["other_keys"]["x.numbers"] == {"kind": "arr:u32", "count": 5000}
    assert "t4999" not in json.dumps(report)


def test_floats_print_as_they_were_meant(path):
    assert save(path)["hyper_parameters"]["qwen35.attention.layer_norm_rms_epsilon"] == 1e-06


def test_quantisation_mix_counts_tensors_elements_and_bytes(path):
    tensors = [
        ("a", "Q8_0", (2, 32), np.zeros((2, 34), np.uint8)),
        ("b", "F32", (4,), np.zeros(4, np.float32)),
        ("c", "F32", (2, 2), np.zeros(4, np.float32)),
    ]
    write_gguf(path, [("general.architecture", "x", "str")], tensors)
    assert inspect_file(path)["quantisation"] == [
        {"type": "Q8_0", "tensors": 1, "elements": 64, "bytes": 68},
        {"type": "F32", "tensors": 2, "elements": 8, "bytes": 32},
    ]


def test_text_from_the_file_cannot_steer_the_terminal(path, capsys):
    evil = "\x1b[2J\r\u202e\x07"
    keys = KEYS | {
        "general.name": (evil, "str"), f"qwen35.{evil}": (evil, "str"), "x.list": ([evil], "arr:str"),
        f"y.{evil}": (b"\xff\x1b", "str"), "tokenizer.ggml.x": (evil, "str"), f"tokenizer.{evil}": (1, "u8"),
    }  # fmt: skip
    save(path, keys, model_tensors() | {f"blk.4.nextn.{evil}": (1,), evil: (1,)}, arch="qwen35")
    for as_json in (False, True):
        assert run(path, as_json) == 0
        out = capsys.readouterr().out
        assert all(c == "\n" or c.isprintable() for c in out)
    report = save(path, {}, {evil: (1,)}, arch=evil)
    assert all(line.isprintable() for line in render(report).split("\n"))


def test_run_prints_json_of_the_report_or_the_text(path, capsys):
    report = save(path)
    run(path, True)
    assert json.loads(capsys.readouterr().out) == report
    run(path, False)
    assert capsys.readouterr().out == render(report) + "\n"


def test_a_file_that_is_no_gguf_is_one_line(path):
    path.write_bytes(b"hello")
    with pytest.raises(MtprefError, match="begins with 'hell', expected 'GGUF'"):
        run(path, False)


EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4)


@settings(derandomize=True, max_examples=some_examples(150), deadline=None)
@given(edits=EDITS)
def test_mutated_headers_are_refused_or_reported(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / "inspect-fuzz.gguf"
    save(path)
    raw = bytearray(path.read_bytes())
    header = raw.index(b"blk.4.ffn_down.weight")
    for where, new in edits:
        at = int(where * header)
        raw[at : at + len(new)] = new
    path.write_bytes(raw)
    try:
        report = inspect_file(path)
    except MtprefError:
        return
    json.dumps(report, allow_nan=False)
    assert all(line.isprintable() for line in render(report).split("\n"))


@pytest.mark.parametrize("width", [60, 80, 100, 300])
def test_lines_keep_to_the_width_and_lose_nothing(width):
    report = inspect_file(tiny_path())
    text = render(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.split() == render(report, 10_000).split()
