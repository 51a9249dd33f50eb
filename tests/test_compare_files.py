"""Comparison of files of every kind: rows that are missing, layouts, printed digests, names, the report."""

import html.parser
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref import spec
from mtpref.architectures import ARCHITECTURES, Tensor
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import write_gguf
from mtpref.files.tensor_files import write_npz, write_safetensors
from mtpref.front.cli import main
from mtpref.look.compare import compare_files, open_source, parse_map, render, render_html
from mtpref.look.compare.measures import measure
from mtpref.look.compare.producers import (
    Producer,
    anchor_of,
    block_graph,
    head_graph,
    in_execution_order,
    producer_of,
)
from mtpref.look.dump import record, write_dump
from mtpref.look.llama_cpp.callback import read_callback_text
from mtpref.look.llama_cpp.results import write_results
from tests import micro_moe, toys

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "llama_cpp"
CALLBACK = DATA / "micro-60-f32.eval-callback.txt"
MICRO = ROOT / "golden" / "models" / "micro-60-f32.gguf"
PROMPT = "abcdef"  # of the recorded text and .bin: ids 99, 102


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """(path of a dump of the recorded prompt, its tensors)."""
    path = tmp_path_factory.mktemp("dump") / "a.gguf"
    model = mtpref.load(MICRO, kv_type="F32", kv_type_draft="F32")
    ids = model.encode(PROMPT)
    tensors = record(model.core, ids, ".").tensors
    write_dump(path, model.core, ids, tensors)
    return path, {"tokens": np.array(ids, np.int32), **tensors}


def bell(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path, **tensors):
    write_npz(path, tensors)
    return path


# --------------------------------------------------------------------------------------- measures


def test_measures_are_those_of_a_naive_computation():
    a, b = bell(7, 5), bell(7, 5) + bell(7, 5, seed=1) * np.float32(1e-3)
    found = measure(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert found.nmse == pytest.approx(((x - y) ** 2).sum() / (x**2).sum())
    assert found.rel_l2 == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
    assert found.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.max_abs == np.abs(x - y).max()
    assert found.worst_row == ((x - y) ** 2).sum(axis=1).argmax()


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [(1.0, np.nextafter(np.float32(1), np.float32(2)), 1), (0.0, -0.0, 0), (1e-45, -1e-45, 2), (-1.0, -1.0, 0)],
)
def test_steps_are_counted_on_the_line_of_all_floats(a, b, steps):
    assert measure(np.array([a], np.float32), np.array([b], np.float32)).max_ulp == steps


def test_measures_do_not_depend_on_the_size_of_blocks(monkeypatch):
    a, b = bell(50, 3), bell(50, 3, seed=1)
    whole = measure(a, b)
    monkeypatch.setattr("mtpref.look.compare.measures.BLOCK", 7)
    assert measure(a, b).nmse == pytest.approx(whole.nmse, rel=1e-14)
    assert (measure(a, b).max_ulp, measure(a, b).worst_row) == (whole.max_ulp, whole.worst_row)


def test_a_wrong_id_is_a_difference_whatever_its_nmse(tmp_path):
    a = write(tmp_path / "a.npz", tokens=np.array([248000, 5], np.int32))
    b = write(tmp_path / "b.npz", tokens=np.array([248001, 5], np.int32))
    first = compare_files(a, b).first_divergence
    assert first is not None
    assert first.note == "integers differ"


# ------------------------------------------------------------------------------------ other kinds


def test_a_dump_equals_itself_in_every_container(dumped, tmp_path):
    path, tensors = dumped
    write_npz(tmp_path / "b.npz", tensors)
    write_safetensors(tmp_path / "b.safetensors", tensors)
    for other in ("b.npz", "b.safetensors"):
        for pair in ((path, tmp_path / other), (tmp_path / other, path)):
            comparison = compare_files(*pair)
            assert comparison.first_divergence is None
            assert all(d.is_bit_equal for d in comparison.differences)
            assert [d.name for d in comparison.differences] == list(tensors)


def test_llama_results_are_compared_with_a_dump(dumped, tmp_path):
    path, tensors = dumped
    ids, logits = tensors["tokens"], tensors["result_output"].copy()
    write_results(tmp_path / "r.gguf", "m.gguf", ids.tolist(), logits)
    comparison = compare_files(path, tmp_path / "r.gguf")
    assert [d.name for d in comparison.differences] == ["tokens", "result_output"]
    assert all(d.is_bit_equal for d in comparison.differences)
    logits[1, 7] += 1
    write_results(tmp_path / "r.gguf", "m.gguf", ids.tolist(), logits)
    first = compare_files(path, tmp_path / "r.gguf").first_divergence
    assert first is not None
    assert (first.name, first.worst_row) == ("result_output", 1)


def test_recorded_bin_logits_are_compared_with_the_last_row(dumped):
    comparison = compare_files(dumped[0], DATA / "llamacpp-micro-60-f32.bin")
    assert comparison.first_divergence is None
    by_name = {d.name: d for d in comparison.differences}
    assert by_name["tokens"].is_bit_equal
    assert by_name["result_output"].remark == "only the last 1 of 2 rows are in the second file"
    assert 0 < by_name["result_output"].nmse < 1e-10


def test_rows_that_one_file_lacks_are_told_and_the_worst_row_keeps_its_number(tmp_path):
    x = bell(6, 4)
    bad = x[3:].copy()
    bad[1] += 1
    a, b = write(tmp_path / "a.npz", **{"l_out-0": x}), write(tmp_path / "b.npz", **{"l_out-0": bad})
    first = compare_files(a, b).first_divergence
    assert first is not None
    assert (first.worst_row, first.remark) == (4, "only the last 3 of 6 rows are in the second file")
    (other,) = compare_files(write(tmp_path / "b.npz", **{"l_out-0": x[3:]}), a).differences
    assert (other.nmse, other.remark) == (0.0, "only the last 3 of 6 rows are in the first file")


def test_a_state_with_fewer_heads_is_no_state_with_missing_tokens(tmp_path):
    s = bell(4, 3, 3)
    comparison = compare_files(
        write(tmp_path / "a.npz", **{"new_state-0": s}), write(tmp_path / "b.npz", **{"new_state-0": s[2:]})
    )
    assert comparison.first_divergence is not None


def test_axes_that_are_split_or_merged_keep_the_order_of_elements(tmp_path):
    x = bell(3, 4, 2)
    a = write(tmp_path / "a.npz", **{"final_output-0": x})
    (found,) = compare_files(a, write(tmp_path / "b.npz", **{"final_output-0": x.reshape(3, 8)})).differences
    assert found.nmse == 0.0
    assert found.remark == "shape (3, 8) read as (3, 4, 2)"
    assert (
        compare_files(a, write(tmp_path / "b.npz", **{"final_output-0": x.reshape(4, 6)})).first_divergence is not None
    )


# ------------------------------------------------------------------------------------------ hints


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda x: np.ascontiguousarray(x.transpose(0, 2, 1)), "axes (4, 6, 2) permuted to (4, 2, 6)"),
        (lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)), "permuted"),
        (lambda x: x.reshape(4, 12)[:, [*range(6, 12), *range(6)]], "two halves of each row swapped"),
        (lambda x: x.reshape(4, 2, 2, 3).transpose(0, 1, 3, 2).reshape(4, 2, 6), "(3, 2) transposed within each head"),
        (lambda x: x.reshape(4, 3, 4).transpose(0, 2, 1).reshape(4, 12), "(4, 3) transposed within each row"),
        (lambda x: np.concatenate([x[:1], x[:-1]]), "is one row late"),
        (lambda x: np.concatenate([x[1:], x[:1]]), "is one row early"),
        (lambda x: x * np.float32(3), "is 3 times the values"),
        (lambda x: -x, "is -1 times the values"),
        (lambda x: x * 0, "is all zero"),
        (lambda x: x[:2], "holds the first 2 rows"),
    ],
)
def test_a_layout_that_would_agree_is_a_hint_and_never_passes(tmp_path, change, hint):
    x = bell(4, 2, 6)
    a = write(tmp_path / "a.npz", **{"Qcur-3": x})
    comparison = compare_files(a, write(tmp_path / "b.npz", **{"Qcur-3": change(x)}))
    first = comparison.first_divergence
    assert first is not None
    assert any(hint in text for text in first.hints), first.hints
    assert hint in render(comparison)


def test_a_transposed_state_is_a_hint(tmp_path):
    s = bell(2, 5, 5)
    a = write(tmp_path / "a.npz", **{"new_state-0": s})
    b = write(tmp_path / "b.npz", **{"new_state-0": np.ascontiguousarray(s.transpose(0, 2, 1))})
    first = compare_files(a, b).first_divergence
    assert first is not None
    assert first.hints == ("would agree with its axes (2, 5, 5) permuted to (2, 5, 5)",) or "permuted" in first.hints[0]


def test_a_tensor_that_differs_in_no_known_way_has_no_hint(tmp_path):
    a = write(tmp_path / "a.npz", **{"Qcur-3": bell(4, 2, 6)})
    first = compare_files(a, write(tmp_path / "b.npz", **{"Qcur-3": bell(4, 2, 6, seed=1)})).first_divergence
    assert first is not None
    assert first.hints == ()


# ------------------------------------------------------------------------------------------ names


def test_names_are_mapped(dumped, tmp_path):
    path, tensors = dumped
    other = {f"layers.{i}.out": tensors[f"l_out-{i}"] for i in range(4)} | {"logits": tensors["result_output"]}
    write_npz(tmp_path / "b.npz", other)
    with pytest.raises(MtprefError, match="no tensor name in common"):
        compare_files(path, tmp_path / "b.npz")
    rules = parse_map([r"layers\.(\d+)\.out=l_out-\1", "logits=result_output"])
    comparison = compare_files(path, tmp_path / "b.npz", rules=rules)
    assert [d.name for d in comparison.differences] == [*(f"l_out-{i}" for i in range(4)), "result_output"]
    assert comparison.first_divergence is None
    with pytest.raises(MtprefError, match="both become x"):
        compare_files(path, tmp_path / "b.npz", rules=parse_map([".*=x"]))


@pytest.mark.parametrize("rule", ["", "x", "=x", "x=", "(=x", r"x=\1", r"(x)=\2"])
def test_a_map_that_is_none_is_refused(rule):
    with pytest.raises(MtprefError, match="expected REGEX=NAME"):
        parse_map([rule])


# --------------------------------------------------------------------------------- what feeds it


def test_every_tensor_of_a_dump_has_a_producer_whose_inputs_come_before(dumped):
    names = list(dumped[1])
    at = {name: i for i, name in enumerate(names)}
    for name in names:
        producer = producer_of(name, frozenset(names))
        assert producer is not None, name
        assert producer.step
        assert "{" not in producer.step
        for source in producer.inputs:
            assert source in at, (name, source)
            assert at[source] < at[name], (name, source)


@pytest.mark.parametrize("model", ["micro-qwen35moe-f32", "micro-qwen3next-fused-f32", "micro-glm4moe-f32",
                                   "micro-glm4moe-groups-f32", "micro-hy_v3-f32", "micro-hy_v3-fused-f32"])  # fmt: skip
def test_so_has_every_tensor_of_a_dump_of_a_model_with_experts(model):
    core = mtpref.load(micro_moe.standard(model)).core
    names = ["tokens", *record(core, [1, 2, 3], ".").tensors]
    at, known = {name: i for i, name in enumerate(names)}, frozenset(names)
    assert any("topk" in name for name in names)
    for name in names:
        producer = producer_of(name, known)
        assert producer is not None, name
        assert producer.step
        assert "{" not in producer.step
        assert all(at[source] < at[name] for source in producer.inputs), (name, producer)
    found = {name: i for i, name in enumerate(in_execution_order(sorted(names)))}
    assert all(found[s] < found[name] for name in names for s in producer_of(name, known).inputs)


def test_what_a_model_does_not_make_is_told_by_what_stands_in_for_it():
    names = ["ffn_moe_probs-1", "ffn_moe_topk-1", "ffn_moe_out-1", "ffn_shexp-1", "ffn_out-1"]
    assert producer_of("ffn_moe_topk-1", names).inputs == ("ffn_moe_probs-1",)
    assert producer_of("ffn_out-1", names).inputs == ("ffn_moe_out-1", "ffn_shexp-1")
    assert producer_of("ffn_out-1", names[:3]).inputs == ("ffn_moe_out-1",)
    names += ["ffn_moe_probs_biased-1", "ffn_shexp_gated-1"]
    assert producer_of("ffn_moe_topk-1", names).inputs == ("ffn_moe_probs_biased-1",)
    assert producer_of("ffn_out-1", names).inputs == ("ffn_moe_out-1", "ffn_shexp_gated-1")


def test_what_a_sheet_says_a_weight_makes_its_kinds_make_with_it():
    """The two declarations of one thing: Tensor.cb, and the kinds' graphs."""
    for sheet in ARCHITECTURES.values():
        for block in (*sheet.blocks, *(sheet.head.blocks if sheet.head else ())):
            graph = block_graph(block)
            for tensor in block.all_tensors():
                is_unread = tensor.name.startswith("indexer.") and not any("indexer_" in name for name in graph)
                assert (not tensor.cb) == is_unread  # llama.cpp loads some that no graph reads
                if tensor.cb:
                    assert tensor.name.removesuffix(".weight") in graph[tensor.cb].step, (sheet.name, tensor.name)


def test_every_rule_that_makes_something_has_its_number():
    assert anchor_of(spec.mul_mat_exact) == "S6"
    for sheet in ARCHITECTURES.values():
        heads = [head_graph(sheet.head, block) for block in sheet.head.blocks] if sheet.head else []
        for graph in (*map(block_graph, sheet.blocks), *heads):
            assert all(anchor_of(rule) for made in graph.values() for rule in made.rules)
    with pytest.raises(ValueError, match="has no number"):
        anchor_of(pytest.raises)


def test_of_a_kind_without_a_graph_the_sheets_own_words_are_told(monkeypatch):
    """A layer of another architecture is told by its names, in front of qwen35's; see tests/toys.py for the kinds."""
    bias = Tensor("probs.bias", (toys.n_expert,), cb="probs")
    rows = (replace(toys.ROWS[0], cb="latent"), replace(toys.ROWS[1], cb="latent_out"), bias)
    block = replace(toys.LATENT_MOE, tensors=rows)
    monkeypatch.setitem(ARCHITECTURES, "toy", replace(toys.SINGLE, layers=toys.Cycle(block, ())))
    known = frozenset({"latent-1", "latent_out-1", "l_out-1", "z-0", "l_out-0"})
    assert producer_of("latent_out-1", known) == Producer((), "product with blk.1.latent_up.weight (S6)")
    assert producer_of("probs-1", known).step == "made with blk.1.probs.bias"
    assert producer_of("attn_norm-0", known).inputs == ("model.input_embed",)
    assert producer_of("z-1", known) is None
    assert in_execution_order(["latent_out-1", "z-0", "latent-1"]) == ["z-0", "latent-1", "latent_out-1"]


def test_the_execution_order_of_names_is_that_of_a_dump(dumped):
    names = list(dumped[1])
    found = in_execution_order([*sorted(names), "unknown"])
    assert found[-1] == "unknown"
    at = {name: i for i, name in enumerate(found)}
    for name in names:
        producer = producer_of(name, frozenset(names))
        assert producer is not None
        assert all(at[source] < at[name] for source in producer.inputs), name


def test_the_first_divergence_is_told_with_its_step_and_its_inputs(dumped, tmp_path):
    path, tensors = dumped
    changed = dict(tensors)
    eh = changed["mtp_concat-4"].copy()
    changed["mtp_concat-4"] = np.concatenate([eh[:, 64:], eh[:, :64]], axis=1)
    del changed["mtp_enorm-4"]
    write_npz(tmp_path / "b.npz", changed)
    comparison = compare_files(path, tmp_path / "b.npz")
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.name == "mtp_concat-4"
    assert comparison.step == "embedding first, hidden second (S19)"
    assert [(f.name, f.verdict) for f in comparison.feeds] == [
        ("mtp_enorm-4", "not compared"),
        ("mtp_hnorm-4", "equal"),
        ("mtp_tok_embd-4", "equal"),
    ]
    assert "would agree with the two halves of each row swapped" in comparison.first_divergence.hints
    text = render(comparison)
    assert "made by: embedding first, hidden second (S19)" in text
    assert "fed by:  mtp_enorm-4: not compared" in text


# ------------------------------------------------------------------------------- printed digests


def test_recorded_text_of_llama_eval_callback_agrees(dumped):
    comparison = compare_files(dumped[0], CALLBACK)
    assert comparison.first_divergence is None, render(comparison)
    names = {d.name for d in comparison.differences}
    assert {"model.input_embed", "new_state-2", "Kcur-3", "l_out-3", "h_nextn", "result_output"} <= names
    assert len(names) == 88
    assert compare_files(CALLBACK, dumped[0]).first_divergence is None
    assert compare_files(CALLBACK, CALLBACK).first_divergence is None


@pytest.mark.parametrize("at", [0, 40, 63])
def test_printed_text_shows_a_difference_where_it_prints_and_by_the_sum_elsewhere(dumped, tmp_path, at):
    _, tensors = dumped
    changed = dict(tensors)
    changed["ffn_out-1"] = changed["ffn_out-1"].copy()
    changed["ffn_out-1"][1, at] += 0.05
    write_npz(tmp_path / "b.npz", changed)
    first = compare_files(CALLBACK, tmp_path / "b.npz").first_divergence
    assert first is not None
    assert first.name == "ffn_out-1"
    assert ("values between differ" in first.note) == (at == 40)


def test_text_that_ends_anywhere_is_compared_as_far_as_it_goes(dumped, tmp_path):
    text = CALLBACK.read_text()
    start = text.index("attn_output-0 = ")
    for end in range(start, start + 4000, 173):
        (tmp_path / "cut.txt").write_text(text[:end])
        comparison = compare_files(dumped[0], tmp_path / "cut.txt")
        assert comparison.first_divergence is None
        assert len(comparison.differences) >= 11
    (tmp_path / "cut.txt").write_text(text[: text.index("sum", start)])
    found = {d.name: d for d in compare_files(dumped[0], tmp_path / "cut.txt").differences}
    assert "the text ends within it" in found["attn_output-0"].remark


def test_the_last_tensor_of_a_name_that_fits_is_taken(dumped, tmp_path):
    """llama-debug prints a warming-up pass first, in which the names are the same."""
    text = CALLBACK.read_text()
    values = "[ 9.0000, 9.0000, 9.0000,  ..., 9.0000, 9.0000, 9.0000  ],"
    ne = "{64, 1, 1, 1}"
    head = f"common_debug_cb_eval:  l_out-0 = (f32)  ADD(a{ne}, b{ne}}}) = {ne}\n"
    warm = f"{head} [\n [\n {values}\n ],\n ]\n sum = 576.000000\n"
    (tmp_path / "warm.txt").write_text(warm + text)
    comparison = compare_files(dumped[0], tmp_path / "warm.txt")
    assert comparison.first_divergence is None
    assert any("the last of 2 of this name" in d.remark for d in comparison.differences if d.name == "l_out-0")


def test_text_with_a_line_missing_in_the_middle_is_refused(tmp_path):
    lines = CALLBACK.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "sum = " in line)
    (tmp_path / "hole.txt").write_text("\n".join(lines[:at] + lines[at + 1 :]))
    with pytest.raises(MtprefError, match="no line missing"):
        read_callback_text(tmp_path / "hole.txt")


def test_false_dimensions_cost_nothing(tmp_path):
    head = "common_debug_cb_eval:  x = (f32)  ADD(a{{1, 1, 1, 1}}, }}) = {{{}}}\n    [\n  [\n  [ 1.0000 ],\n"
    (tmp_path / "a.txt").write_text(head.format("6, 6, 6, 999999999999"))
    (only,) = read_callback_text(tmp_path / "a.txt")
    assert len(only.index) == 1
    (tmp_path / "a.txt").write_text(head.format("999999999999, 999999999999, 1, 1"))
    with pytest.raises(MtprefError, match="expected a real tensor's"):
        read_callback_text(tmp_path / "a.txt")


# ------------------------------------------------------------------------------ damaged and foreign


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.gguf", b""), ("a.gguf", b"GGUF"), ("a.txt", b"hello"), ("a.safetensors", b"\x10" + bytes(7) + b"{"),
        ("a.npz", b"PK\x03\x04"), ("a.bin", b""), ("a.bin", b"abc"), ("a.bin", b"GGUF"), ("a.bin", b"PK\x03\x04"),
        ("a-tokens.bin", b"\xff\xff\xff\xff"), ("a.txt", b"common_debug_cb_eval: "), ("a.npy", b"\x93NUMPY\x01\x00"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_end_in_one_line(tmp_path, capsys, name, raw):
    (tmp_path / name).write_bytes(raw)
    good = write(tmp_path / "good.npz", x=bell(2, 2))
    for pair in ([str(good), str(tmp_path / name)], [str(tmp_path / name), str(good)]):
        assert main(["compare", *pair]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("mtpref compare: error: ")
        assert err.count("\n") == 1


def test_folders_and_pipes_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(MtprefError, match=r"not a regular file|a pipe that nobody writes to"):
            open_source(path)
    with pytest.raises(MtprefError, match="cannot be read"):
        open_source(tmp_path / "absent")


def test_llama_results_of_a_wrong_size_are_refused(tmp_path):
    ids, logits = np.array([1, 2], np.int32), np.zeros(7, np.float32)
    write_gguf(tmp_path / "r.gguf", [("path_model", "m", "str")],
               [("tokens", "I32", (2,), ids), ("logits", "F32", (7,), logits)])  # fmt: skip
    with pytest.raises(MtprefError, match="2 tokens and 7 logits"):
        open_source(tmp_path / "r.gguf")


# ------------------------------------------------------------------------------------- reports


def test_json_has_every_measure_and_no_infinity(dumped, tmp_path, capsys):
    _, tensors = dumped
    write_npz(tmp_path / "b.npz", {**tensors, "l_out-1": tensors["l_out-1"] * np.float32(np.nan)})
    assert main(["compare", str(dumped[0]), str(tmp_path / "b.npz"), "--json"]) == 1
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert record["first_divergence"] == "l_out-1"
    assert [f["verdict"] for f in record["feeds"]] == ["equal", "equal"]
    (bad,) = (t for t in record["tensors"] if t["name"] == "l_out-1")
    assert set(bad) == {
        "name",
        "is_bit_equal",
        "nmse",
        "rel_l2",
        "cosine",
        "max_abs",
        "max_ulp",
        "worst_row",
        "note",
        "remark",
        "hints",
    }
    assert bad["note"] == "not finite"


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "br", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_stands_alone_and_escapes_what_files_say(dumped, tmp_path, capsys):
    evil = "<script>alert(1)</script>\"'&"
    _, tensors = dumped
    a = write(tmp_path / "a<b>.npz", **{**tensors, evil: bell(2, 2)})
    b = write(tmp_path / "b.npz", **{**tensors, evil: bell(2, 2, seed=1), "l_out-2": tensors["l_out-2"] * 2})
    assert main(["compare", str(a), str(b), "--html", str(tmp_path / "r.html")]) == 1
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "http" not in text
    assert evil in page.text
    assert "first divergence (NMSE > 1e-06), in execution order: l_out-2" in page.text
    assert page.tags.count("circle") == len(tensors) + 1
    assert page.tags.count("tr") == len(tensors) + 2
    assert "prefers-color-scheme: dark" in text
    capsys.readouterr()


def test_a_report_of_one_equal_tensor_and_one_without_layers_is_whole(tmp_path):
    x = write(tmp_path / "a.npz", x=bell(2, 2))
    Page(render_html(compare_files(x, x)))


@pytest.mark.parametrize("limit", ["nan", "-1", "inf"])
def test_a_limit_that_is_none_is_refused(dumped, limit, capsys):
    assert main(["compare", str(dumped[0]), str(dumped[0]), "--limit", limit]) == 2
    assert "expected 0 or more" in capsys.readouterr().err
