"""The filters against llama.cpp's own: kept sets and probabilities, as recorded and, where there is one, live."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref import spec
from tests.sampler_cases import CHAINS, Case, cases

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "tests" / "data" / "samplers.npz"
N_KEPT = 400  # ids recorded of a row
CLOSE = 2e-5  # of a probability, relative: float32 there, and its sum as well


def compare(case: Case, size: int, ids: np.ndarray, p: np.ndarray) -> bool:
    """Whether the kept set is the same; among ties, whose choice is the engine's own, only logits are compared."""
    got = spec.filtered(case.logits, case.chain)
    if len(got.ids) != size:
        return False
    if case.tied:
        kept, theirs = np.sort(case.logits[got.ids]), np.sort(case.logits[ids])
        assert np.sort(got.p) == pytest.approx(np.sort(p), rel=CLOSE), case.name
        return bool((kept == theirs).all())
    n = len(ids)
    assert got.p[:n] == pytest.approx(p, rel=CLOSE), case.name
    return got.ids[:n].tolist() == ids.tolist()


def recorded():
    data, at = np.load(RECORDED), 0
    all_cases = cases()
    assert len(data["sizes"]) == len(all_cases)
    for case, size in zip(all_cases, data["sizes"].tolist(), strict=True):
        n = min(size, N_KEPT)
        yield case, size, data["ids"][at : at + n], data["p"][at : at + n]
        at += n
    assert at == len(data["ids"])


def test_kept_sets_and_probabilities_are_those_that_llama_cpp_recorded():
    differ = [case.name for case, *theirs in recorded() if not compare(case, *theirs)]
    assert not differ


def test_the_recorded_cases_cut_and_keep():
    """Not all of them trivial: every chain leaves several sizes, ties among them."""
    sizes: dict = {}
    for case, size, *_ in recorded():
        sizes.setdefault(CHAINS.index(case.chain), set()).add(size)
    assert sum(len(found) > 2 for found in sizes.values()) >= 6


def test_kept_sets_and_probabilities_are_those_of_a_llama_cpp_here():
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root or not (Path(root) / "build" / "bin" / "libllama.so").exists():
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build with shared libraries")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from record_samplers import kept, open_samplers
    finally:
        sys.path.pop(0)
    library = open_samplers(Path(root) / "build")
    for case in cases():
        ids, p = kept(library, case.logits, case.chain)
        assert compare(case, len(ids), ids, p), case.name
