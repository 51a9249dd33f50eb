"""mtpref convert on architectures with experts: llama.cpp's files byte for byte, every form, every way to be broken."""

import hashlib
import json
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.heads.check import check_path
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import Checkpoint, gguf_tensors, open_checkpoint, text_config
from mtpref.heads.hf.parts import PIECE_VALUES
from tests.hf_folder import write_checkpoint
from tests.moe_folder import ARCHS, CONFIGS, N_EXPERT, folder, state, tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import record_converted as recorder
finally:
    sys.path.pop(0)

RECORDED = Path(__file__).parent / "data" / "converted_moe.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(architecture, fused, dtype) -> its folder in two files, as the recorder makes it."""

    @lru_cache
    def made(arch, fused=False, dtype="BF16"):
        return folder(tmp_path_factory.mktemp("hf") / "Tiny-5M", arch, fused=fused, dtype=dtype, n_files=2)

    return made


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


def converted(source, tmp_path, outtype="f32", which="both", **settings):
    target = tmp_path / "out.gguf"
    return convert(source, target, Settings(outtype=outtype, which=which, **settings)), target


def tensors(path):
    with open_gguf(path) as file:
        return {name: (t.type_name, t.shape, file.data(t).tobytes()) for name, t in file.tensors.items()}


def written(tmp_path, arch, change, config=None, words=None, **options):
    """A folder whose state was changed."""
    named = state(arch)
    change(named)
    return write_checkpoint(tmp_path / "hf", named, config or CONFIGS[arch], words or tokenizer(arch), **options)


# WHAT IS WRITTEN


CASES = {tuple(case): name for name, *case in recorder.cases()}


@pytest.mark.covering(2)
@pytest.mark.parametrize(
    ("arch", "fused", "dtype", "outtype", "mode"), CASES, ids=[name.replace(" ", "-") for name in CASES.values()]
)
def test_the_file_is_llama_cpps_byte_for_byte(checkpoint, tmp_path, arch, fused, dtype, outtype, mode):
    name = CASES[arch, fused, dtype, outtype, mode]
    _, path = converted(checkpoint(arch, fused, dtype), tmp_path, outtype, mode)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == json.loads(RECORDED.read_text())[name]


@pytest.mark.oracle
@pytest.mark.skipif("MTPREF_LLAMA_CPP" not in os.environ, reason="MTPREF_LLAMA_CPP does not name a llama.cpp tree")
def test_live_converter():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="llama.cpp's converter needs torch and transformers")
    assert recorder.record(os.environ["MTPREF_LLAMA_CPP"]) == json.loads(RECORDED.read_text())


def test_what_is_recorded_is_every_case():
    assert set(json.loads(RECORDED.read_text())) == {case[0] for case in recorder.cases()}


# FORMS


def test_experts_in_one_tensor_give_the_same_file(checkpoint, tmp_path, arch):
    _, apart = converted(checkpoint(arch), tmp_path)
    kept = tensors(apart)
    assert sum(name.endswith("_exps.weight") for name in kept) == 3 * (5 if arch.startswith("qwen") else 4)
    assert tensors(converted(checkpoint(arch, True), tmp_path)[1]) == kept


def test_each_expert_is_a_matrix_of_the_stack(checkpoint, tmp_path, arch):
    named = state(arch)
    with open_gguf(converted(written(tmp_path, arch, lambda s: None, dtype="F32"), tmp_path)[1]) as file:
        for part in ("gate", "up", "down"):
            info = file.tensors[f"blk.2.ffn_{part}_exps.weight"]
            stack = file.data(info).view(np.float32).reshape(info.shape)
            for e in range(N_EXPERT):
                assert np.array_equal(stack[e], named[f"model.layers.2.mlp.experts.{e}.{part}_proj.weight"])


@pytest.mark.parametrize("n_files", [1, 7])
@pytest.mark.covering
def test_files_and_order_do_not_matter(checkpoint, tmp_path, arch, n_files):
    backwards = dict(reversed(state(arch).items()))
    source = write_checkpoint(tmp_path / "hf", backwards, CONFIGS[arch], tokenizer(arch), n_files=n_files)
    wanted = tensors(converted(checkpoint(arch), tmp_path)[1])
    assert tensors(converted(source, tmp_path)[1]) == wanted


def test_a_prefix_of_a_model_with_pictures_does_not_matter(checkpoint, tmp_path):
    named = {name.replace("model.", "model.language_model.", 1): x for name, x in state("qwen35moe").items()}
    config = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": CONFIGS["qwen35moe"]}
    source = write_checkpoint(tmp_path / "hf", named, config, tokenizer("qwen35moe"))
    assert tensors(converted(source, tmp_path)[1]) == tensors(converted(checkpoint("qwen35moe"), tmp_path)[1])


def test_a_stack_is_read_and_given_expert_by_expert(checkpoint, monkeypatch, arch):
    """No piece is larger than an expert or PIECE_VALUES, and no two experts are held at once."""
    asked = []
    rows = Checkpoint.rows

    def noted(self, name, index):
        found = rows(self, name, index)
        asked.append((name, found.size))
        return found

    monkeypatch.setattr(Checkpoint, "rows", noted)
    for fused in (False, True):
        with open_checkpoint(checkpoint(arch, fused)) as opened:
            plan = gguf_tensors(opened, text_config(opened.config, "x"))
            for part in plan.parts:
                if len(part.shape) == 3:
                    n = part.shape[0]
                    asked.clear()
                    sizes = [piece.size for piece in part.pieces(opened)]
                    assert sizes == [size for _, size in asked] == [part.shape[1] * part.shape[2]] * n
                    assert max(sizes) <= PIECE_VALUES
                    is_apart = not fused and "_exps" in part.name
                    assert n == N_EXPERT
                    assert len({name for name, _ in asked}) == (N_EXPERT if is_apart else 1)


def test_large_experts_come_in_pieces(checkpoint, tmp_path, monkeypatch, arch):
    wanted = tensors(converted(checkpoint(arch), tmp_path)[1])
    monkeypatch.setattr("mtpref.heads.hf.parts.PIECE_VALUES", 700)
    for fused in (False, True):
        assert tensors(converted(checkpoint(arch, fused), tmp_path)[1]) == wanted


# HEADS


def test_trunk_and_head_apart_are_the_whole(checkpoint, tmp_path, arch):
    made = {which: tensors(converted(checkpoint(arch), tmp_path, which=which)[1]) for which in ("both", "mtp", "trunk")}
    shared = set(made["mtp"]) & set(made["trunk"])
    assert shared == {"token_embd.weight", "output_norm.weight", "output.weight"}
    assert made["mtp"] | made["trunk"] == made["both"]


def test_what_is_said_of_a_head_that_config_json_does_not_declare(tmp_path, arch):
    """Qwen3-Next's own config.json never does."""
    field = ARCHITECTURES[arch].hf.n_heads
    config = {key: x for key, x in CONFIGS[arch].items() if key != field}
    made, _ = converted(written(tmp_path, arch, lambda s: None, config), tmp_path)
    said = [f"config.json lacks {field}; the tensors have an MTP head, which is kept"]
    assert (made.n_mtp, made.notes) == (1, [] if arch == "qwen3next" else said)


def test_no_head_is_said_and_a_declared_one_is_missed(tmp_path, arch):
    prefix = ARCHITECTURES[arch].hf.head.format(il=4)

    def without(named):
        for name in [n for n in named if n.startswith(prefix)]:
            del named[name]

    source = written(tmp_path, arch, without)
    if arch == "qwen3next":
        assert converted(source, tmp_path)[0].notes == ["no MTP head: no tensor mtp.*"]
    else:
        field = ARCHITECTURES[arch].hf.n_heads
        with pytest.raises(MtprefError, match=f"{field} 1, and no tensor of an MTP head is there"):
            converted(source, tmp_path)
    assert converted(source, tmp_path, which="trunk")[0].n_mtp == 0
    with pytest.raises(MtprefError, match=r"no tensor of an MTP head"):
        converted(source, tmp_path, which="mtp")


def test_glms_special_tokens_are_taken_by_text(checkpoint, tmp_path):
    with open_gguf(converted(checkpoint("glm4moe"), tmp_path)[1]) as file:
        ids = {role: file.kv[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "eot", "unknown", "eom")}
    assert ids == {"bos": 265, "eos": 262, "eot": 263, "unknown": 262, "eom": 264}
    words = json.loads(json.dumps(tokenizer("glm4moe")).replace("[gMASK]", "[none]"))
    with pytest.raises(MtprefError, match=r"no added token \[gMASK\], expected it: .* as their bos token"):
        converted(written(tmp_path, "glm4moe", lambda s: None, words=words), tmp_path)


def test_what_a_head_repeats_of_the_trunk_can_be_left_out(tmp_path):
    """DeepSeek-V3 ships the embedding and the output twice. One value that differs keeps a tensor."""

    def repeat(named):
        named["model.layers.4.embed_tokens.weight"] = named["model.embed_tokens.weight"].copy()
        named["model.layers.4.shared_head.head.weight"] = named["lm_head.weight"].copy()

    def nearly(named):
        repeat(named)
        named["model.layers.4.shared_head.head.weight"][-1, -1] += 1

    source = written(tmp_path / "a", "deepseek2", repeat)
    whole = tensors(converted(source, tmp_path)[1])
    made, path = converted(source, tmp_path, drops_copies=True)
    left = {"blk.4.nextn.embed_tokens.weight", "blk.4.nextn.shared_head_head.weight"}
    assert tensors(path) == {name: x for name, x in whole.items() if name not in left}
    assert len(whole) - made.n_tensors == 2
    assert made.notes == [
        "blk.4.nextn.embed_tokens.weight is left out: it is token_embd.weight, value by value",
        "blk.4.nextn.shared_head_head.weight is left out: it is output.weight, value by value",
    ]
    alone = tensors(converted(source, tmp_path, which="mtp", drops_copies=True)[1])
    assert left.isdisjoint(alone)
    assert {"token_embd.weight", "output.weight"} <= set(alone)
    source = written(tmp_path / "b", "deepseek2", nearly)
    kept = tensors(converted(source, tmp_path, drops_copies=True)[1])
    assert set(whole) - set(kept) == {"blk.4.nextn.embed_tokens.weight"}


def test_drop_copies_from_the_command_line(tmp_path, capsys):
    def repeat(named):
        named["model.layers.4.embed_tokens.weight"] = named["model.embed_tokens.weight"].copy()

    source = written(tmp_path, "deepseek2", repeat)
    assert main(["convert", str(source), "-o", str(tmp_path / "out.gguf"), "--drop-copies"]) == 0
    assert "blk.4.nextn.embed_tokens.weight is left out" in capsys.readouterr().err


def test_a_copy_that_is_left_out_is_nothing_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("mtpref.heads.check.report._run", lambda *_: [])  # tensors alone: a run takes ten seconds

    def repeat(named):
        named["model.layers.4.embed_tokens.weight"] = named["model.embed_tokens.weight"].copy()

    def other(named):
        named["model.layers.4.embed_tokens.weight"] = -named["model.embed_tokens.weight"]

    path = converted(written(tmp_path / "a", "deepseek2", repeat), tmp_path, drops_copies=True)[1]
    for name, change, missing in (("b", repeat, []), ("c", other, ["blk.4.nextn.embed_tokens.weight"])):
        found = check_path(path, against=written(tmp_path / name, "deepseek2", change), n_positions=8).findings
        assert [one.what for one in found if one.id == "against-missing"] == missing


FLASH = {key: x for key, x in CONFIGS["deepseek2"].items() if key not in ("scoring_func", "rope_scaling")} | {
    "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
# SHA-256 of what llama.cpp's converter (0c1e57098) makes of it, BF16 to Q8_0.
FLASH_FILES = {
    "both": "c6e13a0918883ec54b5f6e9bf84f48cb7771179bb671a404b947eb60932546a3",
    "mtp": "f53fde55f75b80f12806913c72b7bbc40e43575498be572961b89cd2bb13b873",
    "trunk": "45541141835fb348a61623288a767b1e032ff385fc127f2a243347241fd0e058",
}


@pytest.mark.parametrize("which", FLASH_FILES)
def test_glm_flash_is_llama_cpps_file_with_its_special_tokens_and_no_gating_key(tmp_path, which):
    named, words = state("deepseek2"), tokenizer("deepseek2")
    source = write_checkpoint(tmp_path / "Tiny-5M", named, FLASH, words, dtype="BF16")
    _, path = converted(source, tmp_path, "q8_0", which)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FLASH_FILES[which]
    with open_gguf(path) as file:
        assert file.kv["tokenizer.ggml.eot_token_id"] == 263
        assert "deepseek2.expert_gating_func" not in file.kv


def test_kimis_nesting_and_its_projector_do_not_matter(checkpoint, tmp_path):
    named = {f"language_model.{name}": x for name, x in state("deepseek2").items()}
    named["mm_projector.linear_1.weight"] = np.ones((4, 4), np.float32)
    config = {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": CONFIGS["deepseek2"]}
    source = write_checkpoint(tmp_path / "hf", named, config, tokenizer("deepseek2"))
    made, path = converted(source, tmp_path)
    assert tensors(path) == tensors(converted(checkpoint("deepseek2"), tmp_path / "hf")[1])
    assert made.notes == ["1 tensors of vision or audio parts are left out: a text model has no use for them"]


# WHAT IS REFUSED


def block_of(arch, is_head):
    if is_head:
        return "mtp.layers.0." if arch.startswith("qwen") else "model.layers.4."
    return "model.layers.2."


def one(name):
    return lambda named, block: named.pop(f"{block}{name}")


def reshaped(name):
    def change(named, block):
        named[f"{block}{name}"] = np.ones((31, 64), np.float32)

    return change


def added(name, shape=(32, 64)):
    def change(named, block):
        named[f"{block}{name}"] = np.ones(shape, np.float32)

    return change


def half_fused(named, block):
    downs = [named.pop(f"{block}mlp.experts.{e}.down_proj.weight") for e in range(N_EXPERT)]
    named[f"{block}mlp.experts.down_proj"] = np.stack(downs)


BROKEN = {
    "missing": (one("mlp.experts.4.up_proj.weight"), r"experts\.4\.up_proj\.weight is missing, one of 1: .* 6 experts"),
    "last": (one("mlp.experts.5.down_proj.weight"), r"experts\.5\.down_proj\.weight is missing, one of 1"),
    "shape": (
        reshaped("mlp.experts.3.gate_proj.weight"),
        r"experts\.3\.gate_proj\.weight: shape \(31, 64\), expected \(32, 64\)",
    ),
    "extra": (added("mlp.experts.6.up_proj.weight"), r"experts\.6\.up_proj\.weight: expert 6, expected 0 \.\. 5"),
    "far": (added("mlp.experts.999999.up_proj.weight"), r"experts\.999999\.up_proj\.weight: expert 999999"),
    "mixed": (half_fused, r"experts of one layer both by themselves and all in one tensor"),
    "twice": (added("mlp.experts.gate_up_proj", (6, 64, 64)), r"experts of one layer both by themselves"),
    "padded": (added("mlp.experts.01.up_proj.weight"), r"1 tensors have no place .*experts\.01\.up_proj"),
}


@pytest.mark.parametrize("is_head", [False, True], ids=["trunk", "head"])
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.covering
def test_broken_experts_end_in_one_line_that_names_the_tensor(tmp_path, capsys, arch, case, is_head):
    change, says = BROKEN[case]
    block = block_of(arch, is_head)
    source = written(tmp_path, arch, lambda named: change(named, block))
    with pytest.raises(MtprefError, match=says):
        converted(source, tmp_path)
    assert main(["convert", str(source), "-o", str(tmp_path / "cli.gguf")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{block}mlp.experts." in err
    assert not list(tmp_path.glob("*.gguf*"))


def test_what_is_wrong_with_the_head_does_not_hinder_the_trunk(tmp_path, arch):
    source = written(tmp_path, arch, lambda named: BROKEN["missing"][0](named, block_of(arch, True)))
    assert converted(source, tmp_path, which="trunk")[0].n_mtp == 0
    with pytest.raises(MtprefError, match=r"up_proj\.weight is missing"):
        converted(source, tmp_path, which="mtp")


@pytest.mark.parametrize("shape", [(6, 63, 64), (5, 64, 64), (6, 64, 32), (384, 64), (6, 64, 64, 1)])
@pytest.mark.covering
def test_one_tensor_of_all_experts_has_one_shape(tmp_path, arch, shape):
    def change(named):
        named["model.layers.2.mlp.experts.gate_up_proj"] = np.ones(shape, np.float32)

    named = state(arch, fused=True)
    change(named)
    source = write_checkpoint(tmp_path / "hf", named, CONFIGS[arch], tokenizer(arch))
    with pytest.raises(MtprefError, match=r"gate_up_proj: shape .*, expected \(6, 64, 64\)"):
        converted(source, tmp_path)


def test_half_of_the_tensors_of_all_experts_is_missed(tmp_path, arch):
    named = state(arch, fused=True)
    del named["model.layers.2.mlp.experts.down_proj"]
    source = write_checkpoint(tmp_path / "hf", named, CONFIGS[arch], tokenizer(arch))
    with pytest.raises(MtprefError, match=r"the first becomes blk\.2\.ffn_down_exps\.weight"):
        converted(source, tmp_path)


@pytest.mark.parametrize("arch", ["glm4moe", "hy_v3"])
def test_a_dense_layer_has_no_experts(tmp_path, arch):
    def change(named):
        for name in [n for n in named if n.startswith("model.layers.1.mlp.")]:
            named[name.replace(".1.", ".0.", 1)] = named[name]

    with pytest.raises(MtprefError, match=r"would become blk\.0\.\S+, which this layer does not have"):
        converted(written(tmp_path, arch, change), tmp_path)


@pytest.mark.parametrize("arch", ["glm4moe", "hy_v3"])
def test_a_layer_of_experts_needs_its_router(tmp_path, arch):
    gate = {"glm4moe": "mlp.gate.weight", "hy_v3": "mlp.router.gate.weight"}[arch]
    with pytest.raises(MtprefError, match=r"the first becomes blk\.1\.ffn_gate_inp\.weight"):
        converted(written(tmp_path, arch, lambda named: named.pop(f"model.layers.1.{gate}")), tmp_path)


def width_of(config):
    """The field of the experts' width."""
    return "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"


CONFIG_ERRORS = {
    "no experts": (lambda c: [c.pop(k, 0) for k in ("num_experts", "n_routed_experts")], "is missing"),
    "text": (lambda c: c.update(num_experts_per_tok="2"), "num_experts_per_tok is"),
    "huge": (lambda c: c.update(num_experts_per_tok=1 << 40), "num_experts_per_tok is"),
    "none used": (lambda c: c.update(num_experts_per_tok=0), "num_experts_per_tok is 0"),
    "no width": (lambda c: c.pop(width_of(c)), "intermediate_size is missing"),
    "too many used": (lambda c: c.update(num_experts_per_tok=7), "used_count is 7, expected at most expert_count = 6"),
    "odd groups": (lambda c: c.update(n_group=4, topk_group=2), "group_count is 4, expected groups of one size"),
    "another activation": (lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu', expected 'silu': a GGUF of"),
    "another count": (lambda c: c.update({width_of(c): 48}), r"shape \(64, 32\), expected \(64, 48\)"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
@pytest.mark.covering
def test_a_bad_config_ends_in_one_line(tmp_path, arch, case):
    change, says = CONFIG_ERRORS[case]
    config = dict(CONFIGS[arch])
    change(config)
    with pytest.raises(MtprefError, match=says):
        converted(written(tmp_path, arch, lambda named: None, config), tmp_path)


def test_weights_that_are_not_renormalised_are_refused_where_no_key_says_so(tmp_path, arch):
    """qwen3_5_moe does not read the field; glm4moe has a key for it."""
    config = {**CONFIGS[arch], "norm_topk_prob": False}
    folder = written(tmp_path, arch, lambda named: None, config)
    if arch != "qwen3next":
        converted(folder, tmp_path)
        return
    with pytest.raises(MtprefError, match=r"norm_topk_prob is false, expected true: a GGUF of qwen3next has no key"):
        converted(folder, tmp_path)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_shared_expert_is_there_whole_or_not_at_all(tmp_path, part):
    one = f"model.layers.2.mlp.shared_mlp.{part}_proj.weight"
    with pytest.raises(MtprefError, match=rf"the first becomes blk\.2\.ffn_{part}_shexp"):
        converted(written(tmp_path, "hy_v3", lambda named: named.pop(one)), tmp_path)
