"""The micro-model maker: same bytes from the same arguments, valid encodings, clear refusals."""

import hashlib
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "micro"
sys.path.insert(0, str(ROOT / "tools"))

import make_micro  # noqa: E402
import micro_gguf  # noqa: E402
import micro_plant  # noqa: E402

SUMS = {line.split()[1]: line.split()[0] for line in (DATA / "SHA256SUMS").read_text().splitlines()}


@pytest.mark.parametrize("name", make_micro.STANDARD)
def test_remaking_a_standard_model_gives_the_recorded_bytes(name, tmp_path):
    path = tmp_path / "m.gguf"
    make_micro.make_standard(name, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SUMS[f"{name}.gguf"]


@pytest.mark.parametrize("path", sorted(DATA.glob("*.gguf")), ids=lambda p: p.stem)
def test_committed_models_are_the_recorded_bytes(path):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SUMS[path.name]


def test_another_seed_and_another_rate_change_the_file(tmp_path):
    files = []
    for i, (seed, accept) in enumerate([(1, 60), (2, 60), (1, 30)]):
        make_micro.make_micro(tmp_path / f"{i}.gguf", seed, accept)
        files.append((tmp_path / f"{i}.gguf").read_bytes())
    assert len(set(files)) == 3


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0"])
def test_encoders_agree_with_the_gguf_package(type_name):
    x = micro_gguf.uniform(7, "x", (64, 96)) * np.float32(3)
    x[0, :32] = 0
    x[1, :4] = [1e-6, -0.0, 65000, 1e-41]
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[type_name])
    assert micro_gguf.encode(x, type_name).tobytes() == expected.tobytes()


def test_the_gguf_package_reads_what_was_planted(tmp_path):
    path = tmp_path / "m.gguf"
    make_micro.make_micro(path, 5, 60, "F32", variant=make_micro.MicroVariant(untied=True, own_head=True, eos=9))
    planted = make_micro.plant_micro(
        5, 60, micro_plant.MicroShape(), make_micro.MicroVariant(untied=True, own_head=True, eos=9)
    )
    reader = gguf.GGUFReader(path)
    assert {t.name for t in reader.tensors} == set(planted)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, planted[tensor.name], err_msg=tensor.name)
    assert reader.get_field("qwen35.nextn_predict_layers").contents() == 1
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == 9


def test_options_decide_the_optional_tensors():
    def names(**options):
        return set(make_micro.plant_micro(1, 60, micro_plant.MicroShape(), make_micro.MicroVariant(**options)))

    plain = names()
    assert names(untied=True) - plain == {"output.weight"}
    assert names(own_embed=True) - plain == {"blk.4.nextn.embed_tokens.weight"}
    assert names(own_head=True) - plain == {"blk.4.nextn.shared_head_head.weight"}
    assert plain - names(head_norm=False) == {"blk.4.nextn.shared_head_norm.weight"}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_wrong_tokens_are_spread_evenly_along_the_cycle(fraction):
    order = micro_gguf.shuffled(3, "order", 256)
    along = micro_plant.wrong_tokens(3, order, fraction)[order]
    for start in range(0, 250, 10):
        assert abs(along[start : start + 10].sum() - 10 * fraction) < 1
    assert abs(along.sum() - 256 * fraction) <= 1


def test_token_codes_are_distinct_and_far_apart():
    codes = micro_plant.token_codes(1, 256, 25).astype(int)
    products = codes @ codes.T - 26 * np.eye(256, dtype=int)
    assert products.max() <= 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--accept", "99"], "--accept 99: expected 10 to 91 percent"), (["--accept", "nan"], "--accept nan")],
)
def test_a_rate_that_cannot_be_planted_ends_in_one_line(arguments, message, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "make_micro.py"), "-o", str(tmp_path / "m.gguf"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_standard_model_of_another_architecture_is_made_by_its_name(tmp_path, capsys):
    assert make_micro.main(["--standard", "list"]) == 0
    names = capsys.readouterr().out.split()
    assert len(set(names)) == len(names)
    tables = [table for name, table in vars(make_micro).items() if name.startswith("STANDARD")]
    assert set(names) == set().union(*tables)
    asked, made = tmp_path / "asked.gguf", tmp_path / "made.gguf"
    assert make_micro.main(["--standard", "micro-gemma4-assistant-f32", "-o", str(asked)]) == 0
    make_micro.make_standard("micro-gemma4-assistant-f32", made)
    assert asked.read_bytes() == made.read_bytes()
    assert gguf.GGUFReader(asked).fields["general.architecture"].contents() == "gemma4-assistant"


@pytest.mark.parametrize(("arguments", "message"), [(["--standard", "nope", "-o", "m"], "--standard nope"), ([], "-o")])
def test_what_cannot_be_made_by_name_ends_in_one_line(arguments, message, capsys):
    assert make_micro.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
