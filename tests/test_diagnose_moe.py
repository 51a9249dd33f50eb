"""Diagnosis of ports with experts and latent rows: healthy ones are healthy, mistakes are named, by architecture."""

import gzip
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.faults.diagnose import PortRound, PortRun, PortTensors, diagnose_dump, diagnose_log, read_port_runs
from mtpref.faults.diagnose.hypotheses import list_hypotheses
from mtpref.look.dump import record
from tests.micro_moe import standard
from tests.models import run_decoder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import measure_faults  # noqa: E402
from golden.moe_models import prompt as prompt_of  # noqa: E402

ARCHS = ("qwen35moe", "qwen3next", "glm4moe", "hy_v3", "deepseek2")
# The mistakes of experts, of latent rows and of what came with them; what a dump shows of each.
NEW = [id for id, fault in FAULTS.items() if fault.where and not fault.is_look_alike and (
    fault.family in "EA" or id.split("-")[0] in ("G13b", "G16", "G16b", "G17", "G18", "G19"))]  # fmt: skip


@cache
def model(arch: str, numerics: str = "ggml"):
    return measure_faults.healthy(numerics, None, arch)


def pairs():
    """Of the models that are there; those that are made: test_diagnose_sparse.py."""
    archs = [arch for arch in measure_faults.STAND_INS if arch not in measure_faults.MADE]
    return [(arch, id) for arch in archs for id in NEW if is_possible(FAULTS[id], model(arch))]


# A few of different kinds; the whole product is slow.
FIRST = [
    ("glm4moe", "E1-bias-in-weights"),
    ("glm4moe", "E13-head-as-dense"),
    ("hy_v3", "G17-qk-biases-forgotten"),
    ("qwen35moe", "E9b-shared-ungated"),
    ("qwen3next", "G16b-beta-alpha-halves"),
    ("deepseek2", "A1-kv-b-halves"),
    ("deepseek2", "A2b-rope-halves"),
    ("deepseek2", "A3b-sharpness-once"),
]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs() if pair not in FIRST]


def dumped(arch: str, id: str | None):
    """A port in the other numerics with 1e-3 of noise."""
    port = model(arch, "exact") if id is None else inject(model(arch, "exact"), FAULTS[id])
    ids = prompt_of(f"diagnose_moe/{arch}", 14)
    random = np.random.default_rng(5)
    tensors = {name: array * (1 + 1e-3 * random.standard_normal(array.shape)).astype(np.float32)
               for name, array in record(port, ids, ".").tensors.items() if array.dtype == np.float32}  # fmt: skip
    return diagnose_dump(model(arch), PortTensors("port", ids, tensors))


def run_of(port, arch: str, n_predict: int) -> PortRun:
    """A run of a port as its log would tell it: drafts, acceptances and emitted tokens, with p."""
    prompt = prompt_of(f"diagnose_moe/{arch}/log", 12)
    drafts, p, n_accepted, emitted = [], [], [], []
    for event in run_decoder(port, prompt, n_predict, n_max=3).events:
        if isinstance(event, Drafted):
            drafts.append(tuple(event.ids))
            p.append(tuple(step.p[0] for step in event.steps))
            emitted.append([])
        elif isinstance(event, Verified):
            n_accepted.append(event.n_accepted)
        elif isinstance(event, Token):
            emitted[-1].append(event.id)
    rounds = [PortRound(draft=d, n_accepted=n, emitted=tuple(e), p=q)
              for d, n, e, q in zip(drafts, n_accepted, emitted, p, strict=True) if e]  # fmt: skip
    return PortRun("port", tuple(prompt), tuple(rounds), settings={"n_max": 3})


@pytest.mark.parametrize("arch", ARCHS)
def test_a_healthy_dump_is_healthy(arch):
    assert dumped(arch, None).verdict == "healthy"


@pytest.mark.parametrize(("arch", "id"), [*FIRST, *SLOW])
def test_a_dump_names_the_mistake(arch, id):
    report = dumped(arch, id)
    assert report.verdict == "found", report.headline
    assert id in report.causes[0].ids, report.headline


@pytest.mark.parametrize("arch", ARCHS)
def test_a_healthy_run_in_other_numerics_is_healthy(arch):
    report = diagnose_log(model(arch), [run_of(model(arch, "exact"), arch, 8)])
    assert report.verdict == "healthy", report.headline


@pytest.mark.parametrize(
    ("arch", "id"),
    [("glm4moe", "E5-scale-forgotten"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs())],
)
def test_a_run_is_never_called_healthy_where_the_mistake_shows(arch, id):
    """Where a fault changes tokens or p enough, it or one that cannot be told from it is named."""
    port = run_of(inject(model(arch), FAULTS[id]), arch, 40)
    report = diagnose_log(model(arch), [port])
    if id in report.invisible:
        return
    assert report.verdict != "healthy", report.headline
    assert report.verdict != "found" or id in report.causes[0].ids, report.headline


def test_hypotheses_are_those_that_a_model_can_have():
    for arch in ARCHS:
        asked = {h.id for h in list_hypotheses(model(arch))}
        assert asked & set(FAULTS) == {id for id, fault in FAULTS.items() if is_possible(fault, model(arch))}
    assert "E4-softmax-after-selection" not in {h.id for h in list_hypotheses(model("qwen35moe"))}
    assert next(h for h in list_hypotheses(model("qwen35moe")) if h.id.startswith("L14")).is_harmless


# --------------------------------------------------------------------------------------------- stock llama.cpp

STOCK = ROOT / "tests" / "data" / "llama_cpp" / "moe"


def stock_runs(name: str, folder: Path):
    path = folder / f"{name}.log"
    path.write_bytes(gzip.decompress((STOCK / f"{name}.log.gz").read_bytes()))
    return [run for run in read_port_runs(path, which="all") if run.rounds]


@pytest.mark.parametrize(
    ("name", "n_runs"),
    [
        ("micro-glm4moe-groups-f32", 1),
        ("micro-deepseek2-yarn-f32", 1),
        *(pytest.param(f"micro-{name}", 3, marks=pytest.mark.slow) for name in (
            "qwen35moe-f32", "qwen35moe-30-f32", "qwen35moe-90-fused-f32", "qwen35moe-q8_0", "glm4moe-f32",
            "glm4moe-q8_0", "hy_v3-f32", "hy_v3-fused-f32", "hy_v3-q8_0", "deepseek2-f32", "deepseek2-fused-f32",
            "deepseek2-q8_0")),
    ],
)  # fmt: skip
def test_a_stock_log_is_healthy(name, n_runs, tmp_path):
    runs = stock_runs(name, tmp_path)[:n_runs]
    report = diagnose_log(load(standard(name)), runs)
    assert report.verdict == "healthy", report.headline


# --------------------------------------------------------------------------------------------------- near ties


def with_other_choice(arch: str, token: int | slice):
    """A port that takes the next best expert for one token, or all, of the first layer."""
    port, calls = model(arch, "exact"), []

    def select(scores, n_used):
        ids = port.recipe.ops.select_experts(scores, n_used + 1)
        calls.append(0)
        if len(calls) == 1:
            ids[token, n_used - 1] = ids[token, n_used]
        return ids[:, :n_used]

    return replace(port, recipe=port.recipe.with_ops(select_experts=select))


@pytest.mark.parametrize("is_near", [True, False])
def test_a_jump_after_a_near_tie_accuses_nobody(is_near):
    """Another expert within the noise is no mistake; far beyond it, it is one that nobody knows."""
    arch = "qwen35moe"
    texts = [prompt_of(f"near/{i}", 2) for i in range(60)]
    gaps = [record(model(arch, "exact"), ids, ".").tensors["ffn_moe_gap-0"] for ids in texts]
    at = int(np.argmin([g.min() for g in gaps])) if is_near else int(np.argmax([g.min() for g in gaps]))
    token = int(gaps[at].argmin())
    port = with_other_choice(arch, token if is_near else slice(None))
    noise = 3e-3 if is_near else 0.0
    random = np.random.default_rng(1)
    tensors = {
        name: (array * (1 + noise * random.standard_normal(array.shape))).astype(np.float32)
        for name, array in record(port, texts[at], "-0$").tensors.items()
        if array.dtype == np.float32
    }
    report = diagnose_dump(model(arch), PortTensors("port", texts[at], tensors))
    assert report.verdict == ("undecided" if is_near else "unknown"), report.headline
    assert report.headline.startswith("CANNOT TELL: " if is_near else "NONE OF THE KNOWN")
    if is_near:
        assert f"ffn_moe_gap-0, token {token}" in report.headline


def quantised_port(rows: int | None, id: str | None = None):
    """A Q8_0 port of an older file, of which the dump has the last rows; its router chose otherwise at a near tie."""
    port = load(standard("micro-deepseek2-old-q8_0"), make_recipe("exact"), kv_type="BF16", kv_type_draft="BF16")
    port = port if id is None else inject(port, FAULTS[id])
    ids = [int(i) for i in np.random.default_rng(1057).integers(1, 256, 15)]
    random = np.random.default_rng(7)
    tensors = {}
    for name, array in record(port, ids, ".").tensors.items():
        noisy = (array * (1 + 3.96e-3 * random.standard_normal(array.shape))).astype(np.float32)
        tensors[name] = noisy[-rows:] if rows and noisy.shape[0] >= len(ids) - 1 else noisy
    return diagnose_dump(load(standard("micro-deepseek2-old-f32")), PortTensors("port", ids, tensors))


def test_a_fault_that_only_explains_what_follows_a_near_tie_is_not_named():
    """E1b gives the same other expert there by chance; before it, and in other rows, it explains nothing."""
    report = quantised_port(4)
    assert report.causes[0].ids == ["E1b-norm-with-bias"]
    assert report.verdict == "undecided", report.headline
    assert "ffn_moe_gap-1, token 1" in report.headline


def test_a_fault_before_and_beside_a_near_tie_is_named():
    report = quantised_port(None, "A4b-latent-unnormed")
    assert (report.verdict, report.causes[0].ids) == ("found", ["A4b-latent-unnormed"]), report.headline
