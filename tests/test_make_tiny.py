"""The tiny model's maker: its torch layers against naive forms, the whole run on a short budget, the shipped file."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "mtpref" / "data" / "tiny.gguf"
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (extra: train)"
)


@pytest.fixture
def tiny_package(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.syspath_prepend(str(ROOT))


def run_maker(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "make_tiny.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def field(reader: gguf.GGUFReader, key: str) -> object:
    return reader.fields[key].contents()


def check_tiny_file(path: Path) -> None:
    """What every made file must hold: the shape of the model, the head, rows that K-quants can use."""
    reader = gguf.GGUFReader(path)
    assert field(reader, "general.architecture") == "qwen35"
    assert field(reader, "qwen35.block_count") == 5
    assert field(reader, "qwen35.nextn_predict_layers") == 1
    assert field(reader, "qwen35.ssm.group_count") != field(reader, "qwen35.ssm.time_step_rank")
    assert field(reader, "qwen35.attention.head_count") != field(reader, "qwen35.attention.head_count_kv")
    assert 2 * sum(field(reader, "qwen35.rope.dimension_sections")) == field(reader, "qwen35.rope.dimension_count")
    assert field(reader, "tokenizer.ggml.pre") == "qwen35"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in tensors
    for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm"):
        assert f"blk.4.nextn.{name}.weight" in tensors
    for name, tensor in tensors.items():
        matrix = len(tensor.shape) == 2 and "conv1d" not in name
        assert tensor.tensor_type.name == ("Q8_0" if matrix else "F32")
        assert not matrix or tensor.shape[0] % 256 == 0
        if matrix:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.isfinite(values).all()
            assert values.std() > 0
    assert path.stat().st_size <= 8_000_000


def test_shipped_file_has_the_promised_shape():
    check_tiny_file(SHIPPED)


def test_shipped_vocabulary_covers_every_byte_and_every_merge():
    reader = gguf.GGUFReader(SHIPPED)
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert len(set(tokens)) == len(tokens)
    assert sum(len(token) == 1 for token in tokens) == 256
    for merge in field(reader, "tokenizer.ggml.merges"):
        assert merge.replace(" ", "") in set(tokens)


@needs_torch
def test_chunked_delta_rule_equals_the_recurrence(tiny_package):
    import torch
    from tiny.model import delta_rule_chunked, delta_rule_naive, l2_norm

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 70, 16, dtype=torch.float64) for _ in range(3))
    g, beta = -torch.rand(2, 3, 70, dtype=torch.float64), torch.rand(2, 3, 70, dtype=torch.float64)
    q, k = l2_norm(q), l2_norm(k)
    expected = delta_rule_naive(q, k, v, g, beta)
    torch.testing.assert_close(delta_rule_chunked(q, k, v, g, beta), expected, rtol=0, atol=1e-12)


@needs_torch
def test_chained_attention_sees_the_cells_a_draft_would_see(tiny_package):
    import torch
    from tiny.model import chained_attention

    torch.manual_seed(0)
    q, k1, v1, k2, v2, k3, v3 = (torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(7))
    got = chained_attention(q, [(k1, v1), (k2, v2), (k3, v3)])
    for j in range(2, 9):
        keys = torch.cat([k1[:, :, : j - 1], k2[:, :, j - 1 : j], k3[:, :, j : j + 1]], 2)
        values = torch.cat([v1[:, :, : j - 1], v2[:, :, j - 1 : j], v3[:, :, j : j + 1]], 2)
        probs = ((q[:, :, j : j + 1] @ keys.transpose(2, 3)) * 8**-0.5).softmax(-1)
        torch.testing.assert_close(got[:, :, j : j + 1], probs @ values)


@needs_torch
def test_export_then_import_restores_the_weights(tiny_package, tmp_path):
    import torch
    from tiny.export import read_gguf_state, write_gguf
    from tiny.model import TinyConfig, TinyModel
    from tiny.tokenizer import Vocabulary

    torch.manual_seed(0)
    model = TinyModel(TinyConfig())
    vocab = Vocabulary(tuple(f"t{i}" for i in range(2048)), ("t0 t1",), 0)
    path = tmp_path / "f32.gguf"
    write_gguf(path, model, vocab, "0.0.0", quantised=False)
    state = read_gguf_state(path, model.cfg)
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(state[name], tensor.numpy(), rtol=0, atol=3e-7)
    assert [p.name for p in tmp_path.iterdir()] == ["f32.gguf"]


@pytest.fixture
def toy_run(tiny_package):
    """Makes trainers of a small model on random text; its folder decides where it writes."""
    import numpy as np
    import torch
    from tiny.model import TinyConfig, TinyModel
    from tiny.text import Tokens
    from tiny.train import Trainer, TrainPlan

    torch.set_num_threads(1)
    cfg = TinyConfig(n_vocab=64, n_embd=64, n_ff=64, n_head=2, n_head_kv=1, head_dim=32, n_rot=16, ssm_state_size=16)
    rng = np.random.default_rng(0)
    stream = rng.integers(1, 64, 4000).astype(np.uint16)
    tokens = Tokens(stream, np.arange(0, 4001, 100), stream, np.arange(0, 4000, 8))

    def make(work, steps=6):
        torch.manual_seed(1)
        work.mkdir(exist_ok=True)
        plan = TrainPlan(steps=steps, batch_tokens=1024, head_share=0.5, val_every_s=1e9, checkpoint_every_s=1e9)
        return Trainer(TinyModel(cfg), tokens, tokens, plan, work)

    return make


def weights(trainer):
    return {name: tensor.numpy().copy() for name, tensor in trainer.model.state_dict().items()}


@needs_torch
def test_the_head_learns_behind_a_finished_trunk(toy_run, tmp_path):
    trainer = toy_run(tmp_path)
    start = weights(trainer)
    while trainer.progress() < 0.5:
        trainer.update(trainer.progress())
    between = weights(trainer)
    trainer.run()
    end = weights(trainer)
    assert {name.split(".")[0] for name in start} == {"model", "mtp"}
    for name in start:
        in_trunk = name.startswith("model.")
        assert (start[name] == between[name]).all() or in_trunk, name
        assert (between[name] == end[name]).all() or not in_trunk, name
    moved = [name for name in start if (start[name] != end[name]).any()]
    assert {name.split(".")[0] for name in moved} == {"model", "mtp"}
    rows = (tmp_path / "training-log.csv").read_text().splitlines()
    assert "head" in rows[-1]
    assert not rows[-1].endswith(",")


@needs_torch
@pytest.mark.parametrize("stop", [2, 4], ids=["in the trunk phase", "in the head phase"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(toy_run, tmp_path, stop):
    whole = toy_run(tmp_path / "whole")
    whole.run()
    first = toy_run(tmp_path / "parts")
    while first.step < stop:
        if first.progress() >= 0.5 and not first.head_only:
            first.enter_head_phase()
        first.update(first.progress())
    first.save()
    second = toy_run(tmp_path / "parts")
    assert second.resume()
    assert second.step == stop
    second.run()
    expected, found = weights(whole), weights(second)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@needs_torch
def test_a_run_with_another_plan_is_not_gone_on_with(toy_run, tmp_path):
    from mtpref.base.errors import MtprefError

    toy_run(tmp_path).save()
    with pytest.raises(MtprefError, match="made with steps 6, now it is 8"):
        toy_run(tmp_path, steps=8).resume()


@needs_torch
def test_bfloat16_products_give_nearly_the_same_loss(tiny_package):
    import torch
    from tiny.model import TinyConfig, TinyModel
    from tiny.train import head_loss, trunk_loss

    torch.manual_seed(0)
    model = TinyModel(TinyConfig(n_vocab=256, n_embd=64, n_ff=64, n_head=2, n_head_kv=1, head_dim=32, n_rot=16))
    window = torch.randint(0, 256, (2, 65))
    found = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append([float(trunk_loss(model, window)), float(head_loss(model, window, 3, 0.5, True))])
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)
    assert found[0] != found[1]


@needs_torch
def test_a_tokenizer_read_from_a_file_gives_the_same_ids(tiny_package):
    from tiny.tokenizer import read_tokenizer

    import mtpref

    tokenizer, eos_id = read_tokenizer(SHIPPED)
    text = 'def f(x):\n    return x  # "naive"\n\nTom said, "It isn\'t mine."\n'
    assert tokenizer.encode(text, add_special_tokens=False).ids == mtpref.load(SHIPPED).encode(text)
    assert eos_id == 0


@needs_torch
def test_the_criteria_of_the_shipped_file_are_judged(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "tools" / "evaluate_tiny.py"), SHIPPED, "--prompts", "1", "--report", report]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| repeated 4-grams, greedy |" in done.stdout
    assert "NOT MET" not in done.stdout
    assert '"n_max_3"' in report.read_text()


@needs_torch
@pytest.mark.slow
def test_a_30_second_budget_makes_a_loadable_model_that_has_learned(tmp_path):
    out, work = tmp_path / "made.gguf", tmp_path / "work"
    few = ("--stories", 400, "--eval-prompts", 1)
    done = run_maker("-o", out, "--budget-minutes", 0.5, "--work", work, *few, "--threads", 1)
    assert done.returncode == 0, done.stderr
    check_tiny_file(out)
    rows = (work / "training-log.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    # A uniform guess over 2048 tokens costs ln 2048 = 7.62 nats; how far below it 30 seconds lead is the machine's.
    assert float(last["val_loss_trunk"]) < 7.62
    assert '"greedy"' in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.gguf", "work"]


@needs_torch
@pytest.mark.slow
def test_a_fixed_number_of_steps_repeats_to_the_byte(tmp_path):
    made = []
    for name in ("a.gguf", "b.gguf"):
        few = ("--steps", 2, "--stories", 100, "--eval-prompts", 0)
        done = run_maker("-o", tmp_path / name, *few, "--threads", 1)
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


@needs_torch
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "x.gguf", "--steps", "0"], "--steps: 0, expected at least 1"),
        (["-o", "x.gguf", "--budget-minutes", "0"], "--budget-minutes: 0.0, expected more than 0"),
        (["-o", "x.gguf", "--stories", "0"], "--stories: 0, expected at least 1"),
        (["-o", "x.gguf", "--resume"], "expected --work DIR"),
        (["-o", "no/such/folder/x.gguf"], "does not exist; create it first"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path, args, message):
    done = run_maker(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_rests_on_the_model_is_made_by_scripts_that_exist(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_derived

    for step in make_derived.STEPS:
        assert (ROOT / step.command[0]).is_file(), step.name
    assert len({step.name for step in make_derived.STEPS}) == len(make_derived.STEPS)
    assert make_derived.main([]) == 0
    listed = capsys.readouterr().out
    assert "decisions: python tools/record_llama_cpp.py" in listed
    assert "(SKIPPED: needs --llama-bin)" in listed
    assert "(SKIPPED: needs --broken-bin)" in listed
    assert make_derived.main(["--from", "nothing"]) == 2
    assert "expected one of decisions, " in capsys.readouterr().err


def test_a_step_that_fails_ends_the_run_and_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_derived

    mark = tmp_path / "mark"
    good = make_derived.Step("good", ("-c", f"open({str(mark)!r}, 'a').write('x')"), "a mark")
    bad = make_derived.Step("bad", ("-c", "raise SystemExit(3)"), "nothing")
    monkeypatch.setattr(make_derived, "STEPS", (good, bad, good))
    assert make_derived.main(["--run"]) == 2
    assert "bad: exit 3; after mending it: --from 'bad'" in capsys.readouterr().err
    assert mark.read_text() == "x"


def test_a_folder_of_programs_goes_into_the_steps_that_need_it(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_derived

    wrote = tmp_path / "wrote"
    code = f"import sys; open({str(wrote)!r}, 'a').write(sys.argv[1] + ' ')"
    steps = [make_derived.Step(need, ("-c", code, f"{need.upper()}_BIN/.."), "", need) for need in ("llama", "broken")]
    monkeypatch.setattr(make_derived, "STEPS", steps)
    assert make_derived.main(["--run", "--llama-bin", str(tmp_path)]) == 0
    assert wrote.read_text() == f"{tmp_path.resolve()}/.. "
    assert make_derived.main(["--run", "--broken-bin", str(tmp_path / "no")]) == 2
    assert "--broken-bin: " in capsys.readouterr().err
