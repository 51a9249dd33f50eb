"""The probe of an assistant: its drafts are the loop's to the bit, and the oracle's; what is asked of it says so."""

import json

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted
from mtpref.engine.model import TextCells, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject
from mtpref.measure.probe import Settings, Text, probe
from mtpref.measure.probe.controls import contracts, controls
from mtpref.spec.contract import parse_contract
from tests import naive, naive_gemma
from tests.micro_moe import assistant, standard
from tests.models import run_decoder
from tests.test_probe import assert_same_drafts, whole

PLAIN, EDGE, MOE, APART = (f"micro-gemma4-{n}f32" for n in ("", "edge-30-", "moe-", "apart-90-"))
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77, 5, 91]


def model_of(name, numerics="ggml", contract="llama.cpp"):
    return load(standard(name), make_recipe(numerics, parse_contract(contract)), model_draft=assistant(name))


OTHERS = [(EDGE, "hidden=pre"), (MOE, "pos_offset=-1"), (APART, "concat=he")]


@pytest.mark.parametrize(
    ("name", "contract"), [(PLAIN, "llama.cpp"), *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS)]
)
def test_drafts_are_the_loops_to_the_bit(name, contract):
    """Over chunks that are longer than a window, and shorter."""
    model = model_of(name, contract=contract)
    run = run_decoder(model, PROMPT, 12, n_max=3)
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    for n_batch in (512, 2):
        assert_same_drafts(run, whole(model, PROMPT + run.ids, 3, n_batch=n_batch), rounds)


def test_every_position_is_what_the_oracle_drafts_from_scratch():
    target, own = naive_gemma.load(standard(PLAIN)), naive_gemma.load(assistant(PLAIN))
    model = load(standard(PLAIN), make_recipe("exact"), kv_type="F32", model_draft=assistant(PLAIN))
    seen = whole(model, PROMPT, 3, n_batch=5)
    for pos in range(1, len(PROMPT)):
        wanted = naive_gemma.draft(own, target, PROMPT[: pos + 1], 3)
        assert seen.heads["head"].draft[pos - 1].tolist() == [naive.argmax(step.logits) for step in wanted]


def test_a_fault_of_the_drafts_position_is_the_loops_too():
    model = inject(model_of(PLAIN), FAULTS["K16-position-advances"])
    run = run_decoder(model, PROMPT, 12, n_max=3)
    rounds = [event for event in run.events if isinstance(event, Drafted)]
    assert_same_drafts(run, whole(model, PROMPT + run.ids, 3), rounds)


@pytest.mark.parametrize("id", ["K15-opening-cell-seen", "K17-rejected-cells-seen"])
def test_what_a_text_cannot_show_is_refused(id):
    with pytest.raises(MtprefError, match=r"a fault shows the assistant other cells.*a run has them"):
        whole(inject(model_of(PLAIN), FAULTS[id]), PROMPT, 2)


def test_a_report_leaves_out_what_an_assistant_has_not():
    model = model_of(PLAIN)
    found = probe(model, [Text("text", tuple(PROMPT * 3))], Settings(n_draft=2, block=4, with_contracts=True))
    assert {control.name for control in found.controls} == {
        "hidden=pre", "concat=he", "no-attention", "other-hidden", "shifted-target", "shuffled-drafts", "constant",
        "random",
    }  # fmt: skip
    assert {"first", "prime"} <= set(found.to_json()["contract_fields_not_visible"])
    assert [line.contract for line in found.contracts] == [v.name for v in contracts(model, 2)]
    assert not any("chain=pre" in line.contract or "prime" in line.contract for line in found.contracts)
    assert found.reached[0] == 3 * len(PROMPT) - 1
    assert json.dumps(found.to_json())


def test_no_attention_is_none_in_every_layer():
    (variant,) = [v for v in controls(model_of(PLAIN)) if v.name == "no-attention"]
    seen = {}
    state = variant.model.new_state()
    variant.model.trunk(state, PROMPT, n_logits=0)
    row = np.ones((1, 64), np.float32)
    variant.model.mtp(state, [3], row, len(PROMPT), n_logits=1, tap=lambda name, x: seen.setdefault(name, x))
    assert not any("kqv_out" in name for name in seen)


def test_cells_of_a_text_are_those_that_the_state_had():
    """With planes every position, without them the last one alone; a text that was cut goes on from there."""
    model, cells = model_of(PLAIN), None
    state = model.new_state()
    cells = TextCells(model)
    assert cells.layers == (3, 4)
    wanted = []
    for id in PROMPT:
        model.trunk(state, [id], n_logits=0)
        wanted.append([{n: a.copy() for n, a in state.layers[il].arrays.items()} for il in cells.layers])
    state = model.new_state()
    for first in (0, 2, 9):
        model.trunk(state, PROMPT[first : {0: 2, 2: 9, 9: 13}[first]], n_logits=0, keep=16)
        cells.note(state)
    for n in range(1, 14):
        found = cells.at(n)
        assert found.n_past == n
        for il, held in zip(cells.layers, wanted[n - 1], strict=True):
            for name, array in held.items():
                mine = found.layers[il].arrays[name]
                assert np.array_equal(mine, array[:n] if name.startswith("cache") else array[-len(mine) :])
    cut = TextCells(model)
    state = model.new_state()
    model.trunk(state, PROMPT[:8], n_logits=0)
    cut.note(state)
    with pytest.raises(IndexError, match="cells of 5 tokens were not noted"):
        cut.at(5)
    assert cut.at(8).n_past == 8
