"""`graft --hf`: the head of an original checkpoint in a quantised one, in the base's formats and words."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.engine.model.alone import load_alone
from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.files.tensor_files.safetensors import SafetensorsFile, write_safetensors
from mtpref.front import cli
from mtpref.heads.convert import Settings as ConvertSettings
from mtpref.heads.convert import convert
from mtpref.heads.hf import canonical, open_checkpoint
from mtpref.heads.into_hf import Settings, graft_hf
from mtpref.heads.into_hf.calibrate import hidden_rows
from mtpref.heads.into_hf.encode import Format, Int4Grid, bf16_bits, e4m3, encode
from mtpref.heads.quantize.head import trunk_rows
from mtpref.spec.quants import dequantize
from tests import quantised_folder as made
from tests.hf_folder import bf16_bits as bits_of_tests
from tests.hf_folder import read_state, write_checkpoint
from tests.moe_folder import CONFIGS, state, tokenizer
from tests.random_weights import normal

CASES = made.CASES
FILE = "model-mtp.safetensors"
MOE = ("qwen35moe", "qwen3next", "glm4moe", "hy_v3", "deepseek2")


def is_head(name: str, n_layer: int = 4) -> bool:
    plain = canonical(name)
    return plain.startswith("mtp.") or plain.startswith(f"model.layers.{n_layer}.")


def folders(root: Path, case: str | None, arch: str = "qwen35", *, n_files: int = 1) -> tuple[Path, Path]:
    """(a base that lost its head, the original)."""
    if arch == "qwen35":
        weights, config, tokens = read_state()
    else:
        weights, config, tokens = state(arch), CONFIGS[arch], tokenizer(arch)
    original = write_checkpoint(root / "original", weights, config, tokens)
    trunk = {name: x for name, x in weights.items() if not is_head(name)}
    lost = {key: x for key, x in config.items() if key not in ("mtp_num_hidden_layers", "num_nextn_predict_layers")}
    if case is None:
        return write_checkpoint(root / "base", trunk, lost, tokens, n_files=n_files), original
    return made.case_folder(root / "base", CASES[case], trunk, lost, tokens), original


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def values(folder: Path, *, heads: bool = True) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        assert not [checkpoint.fault(name) for name in checkpoint.names if checkpoint.fault(name)]
        return {name: checkpoint.values(name) for name in checkpoint.names if is_head(name) == heads}


def raw(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Tensors of the new file: type and bytes."""
    file = SafetensorsFile(folder / FILE)
    found = {}
    for name in file.names:
        codes = file.codes(name, slice(None))
        found[name] = file.dtype(name), np.ascontiguousarray(codes).tobytes()
    assert file.metadata == {"format": "pt"}
    file.close()
    return found


def run(root: Path, base: Path, original: Path, **settings) -> Path:
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    graft_hf(base, original, out, Settings(**settings))
    return out


# ENCODERS


def test_bf16_is_the_nearest_halves_to_even():
    x = np.float32([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, 3e38, np.inf, np.nan, 1e-40, -0.0])
    rounded = (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)
    assert rounded[:4].tolist() == [1.0, 1.0, 1 + 2**-6, -1 - 2**-7]
    assert np.isinf(rounded[5])
    assert np.isnan(rounded[6])
    assert np.signbit(rounded[8])
    y = normal(1, "bf16", 4096).astype(np.float32)
    assert np.array_equal(bf16_bits(y), bits_of_tests(y))


def test_e4m3_is_the_nearest_halves_to_even():
    table = FLOAT8["F8_E4M3"]
    finite = table[np.isfinite(table)]
    assert np.array_equal(table[e4m3(finite)], finite)
    middle = np.sort(np.unique(finite.astype(np.float64)))
    halves = ((middle[1:] + middle[:-1]) / 2).astype(np.float32)
    codes = e4m3(halves)
    near = np.abs(table[codes].astype(np.float64) - halves)
    assert np.allclose(near, np.diff(middle) / 2)
    assert not (codes & 1).any()
    x = np.concatenate([normal(2, "e4m3", 8000) * 40, [500.0, -1e9, 2.0**-10, 2.0**-11]]).astype(np.float32)
    ours = table[e4m3(x)].astype(np.float64)
    best = np.abs(x[:, None].astype(np.float64) - np.sort(finite.astype(np.float64))[None]).min(1)
    assert np.array_equal(np.abs(ours - x), best)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("group", [32, 128])
def test_int4_by_the_naive_rule(group, dtype):
    form = Format("w4a16", group, scale_dtype=dtype)
    x = (normal(3, "int4", 24 * 256).reshape(24, 256) * 0.05).astype(np.float32)
    x[3, :group] = 0
    parts = encode(form, iter([x[:10], x[10:]]), (24, 256))
    for r in range(24):
        for g in range(256 // group):
            own = x[r, g * group : (g + 1) * group]
            wanted = np.float32(np.abs(own).max()) / np.float32(7.5) or np.float32({"BF16": 2**-7, "F16": 2**-10,
                                                                                   "F32": 2**-23}[dtype])  # fmt: skip
            stored = parts["weight_scale"][r, g]
            d = np.float32((np.uint32(stored) << 16).view(np.float32) if dtype == "BF16" else stored)
            assert abs(d - wanted) <= {"BF16": 2**-8, "F16": 2**-11, "F32": 0}[dtype] * wanted
            for j, w in enumerate(own):
                c = g * group + j
                code = (int(parts["weight_packed"].view(np.uint32)[r, c // 8]) >> 4 * (c % 8) & 15) - 8
                assert code == max(-8, min(7, round(float(np.float32(w / d)))))
    assert parts["weight_shape"].tolist() == [24, 256]


def test_gptq_of_no_correlation_is_rounding_and_its_matrix_has_the_same_values():
    from mtpref.heads.quantize.gptq import nearest_codes

    x = (normal(4, "int4", 16 * 256).reshape(16, 256) * 0.05).astype(np.float32)
    for dtype, kind in (("BF16", "Q4_0"), ("F32", "F32")):
        grid = Int4Grid(Format("w4a16", 64, scale_dtype=dtype))
        codes, d, _ = nearest_codes(x, grid)
        a, b = grid.parts(codes, d), encode(grid.form, iter([x]), x.shape)
        assert all(np.array_equal(a[part], b[part]) for part in b)
        matrix = grid.matrix("m", codes, d)
        assert matrix.type_name == kind
        wanted = codes.astype(np.float32) * np.repeat(d.astype(np.float32), 64, axis=1)
        assert np.array_equal(dequantize(kind, matrix.raw, x.shape), wanted)


@pytest.mark.parametrize("scale", ["F32", "BF16", "F8_E8M0"])
def test_fp8_by_the_naive_rule(scale):
    form = Format("fp8-block", block=(24, 40), scale="weight_scale_inv", scale_dtype=scale)
    x = (normal(5, "fp8", 50 * 96).reshape(50, 96) * 0.05).astype(np.float32)
    x[:24, :40] = 0
    parts = encode(form, iter([x[:48], x[48:]]), (50, 96))
    assert parts["weight_scale_inv"].shape == (3, 3)
    for i in range(3):
        for j in range(3):
            own = x[24 * i : 24 * i + 24, 40 * j : 40 * j + 40]
            stored = parts["weight_scale_inv"][i, j]
            if scale == "F8_E8M0":
                d = 2.0 ** (int(stored) - 127)
                assert np.abs(own).max() / 448 <= d or not own.any()
            else:
                d = float((np.uint32(stored) << 16).view(np.float32)) if scale == "BF16" else float(stored)
            got = FLOAT8["F8_E4M3"][parts["weight"][24 * i : 24 * i + 24, 40 * j : 40 * j + 40]] * np.float32(d)
            step = np.maximum(np.abs(own) / 16, d * 2.0**-10)
            assert (np.abs(got - own) <= step * 1.02 + np.abs(own).max() * 2.0**-8 * (scale == "BF16")).all()


def test_what_cannot_be_encoded_is_refused():
    x = np.full((2, 32), np.nan, np.float32)
    with pytest.raises(MtprefError, match="holds NaN or infinity"):
        encode(Format("bf16"), iter([x]), (2, 32))
    with pytest.raises(MtprefError, match="rows of 96 values, expected a multiple of the group of 128"):
        Format("w4a16", 128).check("x", (4, 96))


# WHOLE FOLDERS


@pytest.mark.parametrize("case", ["int4", "fp8 blocks", "fp8 blocks compressed", "fp8 E8M0"])
def test_as_the_base_has_its_own(case, tmp_path):
    """Names, types and shapes of the head's parts are those of the same modules in the last layer of its trunk."""
    base, original = folders(tmp_path, case)
    out = run(tmp_path, base, original)
    trunk = SafetensorsFile(base / "model.safetensors")
    own = raw(out)
    file = SafetensorsFile(out / FILE)
    suffixes = [n.removeprefix("mtp.layers.0.") for n in own if n.startswith("mtp.layers.0.")]
    assert len(suffixes) >= 18
    for name in suffixes:
        twin, mine = f"model.layers.3.{name}", f"mtp.layers.0.{name}"
        assert (file.dtype(mine), file.shape(mine)) == (trunk.dtype(twin), trunk.shape(twin))
    original_values = values(original)
    for name, x in values(out).items():
        w = original_values[name]
        error = np.linalg.norm(x - w) / np.linalg.norm(w)
        assert error <= (0.12 if case == "int4" else 0.04) if x.ndim == 2 and "mtp.fc" not in name else error == 0
    assert values(out, heads=False).keys() == values(base, heads=False).keys()
    config = json.loads((out / "config.json").read_text())
    assert config["mtp_num_hidden_layers"] == 1
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(trunk.names) | set(own)
    assert (out / "model.safetensors").samefile(base / "model.safetensors")
    n_bytes = sum(len(x) for _, x in own.values())
    assert index["metadata"]["total_size"] == n_bytes + (base / "model.safetensors").stat().st_size - _header(base)


def _header(folder: Path) -> int:
    return 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


@pytest.mark.parametrize("case", [None, "int4", "awq", "gptq", "mxfp4", "nvfp4", "int8"])
def test_bf16_is_the_original_bit_for_bit(case, tmp_path):
    base, original = folders(tmp_path, case, n_files=1)
    out = run(tmp_path, base, original, head_type="bf16")
    theirs = SafetensorsFile(original / "model.safetensors")
    found = raw(out)
    assert set(found) == {name for name in theirs.names if is_head(name)}
    for name, (dtype, data) in found.items():
        assert dtype == theirs.dtype(name)
        assert data == np.ascontiguousarray(theirs.codes(name, slice(None))).tobytes()
    config = json.loads((out / "config.json").read_text())
    if case is None:
        assert "quantization_config" not in config
        return
    said = json.dumps(config["quantization_config"])
    assert "mtp" in said or case == "nvfp4 modelopt"


@pytest.mark.parametrize("arch", MOE)
@pytest.mark.parametrize("head_type", ["bf16", "fp8-block", "w4a16"])
@pytest.mark.covering
def test_experts_of_every_architecture(arch, head_type, tmp_path):
    """Kimi's form: routed experts packed in groups of 32, the rest BF16."""
    base, original = folders(tmp_path, "int4 experts", arch)

    def only_experts(config):
        config["quantization_config"]["ignore"] += ["re:.*self_attn.*", "re:.*linear_attn.*", "re:.*shared_expert.*",
                                                    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]  # fmt: skip

    edit(base, only_experts)
    out = run(tmp_path, base, original, head_type=head_type)
    with open_checkpoint(out) as checkpoint:
        kinds = {name: checkpoint.stored(name).kind for name in checkpoint.names if is_head(name)}
    experts = {name for name in kinds if ".experts." in name}
    assert len(experts) == 18
    kind = {"bf16": {""}, "fp8-block": {"FP8 E4M3, one scale a matrix"},
            "w4a16": {"INT4, groups of 32", "INT4, one scale a row"}}[head_type]  # fmt: skip
    assert {kinds[name] for name in experts} == kind
    assert {kinds[name] for name in kinds if name not in experts} == {""}
    before, after = values(original), values(out)
    assert before.keys() == after.keys()
    for name, x in after.items():
        error = np.linalg.norm(x - before[name]) / np.linalg.norm(before[name])
        assert error <= (0.15 if name in experts else 0)
    file = SafetensorsFile(out / FILE)
    if head_type == "w4a16":
        shape = next(name for name in file.names if name.endswith("weight_shape"))
        assert file.dtype(shape) == "I32"  # as Kimi's
    record = json.loads((out / "config.json").read_text())["quantization_config"]
    assert record["format"] == ("mixed-precision" if head_type == "fp8-block" else "pack-quantized")
    layers = "mtp_num_hidden_layers" if arch.startswith("qwen35") else "num_nextn_predict_layers"
    assert json.loads((out / "config.json").read_text()).get(layers) == 1 or arch == "qwen3next"
    convert(out, tmp_path / "out.gguf", ConvertSettings())  # and the whole of it is a model again


def test_experts_in_one_tensor_are_taken_apart(tmp_path):
    base, original = folders(tmp_path, "int4 experts", "qwen35moe")
    wanted = values(run(tmp_path, base, original))
    shutil.rmtree(original)
    write_checkpoint(original, state("qwen35moe", fused=True), CONFIGS["qwen35moe"], tokenizer("qwen35moe"))
    found = values(run(tmp_path, base, original))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    both = run(tmp_path, base, original, head_type="bf16")
    assert values(both).keys() == wanted.keys()


def test_codes_that_the_original_has_are_copied(tmp_path):
    """A quantised original: DeepSeek's own FP8 blocks under compressed-tensors' names, INT4 groups as they are."""
    weights, config, tokens = read_state()
    for case, other in (("fp8 blocks", "fp8 blocks compressed"), ("int4", "int4")):
        base, _ = folders(tmp_path, other)
        original = made.case_folder(tmp_path / "theirs", CASES[case], weights, config, tokens)
        out = run(tmp_path, base, original)
        theirs, found = values(original), values(out)
        assert all(np.array_equal(theirs[name], found[name]) for name in theirs)
        if case == "fp8 blocks":
            assert any(name.endswith("weight_scale") for name in raw(out))
            assert not any(name.endswith("weight_scale_inv") for name in raw(out))
        shutil.rmtree(base)
        shutil.rmtree(original)


def test_prefixes_are_the_bases(tmp_path):
    """Kimi-K2.5 nests the text model; the original is saved without."""
    base, original = folders(tmp_path, "int4 experts", "deepseek2")
    file = SafetensorsFile(base / "model.safetensors")
    arrays, bf16 = {}, set()
    for name in file.names:
        arrays[f"language_model.{name}"] = file.codes(name, slice(None))
        bf16 |= {f"language_model.{name}"} if file.dtype(name) == "BF16" else set()
    file.close()
    write_safetensors(base / "model.safetensors", arrays, frozenset(bf16))
    edit(base, lambda config: config.update(text_config={k: config[k] for k in list(config) if k != "architectures"}))
    out = run(tmp_path, base, original)
    assert all(name.startswith("language_model.model.layers.4.") for name in raw(out))
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["num_nextn_predict_layers"] == 1
    assert "num_nextn_predict_layers" not in config


def test_files_and_links(tmp_path):
    base, original = folders(tmp_path, None, n_files=3)
    (base / "README.md").write_text("of the base")
    (base / "code").mkdir()
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    notes = []
    for how in ("hard", "symbolic", "copy"):
        out = tmp_path / how
        graft_hf(base, original, out, Settings(head_type="bf16", how=how), say=notes.append)
        for name in before:
            if name.endswith(".safetensors"):
                assert (out / name).samefile(base / name) == (how != "copy")
                assert (out / name).is_symlink() == (how == "symbolic")
            elif name not in ("config.json", "model.safetensors.index.json"):
                assert not (out / name).samefile(base / name)  # an editor would write through a link
                assert (out / name).read_bytes() == before[name]
        assert not (out / "code").exists()
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before
    assert notes[0] == "left out, being folders or nothing of a checkpoint: code"
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / how).iterdir()} for how in ("hard", "copy"))
    assert a == b  # the same input, the same bytes


# CONFIG


GROUPS_OF_TWO = {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True,
                                                   "strategy": "group", "group_size": 32}},
}  # fmt: skip


def test_ignore_lists(tmp_path):
    """Names of modules that are quantised go, those that stay plain come; a pattern over quantised ones is said."""
    base, original = folders(tmp_path, "int4")
    edit(base, lambda c: c["quantization_config"].update(ignore=["lm_head", "mtp.layers.0.mlp.up_proj"]))
    out = run(tmp_path, base, original)
    record = json.loads((out / "config.json").read_text())["quantization_config"]
    assert record["ignore"] == ["lm_head", "mtp.fc"]
    assert record["config_groups"] == CASES["int4"].config["config_groups"]
    edit(base, lambda c: c["quantization_config"].update(ignore=["lm_head", "re:.*mtp.*"]))
    with pytest.raises(MtprefError, match=r"ignore has re:\.\*mtp\.\*, which leaves mtp\.layers"):
        run(tmp_path, base, original)
    out = run(tmp_path, base, original, head_type="bf16")
    assert json.loads((out / "config.json").read_text())["quantization_config"]["ignore"] == ["lm_head", "re:.*mtp.*"]


def test_a_pattern_that_may_take_long_is_refused(tmp_path):
    base, original = folders(tmp_path, "int4")
    for pattern in ("re:(a+)+$", "re:.*.*.*.*.*x", "re:" + "a" * 500):
        edit(base, lambda c, p=pattern: c["quantization_config"].update(ignore=[p]))
        with pytest.raises(MtprefError, match="which may take long"):
            run(tmp_path, base, original)
    edit(base, lambda c: c["quantization_config"].update(ignore=["re:(("]))
    with pytest.raises(MtprefError, match="is no pattern"):
        run(tmp_path, base, original)


def test_a_format_of_its_own_gets_a_group(tmp_path):
    base, original = folders(tmp_path, "int4", "qwen35moe")
    out = run(tmp_path, base, original, head_type="fp8-block")
    record = json.loads((out / "config.json").read_text())["quantization_config"]
    new = record["config_groups"]["group_1"]
    assert new["targets"] == [
        rf"re:^mtp\.layers\.0\.mlp\.experts\.\d+\.{part}_proj$" for part in ("down", "gate", "up")
    ]
    assert new["weights"]["block_structure"] == [128, 128]
    assert new["format"] == "float-quantized"
    assert record["config_groups"]["group_0"]["format"] == "pack-quantized"
    assert record["format"] == "mixed-precision"
    edit(base, lambda c: c["quantization_config"]["config_groups"].update(
        group_1={"targets": ["re:.*experts.*"], "weights": {"num_bits": 4, "type": "int", "symmetric": True,
                                                            "strategy": "group", "group_size": 32}}))  # fmt: skip
    out = run(tmp_path, base, original, head_type="fp8-block")
    groups = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]
    assert len(groups["group_2"]["targets"]) == 18  # exact names go before patterns


def test_lists_of_other_methods(tmp_path):
    for case, key in (("fp8 blocks", "modules_to_not_convert"), ("awq", "modules_to_not_convert"), ("gptq", "dynamic")):
        base, original = folders(tmp_path / case, case, "qwen35moe")
        out = run(tmp_path / case, base, original, head_type="bf16")
        found = json.loads((out / "config.json").read_text())["quantization_config"][key]
        if key == "dynamic":
            assert found[r"-:^mtp\.layers\.0\.mlp\.experts\.\d+\.up_proj$"] == {}
        else:
            assert "mtp.layers.0.mlp.experts" in found
            assert "mtp.fc" in found


# REFUSALS


def test_refusals(tmp_path):
    base, original = folders(tmp_path, "int4")
    with pytest.raises(MtprefError, match=r"has 15 tensors of a head already, mtp\.fc\.weight first"):
        run(tmp_path, original, original)
    with pytest.raises(MtprefError, match="no tensor of an MTP head"):
        run(tmp_path, base, base)
    out = run(tmp_path, base, original)
    with pytest.raises(MtprefError, match="is a folder that holds files"):
        graft_hf(base, original, out, Settings())
    awq, _ = folders(tmp_path / "awq", "awq")
    with pytest.raises(MtprefError, match="quantised by awq, whose config cannot say INT4 in groups of 32 of mtp"):
        run(tmp_path, awq, original, head_type="w4a16", group_size=32)
    plain, _ = folders(tmp_path / "plain", None)
    with pytest.raises(MtprefError, match="has no quantization_config"):
        run(tmp_path, plain, original, head_type="w4a16", group_size=32)
    experts = folders(tmp_path / "experts", "int4 experts", "qwen35moe")
    with pytest.raises(MtprefError, match="rows of 32 values, expected a multiple of the group of 128"):
        run(tmp_path, *experts, head_type="w4a16", group_size=128)
    edit(original, lambda c: c.update(rms_norm_eps=1e-5))
    with pytest.raises(MtprefError, match="the head belongs to another model"):
        run(tmp_path, base, original)
    for wrong in ({"method": "gptq"}, {"hidden": "x"}, {"group_size": 7}, {"head_type": "int8"}):
        with pytest.raises(MtprefError):
            Settings(**wrong)


def test_another_trunk_is_doubted(tmp_path):
    base, original = folders(tmp_path, "int4")
    weights, config, tokens = read_state()
    weights["model.norm.weight"] = weights["model.norm.weight"] + np.float32(0.25)
    write_checkpoint(original, weights, config, tokens)
    said = []
    graft_hf(base, original, tmp_path / "out", Settings(), say=said.append)
    assert "the head may be another trunk's: output_norm.weight differs" in said[0]


# GPTQ


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """(folder, texts, hidden rows of the base's trunk as a file, base, original)."""
    root = tmp_path_factory.mktemp("gptq")
    base, original = folders(root, "int4")
    text = root / "text.py"
    text.write_text((Path(__file__).parent / "naive.py").read_text()[:9000])
    convert(base, root / "trunk.gguf", ConvertSettings(which="trunk"))
    out = run(root, base, original, head_type="bf16")
    convert(out, root / "whole.gguf", ConvertSettings())
    model = load(root / "whole.gguf")
    ids = model.vocab.encode(text.read_text())
    chunks = trunk_rows(model, [ids])
    h, tokens, positions = [], [], []
    for chunk in chunks:  # what an engine dumps: a row after each token
        assert chunk.first == 0  # llama.cpp's cell 0
        last = np.zeros_like(chunk.rows[:1])  # unused: no pair has it
        h += [np.concatenate([chunk.rows[1:], last])]
        tokens += [chunk.ids]
        positions += [range(chunk.first, chunk.first + len(chunk.ids))]
    write_safetensors(root / "hidden.safetensors", {
        "h": np.concatenate(h).astype(np.float32), "ids": np.concatenate(tokens).astype(np.int64),
        "positions": np.concatenate([np.array(p) for p in positions]).astype(np.int64)})  # fmt: skip
    return root, text, root / "hidden.safetensors", base, original


def head_rows(folder: Path, hidden: Path) -> np.ndarray:
    """What the head of a folder makes of the file's rows."""
    target = hidden.with_name("head.gguf")
    target.unlink(missing_ok=True)
    convert(folder, target, ConvertSettings(which="mtp", outtype="f32"))
    model = load_alone(target)
    chunks = hidden_rows(hidden, model)
    made = [model.mtp(model.new_state(1024), c.ids, c.rows, c.first, n_logits=0) for c in chunks]
    return np.concatenate([one.hidden.post for one in made])


def test_gptq_is_better_than_rounding_where_it_counts(calibrated, tmp_path):
    _, text, hidden, base, original = calibrated
    errors, files, wanted = {}, {}, head_rows(original, hidden)
    for name, settings in (
        ("rtn", {}),
        ("gptq", {"method": "gptq", "calibration": (str(text),)}),
        ("hidden", {"method": "gptq", "hidden": str(hidden)}),
    ):
        out = tmp_path / name
        made = graft_hf(base, original, out, Settings(head_type="w4a16", **settings))
        assert made.n_calibrated == (0 if name == "rtn" else 7)
        errors[name], files[name] = float(np.mean((wanted - head_rows(out, hidden)) ** 2)), raw(out)
    print(errors)
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["hidden"] < 0.8 * errors["rtn"]
    assert {n: t for n, (t, _) in files["rtn"].items()} == {n: t for n, (t, _) in files["hidden"].items()}
    packed = [n for n in files["rtn"] if n.endswith("weight_packed")]
    words = [{n: np.frombuffer(files[name][n][1], np.uint8) for n in packed} for name in ("gptq", "hidden")]
    same = np.mean([np.mean(words[0][n] == words[1][n]) for n in packed])
    assert same > 0.8  # the same rows but for cell 0
    again = tmp_path / "again"
    graft_hf(base, original, again, Settings(head_type="w4a16", method="gptq", hidden=str(hidden)))
    assert raw(again) == files["hidden"]


@pytest.mark.parametrize("arch", ["qwen35moe", "deepseek2"])
def test_gptq_of_experts(arch, calibrated, tmp_path):
    """Codes come back under the checkpoint's names: each expert's own, whatever order a conversion gives the rows."""
    base, original = folders(tmp_path, "int4 experts", arch)
    edit(base, lambda c: c["quantization_config"]["ignore"].append("re:.*self_attn.*"))
    text = tmp_path / "text"
    text.write_text("the sea and the ship and the man in the house " * 60)
    rtn = values(run(tmp_path, base, original, head_type="w4a16"))
    done = graft_hf(base, original, tmp_path / "g", Settings(method="gptq", calibration=(str(text),)))
    assert done.n_calibrated == 18
    gptq, wanted = values(tmp_path / "g"), values(original)
    assert gptq.keys() == rtn.keys() == wanted.keys()
    for name in wanted:
        error = [np.linalg.norm(x[name] - wanted[name]) / np.linalg.norm(wanted[name]) for x in (rtn, gptq)]
        assert error[1] < 0.3, name
        assert (error[1] > 0) == (error[0] > 0) == (".experts." in name)
    assert any(not np.array_equal(rtn[name], gptq[name]) for name in rtn)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "g", "original", "out", "text"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_experts_in_int4_beside_attention_in_fp8(method, tmp_path):
    """DeepSeek-V4's layout and names, four streams, and a head that puts them together in its own way."""
    weights, config, tokens = state("deepseek4"), CONFIGS["deepseek4"], tokenizer("deepseek4")
    original = write_checkpoint(tmp_path / "original", weights, config, tokens)
    groups = {
        "group_0": {"targets": [r"re:.*ffn\.experts.*"], "format": "pack-quantized",
                    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                                "group_size": 32}},
        "group_1": {"targets": [r"re:.*attn\.w.*"], "format": "float-quantized",
                    "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block",
                                "block_structure": [128, 128]}},
    }  # fmt: skip
    said = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups, "ignore": []}

    def encoded(name, x):
        if ".experts." in name:
            return made.packed(x)
        if name.endswith("tid2eid"):
            return made.Parts({"weight": x.astype(np.int32)})
        return made.fp8(x, part="weight_scale", dtype="BF16") if ".attn.w" in name else None

    lost = {key: x for key, x in config.items() if key != "num_nextn_predict_layers"} | {"quantization_config": said}
    trunk = {name: x for name, x in weights.items() if not name.startswith("mtp.")}
    base = made.write_quantised(tmp_path / "base", trunk, lost, tokens, encoded)
    text = tmp_path / "text"
    text.write_text("the sea and the ship and the man in the house " * 60)
    given = {"calibration": (str(text),)} if method == "gptq" else {}
    done = graft_hf(base, original, tmp_path / "out", Settings(method=method, **given))
    assert done.n_calibrated == (18 if method == "gptq" else 0)
    before, after = values(original), values(tmp_path / "out")
    assert before.keys() == after.keys()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        kinds = {name: checkpoint.stored(name).kind for name in after}
    for name, x in after.items():
        kind = "INT4" if ".experts." in name else "FP8 E4M3" if ".attn.w" in name else ""
        assert kinds[name].startswith(kind)
        assert bool(kinds[name]) == bool(kind)
        error = np.linalg.norm(x - before[name]) / max(np.linalg.norm(before[name]), 1e-9)
        assert error <= {"INT4": 0.3, "FP8 E4M3": 0.04, "": 0}[kind]
    found = json.loads((tmp_path / "out/config.json").read_text())
    assert found["num_nextn_predict_layers"] == 1
    assert found["quantization_config"]["config_groups"] == groups
    assert found["quantization_config"]["ignore"] == []  # no target has what stays plain


def test_hidden_rows_of_a_bad_file(calibrated, tmp_path):
    original = calibrated[-1]
    convert(original, tmp_path / "head.gguf", ConvertSettings(which="mtp"))
    model = load_alone(tmp_path / "head.gguf")
    good = {"h": np.zeros((5, 256), np.float32), "ids": np.arange(5), "positions": np.array([7, 8, 3, 4, 5])}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, good)
    a, b = hidden_rows(path, model)
    assert (a.ids, a.first, b.ids, len(b.rows)) == ([1], 1, [3, 4], 2)
    bad = (
        ({"h": None}, "no tensor h, expected h (n, 256)"),
        ({"h": np.zeros((5, 64), np.float32)}, "h (5, 64)"),
        ({"ids": np.arange(4)}, "ids (4,)"),
        ({"ids": np.array([0, 1, 2, 3, 99999])}, "ids holds 99999"),
        ({"ids": np.zeros(5, np.float32)}, "ids F32"),
        ({"h": np.full((5, 256), np.inf, np.float32)}, "holds NaN or infinity"),
        ({"positions": np.array([1, 3, 5, 7, 9])}, "no two positions follow each other"),
        ({"h": np.zeros((1, 256), np.float32), "ids": np.arange(1), "positions": np.arange(1)}, "1 rows, expected 2"),
    )
    for change, said in bad:
        write_safetensors(path, {name: x for name, x in (good | change).items() if x is not None})
        with pytest.raises(MtprefError, match=said.replace("(", r"\(").replace(")", r"\)")):
            hidden_rows(path, model)


def test_a_head_alone_gives_the_bits_of_the_head_on_its_trunk(calibrated, tmp_path):
    root, text, *_ = calibrated
    whole = load(root / "whole.gguf")
    assert cli.main(["extract", str(root / "whole.gguf"), "-o", str(tmp_path / "mtp.gguf")]) == 0
    [chunk] = trunk_rows(whole, [whole.vocab.encode(text.read_text())[:60]])
    outs = [
        model.mtp(model.new_state(64), chunk.ids, chunk.rows, chunk.first, n_logits=len(chunk.ids))
        for model in (whole, load_alone(tmp_path / "mtp.gguf"), load_alone(root / "whole.gguf"))
    ]
    for other in outs[1:]:
        assert np.array_equal(outs[0].logits, other.logits)
        assert np.array_equal(outs[0].hidden.post, other.hidden.post)
    assert cli.main(["strip", str(root / "whole.gguf"), "-o", str(tmp_path / "trunk.gguf")]) == 0
    with pytest.raises(MtprefError, match="no MTP head, expected one"):
        load_alone(tmp_path / "trunk.gguf")


HEAD_TYPES = (None, "bf16", "fp8-block")


@pytest.mark.parametrize("every_type", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hostile_configs_end_in_one_line(tmp_path, every_type):
    """By default one type of the head for each, in turn."""
    base, original = folders(tmp_path, "int4")
    kept = json.loads((base / "config.json").read_text())
    for i, change in enumerate((
        {"config_groups": None}, {"config_groups": {"group_0": {"targets": "Linear", "weights": {"num_bits": 4}}}},
        {"config_groups": {"group_0": {"targets": [3, None], "weights": {"num_bits": 4}}}}, {"ignore": None},
        {"ignore": [4, None, "lm_head"]}, {"ignore": ["Linear"]}, {"format": 7}, {"config_groups": {"group_0": {}}},
    )):  # fmt: skip
        (base / "config.json").write_text(json.dumps({**kept, "quantization_config": {**kept["quantization_config"],
                                                                                      **change}}))  # fmt: skip
        for head_type in HEAD_TYPES if every_type else (HEAD_TYPES[i % len(HEAD_TYPES)],):
            with contextlib.suppress(MtprefError):
                assert values(run(tmp_path, base, original, head_type=head_type))


# COMMAND LINE


def test_the_command(calibrated, tmp_path, capsys):
    _, text, _, base, original = calibrated
    words = ["graft", "--hf", str(base), str(original), "-o", str(tmp_path / "out"), "--head-type", "w4a16"]
    assert cli.main([*words, "--method", "gptq", "--calibration", str(text)]) == 0
    out = capsys.readouterr().out
    assert "a head of 29 tensors, 634 kB: 7 matrices in INT4 in groups of 32, 7 of them by GPTQ; 1 file " in out
    assert cli.main(["check", str(tmp_path / "out"), "--fast"]) == 0
    for more, said in (
        (["--method", "gptq"], "--method gptq: expected --calibration texts, or --hidden"),
        (["--outtype", "f16"], "--outtype: is about GGUF files"),
        (["--group-size", "5"], "--group-size: 5, expected 32"),
        (["--split-max-tensors", "5"], "--split-max-tensors: "),
    ):
        assert cli.main([*words[:-3], str(tmp_path / "new"), *more]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["graft", str(base), str(original), "--head-type", "bf16", "-o", "x.gguf"]) == 2
    assert "--head-type: is about checkpoint folders, expected it with --hf" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# THE LIBRARY


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("group", [32, 128])
def test_int4_is_compressed_tensors(group, dtype):
    torch = pytest.importorskip("torch")
    ct = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    assert ct
    x = (normal(6, "int4", 96 * 256).reshape(96, 256) * 0.05).astype(np.float32)
    w = torch.from_numpy(x)
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
    grouped = w.reshape(96, -1, group)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    scale = scale.to(getattr(torch, dtype))
    theirs = pack_to_int32(quantize(w, scale.float(), zero, args, dtype=torch.int8), 4)
    form = Format("w4a16", group, scale_dtype={"bfloat16": "BF16", "float32": "F32"}[dtype])
    ours = encode(form, iter([x]), x.shape)
    assert np.array_equal(ours["weight_packed"], theirs.numpy())
    bits = scale.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else scale.numpy()
    assert np.array_equal(ours["weight_scale"], bits)


@pytest.mark.oracle
def test_e4m3_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.concatenate([normal(2, "e4m3", 20000) * 40, np.linspace(-448, 448, 9999)]).astype(np.float32)
    theirs = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(e4m3(x.clip(-448, 448)), theirs[:] if np.abs(x).max() <= 448 else e4m3(x.clip(-448, 448)))


@pytest.mark.oracle
@pytest.mark.parametrize("head_type", ["bf16", "w4a16", "fp8-block"])
def test_transformers_and_compressed_tensors_open_it(head_type, tmp_path):
    """transformers loads the trunk and leaves the head; compressed-tensors' own decompression of every quantised module
    of the head gives the values that are read here; each tensor of the folder is one or the other's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_targets
    from safetensors import safe_open

    base, original = folders(tmp_path, "int4")
    plain = ["lm_head", *(f"model.layers.{i}.linear_attn.in_proj_{x}" for i in range(3) for x in "ab")]
    edit(base, lambda c: c["quantization_config"].update(ignore=plain, quantization_status="compressed"))
    out = run(tmp_path, base, original, head_type=head_type)
    model, said = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["mismatched_keys"]
    files = [safe_open(path, "pt") for path in sorted(out.glob("*.safetensors"))]
    stored = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it is no dict)
    record = json.loads((out / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(record)
    by_target = {t: scheme for scheme in config.config_groups.values() for t in scheme.targets}
    ours, seen = values(out), set()
    for name in ours:
        module = name.removesuffix(".weight")
        parts = {part.removeprefix(f"{module}."): file.get_tensor(part) for part, file in stored.items()
                 if part.startswith(f"{module}.") or part == name}  # fmt: skip
        seen |= {f"{module}.{part}" for part in parts}
        linear = torch.nn.Linear(1, 1)
        is_ignored = bool(match_targets(module, linear, config.ignore))
        found = [] if is_ignored or ours[name].ndim != 2 else match_targets(module, linear, by_target)
        if list(parts) == ["weight"] and parts["weight"].dtype == torch.bfloat16:
            assert not found, name
            assert np.array_equal(parts["weight"].float().numpy(), ours[name])
            continue
        scheme = by_target[found[0]]
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        plain = compressor.decompress(parts, scheme)["weight"]
        rounded = torch.from_numpy(ours[name]).to(plain.dtype)
        assert torch.equal(plain, rounded), name
    assert seen == {name for name in stored if name.startswith("mtp.")}
    trunk = {name for name in stored if not name.startswith("mtp.")}
    assert trunk == set(SafetensorsFile(base / "model.safetensors").names)
    assert sum(p.numel() for p in model.parameters()) > 0
