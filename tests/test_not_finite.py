"""NaN and infinity at run time: every verb that runs the model ends with a line that names layer and tensor."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import NotFiniteError
from mtpref.engine.model import load
from mtpref.engine.model.finite import is_finite
from mtpref.faults import find_fault, inject
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.heads.check import check_path
from tests.broken_heads import TINY, edited, write
from tests.gguf_copy import copy_of
from tests.models import micro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import micro_moe as mm
    from make_micro import make_micro_moe
finally:
    sys.path.pop(0)

TEXT = Path(__file__).parent.parent / "mtpref" / "heads" / "check" / "marks.py"
TRUNK, HEAD = "blk.1.attn_gate.weight", "blk.4.ffn_down.weight"
VERBS = {
    "generate": ("-p", "def main(", "-n", 4),
    "plan": ("-f", TEXT, "--prompts", 1, "--samples", 1, "-n", 8),
    "probe": ("-f", TEXT, "--positions", 32),
    "bench": ("-p", 8, "-n", 4, "-r", 1),
    "story": ("-p", "def main(", "-n", 12),
    "imatrix": ("-f", TEXT, "-o", "{out}", "-c", 64),
    "diagnose": ("--dump", "{dump}"),
    "dump": ("-p", "def main(", "-o", "{out}"),
}


def with_value(path: Path, name: str, value: float) -> Path:
    """The tiny model with one value of a tensor, which becomes F32, replaced."""

    def change(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(-1).copy()
        flat[flat.size // 2] = value
        return flat.reshape(x.shape)

    return write(path, edited(lambda n: n == name, change, "F32"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return with_value(tmp_path_factory.mktemp("nan") / "nan.gguf", TRUNK, np.nan)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "dump"])
def test_every_verb_that_runs_the_model_names_layer_and_tensor(broken, tmp_path, capsys, verb):
    places = {"{out}": tmp_path / "out.gguf", "{dump}": tmp_path / "dump.gguf"}
    if verb == "diagnose":
        assert main(["dump", "-p", "def main(", "-o", str(places["{dump}"])]) == 0
    capsys.readouterr()
    code = main([verb, "-m", str(broken), *(str(places.get(a, a)) for a in VERBS[verb])])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2, last
    assert f"layer 1, z-1 is the first result that holds NaN: tensor {TRUNK} holds NaN" in last
    assert not places["{out}"].exists()


def test_a_dump_is_written_and_the_line_follows(broken, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    assert main(["dump", "-m", str(broken), "-p", "def main(", "--tensors", "^(z|l_out)-[01]$", "-o", str(out)]) == 2
    assert f"{out} is written; the model: NaN or infinity" in capsys.readouterr().err
    with open_gguf(out) as file:
        finite = {n: bool(np.isfinite(file.data(n).view("<f4")).all()) for n in file.tensors if n != "tokens"}
    assert finite == {"z-0": True, "l_out-0": True, "z-1": False, "l_out-1": False}


def test_selftest_fails_with_the_line(broken, capsys):
    assert main(["selftest", "-m", str(broken), "--only", "prompt chunks"]) in (1, 2)
    out = capsys.readouterr()
    assert TRUNK in out.out + out.err


def test_check_finds_the_weight_and_runs_no_such_model(broken):
    report = check_path(broken)
    assert {f.id for f in report.findings if f.severity == "fail"} == {"not-finite"}
    assert not report.was_run
    assert report.is_sound is False


NAMES = ("token_embd.weight", "output_norm.weight", "blk.0.ssm_a", "blk.0.ssm_out.weight", "blk.3.attn_k.weight",
         "blk.3.ffn_up.weight", "blk.4.nextn.eh_proj.weight", "blk.4.nextn.hnorm.weight", HEAD,
         "blk.4.nextn.shared_head_norm.weight")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_tensor_is_named_wherever_it_is(tmp_path, name, value):
    model = load(with_value(tmp_path / "m.gguf", name, value))
    with pytest.raises(NotFiniteError, match=rf"tensor {name} holds {'NaN' if np.isnan(value) else 'infinity'}"):
        run(model)


def run(model) -> None:
    """One pass of trunk and head, with all logits."""
    ids = model.vocab.encode("Once upon a time")
    state = model.new_state(len(ids))
    out = model.trunk(state, ids, n_logits=len(ids))
    model.mtp(state, ids, out.hidden.post, 0, n_logits=len(ids))


def test_values_that_overflow_are_told_from_weights_that_are_bad(tmp_path):
    name = "blk.2.ffn_down.weight"
    path = write(tmp_path / "m.gguf", edited(lambda n: n == name, lambda x: np.float32(3e38) * np.sign(x), "F32"))
    with pytest.raises(NotFiniteError, match=r"layer 2, .*-2 is the first result.*weights there are finite.*overflow"):
        run(load(path))


def test_a_pass_that_only_fails_after_others_still_names_the_weight(tmp_path):
    """The walk has the tokens of the pass alone: what went wrong before them is found among all weights."""
    model = load(with_value(tmp_path / "m.gguf", TRUNK, np.nan))
    sound = load(TINY)
    ids = model.vocab.encode("Once upon a time")
    state = sound.new_state(32)
    sound.trunk(state, ids, n_logits=0)
    state.layers[3].arrays["cache_v"][2] = 0x7E00  # a NaN that another pass has left
    with pytest.raises(NotFiniteError, match="without those before them: the weights there are finite"):
        sound.trunk(state, ids[:1], n_logits=1)


@pytest.mark.parametrize("fault", ["W7", "W1"])
def test_faults_may_make_nan(fault, capsys):
    assert main(["generate", "--fault", fault, "-p", "def main(", "-n", "6"]) == 0
    model = inject(load(TINY), find_fault(fault))
    assert not model.is_checked
    run(model)


def test_the_look_is_right_where_the_sum_overflows():
    assert is_finite(np.full(1000, 3e38, np.float32))
    assert is_finite(np.empty((0, 0), np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        x = np.zeros((3, 4), np.float32)
        x[1, 2] = bad
        assert not is_finite(x)
    assert not is_finite(np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("use_kernels", [False, None])
def test_spec_and_kernels_say_the_same(use_kernels):
    model = micro(60, use_kernels=use_kernels)
    layers = list(model.weights.layers)
    norm = layers[0]["attn_norm.weight"].copy()
    norm[3] = np.nan
    layers[0] = {**layers[0], "attn_norm.weight": norm}
    model = replace(model, weights=replace(model.weights, layers=tuple(layers)))
    with pytest.raises(NotFiniteError, match=r"layer 0, attn_norm-0 .*tensor blk\.0\.attn_norm\.weight holds NaN"):
        model.trunk(model.new_state(4), [1, 2, 3], n_logits=1)


EVERY_EXPERT = mm.MoeShape(n_expert=3, n_used=3)
GROUPS = mm.MoeShape(n_expert=20, n_dense=2, n_group=4, n_group_used=2)


@pytest.mark.parametrize(("arch", "shape"), [("qwen35moe", EVERY_EXPERT), ("glm4moe", GROUPS)])
def test_infinity_that_a_router_means_is_no_fault(tmp_path, capsys, arch, shape):
    """Scores of groups that were not chosen, the gap where every expert is: a weight that is bad is found beside it."""
    model = tmp_path / "model.gguf"
    make_micro_moe(model, arch, shape=shape)
    assert main(["dump", "-m", str(model), "-p", "hello", "-o", str(tmp_path / "a.gguf")]) == 0
    with open_gguf(tmp_path / "a.gguf") as file:
        found = [
            name
            for name, info in file.tensors.items()
            if info.type_name == "F32" and not is_finite(file.data(info).view("<f4"))
        ]
    assert {name.split("-")[0].removeprefix("mtp_") for name in found} == {
        "ffn_moe_gap" if arch == "qwen35moe" else "ffn_moe_probs_masked"
    }
    capsys.readouterr()
    keys, tensors = copy_of(model)
    stack = next(data for name, _, _, data in tensors if name == "blk.3.ffn_down_exps.weight")
    stack.reshape(-1).view("<f4")[:] = np.nan
    write_gguf(model, keys, tensors)
    assert main(["dump", "-m", str(model), "-p", "hello", "-o", str(tmp_path / "b.gguf")]) == 2
    assert "ffn_moe_down-3 is the first result that holds NaN: tensor blk.3.ffn_down" in capsys.readouterr().err
