"""The tiny model's maker: its torch layers against naive forms, the whole run on a short budget, the shipped file."""

import importlib.util
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


@needs_torch
def test_greedy_rounds_counts_as_the_loop_does(tiny_package):
    import torch
    from tiny.evaluate import greedy_rounds

    class Scripted:
        """The draft at position p names the token at p + 1 where ``hits`` has a 1."""

        def __init__(self, ids, hits):
            following = [*ids[1:], 0]
            self.draft = torch.tensor([[x if hit else x + 1 for x, hit in zip(following, hits, strict=True)]])

        def model(self, ids):
            return ids

        def draft_hidden(self, ids, hidden, depth):
            return [self.draft]

        def logits(self, hidden):
            return torch.nn.functional.one_hot(hidden, 16)

    ids = [1, 2, 3, 4, 5, 6, 7]
    # Rounds start at positions 1 (hit, so 2 is skipped), 3 (miss), 4 (hit): 3 drafted, 2 accepted.
    assert greedy_rounds(Scripted(ids, [1, 1, 0, 0, 1, 0, 0]), ids[:2], ids[2:]) == (3, 2)


@needs_torch
def test_repeated_4gram_rate(tiny_package):
    from tiny.evaluate import repeated_4gram_rate

    assert repeated_4gram_rate([1, 2, 3, 4, 5, 6]) == 0.0
    assert repeated_4gram_rate([7] * 8) == 0.8


@needs_torch
@pytest.mark.slow
def test_a_30_second_budget_makes_a_loadable_model_that_has_learned(tmp_path):
    out, work = tmp_path / "made.gguf", tmp_path / "work"
    done = run_maker("-o", out, "--budget-minutes", 0.5, "--work", work, "--eval-prompts", 1, "--threads", 1)
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
        done = run_maker("-o", tmp_path / name, "--steps", 2, "--eval-prompts", 0, "--threads", 1)
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


@needs_torch
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "x.gguf", "--steps", "0"], "--steps: 0, expected at least 1"),
        (["-o", "x.gguf", "--budget-minutes", "0"], "--budget-minutes: 0.0, expected more than 0"),
        (["-o", "x.gguf", "--resume"], "expected --work DIR"),
        (["-o", "no/such/folder/x.gguf"], "does not exist; create it first"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path, args, message):
    done = run_maker(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
