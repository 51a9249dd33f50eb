"""The faults: each replaces what it says, diverges first where it says, and costs what it says."""

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.errors import MtprefError
from mtpref.events import Verified
from mtpref.faults import FAULTS, Fault, find_fault, inject
from mtpref.faults.fault import FAMILIES
from mtpref.model import Model
from mtpref.spec import Matrix
from tests.models import micro, prompt_of, run_decoder, without_head

PACKAGE = Path(mtpref.__file__).parent
PROMPTS = [prompt_of(n, n) for n in (5, 9, 20, 40)]

# id -> what is replaced, and the first tensor that differs from the clean run, in the order of execution.
CLAIMS = {
    "W1-norm-shift-missing": ({"weights.mtp"}, "mtp_hnorm-4"),
    "G1-concat-swapped": ({"ops.mtp_concat"}, "mtp_concat-4"),
    "C3-last-verify-row": ({"steps.next_pending"}, "mtp_hnorm-4"),
    "K0-prompt-not-primed": ({"contract.prime"}, "mtp_attn_pregate-4"),
    "S3-conv-window-kept": ({"steps.choose_plane", "steps.restore"}, "conv_states-0"),
}
HEAD_ONLY = [id for id in CLAIMS if not id.startswith("S")]


def loud_attention(model: Model, gain: float) -> Model:
    """The model with the attention of its head `gain` times as strong: the micro models' own is a whisper."""
    mtp = model.weights.mtp
    w = mtp.block["attn_output.weight"]
    raw = (w.dequantize() * np.float32(gain)).view(np.uint8).reshape(-1)
    block = {**mtp.block, "attn_output.weight": Matrix(w.name, "F32", w.n_out, w.n_in, raw)}
    return replace(model, weights=replace(model.weights, mtp=replace(mtp, block=block)))


def test_there_is_one_fault_of_each_family():
    assert set(FAULTS) == set(CLAIMS)
    assert {fault.family for fault in FAULTS.values()} == set(FAMILIES)
    for id, fault in FAULTS.items():
        assert id == fault.id
        assert re.fullmatch(rf"{fault.family}\d+(-[a-z]+)+", id)
        assert fault.links
        assert all(link.startswith("https://") for link in fault.links)
        assert (fault.apply_recipe is None) != (fault.apply_weights is None)
        assert find_fault(id) is fault


def test_an_unknown_fault_is_refused_with_those_that_are_known():
    with pytest.raises(MtprefError, match="'X9-nothing' is unknown, expected one of W1-"):
        find_fault("X9-nothing")


def changed_entries(a: Model, b: Model) -> set[str]:
    """Every entry of recipe and weights that is another object, or another value, in b."""
    out = set()
    for table in ("ops", "steps", "contract"):
        for f in fields(getattr(a.recipe, table)):
            old, new = (getattr(getattr(m.recipe, table), f.name) for m in (a, b))
            if old is not new and old != new:
                out.add(f"{table}.{f.name}")
    out |= {
        f"weights.{f.name}" for f in fields(a.weights) if getattr(a.weights, f.name) is not getattr(b.weights, f.name)
    }
    assert replace(b, recipe=a.recipe, weights=a.weights) == a
    assert a.recipe.numerics == b.recipe.numerics
    return out


@pytest.mark.parametrize("id", CLAIMS)
def test_a_fault_replaces_the_entries_that_it_says_and_nothing_else(id):
    model = micro(60)
    before = (model.recipe, model.weights)
    assert changed_entries(model, inject(model, FAULTS[id])) == CLAIMS[id][0]
    assert (model.recipe, model.weights) == before


def test_faults_can_be_laid_over_each_other():
    model = micro(60)
    for fault in FAULTS.values():
        model = inject(model, fault)
    assert changed_entries(micro(60), model) == set().union(*(entries for entries, _ in CLAIMS.values()))


def test_a_shared_head_norm_is_the_trunks_and_keeps_its_shift():
    model = micro(60)
    mtp = model.weights.mtp
    fallback = {**mtp.origin, "shared_head_norm": "output_norm.weight"}
    shared = replace(mtp, shared_head_norm=model.weights.output_norm, origin=fallback)
    model = replace(model, weights=replace(model.weights, mtp=shared))
    faulty = inject(model, FAULTS["W1-norm-shift-missing"]).weights.mtp
    assert (faulty.shared_head_norm == model.weights.output_norm).all()
    own = inject(micro(60), FAULTS["W1-norm-shift-missing"]).weights.mtp
    assert (own.shared_head_norm == mtp.shared_head_norm - 1).all()
    assert (own.block["attn_q_norm.weight"] == mtp.block["attn_q_norm.weight"] - 1).all()


def test_a_fault_of_head_weights_needs_a_head():
    with pytest.raises(MtprefError, match="no MTP head"):
        inject(without_head(micro(60)), FAULTS["W1-norm-shift-missing"])


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

    def mtp(self, state, ids, hidden, first_pos, *, n_logits, n_draft_vocab=None):
        return super().mtp(state, ids, hidden, first_pos, n_logits=n_logits, n_draft_vocab=n_draft_vocab,
                           tap=self._tap(n_logits, ids))  # fmt: skip


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
    assert name == CLAIMS[id][1]
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
        assert [r.events[:-1] for r in faulty] == [r.events[:-1] for r in clean]


def test_a_head_that_listens_to_its_attention_needs_the_prompt_in_its_cache():
    id = "K0-prompt-not-primed"
    clean, faulty = runs("loud", None), runs("loud", id)
    assert acceptance(faulty) < acceptance(clean) - 0.05
    for a, b, prompt in zip(clean, faulty, PROMPTS, strict=True):
        assert a.ids == b.ids
        assert b.decoder.state.n_mtp == a.decoder.state.n_mtp - (len(prompt) - 1)


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
    """Ids, and the object names of the catalogue. Golden vectors name faults as flags of their cases."""
    names = [*FAULTS, *(n for n in vars(mtpref.faults) if isinstance(getattr(mtpref.faults, n), Fault))]
    assert len(names) == 2 * len(FAULTS)
    tools = PACKAGE.parent / "tools"
    sources = [
        p
        for p in (*PACKAGE.rglob("*.py"), *tools.rglob("*.py"))
        if not {PACKAGE / "faults", tools / "golden"} & set(p.parents)
    ]
    assert len(sources) > 40
    for path in sources:
        found = [name for name in names if name in path.read_text()]
        assert not found, f"{path.relative_to(PACKAGE.parent)} names {found}"


def test_a_fault_is_at_most_25_lines():
    for path in (PACKAGE / "faults").glob("*.py"):
        code = [line for line in path.read_text().splitlines() if line.strip()]
        n_faults = sum(bool(re.match(r"[A-Z_]+ = Fault\($", line)) for line in code)
        preamble = sum(line.startswith(("from ", "import ", '"""')) for line in code)
        assert len(code) - preamble <= 25 * max(n_faults, 1), path.name
