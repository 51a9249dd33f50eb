"""Faults that only an assistant can have: where each can be, and that it does there what it says, and nothing else.

Healthy drafts are the probe's, which tests/test_gemma_probe.py holds to those of the loop.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Verified
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, find_fault, inject, is_possible
from mtpref.look.dump import record
from mtpref.measure.probe import Variant, Window, walk
from tests import naive, naive_gemma
from tests.micro_moe import assistant, standard
from tests.models import micro, run_decoder

PLAIN, EDGE, MOE, APART = (f"micro-gemma4-{n}f32" for n in ("", "edge-30-", "moe-", "apart-90-"))
PROMPT = [int(i) for i in np.random.default_rng(3).integers(1, 256, 20)]
# Each with the planted models that can have it, and what a refusal asks for.
ALL = (PLAIN, EDGE, MOE, APART)
WHERE = {
    "K15-opening-cell-seen": (ALL, "an assistant"),
    "K16-position-advances": (ALL, "an assistant"),
    "K17-rejected-cells-seen": (ALL, "an assistant"),
    "K17b-first-rejected-cell-seen": (ALL, "an assistant"),
    "L18-window-of-transformers": (ALL, "an assistant with a window"),
    "K18-other-layers-read": ((PLAIN, EDGE), "an assistant of two layers of a kind"),
    "A17-assistants-window-ignored": (ALL, "an assistant with a window"),
    "G11-row-before-norm": (ALL, "an assistant"),
    "G20-embedding-unscaled": (ALL, "an assistant"),
    "G20b-embedding-of-own-width": (ALL, "an assistant"),
    "G21-scores-scaled": (ALL, "an assistant"),
    "G22-output-scale-forgotten": (ALL, "an assistant"),
}
# Faults of a head with cells of its own, with norms before its block, or of parts that an assistant has not.
ELSEWHERE = (
    "K0", "K1", "K3", "K4", "K5", "K6", "K7", "K8", "K13", "K14", "C1", "C4", "C7", "C8", "G8", "G10", "G15", "G18",
    "W3",
)  # fmt: skip


@lru_cache
def model(name: str = PLAIN, numerics: str = "ggml", kv_type: str = "F16") -> Model:
    return load(standard(name), make_recipe(numerics), kv_type=kv_type, model_draft=assistant(name))


@lru_cache
def oracle(name: str):
    hparams, weights = naive_gemma.load(standard(name))
    return naive_gemma.load(assistant(name)), (hparams, weights)


def faulty(id: str, name: str = PLAIN, *rest: str) -> Model:
    return inject(model(name, *rest), FAULTS[id])


def rounds_of(run):
    """(draft, verdict) of every round that drafted."""
    drafts = [event for event in run.events if isinstance(event, Drafted)]
    verdicts = [event for event in run.events if isinstance(event, Verified)]
    return [(d, v) for d, v in zip(drafts, verdicts, strict=True) if d.steps]


def drafted(event: Drafted):
    return [(step.candidates, step.p) for step in event.steps]


def test_every_fault_of_an_assistant_is_here():
    own = {id for id, fault in FAULTS.items() if any("assistant" in place for place in fault.where)}
    assert own == set(WHERE)
    assert not any(is_possible(FAULTS[id], micro()) for id in own)
    for id, (_, words) in WHERE.items():
        with pytest.raises(MtprefError, match=f"cannot be in this model .* expected one with {words}"):
            inject(micro(), FAULTS[id])


@pytest.mark.parametrize("name", ALL)
def test_each_is_possible_where_a_model_has_what_it_is_about(name):
    assert {id for id in WHERE if is_possible(FAULTS[id], model(name))} == {id for id in WHERE if name in WHERE[id][0]}


@pytest.mark.parametrize("number", ELSEWHERE)
def test_a_fault_of_what_an_assistant_has_not_is_refused(number):
    with pytest.raises(MtprefError, match="cannot be in this model"):
        inject(model(), find_fault(number))


FAST = ("K17-rejected-cells-seen", "G22-output-scale-forgotten")


@pytest.mark.parametrize("id", [id if id in FAST else pytest.param(id, marks=pytest.mark.slow) for id in WHERE])
def test_it_changes_drafts_and_its_first_tensor_and_never_the_text(id):
    clean, run = (run_decoder(one, PROMPT, 24, n_max=4) for one in (model(), faulty(id)))
    assert run.ids == clean.ids
    assert [drafted(d) for d, _ in rounds_of(run)] != [drafted(d) for d, _ in rounds_of(clean)]
    tensors, other = (record(one, PROMPT, ".").tensors for one in (model(), faulty(id)))
    assert list(tensors) == list(other)
    first = next((name for name in tensors if not np.array_equal(tensors[name], other[name])), "")
    assert first.rpartition("-")[0] == FAULTS[id].predicted.dump or first == FAULTS[id].predicted.dump


def check_steps(id, steps):
    """The fault's drafts after PROMPT, in exact numerics, are what the oracle gives. steps: of the oracle"""
    run = run_decoder(faulty(id, PLAIN, "exact", "F32"), PROMPT, 1 + len(steps), n_max=len(steps))
    ids = [step.candidates[0] for step in rounds_of(run)[0][0].steps]
    assert ids == [naive.argmax(step.logits) for step in steps]
    p = [step.p[0] for step in rounds_of(run)[0][0].steps]
    for step, found in zip(steps, p, strict=True):
        best = np.sort(step.logits)[::-1][:10]
        assert found == pytest.approx(float(1 / np.exp(best - best[0]).sum()), abs=1e-4)


def chain(position, n_cells, hparams=None, row=None):
    """The oracle's draft after PROMPT, but for position and number of cells of each step, or other hyper-parameters,
    or another row for the next step."""
    (own, weights), target = oracle(PLAIN)
    own = own | (hparams or {})
    pos0 = len(PROMPT) - 1
    out, _ = naive_gemma.run(target[1], target[0], PROMPT[:-1])
    _, cells = naive_gemma.run(target[1], target[0], PROMPT)
    token, hidden, steps = PROMPT[-1], out.h_post[-1], []
    for i in range(3):
        at = (position(pos0, i), n_cells(pos0))
        steps.append(naive_gemma.assistant((own, weights), target, token, hidden, cells, *at))
        token = naive.argmax(steps[-1].logits)
        hidden = steps[-1].h_nextn if row is None else row(steps[-1])
    return steps


def test_the_openings_cell_is_seen_as_the_oracle_has_it():
    check_steps("K15-opening-cell-seen", chain(lambda p, i: p, lambda p: p + 1))


def test_the_position_advances_as_the_oracle_has_it():
    check_steps("K16-position-advances", chain(lambda p, i: p + i, lambda p: p))


def test_the_window_is_ignored_as_the_oracle_has_it():
    wide = {"attention.sliding_window": 4096}
    check_steps("A17-assistants-window-ignored", chain(lambda p, i: p, lambda p: p, wide))


def test_the_window_of_transformers_is_two_cells_more_than_llama_cpps():
    wide = {"attention.sliding_window": 8}
    check_steps("L18-window-of-transformers", chain(lambda p, i: p, lambda p: p, wide))


def test_the_row_before_the_norm_is_the_oracles():
    (_, weights), _ = oracle(PLAIN)

    def row(step):
        last = next(x for name, x in step.tensors.items() if name == "mtp_l_out-2")
        return naive.matmul(weights["nextn.post_projection.weight"], last)[0]

    check_steps("G11-row-before-norm", chain(lambda p, i: p, lambda p: p, row=row))


@pytest.mark.parametrize(
    "id", ["K17-rejected-cells-seen", pytest.param("K17b-first-rejected-cell-seen", marks=pytest.mark.slow)]
)
def test_rejected_cells_are_seen_after_a_rejection_alone(id):
    run = run_decoder(faulty(id), PROMPT, 28, n_max=4)
    text = PROMPT + run.ids
    window = Window(0, "text", 0, tuple(text), tuple(range(1, len(text))))
    ids, p = walk(model(), window, [Variant("head", model(), 4)], whole_chains=True,
                  keep_candidates=True).heads["head"].candidates  # fmt: skip
    is_same = {True: [], False: []}
    rounds = rounds_of(run)
    for (_, verdict), (draft, _) in pairwise(rounds):
        n = len(draft.steps)
        healthy = list(zip(ids[draft.pos0 - 1, :n].tolist(), p[draft.pos0 - 1, :n].tolist(), strict=True))
        is_same[verdict.n_accepted == len(verdict.draft_ids)].append(drafted(draft) == healthy)
    assert all(is_same[True])
    assert is_same[True]
    assert not any(is_same[False])
    assert is_same[False]


def test_each_layer_reads_one_as_far_from_the_end():
    head = faulty("K18-other-layers-read").heads[0]
    assert [layer.cfg.source for layer, _ in head.stack] == [1, 3, 4]
    assert [layer.cfg.source for layer, _ in model().heads[0].stack] == [3, 3, 4]


def test_the_embedding_is_scaled_by_the_assistants_width():
    own, other = (record(one, PROMPT, "mtp_inp_embd_target").tensors["mtp_inp_embd_target-0"]
                  for one in (model(), faulty("G20b-embedding-of-own-width")))  # fmt: skip
    assert np.allclose(other, own * (96 / 64) ** 0.5, rtol=1e-6)
