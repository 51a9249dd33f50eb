"""What decides a suite's values: found from the code, changed by what changes them, and by nothing else."""

import ast
import shutil

import pytest

from mtpref.golden import Folder, loops, models, port, sources
from mtpref.golden.sources import reached, source_sha256

OPS = sorted({*port.ANSWERS, *loops.MODELLESS_ANSWERS, *models.MODEL_ANSWERS})
CACHES = (source_sha256, reached, sources._named, sources._text, sources._source)


def names(op):
    return {d.name for d in reached(op)}


def modules(op):
    return {d.module.removeprefix("mtpref.") for d in reached(op)}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The package's sources as files that a test may change."""
    shutil.copytree(sources.ROOT / "mtpref", tmp_path / "mtpref", ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    forget()
    yield tmp_path / "mtpref"
    monkeypatch.undo()
    forget()


def forget():
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture(scope="module")
def before():
    return {op: source_sha256(op) for op in OPS}


def edited(copy, path, old, new):
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new))


def changed_by(before, copy, path, old, new):
    """The operations whose hash an edit changes."""
    edited(copy, path, old, new)
    forget()
    return {op for op in OPS if source_sha256(op) != before[op]}


def test_an_operation_depends_on_its_rule_and_on_nothing_beside_it():
    assert modules("rms_norm") == {"golden.port", "golden.inputs", "spec.layers", "spec.arith"}
    assert modules("policy") == {"golden.loops", "spec.policy", "base.settings", "base.typed"}
    assert {"mul_mat_exact", "mul_mat_ggml", "mul_mat_k", "mul_mat_legacy", "mul_mat_tiles"} <= names("mul_mat")
    assert {"delta_layer", "conv_silu", "delta_rule", "gated_norm"} <= names("delta_layer")
    assert not {"attention", "rope", "argmax"} & names("delta_layer")


def test_a_run_depends_on_the_loop_the_policy_the_state_and_the_layers_of_its_model():
    loop = {f"engine.decode.{name}" for name in ("loop", "rollback", "drafters", "sampling", "lengths")}
    loop |= {"spec.policy", "spec.steps"}
    assert loop <= modules("generate")
    assert {"ModelState", "Model", "GATED_DELTA_NET", "attn_layer", "accept_greedy", "verify_replay"} <= names(
        "generate"
    )
    assert not {"find_architecture", "ARCHITECTURES", "load", "Statistics", "kernel_ops"} & names("generate")
    elsewhere = ("kernels", "files.gguf", "files.vocab", "engine.recipe")
    assert not any(module.startswith(elsewhere) for op in OPS for module in modules(op))


@pytest.mark.parametrize(
    ("path", "old", "new", "expected"),
    [
        ("spec/layers.py", "x[..., 2 * half :]", "x[..., 2 * half : None]", {"rope", "attn_layer"}),
        ("spec/policy.py", "max(0, min(cfg.n_max, n_room))", "min(cfg.n_max, n_room)", {"policy", "accumulated"}),
        ("spec/state.py", "self.n_past = n_past\n", "self.n_past = int(n_past)\n", set()),
        ("engine/decode/rollback.py", "n_replayed = n_accepted + 1", "n_replayed = 1 + n_accepted", set()),
        ("spec/steps.py", "return [*draft[:n_accepted], row_ids[n_accepted]]", "return list(draft)", {"accept_greedy"}),
    ],
    ids=["a rule", "the policy", "the state", "a roll back", "what is emitted"],
)
def test_a_change_of_what_decides_values_changes_the_hashes_of_its_users(before, copy, path, old, new, expected):
    changed = changed_by(before, copy, path, old, new)
    whole_runs = {"generate", "rounds", "head_cells"}
    assert expected | (set() if "layers" in path else whole_runs) <= changed
    assert changed < set(OPS)
    assert not changed & {"rms_norm", "mul_mat", "uniform", "draw"}


HARMLESS = {
    "docstring": ("spec/policy.py", "The gate: whether", "The gate (p_min): whether"),
    "types and comment": (
        "spec/mtp.py",
        "def argmax(logits: F32) -> NDArray[np.int64]:",
        "def argmax(logits):  # the greedy token",
    ),
    "layout": ("spec/arith.py", "\nF32 =", "\n\n\nF32 ="),
    "statistics": ("engine/decode/statistics.py", "NEAR_TIE = 0.01", "NEAR_TIE = 0.02"),
    "kernels": ("kernels/choices.py", "def argmax", "def other_argmax"),
    "another architecture": (
        "architectures/__init__.py",
        "ARCHITECTURES: dict",
        'OTHER = "toy"\nARCHITECTURES: dict',
    ),
    "a new name": ("spec/sampling.py", "MAX_SEED = (1 << 64) - 1", "MAX_SEED = (1 << 64) - 1\nUNUSED = 1"),
}


# All edits at once by default: each is in a file of its own. One alone (slow) says which it was.
@pytest.mark.parametrize("names", [tuple(HARMLESS), *(pytest.param((n,), marks=pytest.mark.slow) for n in HARMLESS)])
def test_a_change_of_nothing_that_decides_values_changes_no_hash(before, copy, names):
    edits = [HARMLESS[name] for name in names]
    assert len({path for path, _, _ in edits}) == len(edits)
    for edit in edits[1:]:
        edited(copy, *edit)
    assert changed_by(before, copy, *edits[0]) == set()


def test_a_definition_may_move_to_another_file(before, copy):
    """`rms_norm` in a file of its own, imported where it is used."""
    layers, package = copy / "spec" / "layers.py", copy / "spec" / "__init__.py"
    text = layers.read_text()
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "rms_norm")
    function = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    imports = "from mtpref.spec.arith import lane_sum_products\nfrom mtpref.spec.layers import F32, _scale32\n\n\n"
    back = "from mtpref.spec.elsewhere import rms_norm\n"
    (copy / "spec" / "elsewhere.py").write_text(f"import numpy as np\n\n{imports}{function}\n")
    layers.write_text(text.replace(function, back))
    package.write_text(package.read_text().replace("    rms_norm,\n", "", 1) + back)
    forget()
    assert {op: source_sha256(op) for op in OPS} == before
    assert "mtpref.spec.elsewhere" in {d.module for d in reached("rms_norm")}


def test_every_operation_of_the_vectors_has_a_hash_of_its_own():
    ops = {record["op"] for record in Folder("golden").suite_records()}
    assert ops <= set(OPS)
    assert len({source_sha256(op) for op in OPS}) == len(OPS)
