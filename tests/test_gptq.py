"""GPTQ on GGUF's grids: against the plain form of the algorithm, and what it is for."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.architectures import ARCHITECTURES, Block
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.heads.quantize.collect import run_head, watched
from mtpref.heads.quantize.gptq import gptq, gptq_codes, inverse_factor, round_to_nearest
from mtpref.heads.quantize.grid import Grid
from mtpref.heads.quantize.head import (
    gptq_head,
    head_matrices,
    hessians,
    stages,
    tensor_name,
    tensors_of,
    trunk_rows,
    with_matrices,
)
from mtpref.heads.quantize.methods import REFERENCE, measure
from mtpref.heads.quantize.spill import Spill
from mtpref.measure.probe import Text
from mtpref.spec.quants import dequantize, quantize
from tests import toys
from tests.broken_heads import in_type, write
from tests.micro_moe import standard

GRIDS = [Grid("Q4_0"), Grid("Q4_1"), Grid("Q8_0"), Grid("Q4_0", 128)]
TEXT = "def read(path):\n    with open(path) as file:\n        return [line.strip() for line in file]\n\n\n" * 6


def problem(seed, n_out=24, n_in=256, scale=1.0):
    """Weights, and inputs whose columns depend on each other and differ in size."""
    random = np.random.Generator(np.random.Philox(seed))
    w = random.normal(0, 0.05 * scale, (n_out, n_in))
    mix = random.normal(0, 1, (n_in // 4, n_in)) * np.exp(random.normal(0, 1, n_in))
    x = random.normal(0, 1, (512, n_in // 4)) @ mix + 0.1 * random.normal(0, 1, (512, n_in))
    return w, 2 / 512 * x.T @ x


def values(raw, grid, w):
    return dequantize(grid.kind, raw.reshape(-1), w.shape).astype(np.float64)


def loss(w, q, h):
    return float(np.einsum("ij,jk,ik->", w - q, h, w - q))


def naive(w, h, grid, damping):
    """The optimal brain surgeon's step for each column, with the inverse of what is left made anew: no Cholesky."""
    w, n = w.copy(), w.shape[1]
    h = h + damping * np.diag(h).mean() * np.eye(n)
    out = np.empty_like(w)
    for j in range(n):
        if j % grid.group == 0:
            d, m = grid.scales(w[:, j : j + grid.group])
        _, out[:, j] = grid.nearest(w[:, j], d, m)
        inverse = np.linalg.inv(h[j:, j:])
        w[:, j:] -= np.outer((w[:, j] - out[:, j]) / inverse[0, 0], inverse[0])
    return out


# Two blocks of lazy updates, of which the second is not whole where groups allow it. Scales on a grid without minima
# and on one with them.
@pytest.mark.parametrize(
    ("grid", "scale"),
    [*((grid, 1.0) for grid in GRIDS), *((grid, scale) for grid in GRIDS[:2] for scale in (1e-3, 30.0))],
    ids=lambda x: f"{x.kind}-{x.group}" if isinstance(x, Grid) else str(x),
)
def test_the_blocked_form_is_the_plain_one(grid, scale):
    w, h = problem(1, n_out=5, n_in=256 if grid.group == 128 else 160, scale=scale)
    expected = naive(w, h, grid, 0.01)
    got = values(gptq(w, h, grid), grid, w)
    assert np.mean(np.isclose(got, expected, rtol=1e-4, atol=1e-9)) > 0.999  # a tie may fall either way
    assert loss(w, got, h) == pytest.approx(loss(w, expected, h), rel=1e-3)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.kind}-{g.group}")
@pytest.mark.parametrize("seed", range(3))
def test_the_error_that_counts_is_smaller(grid, seed):
    w, h = problem(seed)
    assert loss(w, values(gptq(w, h, grid), grid, w), h) < 0.8 * loss(w, values(round_to_nearest(w, grid), grid, w), h)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_without_a_hessian_it_is_ggmls_rounding(kind):
    """The grid is the type's own; ggml divides by the scale before it is rounded, which moves a few codes."""
    w = problem(4)[0].astype(np.float32)
    ours = round_to_nearest(w, Grid(kind))
    theirs = quantize(kind, w)
    assert ours.shape == theirs.shape
    assert np.mean(ours == theirs) > 0.98
    q = dequantize(kind, ours.reshape(-1), w.shape)
    assert np.linalg.norm(q - w) <= 1.01 * np.linalg.norm(dequantize(kind, theirs.reshape(-1), w.shape) - w)


def test_a_group_shares_one_scale():
    w, h = problem(5)
    raw = gptq(w, h, Grid("Q4_0", 128)).reshape(len(w), -1, 18)[..., :2].copy().view("<f2")[..., 0]
    assert np.array_equal(raw.reshape(len(w), -1, 4), np.repeat(raw[:, ::4], 4).reshape(len(w), -1, 4))
    assert len(np.unique(raw)) > len(w)


def test_dead_and_degenerate_inputs():
    w, h = problem(6)
    h[:, 7] = h[7, :] = 0
    q = values(gptq(w, h, Grid("Q4_0")), Grid("Q4_0"), w)
    assert np.all(np.isfinite(q))
    rank_one = np.outer(np.ones(256), np.ones(256))
    assert np.all(np.isfinite(gptq(w, rank_one, Grid("Q4_0"))))
    assert np.array_equal(gptq(w, np.zeros_like(h), Grid("Q4_0")), round_to_nearest(w, Grid("Q4_0")))
    upper = inverse_factor(h, 0.01, "x")
    assert np.allclose(np.tril(upper, -1), 0)
    with pytest.raises(MtprefError, match="NaN or infinity"):
        gptq(w, np.full_like(h, np.nan), Grid("Q4_0"))
    with pytest.raises(MtprefError, match="not positive definite"):
        gptq(w, np.eye(256) - 5 * rank_one + np.diag(np.full(256, 5.0)), Grid("Q4_0"))
    with pytest.raises(MtprefError, match="expected a multiple of 128"):
        gptq(w[:, :96], h[:96, :96], Grid("Q4_0", 128))
    with pytest.raises(MtprefError, match="groups of 128 of Q8_0"):
        Grid("Q8_0", 128)


def test_a_weight_row_of_zeros_stays_zero():
    w, h = problem(8)
    w[3] = 0
    for grid in GRIDS:
        assert not np.any(values(gptq(w, h, grid), grid, w)[3])


# THE HEAD


@pytest.fixture(scope="module")
def calibrated():
    model = mtpref.load().core
    return model, trunk_rows(model, [model.vocab.encode(TEXT)])


def test_the_hessian_is_of_what_the_matrix_sees(calibrated):
    model, chunks = calibrated
    name = "blk.4.ffn_down.weight"
    rows = []
    run_head(watched(model, lambda n, x: rows.append(x.astype(np.float64)) if n == name else None), chunks)
    x = np.concatenate(rows)
    assert np.allclose(hessians(model, chunks, [name])[name], 2 / len(x) * x.T @ x)


def test_stages_see_the_stages_before_them_quantised(calibrated, monkeypatch):
    model, chunks = calibrated
    seen = []
    inner = hessians

    def spy(changed, chunks, names, spill):
        seen.append({n for n, w in head_matrices(changed).items() if w.type_name == "Q4_0"})
        return inner(changed, chunks, names, spill)

    monkeypatch.setattr("mtpref.heads.quantize.head.hessians", spy)
    made = gptq_head(model, chunks, Grid("Q4_0")).made
    assert [len(s) for s in seen] == [0, 1, 4, 5, 7]
    assert set(made) == set(head_matrices(model))


def test_stages_are_what_sees_the_same_rows_in_the_order_of_the_head(calibrated):
    found = [[name.removeprefix("blk.4.").removesuffix(".weight") for name in stage] for stage in stages(*calibrated)]
    assert found == [
        ["nextn.eh_proj"], ["attn_q", "attn_k", "attn_v"], ["attn_output"], ["ffn_gate", "ffn_up"], ["ffn_down"]
    ]  # fmt: skip


def test_a_head_without_attention_and_with_experts_is_quantised_in_its_own_order(tmp_path, monkeypatch):
    """Its kinds are of tests/toys.py; with so few tokens some experts see nothing, and are rounded to nearest."""
    tensors = toys.norms("attn_norm") + toys.RAW + toys.STACK
    block = Block("mtp", toys.COMPRESSED, toys.EXPERTS, tensors, toys.parallel, ("nextn.",))
    sheet = toys.toy("toymoe", toys.CYCLE, replace(toys.SINGLE.head, block=block))
    monkeypatch.setitem(ARCHITECTURES, "toymoe", sheet)
    write_gguf(tmp_path / "moe.gguf", toys.keys(sheet), toys.tensors(sheet))
    model = mtpref.load(tmp_path / "moe.gguf", numerics="exact").core
    chunks = trunk_rows(model, [[3, 4, 9]])
    into, out, stack = (f"blk.6.{name}.weight" for name in ("raw_in", "raw_out", "ffn_exps"))
    assert stages(model, chunks) == [["blk.6.nextn.eh_proj.weight"], [into, stack], [out]]
    matrices = head_matrices(model)
    assert len(matrices) == 3 + toys.N_EXPERT  # not ffn_gate_inp: it stays as it is
    unseen = set(matrices) - set(hessians(model, chunks, list(matrices)))
    assert unseen
    assert all(tensor_name(name) == stack for name in unseen)
    made = gptq_head(model, chunks, Grid("Q4_0")).made
    for name in unseen:
        w = matrices[name]
        assert np.array_equal(made[name].raw, round_to_nearest(w.dequantize(), Grid("Q4_0")).reshape(-1))
    changed = with_matrices(model, made)
    assert {w.type_name for w in head_matrices(changed).values()} == {"Q4_0"}
    kind, raw = tensors_of(made)[stack]
    assert (kind, raw.size) == ("Q4_0", toys.N_EXPERT * 32 * 18)


def test_a_quantised_head_is_measured_beside_its_own(calibrated):
    model, chunks = calibrated
    held_out = Text(
        "t", tuple(model.vocab.encode("class Stack:\n    def push(self, item):\n        self.items.append(item)\n" * 8))
    )
    ways = {
        "gptq": gptq_head(model, chunks, Grid("Q4_0")).made,
        "rtn8": {n: _rtn(w, "Q8_0") for n, w in head_matrices(model).items()},
    }
    reference, four, eight = measure(model, ways, [held_out])
    assert (reference.name, reference.kl.value, reference.agreement.value) == (REFERENCE, 0.0, 1.0)
    assert four.kl.value > 10 * abs(eight.kl.value)
    assert four.n_bytes < 0.6 * eight.n_bytes
    assert eight.less.value == pytest.approx(0.0, abs=0.05)


def _rtn(w, kind):
    from mtpref.spec import Matrix

    return Matrix(w.name, kind, w.n_out, w.n_in, quantize(kind, w.dequantize()).reshape(-1))


def test_with_matrices_changes_the_head_alone(calibrated):
    model, chunks = calibrated
    changed = with_matrices(model, gptq_head(model, chunks, Grid("Q4_1")).made)
    assert changed.weights.layers is model.weights.layers
    assert {w.type_name for w in head_matrices(changed).values()} == {"Q4_1"}


def test_the_command_touches_the_head_alone(tmp_path):
    source = write(tmp_path / "f32.gguf", in_type("BF16"))
    (tmp_path / "text.txt").write_text(TEXT)
    plain, target = tmp_path / "rtn.gguf", tmp_path / "gptq.gguf"
    assert main(["quantize", str(source), str(plain), "Q8_0", "--mtp-type", "Q4_0"]) == 0
    more = ["--mtp-type", "Q4_0", "--method", "gptq", "--calibration", str(tmp_path / "text.txt")]
    assert main(["quantize", str(source), str(target), "Q8_0", *more]) == 0
    with open_gguf(plain) as a, open_gguf(target) as b:
        assert list(a.tensors) == list(b.tensors)
        differ = {n for n in a.tensors if not np.array_equal(a.data(a.tensors[n]), b.data(b.tensors[n]))}
        assert {(t.type_name, t.shape) for t in a.tensors.values()} == {
            (t.type_name, t.shape) for t in b.tensors.values()
        }
    assert len(differ) == 8
    assert all(name.startswith("blk.4.") for name in differ)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "gptq"],
        ["--method", "gptq", "--calibration", "README.md"],
        ["--calibration", "README.md"],
        ["--method", "gptq", "--calibration", "README.md", "--mtp-type", "Q6_K"],
        ["--method", "imatrix"],
    ],
)
def test_options_that_do_not_fit_end_in_one_line(tmp_path, capsys, arguments):
    source = write(tmp_path / "f32.gguf", in_type("BF16"))
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "Q8_0", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# EXPERTS


def routed(n):
    return [(11 * i * i + 5 * i + 3) % 251 for i in range(n)]


@pytest.fixture(scope="module")
def with_experts():
    """A planted model whose experts have gate and up in one stack; 20 experts, 3 for each token."""
    model = mtpref.load(str(standard("micro-qwen35moe-90-fused-f32")), numerics="exact").core
    return model, trunk_rows(model, [routed(150)])


GATE_UP, DOWN = "blk.4.ffn_gate_up_exps.weight", "blk.4.ffn_down_exps.weight"


def rows_of(model, chunks, name):
    found = []
    run_head(watched(model, lambda n, x: found.append(x.astype(np.float64)) if n == name else None), chunks)
    return np.concatenate(found) if found else np.zeros((0, 1))


def test_an_experts_hessian_is_of_the_tokens_that_were_routed_to_it(with_experts, tmp_path):
    model, chunks = with_experts
    names = [name for name in head_matrices(model) if tensor_name(name) in (DOWN, "blk.4.ffn_down_shexp.weight")]
    with Spill(tmp_path) as spill:
        found = hessians(model, chunks, names, spill)
        assert list(found) == ["blk.4.ffn_down_shexp.weight"]
        assert sum(spill.n_rows(e) for e in range(20)) == 3 * 150
        for e in (0, 7, 19):
            x = rows_of(model, chunks, f"{DOWN}[{e}]")
            assert np.array_equal(np.concatenate(list(spill.pieces(e))), x.astype(np.float32))
            assert np.allclose(spill.hessian(e, x.shape[1]), 2 / len(x) * x.T @ x)
        assert list(tmp_path.iterdir()) == []  # a file without a name, whatever ends the process


def test_experts_are_calibrated_one_by_one_and_those_with_few_rows_rounded(with_experts, tmp_path, monkeypatch):
    model, chunks = with_experts
    monkeypatch.setattr("mtpref.heads.quantize.head.MIN_ROWS", 20)
    seen, damped = [], []
    inner = Spill.hessian
    monkeypatch.setattr(Spill, "hessian", lambda self, e, n_in: seen.append(e) or inner(self, e, n_in))

    def spy(w, hessian, grid, *, damping, name):
        damped.append((name, damping))
        return gptq_codes(w, hessian, grid, damping=damping, name=name)

    monkeypatch.setattr("mtpref.heads.quantize.head.gptq_codes", spy)
    grid, matrices = Grid("Q4_0"), head_matrices(model)
    made = gptq_head(model, chunks, grid, folder=tmp_path)
    few = made.plain[GATE_UP]
    changed = with_matrices(model, made.made)  # what comes before the experts moves the router
    assert 0 < len(few) < 20
    assert len(seen) == len(set(range(20)) - set(few)) + len(set(range(20)) - set(made.plain[DOWN]))
    for e in range(20):
        for part in ("gate", "up"):
            name = f"{GATE_UP}/ffn_{part}_exps.weight[{e}]"
            plain = round_to_nearest(matrices[name].dequantize(), grid).reshape(-1)
            assert np.array_equal(made.made[name].raw, plain) == (e in few)
            n = len(rows_of(changed, chunks, name))
            assert (n < 20) == (e in few)
            if n >= 20:
                assert (name, max(0.01, 0.5 * 64 / n)) in damped
    assert f"{len(few)} of {GATE_UP}" in made.note()
    kind, raw = tensors_of(made.made)[GATE_UP]
    both = [made.made[f"{GATE_UP}/ffn_{part}_exps.weight[{e}]"].raw for e in range(20) for part in ("gate", "up")]
    assert (kind, bytes(raw)) == ("Q4_0", b"".join(map(bytes, both)))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_calibrated_experts_and_says_which_were_not(tmp_path, capsys):
    source = standard("micro-glm4moe-f32")
    (tmp_path / "text.txt").write_text("some text that reaches a few experts alone, and those not often")
    more = ["--mtp-type", "Q4_0", "--method", "gptq", "--calibration", str(tmp_path / "text.txt")]
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "Q8_0", *more]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "rounded to nearest" in line]
    assert len(said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "text.txt"]
    with open_gguf(tmp_path / "out.gguf") as file:
        assert file.tensors["blk.4.ffn_down_exps.weight"].type_name == "Q4_0"
        assert file.tensors["blk.3.ffn_down_exps.weight"].type_name == "Q8_0"
        assert file.tensors["blk.4.ffn_gate_inp.weight"].type_name == "F32"


def test_rows_that_find_no_room_end_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(MtprefError, match="the rows that calibrate the experts cannot be kept after 0 B"):
        Spill(tmp_path / "absent")
    if Path("/dev/full").exists():
        full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115, Spill closes it
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        with Spill(tmp_path) as spill, pytest.raises(MtprefError, match="No space left"):
            spill.add(0, np.ones((2, 3), np.float32))


@pytest.mark.slow
def test_calibrated_experts_of_a_trained_head_are_nearer_than_rounded_ones(tmp_path):
    """Hidden rows on held-out text, of the tiny model with its network cut into experts; few rows do no harm."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
    try:
        import compare_expert_quants as tool
    finally:
        sys.path.pop(0)
    tool.write_with_experts(tmp_path / "experts.gguf")
    model = mtpref.load(tmp_path / "experts.gguf").core
    corpus, grid = tool.load_corpus(), Grid("Q4_0")
    held = tool.first_tokens(tool.chunks_of(model, list(corpus.held_out), 1024), 1024)
    chunks = tool.chunks_of(model, list(corpus.train), 2048)
    ways = [tool.rounded(model, grid)] + [
        tool.calibrated(model, some, grid, scaled=True) for some in (tool.first_tokens(chunks, 256), chunks)
    ]
    rounded, few, many = (tool.nmse(model, tool.only_experts(made), held) for made in ways)
    assert few < 1.05 * rounded
    assert many < 0.9 * rounded
