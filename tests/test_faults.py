"""The faults: each replaces what it says, diverges first where it says, and costs what it says."""

import json
import re
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.base.events import Verified
from mtpref.engine.model import Model
from mtpref.faults import (
    BUG_TYPES,
    FAMILIES,
    FAULTS,
    NEEDS,
    PLACES,
    Fault,
    everywhere,
    find_fault,
    inject,
    is_possible,
    refuse_faults,
)
from mtpref.spec import Matrix
from tests.models import micro, prompt_of, run_decoder, without_head

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import measure_faults

PACKAGE = Path(mtpref.__file__).parent
PROMPTS = [prompt_of(n, n) for n in (5, 9, 20, 40)]

# id -> the first tensor that differs from the clean run, in the order of execution.
CLAIMS = {
    "W1-norm-shift-missing": "mtp_hnorm-4",
    "G1-concat-swapped": "mtp_concat-4",
    "C3-last-verify-row": "mtp_hnorm-4",
    "K0-prompt-not-primed": "mtp_attn_pregate-4",
    "S3-conv-window-kept": "conv_states-0",
}
HEAD_ONLY = [id for id in CLAIMS if not id.startswith("S")]


def loud_attention(model: Model, gain: float) -> Model:
    """The model with the attention of its head `gain` times as strong: the micro models' own is a whisper."""
    mtp = model.heads[0].weights
    w = mtp.block["attn_output.weight"]
    raw = (w.dequantize() * np.float32(gain)).view(np.uint8).reshape(-1)
    block = {**mtp.block, "attn_output.weight": Matrix(w.name, "F32", w.n_out, w.n_in, raw)}
    return model.with_head(block=block)


def test_every_fault_is_described_and_found_by_id_and_by_number():
    assert len([f for f in FAULTS.values() if not f.is_look_alike]) >= 45
    assert {fault.family for fault in FAULTS.values()} == set(FAMILIES)
    for id, fault in FAULTS.items():
        assert id == fault.id
        assert re.fullmatch(rf"{fault.family}\d+b?c?(-[a-z0-9]+)+", id)
        assert all(link.startswith("https://github.com/") for link in fault.links)
        assert fault.bug_type in BUG_TYPES
        assert fault.is_look_alike == (fault.bug_type == "LOOK_ALIKE")
        assert set(fault.needs) <= set(NEEDS)
        assert set(fault.where) <= set(PLACES)
        assert [fault.apply_recipe, fault.apply_weights, fault.apply_model].count(None) == 2
        assert find_fault(id) is find_fault(id.split("-")[0].lower()) is fault
        assert json.loads(json.dumps(fault.to_json()))["id"] == id
    assert len({f.title for f in FAULTS.values()}) == len({id.split("-")[0] for id in FAULTS}) == len(FAULTS)


def test_an_unknown_fault_is_refused_with_those_that_are_near():
    with pytest.raises(MtprefError, match=r"'X9-gate-silu' is unknown, expected e\.g\. G4-gate-silu"):
        find_fault("X9-gate-silu")
    with pytest.raises(MtprefError, match="'' is unknown"):
        find_fault("")


def test_a_maker_of_references_refuses_faults():
    refuse_faults([], "golden vectors")
    with pytest.raises(MtprefError, match="W1, G1: golden vectors come from the reference alone"):
        refuse_faults(["W1", "G1"], "golden vectors")


def base_of(fault: Fault) -> Model:
    """The embedded model, or one that can have the fault, with the options under which it does something."""
    return measure_faults.model_of(measure_faults.setup_of(fault), None)


def tiny() -> Model:
    return measure_faults.healthy("ggml", None)


def changed_entries(a: Model, b: Model) -> set[str]:
    """Every entry of recipe, weights and model that is another object, or another value, in b."""
    tables = [(t, getattr(a.recipe, t), getattr(b.recipe, t)) for t in ("ops", "steps", "contract")]
    if b.recipe.mtp_ops is not None:
        own = a.recipe.mtp_ops  # of an architecture whose head runs on a table of its own
        tables.append(("mtp_ops", b.recipe.ops if own is None else own, b.recipe.mtp_ops))
    out = set()
    for table, old_table, new_table in tables:
        for f in (f for f in fields(old_table) if f.name != "composed"):
            old, new = getattr(old_table, f.name), getattr(new_table, f.name)
            # A fused twin that falls back to its composition, because one of its parts is replaced, is no replacement.
            falls_back = table != "steps" and table != "contract" and new is old_table.composed.get(f.name)
            is_said = table == "mtp_ops" and a.recipe.mtp_ops is not None and f"ops.{f.name}" in out
            if old is not new and old != new and not falls_back and not is_said:
                out.add(f"{table}.{f.name}")
    out |= {
        f"weights.{f.name}" for f in fields(a.weights) if getattr(a.weights, f.name) is not getattr(b.weights, f.name)
    }
    # A model with any fault is not looked at for NaN (test_not_finite.py), and tells which it has (test_trace_show.py).
    own = [f.name for f in fields(Model) if f.name not in ("recipe", "weights", "heads", "is_checked", "changes")]
    out |= {name for name in own if getattr(a, name) is not getattr(b, name) and getattr(a, name) != getattr(b, name)}
    for old, new in zip(a.heads, b.heads, strict=True):
        out |= {
            f"heads.{name}" for name in ("weights", "layer", "before") if getattr(old, name) is not getattr(new, name)
        }
    assert a.recipe.numerics == b.recipe.numerics
    return out


@pytest.mark.parametrize("id", FAULTS)
def test_a_fault_replaces_the_entries_that_it_says_and_nothing_else(id):
    fault = FAULTS[id]
    model = base_of(fault)
    before = (model.recipe, model.weights)
    assert changed_entries(model, inject(model, fault)) == set(fault.replaces)
    assert (model.recipe, model.weights) == before


@pytest.mark.parametrize("id", FAULTS)
def test_a_dump_differs_first_where_the_fault_says_and_nowhere_before(id):
    setup = measure_faults.setup_of(FAULTS[id])
    clean, faulty = measure_faults.dump(setup, None), measure_faults.dump(setup, id)
    if "layers" not in FAULTS[id].replaces:  # another kind of layer has other tensors
        assert list(faulty) == list(clean)
    first = measure_faults.first_tensor(setup, FAULTS[id]) or ""
    assert re.sub(r"-\d+$", "", first) == FAULTS[id].predicted.dump


def test_faults_can_be_laid_over_each_other():
    usual = [f for f in FAULTS.values() if is_possible(f, tiny())]
    faults = [f for f in usual if f.needs in ((), ("mtp",)) or "snapshot" in f.needs]
    model = inject(tiny(), *faults)
    claimed = set().union(*(f.replaces for f in faults))
    found = changed_entries(tiny(), model)
    assert {e.replace("mtp_ops.", "ops.") for e in found} == {e.replace("mtp_ops.", "ops.") for e in claimed}
    both = inject(tiny(), FAULTS["G4-gate-silu"], FAULTS["C1-chain-pre-norm"])
    assert changed_entries(tiny(), both) == {"mtp_ops.attn_gate", "contract.chain"}


def test_a_fault_of_the_heads_operations_leaves_the_trunks_alone():
    recipe = inject(tiny(), FAULTS["G4-gate-silu"]).recipe
    assert recipe.ops.attn_gate is tiny().recipe.ops.attn_gate
    assert everywhere(recipe).ops.attn_gate is recipe.mtp_ops.attn_gate
    assert everywhere(tiny().recipe) is tiny().recipe


def test_a_shared_head_norm_is_the_trunks_and_keeps_its_shift():
    model = micro(60)
    mtp = model.heads[0].weights
    fallback = {**mtp.origin, "shared_head_norm": "output_norm.weight"}
    model = model.with_head(shared_head_norm=model.weights.output_norm, origin=fallback)
    faulty = inject(model, FAULTS["W1-norm-shift-missing"]).heads[0].weights
    assert (faulty.shared_head_norm == model.weights.output_norm).all()
    own = inject(micro(60), FAULTS["W1-norm-shift-missing"]).heads[0].weights
    assert (own.shared_head_norm == mtp.shared_head_norm - 1).all()
    assert (own.block["attn_q_norm.weight"] == mtp.block["attn_q_norm.weight"] - 1).all()


def test_a_fault_of_head_weights_needs_a_head():
    with pytest.raises(MtprefError, match="no MTP head"):
        inject(without_head(micro(60)), FAULTS["W1-norm-shift-missing"])


def test_a_fault_is_refused_where_the_model_has_no_such_part():
    with pytest.raises(MtprefError, match=r"fault E8-.* \(qwen35\), expected one with expert groups; use another"):
        inject(tiny(), FAULTS["E8-groups-by-best"])
    possible = {stand_in: measure_faults.healthy("ggml", None, stand_in) for stand_in in measure_faults.STAND_INS}
    groups = [name for name, model in possible.items() if is_possible(FAULTS["E8-groups-by-best"], model)]
    assert groups == ["glm4moe", "deepseek2"]
    with pytest.raises(MtprefError, match=r"fault G4-.* \(glm4moe\), expected one with an attention gate in the head"):
        inject(possible["glm4moe"], FAULTS["G4-gate-silu"])
    for place, (words, _) in PLACES.items():
        assert any(place in fault.where for fault in FAULTS.values()), words


def test_what_is_the_same_number_on_an_architecture_is_no_fault_there():
    """A softmax over the chosen experts, where weights are renormalised or by a sigmoid."""
    fault, alike = FAULTS["E4-softmax-after-selection"], FAULTS["L14-softmax-after-selection"]
    models = {name: measure_faults.healthy("ggml", None, name) for name in ("qwen35moe", "hy_v3", "hy_v3, softmax")}
    assert [name for name, model in models.items() if is_possible(fault, model)] == ["hy_v3, softmax"]
    assert [name for name, model in models.items() if is_possible(alike, model)] == ["qwen35moe"]


# ------------------------------------------------------------------------------ first divergence


class Tapped(Model):
    """A model that writes down every tensor of every pass with logits: the drafts and the verifications."""

    def __init__(self, model: Model, log: list) -> None:
        for f in fields(Model):
            object.__setattr__(self, f.name, getattr(model, f.name))
        object.__setattr__(self, "log", log)

    def _tap(self, n_logits, ids):
        if not n_logits:
            return lambda name, array: None
        return lambda name, array: self.log.append((name, tuple(ids), array.tobytes()))

    def trunk(self, state, ids, *, n_logits, keep=1):
        return super().trunk(state, ids, n_logits=n_logits, keep=keep, tap=self._tap(n_logits, ids))

    def mtp(self, state, ids, hidden, first_pos, *, n_logits, head=0, n_draft_vocab=None, tap=None):
        return super().mtp(
            state, ids, hidden, first_pos, n_logits=n_logits, n_draft_vocab=n_draft_vocab, tap=self._tap(n_logits, ids)
        )


def log_of(model: Model, prompt: list[int]) -> tuple[list, list[Verified]]:
    log: list = []
    run = run_decoder(Tapped(model, log), prompt, 24, n_max=3)
    return log, [e for e in run.events if isinstance(e, Verified)]


@pytest.mark.parametrize("id", CLAIMS)
@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=len)
def test_the_first_tensor_that_differs_is_the_one_that_the_fault_claims(id, prompt):
    (clean, verified), (faulty, _) = (log_of(model, prompt) for model in (micro(60), inject(micro(60), FAULTS[id])))
    at = next(i for i, (a, b) in enumerate(zip(clean, faulty, strict=False)) if a != b)
    (name, ids, bits), (name_faulty, ids_faulty, bits_faulty) = clean[at], faulty[at]
    assert (name, ids, len(bits)) == (name_faulty, ids_faulty, len(bits_faulty))
    assert name == CLAIMS[id]
    # Where the fault is one of rejections, nothing differs before the first of them.
    n_verified = sum(name == "result_output" and len(ids) > 1 for name, ids, _ in clean[:at])
    first_rejection = next(i for i, e in enumerate(verified) if e.n_accepted < len(e.draft_ids))
    assert n_verified == (first_rejection + 1 if id[0] in "CS" else 0)


# ------------------------------------------------------------------------------------ what it costs


@cache
def runs(model_name: str, fault_id: str | None, rollback: str = "snapshot") -> list:
    model = loud_attention(micro(90), 20.0) if model_name == "loud" else micro(int(model_name))
    model = inject(model, FAULTS[fault_id]) if fault_id else model
    return [run_decoder(model, prompt, 50, n_max=3, rollback=rollback) for prompt in PROMPTS]


def acceptance(outcomes: list) -> float:
    return sum(r.statistics["n_accept"] for r in outcomes) / sum(r.statistics["n_drafted"] for r in outcomes)


@pytest.mark.parametrize("id", HEAD_ONLY)
def test_a_fault_of_the_head_never_changes_the_text(id):
    for accept in ("30", "90"):
        assert [r.ids for r in runs(accept, id)] == [r.ids for r in runs(accept, None)]


@pytest.mark.parametrize("id", ["W1-norm-shift-missing", "G1-concat-swapped"])
def test_a_broken_head_is_hardly_ever_right(id):
    assert acceptance(runs("90", None)) > 0.75
    assert acceptance(runs("90", id)) < 0.05


def test_the_wrong_verify_row_costs_acceptance_where_rejected_rows_were_run_and_only_there():
    id = "C3-last-verify-row"
    assert acceptance(runs("60", id)) < acceptance(runs("60", None)) - 0.02
    for rollback in ("replay", "two-phase"):
        clean, faulty = runs("60", None, rollback), runs("60", id, rollback)
        assert [r.events[1:-1] for r in faulty] == [r.events[1:-1] for r in clean]
        assert all(replace(b.events[0], changes=[]) == a.events[0] for a, b in zip(clean, faulty, strict=True))


def test_a_head_that_listens_to_its_attention_needs_the_prompt_in_its_cache():
    id = "K0-prompt-not-primed"
    clean, faulty = runs("loud", None), runs("loud", id)
    assert acceptance(faulty) < acceptance(clean) - 0.05
    for a, b, prompt in zip(clean, faulty, PROMPTS, strict=True):
        assert a.ids == b.ids
        assert b.decoder.state.heads[0].n_cells == a.decoder.state.heads[0].n_cells - (len(prompt) - 1)


@pytest.mark.parametrize("rollback", ["snapshot", "replay"])
def test_a_conv_window_that_is_kept_changes_state_and_text(rollback):
    clean, faulty = (runs("60", id, rollback) for id in (None, "S3-conv-window-kept"))
    assert any(a.ids != b.ids for a, b in zip(clean, faulty, strict=True))
    assert all(a.decoder.state.digest() != b.decoder.state.digest() for a, b in zip(clean, faulty, strict=True))


def test_a_conv_window_cannot_be_kept_where_nothing_is_rolled_back():
    clean, faulty = (runs("60", id, "two-phase") for id in (None, "S3-conv-window-kept"))
    assert [a.decoder.state.digest() for a in faulty] == [a.decoder.state.digest() for a in clean]


# ------------------------------------------------------------------------------------- the catalogue


def test_no_other_room_names_a_fault():
    """Golden vectors name faults as flags of their cases; the tools that measure them are about nothing else."""
    tools = PACKAGE.parent / "tools"
    own = {PACKAGE / "faults", tools / "golden"}
    tellers = {tools / name for name in ("kill_matrix.py", "measure_faults.py", "record_broken.py", "write_faults.py")}
    sources = [p for p in (*PACKAGE.rglob("*.py"), *tools.rglob("*.py")) if not own & set(p.parents)]
    assert len(sources) > 40
    for path in set(sources) - tellers:
        text = path.read_text()
        found = [id for id in FAULTS if id in text]
        assert not found, f"{path.relative_to(PACKAGE.parent)} names {found}"


LEGAL_FLAGS = re.compile(r"basic|drift|carry|edge\.[a-z0-9_.-]+")


def test_every_flag_of_the_golden_vectors_is_a_fault():
    suites = [json.loads(p.read_text()) for p in (PACKAGE.parent / "golden").glob("L*/*.json")]
    flags = {flag for suite in suites for case in suite["cases"] for flag in case.get("flags", ())}
    assert len(flags) > 20
    assert {flag for flag in flags if not LEGAL_FLAGS.fullmatch(flag)} <= set(FAULTS)


def test_a_fault_is_at_most_25_lines():
    for path in (PACKAGE / "faults").glob("*.py"):
        if path.name in ("__init__.py", "fault.py", "matrices.py", "places.py"):
            continue
        code = [line for line in path.read_text().splitlines() if line.strip()]
        n_faults = sum(bool(re.match(r"[A-Z0-9_]+ = Fault\($", line)) for line in code)
        preamble = sum(line.startswith(("from ", "import ", '"""')) for line in code)
        assert n_faults
        assert len(code) - preamble <= 25 * n_faults, path.name
