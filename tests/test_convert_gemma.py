"""`convert` of Gemma 4 and its assistants: the files of llama.cpp's converter, and what is refused in one line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.front.cli import main
from mtpref.heads.convert import Settings, convert
from tests import gemma_folder

RECORDED = json.loads((Path(__file__).parent / "data" / "converted_gemma.json").read_text())


def test_every_shape_is_recorded():
    assert {case.split()[0] for case in RECORDED} == set(gemma_folder.NAMES)


@pytest.mark.parametrize("case", RECORDED)
def test_converted_files_are_those_of_llama_cpp(case, tmp_path):
    name, dtype, outtype = case.split()
    source = gemma_folder.folder(tmp_path / "Tiny-5M", name, dtype=dtype, n_files=2)
    convert(source, tmp_path / "out.gguf", Settings(outtype=outtype))
    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == RECORDED[case]


@pytest.mark.parametrize("name", ["31B", "E2B"])
def test_a_converted_pair_runs(name, tmp_path, capsys):
    files = []
    for one in (name, f"{name}-assistant"):
        convert(gemma_folder.folder(tmp_path / one, one), tmp_path / f"{one}.gguf", Settings(outtype="f32"))
        files.append(tmp_path / f"{one}.gguf")
        assert main(["inspect", str(files[-1])]) == 0
        assert capsys.readouterr().out.rstrip().endswith("problems (0)\n  none")
    model = load(files[0], make_recipe("exact"), model_draft=files[1])
    assert not model.notes
    state, ids = model.new_state(poison=True), model.vocab.encode("the world", add_special=True)
    row = model.trunk(state, ids, n_logits=0).hidden.post[-1:]
    step = model.mtp(state, [302], row, len(ids), n_logits=1)
    assert step.logits.shape == (1, gemma_folder.N_VOCAB)
    assert np.isfinite(step.logits).all()


def changed(folder: Path, file: str, change):
    """The folder with a JSON file changed."""
    found = json.loads((folder / file).read_text())
    change(found)
    (folder / file).write_text(json.dumps(found))
    return folder


def _text(**more):
    return "config.json", lambda c: c["text_config"].update(more)


FULL, SLIDING = "full_attention", "sliding_attention"
_MORE = {"id": gemma_folder.N_VOCAB, "content": "<more>"}
FAULTS = {
    "global_head_dim is missing": _text(global_head_dim=None),
    "final_logit_softcapping is missing": _text(final_logit_softcapping=None),
    "layer_types is missing": _text(layer_types=None),
    "layer_types has 2 entries, expected 4 of sliding_attention, full_attention": _text(layer_types=[SLIDING, FULL]),
    "expected full_attention (rope_type proportional": _text(rope_parameters={"rope_type": "default"}),
    "hidden_activation is 'silu'": _text(hidden_activation="silu"),
    "shape (8, 64, 32), expected (8, 64, 48)": _text(moe_intermediate_size=48),
    "337 tokens with ids up to 336": (
        "tokenizer.json",
        lambda c: c["added_tokens"].append({**c["added_tokens"][0], **_MORE}),
    ),
    "a BPE without byte_fallback": ("tokenizer.json", lambda c: c["model"].update(byte_fallback=False)),
    "does it normalise the text?": ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "names the special token 5, expected text": ("tokenizer_config.json", lambda c: c.update(eot_token=5)),
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_cannot_be_converted_is_refused_in_one_line(text, tmp_path):
    folder = changed(gemma_folder.folder(tmp_path / "hf", "26B"), *FAULTS[text])
    with pytest.raises(MtprefError) as found:
        convert(folder, tmp_path / "out.gguf", Settings())
    assert text in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out.gguf").exists()


def test_heads_and_trunks_are_checkpoints_of_their_own(tmp_path, capsys):
    target, own = (gemma_folder.folder(tmp_path / name, name) for name in ("E2B", "E2B-assistant"))

    def line(*words):
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (one,) = err.strip().splitlines()
        return one

    out = tmp_path / "out.gguf"
    assert "convert that one" in line("convert", target, "-o", out, "--mtp")
    assert "convert that one" in line("extract", target, "-o", out)
    assert "a head and nothing else" in line("convert", own, "-o", out, "--no-mtp")
    for folder in (target, own):
        assert "mtpref check TARGET -md ASSISTANT" in line("check", folder)
    assert not out.exists()


def test_tensors_that_no_graph_reads_are_named(tmp_path):
    made = convert(gemma_folder.folder(tmp_path / "hf", "E2B-assistant"), tmp_path / "out.gguf", Settings())
    assert made.notes == ["2 tensors that no graph has a use for are left out: masked_embedding.centroids.weight, ..."]
