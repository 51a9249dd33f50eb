"""The library's front door."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.events import RunEnded, RunStarted, Token

ROOT = Path(__file__).parent.parent


def test_events_come_in_order_and_tokens_make_the_text():
    model = mtpref.load()
    run = model.generate("def main(argv):", mtpref.Options(n_predict=12))
    events = list(run)
    tokens = [event for event in events if isinstance(event, Token)]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    assert [token.id for token in tokens] == run.ids
    assert run.text == b"".join(token.piece for token in tokens).decode("utf-8", "replace")
    assert [token.pos for token in tokens] == list(range(len(run.prompt_ids), len(run.prompt_ids) + 12))


def test_a_state_that_is_used_again_gives_the_same_run():
    model = mtpref.load(numerics="exact")
    state = model.core.new_state(64)
    first = model.generate("import os", mtpref.Options(n_predict=8), state=state).finish()
    digest = state.digest()
    model.generate("class A:", mtpref.Options(n_predict=8), state=state).finish()
    again = model.generate("import os", mtpref.Options(n_predict=8), state=state).finish()
    assert again.ids == first.ids
    assert state.digest() == digest


def test_the_spec_and_the_kernels_give_the_same_bits():
    prompt = "def f(x):"
    for numerics in ("ggml", "exact"):
        fast = mtpref.load(numerics=numerics)
        slow = mtpref.load(numerics=numerics, use_kernels=False)
        ids = fast.encode(prompt)
        states = [fast.core.new_state(), slow.core.new_state()]
        a = fast.core.trunk(states[0], ids, n_logits=len(ids))
        b = slow.core.trunk(states[1], ids, n_logits=len(ids))
        assert np.array_equal(a.logits.view(np.uint32), b.logits.view(np.uint32))
        assert states[0].digest() == states[1].digest()


def test_token_ids_can_be_given_and_bad_ones_are_refused():
    model = mtpref.load()
    ids = model.encode("import os")
    assert model.generate(ids, mtpref.Options(n_predict=3)).finish().ids == (
        model.generate("import os", mtpref.Options(n_predict=3)).finish().ids
    )
    with pytest.raises(mtpref.MtprefError, match="not in the vocabulary"):
        model.generate([10**6], mtpref.Options(n_predict=1, spec_type="none")).finish()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, mtpref; print(sorted(set(sys.modules) & {'numba', 'numpy', 'tokenizers', 'gguf'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mtpref.nonsense
