"""Values from outside: JSON within bounds, and fields by their declared types, in every reader that takes them."""

import json
import math
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.checkpoints import CONFIG
from fuzzing.judge import limited_memory

from mtpref.base.errors import MtprefError
from mtpref.base.typed import (
    MAX_DEPTH,
    Sized,
    Within,
    depth_of,
    describe,
    parse_json,
    read,
    read_fields,
    read_number,
)
from mtpref.faults.diagnose.port_run import read_port_runs
from mtpref.files.gguf import write_gguf
from mtpref.files.tensor_files import NpzFile, SafetensorsFile
from mtpref.heads.convert.general import description
from mtpref.heads.convert.keys import hyper_parameters
from mtpref.heads.hf import text_config
from mtpref.heads.quantize.importance import read_importance

MB = 1 << 20

# ------------------------------------------------------------------------------------------------------------ JSON

LARGE = {
    "empty lists": b"[" + b"[]," * (10 * MB) + b"0]",
    "empty objects": b"[" + b"{}," * (10 * MB) + b"0]",
    "numbers": b"[" + b"1.5," * (8 * MB) + b"0]",
    "texts": b"[" + b'"abcdef",' * (3 * MB) + b"0]",
    "objects": b"[" + b'{"a":1},' * (3 * MB) + b"0]",
    "wide characters": ("[" + '"\U0001f600bcdefg",' * (2 * MB) + "0]").encode(),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_would_take_much_memory_is_refused_before_it_is_made(name):
    with limited_memory(100 * MB), pytest.raises(MtprefError, match="JSON that would take more than 128 MiB"):
        parse_json(LARGE[name])


@pytest.mark.parametrize("name", ["empty lists", "numbers", "texts", "objects", "wide characters"])
def test_what_is_below_the_limit_stays_below_it(name):
    """The bound is one: as many elements as it allows fit into that memory, and some processes' worth of slack."""
    unit, end = LARGE[name].partition(b",")[0][1:] + b",", b"0]"
    n = next(n for n in range(4 * MB, 0, -(1 << 14)) if _is_allowed(unit, n, end))
    with limited_memory(160 * MB):
        assert len(parse_json(b"[" + unit * n + end)) == n + 1


def _is_allowed(unit: bytes, n: int, end: bytes) -> bool:
    from mtpref.base.typed import MAX_MEMORY, _cost

    return _cost(b"[" + unit * 64 + end) * n / 64 < MAX_MEMORY and _cost(b"[" + unit * n + end) <= MAX_MEMORY


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"\xff", "no UTF-8"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"9" * 5000, "a number of too many digits"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 200_000, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * 200_000, f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_bad_json_is_refused_in_words(raw, words):
    with pytest.raises(MtprefError) as refused:
        parse_json(raw)
    assert words in str(refused.value)


def test_good_json_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, None, "\U0001f600"]}
    assert math.isnan(parse_json(b"NaN", is_strict=False))
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert depth_of(parse_json(deepest)) == MAX_DEPTH


# ---------------------------------------------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Inner:
    n: Annotated[int, Within(1, 8)]
    class_: str = "none"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    x: float | None = None
    ids: Annotated[list[int], Sized(0, 3)] = ()  # type: ignore[assignment]
    end: Literal["hold", "whole"] = "hold"
    more: dict[str, Inner] | None = None
    raw: bytes = b""
    pair: tuple[float, ...] = ()
    rest: dict[str, Any] | None = None


def test_a_record_becomes_what_is_declared():
    record = {"inner": {"n": 8, "class": "a", "other": []}, "x": 2, "ids": [1], "end": "whole", "raw": "00ff",
              "more": {"k": {"n": 1}}, "pair": [1, 0.5]}  # fmt: skip
    expected = Outer(Inner(8, "a"), 2.0, [1], "whole", {"k": Inner(1)}, b"\x00\xff", (1.0, 0.5))
    assert read_fields(Outer, record) == expected


BAD = {
    "missing": ({}, "inner is missing, expected an object"),
    "null": ({"inner": None}, "inner is null, expected an object"),
    "range": ({"inner": {"n": 9}}, "inner.n is 9, expected an integer 1 .. 8"),
    "kind": ({"inner": {"n": 1.5}}, "inner.n is 1.5, expected an integer 1 .. 8"),
    "bool": ({"inner": {"n": True}}, "inner.n is true, expected an integer"),
    "large": ({"inner": {"n": 10**40}}, "inner.n is an integer of more than 64 bits"),
    "infinite": ({"inner": {"n": 1}, "x": math.inf}, "x is inf, expected a number"),
    "long": ({"inner": {"n": 1}, "ids": [1] * 4}, "ids is a list of length 4, expected a list of length 0 .. 3"),
    "element": ({"inner": {"n": 1}, "ids": [1, "x"]}, "ids[1] is 'x', expected an integer"),
    "choice": ({"inner": {"n": 1}, "end": "x"}, 'end is \'x\', expected "hold" or "whole"'),
    "unhashable choice": ({"inner": {"n": 1}, "end": []}, "end is an empty list"),
    "inner object": ({"inner": {"n": 1}, "more": {"k\n": {"n": 0}}}, "more.k\\n.n is 0"),
    "hex": ({"inner": {"n": 1}, "raw": "0 "}, "raw is '0 ', expected bytes in hex"),
    "deep": ({"inner": {"n": 1}, "rest": json.loads('{"a":' * 40 + "1" + "}" * 40)}, "rest is nested more than 32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_field_is_named(name):
    record, words = BAD[name]
    with pytest.raises(MtprefError) as refused:
        read_fields(Outer, record)
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ["1.5", "1e300", "nan", "inf", "x", "", "-1", "9" * 60, "1_0"])
def test_a_number_that_stands_as_text_is_checked_too(text):
    with pytest.raises(MtprefError, match=r"n_max is .*, expected an integer 0 \.\. 1024"):
        read_number(Annotated[int, Within(0, 1024)], text, "n_max")
    assert read_number(Annotated[int, Within(0, 1024)], "16", "n_max") == 16
    assert read_number(float, "0.5", "p_min") == 0.5


def test_a_description_is_short_whatever_it_describes():
    for value in ("x" * 10**6, 10**5000, [[]] * 10**5, {"a": 1}, math.nan, None, True, "\n\x1b"):
        assert len(describe(value)) <= 40
        assert describe(value).isprintable()
    assert read(Any, [1], "x") == [1]


# --------------------------------------------------------------------------------------------------------- readers


def refusal(call, *args) -> str:
    with pytest.raises(MtprefError) as refused:
        call(*args)
    return str(refused.value)


def test_an_importance_matrix_with_other_counts_than_sums(tmp_path):
    path = tmp_path / "i.gguf"
    for n_counts, n_sums in ((2, 3), (4, 2)):
        tensors = [
            ("a.in_sum2", "F32", (n_sums,), np.ones(n_sums, np.float32)),
            ("a.counts", "F32", (n_counts,), np.ones(n_counts, np.float32)),
        ]
        write_gguf(path, [("general.type", "imatrix", "str")], tensors)
        assert f"a.in_sum2 has {n_sums} values for {n_counts} counts" in refusal(read_importance, path)


@pytest.mark.parametrize(
    "shape", ["(True, 4)", "(-1, 4)", "(1.5,)", "(1099511627776, 1099511627776, 0)", "4", "('4',)"]
)
def test_a_numpy_header_with_a_shape_that_is_none(tmp_path, shape):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(16)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", raw)
    (tmp_path / "x.npy").write_bytes(raw)
    for name, key in (("x.npz", "a"), ("x.npy", "x")):
        assert "no usable NumPy file" in refusal(NpzFile(tmp_path / name).values, key)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"shape": [1 << 40, 1 << 40, 0]}, "expected at most"),
        ({"shape": [True, 0]}, "shape[0] is true"),
        ({"shape": [-1]}, "shape[0] is -1"),
        ({"shape": [0] * 17}, "of length 17"),
        ({"shape": [1e300]}, "shape[0] is 1e+300"),
        ({"data_offsets": [0]}, "of length 1"),
        ({"data_offsets": [0, None]}, "data_offsets[1] is null"),
        ({"dtype": ["F32"]}, "dtype is a list"),
        ({"dtype": "F9"}, "has type F9"),
        ({"dtype": "F6_E2M3", "shape": [4]}, "needs 3 bytes"),
    ],
)
def test_a_safetensors_header_with_a_wrong_entry(tmp_path, entry, words):
    header = json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} | entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    line = refusal(SafetensorsFile, path)
    assert "damaged (tensor a" in line
    assert words in line


RUN = {"schema": "mtpref-run-1", "prompt_ids": [1, 2], "rounds": [{"draft": [3], "n_accepted": 1, "emitted": [3, 4]}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"temp": "x"}}, "settings.temp is 'x', expected a number"),
        ({"settings": {"n_max": 1.5}}, "settings.n_max is 1.5, expected an integer 0 .. 1024"),
        ({"settings": {"n_max": 1e300}}, "settings.n_max is 1e+300"),
        ({"settings": {"cooldown": []}}, "settings.cooldown is an empty list"),
        ({"settings": []}, "settings is an empty list"),
        ({"prompt_ids": [[[1]]]}, "prompt_ids[0] is a list"),
        ({"prompt_ids": [1 << 31]}, "prompt_ids[0] is 2147483648"),
        ({"rounds": [{"draft": [3], "n_accepted": 2, "emitted": [3]}]}, "n_accepted 2 of 1 drafted"),
        ({"rounds": [{"draft": [3], "n_accepted": True, "emitted": [3]}]}, "n_accepted is true"),
        ({"rounds": [{"draft": [3], "n_accepted": 0, "emitted": []}]}, "emitted is a list of length 0"),
        (
            {"rounds": [{"draft": [3], "n_accepted": 0, "emitted": [3], "p": [2]}]},
            "p[0] is 2, expected a number 0 .. 1",
        ),
        ({"rounds": [{"draft": [3], "n_accepted": 0, "emitted": [3], "p": [0.5, 0.5]}]}, "p has 2 entries, expected 1"),
        ({"prompt_end": []}, "prompt_end is an empty list"),
    ],
)
def test_a_run_with_a_wrong_field(tmp_path, change, words):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    assert read_port_runs(path)[0].n_drafted == 1
    path.write_text(json.dumps(RUN | change))
    assert words in refusal(read_port_runs, path)


LOG = """# run
# prompt_ids: [1, 2]
# n_max: 3
draft candidate   0, pos   0:     11 (   0.900) 'a'
accepted 1/1 draft tokens, the last target token is: (12)
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("# n_max: 1.5", "header n_max is 1.5, expected an integer 0 .. 1024"),
        ("# n_max: 1e300", "header n_max is"),
        ("# n_max: nan", "header n_max is"),
        ("# p_min: 2", "header p_min is"),
        ("# prompt_ids: " + "[" * 5000 + "]" * 5000, "prompt_ids: JSON nested more than 32 deep"),
        ("# prompt_ids: [true]", "prompt_ids[0] is true"),
        ("# prompt_ids: [NaN]", "NaN is no number"),
    ],
)
def test_a_recording_with_a_wrong_header(tmp_path, line, words):
    path = tmp_path / "run.log"
    path.write_text(LOG)
    assert read_port_runs(path)[0].settings["n_max"] == 3
    key = line.split(":")[0]
    path.write_text("\n".join(x for x in LOG.split("\n") if not x.startswith(key)).replace("# run", "# run\n" + line))
    assert words in refusal(read_port_runs, path)


def test_a_null_is_a_field_that_is_not_there():
    config = {**CONFIG, "rope_parameters": {"rope_type": None, "partial_rotary_factor": None, "rope_theta": None}}
    keys = {key: value for key, value, _ in hyper_parameters(text_config({**config, "head_dim": None}, "x"), 1, 1)}
    assert keys["qwen35.rope.dimension_count"] == 4  # a quarter of 64 / 4
    assert "qwen35.rope.freq_base" not in keys
    for name in ("hidden_size", "num_hidden_layers"):
        assert f"{name} is missing" in refusal(text_config, {**CONFIG, name: None}, "x")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (b"tags: [[a], [b]]", "general.tags"),
        (b"tags: [1, a]", "general.tags"),
        (b"model_name: {a: [b]}", "model card"),
        (b'model_name: "\\uD800"', "expected text of whole characters"),
        (b"author: 2026-01-01", "general.author is"),
        (b"x: [" + b"[" * 5000, "model card"),
        (b"x: " + b"y" * 70000, "a head of more than 64 KiB"),
    ],
)
def test_a_model_card_with_what_no_key_can_hold(tmp_path, card, words):
    (tmp_path / "README.md").write_bytes(b"---\n" + card + b"\n---\n# A model\n")
    line = refusal(description, tmp_path, "qwen35", [("x", (1000,))])
    assert words in line
    (tmp_path / "README.md").write_bytes(b"---\nmodel_name: A\ntags: [a, b]\n---\n")
    assert ("general.tags", ["a", "b"], "arr:str") in description(tmp_path, "qwen35", [("x", (1000,))])
