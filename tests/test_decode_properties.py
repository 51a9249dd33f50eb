"""The identity that the project rests on: drafting changes neither a bit of the text nor of the state behind it.

Everything here is compared with `decode_plainly`: one token at a time, no drafts, no roll back, on a fresh state.
"""

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtpref import kernels
from mtpref.base.events import Drafted, RolledBack, Token, Verified
from mtpref.engine.decode import STRATEGIES, Decoder, Options, PolicyConfig, ScriptedDrafter
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from tests.micro_moe import standard
from tests.models import ACCEPTS, CONTRACTS, decode_plainly, has_nan, micro, prompt_of, run_decoder, trunk_digest
from tests.samples import diagonal
from tests.test_moe_model import edited

NUMERICS = ("ggml", "exact")
ROLLBACKS = tuple(STRATEGIES)
N_BATCHES = (1, 2, 3, 7, 64, 512)


@lru_cache(maxsize=256)
def plain_run(accept, numerics, contract, prompt, n_predict, warm_head, use_kernels=None):
    model = micro(accept, numerics, contract, use_kernels)
    return decode_plainly(model, list(prompt), n_predict, warm_head=warm_head)


class Watched:
    """A run, compared with plain decoding whenever it yields; collects the bits of every row that decided."""

    def __init__(self, model, options, plain, n_prompt, drafter=None):
        self.state = model.new_state(poison=True)
        self.decoder = Decoder(model, self.state, options, drafter)
        self.plain, self.n_prompt, self.ids = plain, n_prompt, []
        self.n_rolled_back = 0
        verify = self.decoder.verify

        def recording(passes, id_last, judge):
            pos0 = passes.state.n_past
            verdict = verify(passes, id_last, judge)
            for i in range(verdict.n_kept):
                assert verdict.logits[i].tobytes() == plain.logits[pos0 + i].tobytes()
                assert verdict.hidden[i].tobytes() == plain.hidden[pos0 + i].tobytes()
            assert not np.isnan(verdict.logits).any()
            return verdict

        self.decoder.verify = recording

    def run(self, prompt):
        for event in self.decoder.run(prompt):
            # Whatever was drafted, run and rejected: the trunk holds what plain decoding holds.
            assert trunk_digest(self.state) == self.plain.trunks[self.state.n_past]
            if isinstance(event, Drafted | Token):
                # The head too, before each verification and after each catch-up.
                assert self.state.digest() == self.plain.digests[self.state.n_past]
            if isinstance(event, Verified):
                assert self.state.n_past == event.pos0 + event.n_accepted + 1
            if isinstance(event, RolledBack):
                self.n_rolled_back += 1
                assert self.state.n_past == event.to_pos
            if isinstance(event, Token):
                self.ids.append(event.id)
            assert not has_nan(self.state)
        return self


def check(model, plain, options, prompt, drafter=None):
    watched = Watched(model, options, plain, len(prompt), drafter).run(prompt)
    assert watched.ids == plain.ids[len(prompt) : len(prompt) + options.n_predict]
    return watched


settings_of_a_run = st.fixed_dictionaries(
    {
        "n_max": st.integers(1, 4),
        "n_min": st.sampled_from([0, 0, 1, 2]),
        "p_min": st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]),
        "cooldown": st.integers(0, 3),
        "cooldown_after": st.integers(1, 2),
    }
)


@settings(max_examples=120)
@given(
    accept=st.sampled_from(ACCEPTS),
    numerics=st.sampled_from(NUMERICS),
    contract=st.sampled_from(CONTRACTS),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=24).map(tuple),
    n_predict=st.integers(1, 24),
    policy=settings_of_a_run,
    rollback=st.sampled_from(ROLLBACKS),
    n_draft_vocab=st.sampled_from([None, None, 1, 100, 200]),
    n_batch=st.sampled_from(N_BATCHES),
)
def test_tokens_logits_and_state_of_every_round_are_those_of_plain_decoding(
    accept, numerics, contract, prompt, n_predict, policy, rollback, n_draft_vocab, n_batch
):
    policy = dict(policy, n_min=min(policy["n_min"], policy["n_max"]))
    model = micro(accept, numerics, contract)
    plain = plain_run(accept, numerics, contract, prompt, n_predict + 1, True)
    options = Options(
        n_predict=n_predict,
        spec_type="draft-mtp",
        policy=PolicyConfig(**policy),
        rollback=rollback,
        n_draft_vocab=n_draft_vocab,
        n_batch=n_batch,
    )
    check(model, plain, options, list(prompt))


@settings(max_examples=60)
@given(
    numerics=st.sampled_from(NUMERICS),
    prompt=st.lists(st.integers(0, 255), min_size=1, max_size=12).map(tuple),
    pattern=st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=5),
    rollback=st.sampled_from(ROLLBACKS),
)
@example(numerics="ggml", prompt=(1, 2, 3), pattern=[[False] * 8], rollback="snapshot")
@example(numerics="exact", prompt=(1, 2, 3), pattern=[[True] * 7 + [False]], rollback="replay")
def test_any_pattern_of_acceptance_leaves_no_trace(numerics, prompt, pattern, rollback):
    model = micro(60, numerics)
    plain = plain_run(60, numerics, "llama.cpp", prompt, 25, False)
    drafter = ScriptedDrafter(plain.ids[len(prompt) :], pattern, len(prompt), model.n_vocab)
    options = Options(n_predict=24, spec_type="draft-mtp", policy=PolicyConfig(n_max=8), rollback=rollback)
    watched = check(model, plain, options, list(prompt), drafter)
    if rollback != "two-phase" and not all(pattern[0]):
        assert watched.n_rolled_back > 0


@settings(max_examples=6)
@given(
    numerics=st.sampled_from(NUMERICS),
    contract=st.sampled_from(CONTRACTS),
    rollback=st.sampled_from(ROLLBACKS),
    n_max=st.integers(1, 4),
)
def test_the_readable_spec_alone_keeps_the_identity(numerics, contract, rollback, n_max):
    prompt = tuple(prompt_of(4))
    model = micro(60, numerics, contract, use_kernels=False)
    plain = plain_run(60, numerics, contract, prompt, 9, True, False)
    check(
        model,
        plain,
        Options(n_predict=8, spec_type="draft-mtp", policy=PolicyConfig(n_max=n_max), rollback=rollback),
        list(prompt),
    )


# -------------------------------------------------------------------------------------- invariance


def prompt_bits(model, prompt, n_batch):
    """Logits behind the prompt and the whole state, head included, after a prompt in pieces of n_batch."""
    state = model.new_state(poison=True)
    logits = []
    for start in range(0, len(prompt), n_batch):
        ids = prompt[start : start + n_batch]
        out = model.trunk(state, ids, n_logits=len(ids))
        rows = model.recipe.steps.pair_hidden(out.hidden.post, state.pending_h)
        model.mtp(state, ids, rows, start, n_logits=0)
        state.pending_h = out.hidden.post[-1].copy()
        logits.append(out.logits)
    return np.concatenate(logits).tobytes(), state.digest()


@pytest.mark.parametrize("numerics", NUMERICS)
def test_chunking_of_the_prompt_changes_no_bit(numerics):
    model, prompt = micro(60, numerics), prompt_of(70)
    expected = prompt_bits(model, prompt, 1)
    for n_batch in N_BATCHES[1:]:
        assert prompt_bits(model, prompt, n_batch) == expected
    digests = {run_decoder(model, prompt, 5, n_batch=n).decoder.state.digest() for n in N_BATCHES}
    assert len(digests) == 1


@pytest.mark.parametrize(("n", "numerics"), diagonal(range(1, 9), NUMERICS))
def test_the_width_of_the_verify_batch_changes_no_bit(numerics, n):
    prompt = tuple(prompt_of(7))
    model, plain = micro(60, numerics), plain_run(60, numerics, "llama.cpp", prompt, 41, False)
    for rollback in ROLLBACKS:
        for pattern in ([[True] * n], [[True] * (n - 1) + [False]]):
            drafter = ScriptedDrafter(plain.ids[len(prompt) :], pattern, len(prompt), model.n_vocab)
            check(
                model,
                plain,
                Options(n_predict=40, spec_type="draft-mtp", policy=PolicyConfig(n_max=8), rollback=rollback),
                list(prompt),
                drafter,
            )


@pytest.mark.parametrize("numerics", NUMERICS)
def test_the_number_of_threads_changes_no_bit(numerics):
    if not kernels.available():
        pytest.skip("Numba's JIT is off: the readable spec has one thread")
    model, prompt = micro(60, numerics), prompt_of(70)
    before = kernels.n_threads()
    try:
        bits = []
        for n_threads in (1, 2):
            kernels.set_threads(n_threads)
            run = run_decoder(model, prompt, 12, n_max=3)
            bits.append((prompt_bits(model, prompt, 512), run.ids, run.decoder.state.digest()))
    finally:
        kernels.set_threads(before)
    assert bits[0] == bits[1]


@pytest.mark.parametrize("numerics", NUMERICS)
def test_kernels_and_spec_leave_the_same_state(numerics):
    if not kernels.available():
        pytest.skip("Numba's JIT is off: there is nothing to compare the readable spec with")
    runs = [run_decoder(micro(90, numerics, use_kernels=flag), prompt_of(5), 8, n_max=3) for flag in (True, False)]
    assert runs[0].ids == runs[1].ids
    assert runs[0].decoder.state.digest() == runs[1].decoder.state.digest()
    drafts = [[e for e in run.events if isinstance(e, Drafted)] for run in runs]
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
def test_every_type_of_kv_keeps_the_identity(kv_type):
    model = replace(micro(60), kv_type=kv_type, kv_type_draft=kv_type)
    prompt = prompt_of(6)
    plain = decode_plainly(model, prompt, 21, warm_head=True)
    for rollback in ROLLBACKS:
        check(
            model,
            plain,
            Options(n_predict=20, spec_type="draft-mtp", policy=PolicyConfig(n_max=4), rollback=rollback),
            prompt,
        )


# ---------------------------------------------------------------------- windows, and heads in a chain

_FOLDER = tempfile.TemporaryDirectory(prefix="mtpref-windows-")


@lru_cache
def windowed(arch, n_window):
    """step35 or mimo2 with a window of so many cells, three heads."""
    path = Path(_FOLDER.name) / f"{arch}-{n_window}.gguf"
    edited(standard(f"micro-{arch}-f32"), path, {"attention.sliding_window": (n_window, "u32")})
    return load(path, make_recipe("ggml"), kv_type="F16", kv_type_draft="F16")


def any_run_of_a_chain(arch, n_window, prompt, n_predict, n_max, p_min, rollback, n_batch):
    model = windowed(arch, n_window)
    plain = decode_plainly(model, prompt, n_predict + 1, warm_head=True)
    policy = PolicyConfig(n_max=n_max, p_min=p_min)
    options = Options(n_predict=n_predict, spec_type="draft-mtp", policy=policy, rollback=rollback, n_batch=n_batch)
    check(model, plain, options, prompt)


def any_pattern_over_a_window(arch, n_window, prompt, pattern, rollback):
    """Drafts of up to 8 tokens push every cell out of the window."""
    model = windowed(arch, n_window)
    plain = decode_plainly(model, prompt, 17, warm_head=False)
    drafter = ScriptedDrafter(plain.ids[len(prompt) :], pattern, len(prompt), model.n_vocab)
    options = Options(n_predict=16, spec_type="draft-mtp", policy=PolicyConfig(n_max=8), rollback=rollback)
    check(model, plain, options, prompt, drafter)


SHAPE = {
    "arch": st.sampled_from(["step35", "mimo2"]),
    "n_window": st.integers(1, 5),
    "prompt": st.lists(st.integers(0, 255), min_size=1, max_size=12),
    "rollback": st.sampled_from(ROLLBACKS),
}
RUNS = {
    "n_predict": st.integers(1, 12),
    "n_max": st.integers(1, 5),
    "p_min": st.sampled_from([0.0, 0.0, 0.5]),
    "n_batch": st.sampled_from(N_BATCHES),
}
PATTERNS = {"pattern": st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=4)}
ONE = {"arch": "step35", "n_window": 1, "prompt": [7, 3, 250, 9]}


@pytest.mark.parametrize("rollback", ROLLBACKS)
def test_a_window_of_one_token_and_longer_drafts_leave_no_trace(rollback):
    any_pattern_over_a_window(**ONE, pattern=[[True] * 3 + [False] * 5, [True] * 8], rollback=rollback)


def test_a_chain_of_heads_leaves_no_trace():
    any_run_of_a_chain(**ONE | {"arch": "mimo2"}, n_predict=9, n_max=4, p_min=0.0, rollback="replay", n_batch=2)


@pytest.mark.slow
@settings(max_examples=30)
@given(**SHAPE, **RUNS)
def test_any_run_of_a_chain_leaves_no_trace(**run):
    any_run_of_a_chain(**run)


@pytest.mark.slow
@settings(max_examples=30)
@given(**SHAPE, **PATTERNS)
def test_any_pattern_over_any_window_leaves_no_trace(**run):
    any_pattern_over_a_window(**run)
