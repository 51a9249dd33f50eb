"""mtpref convert: every spelling of a checkpoint gives one file, and that file is llama.cpp's."""

import json
import os
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.architectures import ARCHITECTURES, state_to_gguf
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf
from mtpref.files.tensor_files.safetensors import write_safetensors
from mtpref.front.cli import main
from mtpref.heads.convert import Settings, convert
from mtpref.heads.convert.pre import PROBE, find_pre
from mtpref.heads.hf import canonical, open_checkpoint
from mtpref.spec.quants import dequantize
from tests.hf_folder import TINY, bf16_bits, read_state, write_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import record_converted as recorder
finally:
    sys.path.pop(0)

RECORDED = Path(__file__).parent / "data" / "converted.json"
STATE, CONFIG, TOKENIZER = read_state()
VALUES = {
    "n_layer": 4,
    "n_k_head": CONFIG["linear_num_key_heads"],
    "n_v_head": CONFIG["linear_num_value_heads"],
    "d_state": CONFIG["linear_key_head_dim"],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The tiny model as Qwen would ship it, and its GGUF."""
    folder = write_checkpoint(tmp_path_factory.mktemp("hf") / "Tiny-5M", STATE, CONFIG, TOKENIZER)
    target = folder.parent / "tiny.gguf"
    convert(folder, target, Settings())
    return folder, target


def converted(folder, tmp_path, **settings):
    target = tmp_path / "out.gguf"
    return convert(folder, target, Settings(**settings)), target.read_bytes()


def renamed(rule):
    return {rule(name): x for name, x in STATE.items()}


# WHAT IS WRITTEN


def test_the_tiny_model_comes_back_from_its_checkpoint(tmp_path):
    """Through float32 nothing is lost but the rounding of w - 1 + 1 and of log and exp."""
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, TOKENIZER, dtype="F32")
    convert(folder, tmp_path / "out.gguf", Settings(outtype="q8_0"))
    with open_gguf(TINY) as old, open_gguf(tmp_path / "out.gguf") as new:
        assert set(old.tensors) == set(new.tensors)
        for name, info in old.tensors.items():
            other = new.tensors[name]
            assert (info.type_name, info.shape) == (other.type_name, other.shape)
            if info.type_name == "Q8_0":
                assert np.array_equal(old.data(info), new.data(other)), name
            else:
                a, b = (f.data(t).view(np.float32) for f, t in ((old, info), (new, other)))
                assert np.allclose(a, b, rtol=3e-7, atol=3e-7), name


def test_every_tensor_is_what_the_transforms_say(plain):
    folder, target = plain
    with open_checkpoint(folder) as checkpoint:
        state = {name: checkpoint.values(name) for name in checkpoint.names}
    expected = state_to_gguf(ARCHITECTURES["qwen35"], state, VALUES)
    with open_gguf(target) as file:
        assert set(file.tensors) == set(expected)
        for name, info in file.tensors.items():
            got = dequantize(info.type_name, file.data(info), info.shape)
            assert np.array_equal(got, expected[name]), name  # bfloat16 in, bfloat16 or float32 out: exact


@pytest.mark.parametrize("which", ["both", "mtp", "trunk"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_file_is_llama_cpps_byte_for_byte(tmp_path, dtype, which):
    """Against recorded hashes of what convert_hf_to_gguf.py wrote; test_live_converter makes them anew."""
    import hashlib

    outtype = {"BF16": "q8_0", "F16": "f16", "F32": "f32"}[dtype]
    folder = write_checkpoint(tmp_path / "Tiny-5M", STATE, CONFIG, TOKENIZER, dtype=dtype, n_files=2)
    _, raw = converted(folder, tmp_path, outtype=outtype, which=which)
    assert hashlib.sha256(raw).hexdigest() == json.loads(RECORDED.read_text())[f"{dtype} {outtype} {which}"]


@pytest.mark.oracle
@pytest.mark.skipif("MTPREF_LLAMA_CPP" not in os.environ, reason="MTPREF_LLAMA_CPP does not name a llama.cpp tree")
def test_live_converter():
    """llama.cpp's own converter, whose pre-tokenizer hash alone does not know the tiny vocabulary."""
    pytest.importorskip("torch", reason="llama.cpp's converter needs torch and transformers")
    pytest.importorskip("transformers", reason="llama.cpp's converter needs torch and transformers")
    assert recorder.record_tiny(os.environ["MTPREF_LLAMA_CPP"]) == json.loads(RECORDED.read_text())


# SPELLINGS


SPELLINGS = {
    "multimodal": lambda name: re.sub(r"^model\.", "model.language_model.", name),
    "old multimodal": lambda name: "language_model." + name,
    "head below model": lambda name: "model." + name if name.startswith("mtp.") else name,
    "base model": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_prefixes_do_not_matter(plain, tmp_path, spelling):
    folder = write_checkpoint(tmp_path / "Tiny-5M", renamed(SPELLINGS[spelling]), CONFIG, TOKENIZER)
    assert tensors(converted(folder, tmp_path)[1], tmp_path) == tensors(plain[1].read_bytes(), tmp_path)


def tensors(raw, tmp_path):
    path = tmp_path / "read.gguf"
    path.write_bytes(raw)
    with open_gguf(path) as file:
        return {name: (t.type_name, t.shape, file.data(t).tobytes()) for name, t in file.tensors.items()}


def test_the_text_part_of_a_multimodal_checkpoint(plain, tmp_path):
    state = renamed(SPELLINGS["multimodal"]) | {"model.visual.blocks.0.attn.qkv.weight": np.ones((6, 4), np.float32)}
    config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "vision_config": {}}
    folder = write_checkpoint(tmp_path / "Tiny-5M", state, config | {"text_config": CONFIG}, TOKENIZER)
    made, raw = converted(folder, tmp_path)
    assert tensors(raw, tmp_path) == tensors(plain[1].read_bytes(), tmp_path)
    assert "1 tensors of vision or audio parts" in made.notes[0]


def test_shards_do_not_matter(plain, tmp_path):
    folder = write_checkpoint(tmp_path / "Tiny-5M", STATE, CONFIG, TOKENIZER, n_files=5)
    assert tensors(converted(folder, tmp_path)[1], tmp_path) == tensors(plain[1].read_bytes(), tmp_path)


def fused_qwen3_next(state):
    """Built k head by k head, as transformers' Qwen3-Next lays it out."""
    n_k, n_v, size = (VALUES[name] for name in ("n_k_head", "n_v_head", "d_state"))
    r = n_v // n_k
    out = dict(state)
    for name in [n for n in state if n.endswith("in_proj_qkv.weight")]:
        prefix = name.removesuffix("in_proj_qkv.weight")
        qkv, z, b, a = (out.pop(prefix + f"in_proj_{part}.weight") for part in ("qkv", "z", "b", "a"))
        rows, gates = [], []
        for g in range(n_k):
            rows += [qkv[g * size : (g + 1) * size], qkv[(n_k + g) * size : (n_k + g + 1) * size]]
            v_rows = slice(g * r * size, (g + 1) * r * size)
            rows += [qkv[2 * n_k * size :][v_rows], z[v_rows]]
            gates += [b[g * r : (g + 1) * r], a[g * r : (g + 1) * r]]
        out[prefix + "in_proj_qkvz.weight"] = np.concatenate(rows)
        out[prefix + "in_proj_ba.weight"] = np.concatenate(gates)
    return out


def fused_engine(state):
    out = dict(state)
    for name in [n for n in state if n.endswith("mlp.gate_proj.weight")]:
        prefix = name.removesuffix("gate_proj.weight")
        out[prefix + "gate_up_proj.weight"] = np.concatenate([out.pop(name), out.pop(prefix + "up_proj.weight")])
    for name in [n for n in state if n.endswith("q_proj.weight")]:
        prefix = name.removesuffix("q_proj.weight")
        out[prefix + "qkv_proj.weight"] = np.concatenate([out.pop(prefix + f"{p}_proj.weight") for p in "qkv"])
    return out


@pytest.mark.parametrize("fuse", [fused_qwen3_next, fused_engine])
def test_fused_tensors_are_taken_apart(plain, tmp_path, fuse):
    folder = write_checkpoint(tmp_path / "Tiny-5M", fuse(STATE), CONFIG, TOKENIZER)
    assert tensors(converted(folder, tmp_path)[1], tmp_path) == tensors(plain[1].read_bytes(), tmp_path)


def test_pieces_do_not_matter(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("mtpref.heads.hf.parts.PIECE_VALUES", 700)
    assert converted(plain[0], tmp_path)[1] == plain[1].read_bytes()


def test_the_model_runs_and_drafts(plain):
    model = mtpref.load(str(plain[1]))
    run = model.generate("Once upon a time", mtpref.Options(n_predict=24))
    for _ in run:
        pass
    assert run.statistics.n_accepted > 5


def test_canonical_names():
    assert canonical("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert canonical("language_model.model.norm.weight") == "model.norm.weight"
    assert canonical("model.mtp.fc.weight") == canonical("mtp.fc.weight") == "mtp.fc.weight"
    assert canonical("language_model.lm_head.weight") == "lm_head.weight"


# THE HEAD


def without_head(state):
    return {name: x for name, x in state.items() if not name.startswith("mtp.")}


def test_a_head_that_config_json_does_not_declare_is_kept(plain, tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "mtp_num_hidden_layers"}
    folder = write_checkpoint(tmp_path / "Tiny-5M", STATE, config, TOKENIZER)
    made, raw = converted(folder, tmp_path)
    assert raw == plain[1].read_bytes()
    assert made.notes == ["config.json lacks mtp_num_hidden_layers; the tensors have an MTP head, which is kept"]


def test_a_declared_head_without_tensors_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", without_head(STATE), CONFIG, TOKENIZER)
    with pytest.raises(MtprefError, match="mtp_num_hidden_layers 1, and no tensor of an MTP head is there"):
        converted(folder, tmp_path)
    made, _ = converted(folder, tmp_path, which="trunk")
    assert made.n_mtp == 0


def test_no_head_at_all_is_said(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", without_head(STATE), CONFIG | {"mtp_num_hidden_layers": 0}, TOKENIZER)
    assert converted(folder, tmp_path)[0].notes == ["no MTP head: neither config.json nor the tensors have one"]
    with pytest.raises(MtprefError, match="expected one for `which=mtp`"):
        converted(folder, tmp_path, which="mtp")


@pytest.mark.parametrize("name", ["mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_half_a_checkpoint_is_refused(tmp_path, name):
    folder = write_checkpoint(tmp_path / "hf", {n: x for n, x in STATE.items() if n != name}, CONFIG, TOKENIZER)
    with pytest.raises(MtprefError, match=r"1 tensors.* are missing, the first becomes"):
        converted(folder, tmp_path)


def test_a_tensor_without_a_place_is_an_error_that_lists_it(tmp_path):
    state = STATE | {"model.layers.0.mlp.experts.0.up_proj.weight": np.ones((4, 4), np.float32)}
    folder = write_checkpoint(tmp_path / "hf", state, CONFIG, TOKENIZER)
    with pytest.raises(
        MtprefError, match=r"1 tensors have no place .* model\.layers\.0\.mlp\.experts\.0\.up_proj\.weight"
    ):
        converted(folder, tmp_path)
    made, _ = converted(folder, tmp_path, allow_unmapped=True)
    assert "left out, since a qwen35 GGUF has no place for them: model.layers.0.mlp.experts" in made.notes[0]


def test_a_wrong_shape_is_refused(tmp_path):
    folder = write_checkpoint(
        tmp_path / "hf", STATE | {"mtp.fc.weight": np.ones((256, 256), np.float32)}, CONFIG, TOKENIZER
    )
    with pytest.raises(
        MtprefError, match=r"nextn\.eh_proj\.weight would have shape \(256, 256\), expected \(256, 512\)"
    ):
        converted(folder, tmp_path)


# THE TOKENIZER


def test_the_vocabulary_gives_the_ids_of_the_tokenizer(plain):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(plain[0] / "tokenizer.json"))
    model = mtpref.load(str(plain[1]))
    for text in (PROBE, "", "a\u0301bc <|endoftext|> def f():\n\treturn 1"):
        composed = unicodedata.normalize("NFC", text)
        assert model.core.vocab.encode(composed) == tokenizer.encode(composed, add_special_tokens=False).ids


def test_the_pre_tokenizer_is_found_by_what_it_does():
    from tokenizers import Tokenizer

    from mtpref.files.vocab.patterns import RULES
    from mtpref.files.vocab.pretokenizers import build_pre_tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(TOKENIZER))
    for name in ("qwen35", "qwen2", "llama-bpe", "gpt-2", "deepseek-v3", "deepseek-llm", "gpt-4o", "tekken"):
        tokenizer.pre_tokenizer = build_pre_tokenizer(RULES[name])
        assert find_pre(tokenizer, ignore_merges=RULES[name].ignore_merges, label="x") == name


def test_one_added_token_more_changes_nothing(tmp_path):
    """An added token more changes llama.cpp's hash; here the name is found all the same."""
    tokenizer = json.loads(json.dumps(TOKENIZER))
    extra = dict(tokenizer["added_tokens"][0], id=len(tokenizer["model"]["vocab"]), content="<|more|>")
    tokenizer["added_tokens"].append(extra)
    folder = write_checkpoint(tmp_path / "hf", grown(STATE, 2), CONFIG | {"vocab_size": 2050}, tokenizer)
    converted(folder, tmp_path)
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.kv["tokenizer.ggml.pre"] == "qwen35"
        assert file.kv["tokenizer.ggml.tokens"].to_bytes_list()[2048:] == [b"<|more|>", b"[PAD2049]"]
        assert file.kv["tokenizer.ggml.token_type"].to_numpy()[2048:].tolist() == [3, 5]


def test_added_tokens_without_rows_get_a_remedy(tmp_path):
    tokenizer = json.loads(json.dumps(TOKENIZER))
    extra = dict(tokenizer["added_tokens"][0], id=len(tokenizer["model"]["vocab"]), content="<|more|>")
    tokenizer["added_tokens"].append(extra)
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, tokenizer)
    with pytest.raises(MtprefError, match=r"so that 1 \(first <\|more\|>.*resize the embeddings to 2049 rows"):
        converted(folder, tmp_path)


def grown(state, n):
    name = "model.embed_tokens.weight"
    return state | {name: np.concatenate([state[name], state[name][:n]])}


def test_an_unknown_cutter_is_refused_with_the_closest(tmp_path):
    tokenizer = json.loads(json.dumps(TOKENIZER))
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\S+|\s"
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, tokenizer)
    with pytest.raises(
        MtprefError, match=r"none that llama\.cpp has; the closest is .* give a name with `convert.Settings.pre`"
    ):
        converted(folder, tmp_path)


# REFUSALS


def broken(folder, file, change):
    path = folder / file
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


CASES = {
    "architecture": ("config.json", lambda c: c.update(architectures=["LlamaForCausalLM"]), "names the architecture"),
    "quantised": (
        "config.json",
        lambda c: c.update(quantization_config="fp8"),
        "quantization_config is 'fp8', expected an object",
    ),
    "missing size": ("config.json", lambda c: c.pop("hidden_size"), "hidden_size is missing"),
    "text for a size": ("config.json", lambda c: c.update(num_attention_heads="4"), "num_attention_heads is"),
    "huge heads": ("config.json", lambda c: c.update(head_dim=1 << 23), "values together"),
    "layer kinds": ("config.json", lambda c: c.update(layer_types=["linear_attention"]), "layer_types has 1 entries"),
    "unhashable kinds": ("config.json", lambda c: c.update(layer_types=[{}] * 4), "layer_types[0] is"),
    "no rotary factor": ("config.json", lambda c: c["rope_parameters"].update(partial_rotary_factor="x"), "'x'"),
    "a rotary factor of 1e300": (
        "config.json",
        lambda c: c["rope_parameters"].update(partial_rotary_factor=1e300),
        "expected a number 1e-06",
    ),
    "a temperature of text": (
        "generation_config.json",
        lambda g: g.update(temperature=[[]]),
        "sampling.temp is a list, expected a number",
    ),
    "a top_k of 1e300": ("generation_config.json", lambda g: g.update(top_k=1e300), "sampling.top_k is 1e+300"),
    "rope": ("config.json", lambda c: c["rope_parameters"].update(rope_type="longrope"), "rope_type is"),
    "no merges": ("tokenizer.json", lambda t: t["model"].pop("merges"), "tokenizer.json"),
    "another model": ("tokenizer.json", lambda t: t["model"].update(type="WordPiece"), "expected byte-level BPE"),
    "ids": ("config.json", lambda c: c.update(vocab_size=1000), "expected (1000, 256)"),
    "template": ("tokenizer_config.json", lambda t: t.update(chat_template=7), ""),
    "index": ("model.safetensors.index.json", lambda i: i["weight_map"].update(x="../x.safetensors"), "beside it"),
    "index file": ("model.safetensors.index.json", lambda i: i["weight_map"].update(x="y.safetensors"), "are missing"),
    "index tensor": (
        "model.safetensors.index.json",
        lambda i: i["weight_map"].update(x="model-00001-of-00002.safetensors"),
        "lists 1 tensors that no file has",
    ),
    "index short": (
        "model.safetensors.index.json",
        lambda i: i["weight_map"].pop("mtp.fc.weight"),
        "not in model.safe",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoints_end_in_one_line(tmp_path, capsys, case):
    file, change, says = CASES[case]
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, TOKENIZER, n_files=2)
    broken(folder, file, change)
    code = main(["convert", str(folder), "-o", str(tmp_path / "out.gguf")])
    err = capsys.readouterr().err
    if case == "template":  # llama.cpp's reading passes over a template that is no text
        assert code in (0, 2)
        return
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not list(tmp_path.glob("*out.gguf*"))


def test_truncated_shards_and_other_containers_are_named(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, TOKENIZER, n_files=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(MtprefError, match=r"model-00002-of-00002\.safetensors: damaged"):
        converted(folder, tmp_path)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(MtprefError, match=r"it has pytorch_model\.bin"):
        converted(folder, tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", STATE, CONFIG, TOKENIZER)
    bits = bf16_bits(STATE["mtp.fc.weight"])
    write_safetensors(folder / "model-extra.safetensors", {"mtp.fc.weight": bits}, frozenset({"mtp.fc.weight"}))
    with pytest.raises(MtprefError, match=r"mtp\.fc\.weight is in .* and in"):
        converted(folder, tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_mutated_files_end_in_one_line(plain, tmp_path, capsys, file):
    """Bytes changed, cut and doubled at places chosen by a seed: code 0 or one line and code 2."""
    folder = tmp_path / "hf"
    shutil.copytree(plain[0], folder)
    good = (folder / file).read_bytes()
    rng = np.random.default_rng(7)
    head = min(len(good), 9000)
    for i in range(12):
        raw = bytearray(good)
        at = int(rng.integers(0, head))
        if i % 3 == 0:
            raw[at] = int(rng.integers(0, 256))
        elif i % 3 == 1:
            del raw[at : at + int(rng.integers(1, 50))]
        else:
            raw[at:at] = raw[at : at + int(rng.integers(1, 50))]
        (folder / file).write_bytes(bytes(raw))
        code = main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--outtype", "q8_0"])
        err = capsys.readouterr().err
        assert code in (0, 2)
        assert code == 0 or err.count("\n") == 1
