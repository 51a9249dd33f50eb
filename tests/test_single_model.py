"""Architectures of one head with parts of their own: against the naive oracle, in any chunking, rolled back in every
way, and what is refused."""

import hashlib
import re
from functools import lru_cache
from types import ModuleType

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted
from mtpref.engine.decode import STRATEGIES
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.heads.inspect import inspect_file
from tests import naive, naive_kda, naive_mamba, naive_parallel
from tests.micro_moe import SINGLE, standard
from tests.models import run_decoder
from tests.roll_backs import check_partial_acceptance, check_planes, check_roll_back
from tests.samples import diagonal
from tests.test_moe_model import edited

FILES = [name for name in SINGLE if name.endswith("-f32")]
# The oracle and the specification take their time over them.
LONG = ("micro-bailingmoe3-90-sections-f32", "micro-bailingmoe3-30-groups-f32", "micro-bailingmoe3-q8_0")


def usual(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in names]


ORACLES: dict[str, ModuleType] = {"cohere2moe": naive_parallel, "nemotron_h_moe": naive_mamba,
                                  "bailingmoe3": naive_kda}  # fmt: skip
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77, 5, 91]
LIMIT = {"exact": 1e-10, "ggml": 1e-9}


@lru_cache
def model_of(name, numerics="ggml", kv_type="F32", use_kernels=None):
    return load(standard(name), make_recipe(numerics, use_kernels=use_kernels), kv_type=kv_type, kv_type_draft=kv_type)


@lru_cache
def oracle(name):
    naively = ORACLES[name.split("-")[1]]
    hparams, weights = naively.load(standard(name))
    out = naively.trunk(weights, hparams, PROMPT)
    shifted = np.concatenate([np.zeros((1, out.h_post.shape[1])), out.h_post[:-1]])
    return out, naively.mtp(weights, hparams, PROMPT, shifted, list(range(len(PROMPT))))


def run_both(model, taken=None):
    def tap(name, array):
        if taken is not None:
            taken[name] = np.array(array)

    state = model.new_state(poison=True)
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=tap)
    pairs = pair(model, PROMPT, out.hidden.post, 0, state.pending_h)
    return out, model.mtp(state, pairs.ids, pairs.rows, 0, n_logits=len(PROMPT), tap=tap)


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", usual(FILES))
@pytest.mark.covering
def test_every_activation_and_the_head_equal_the_oracle(name, numerics):
    taken, (trunk, mtp) = {}, oracle(name)
    ours, head = run_both(model_of(name, numerics), taken)
    assert naive.nmse(trunk.logits, ours.logits) < LIMIT[numerics]
    assert naive.nmse(trunk.h_post, ours.hidden.post) < LIMIT[numerics]
    assert naive.nmse(mtp.logits, head.logits) < LIMIT[numerics]
    assert naive.nmse(mtp.h_nextn, head.hidden.post) < LIMIT[numerics]
    n = 0
    for key, one in (trunk.tensors | mtp.tensors).items():
        if key.rpartition("-")[0].endswith("ffn_moe_topk"):
            assert np.array_equal(one, taken[key]), key
        else:
            assert naive.nmse(one, taken[key].reshape(one.shape)) < LIMIT[numerics], key
        n += 1
    assert n >= 4 * 4


@pytest.mark.parametrize("name", usual(FILES))
def test_drafts_equal_those_of_the_oracle(name):
    naively = ORACLES[name.split("-")[1]]
    hparams, weights = naively.load(standard(name))
    run = run_decoder(model_of(name, "exact"), PROMPT, 8, n_max=3)
    text = PROMPT + run.ids
    rounds = [event for event in run.events if isinstance(event, Drafted)][:3]
    for drafted in rounds:
        ids = text[: drafted.pos0 + 1]
        rows = [np.zeros(weights["output_norm.weight"].shape[0]), *naively.trunk(weights, hparams, ids[:-1]).h_post]
        for step in drafted.steps:
            out = naively.mtp(weights, hparams, ids, np.stack(rows), list(range(len(ids))))
            assert step.candidates[0] == naive.argmax(out.logits[-1])
            ids, rows = [*ids, step.candidates[0]], [*rows, out.h_nextn[-1]]


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize("name", usual(n for n in SINGLE if n in FILES or n.endswith("q8_0")))
@pytest.mark.covering
def test_kernels_and_specification_give_the_same_bits(name, numerics):
    a, b = (run_both(model_of(name, numerics, "F32", use)) for use in (False, None))
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x.logits, y.logits)


# BITS


@pytest.mark.parametrize("name", usual(SINGLE))
def test_how_a_prompt_is_cut_changes_no_bit(name):
    model = model_of(name, kv_type="F16")
    whole = model.new_state()
    wanted = model.trunk(whole, PROMPT, n_logits=13)
    for sizes in ((1,) * 13, (3, 1, 4, 5), (12, 1), (2, 11)):
        cut, found = model.new_state(poison=True), []
        for size in sizes:
            at = cut.n_past
            found.append(model.trunk(cut, PROMPT[at : at + size], n_logits=size, keep=2).logits)
        assert np.array_equal(wanted.logits, np.concatenate(found))
        assert whole.digest() == cut.digest()


@pytest.mark.parametrize("name", usual(FILES))
def test_a_plane_is_the_state_that_never_saw_the_dropped_tokens(name):
    check_planes(model_of(name), PROMPT, (0, 1, 3, 9))


@pytest.mark.parametrize(("name", "rollback"), diagonal(SINGLE, sorted(STRATEGIES)))
def test_all_roll_backs_give_the_tokens_and_the_state_of_plain_decoding(name, rollback):
    check_roll_back(model_of(name, kv_type="F16"), PROMPT, rollback)


@pytest.mark.parametrize(("name", "rollback"), diagonal(FILES, sorted(STRATEGIES)))
def test_partial_acceptance_is_rolled_back(name, rollback):
    check_partial_acceptance(model_of(name), PROMPT, rollback)


# WHAT IS REFUSED

COHERE, RMS, EVERY = (f"micro-cohere2moe-{n}f32" for n in ("", "90-rms-", "30-every-"))
KDA = "micro-bailingmoe3-f32"
BAD = {
    "neither epsilon": (COHERE, {"attention.layer_norm_epsilon": None}, "layer_norm_epsilon is missing"),
    "half a head turns": (COHERE, {"rope.dimension_count": (8, "u32")}, "expected one number: heads of cohere2moe"),
    "no window": (COHERE, {"attention.sliding_window": None}, "sliding_window is missing"),
    "a pattern of words": (
        COHERE,
        {"attention.sliding_window_pattern": (["a"] * 4, "arr:str")},
        "pattern is .*, expected an array of 4 integers",
    ),
    "no scale of logits": (COHERE, {"logit_scale": None}, "logit_scale is missing"),
    "another gating": (COHERE, {"expert_gating_func": (4, "u32")}, r"gating_func is 4, expected 1 \(softmax"),
    "a decay without a bound": (KDA, {"kda.safe_gate": (False, "bool")}, "safe_gate is false, expected true"),
    "a bound of 0": (KDA, {"kda.gate_lower_bound": (0.0, "f32")}, "gate_lower_bound is 0.0, expected a number from"),
    "two rows a token": (
        KDA,
        {"attention.head_count_kv": ([0, 0, 0, 2, 1], "arr:i32")},
        "head_count_kv is 2 .*expected 1",
    ),
    "rows below none": (
        KDA,
        {"attention.head_count_kv": ([0, 0, 0, -1, 1], "arr:i32")},
        "head_count_kv is -1, expected integers from 0",
    ),
    "another width of a row": (
        KDA,
        {"attention.key_length": (72, "u32")},
        "key_length is 72, expected 40 = kv_lora_rank",
    ),
    "a router that is not said": (KDA, {"expert_gating_func": None}, "expert_gating_func is missing"),
    "an odd turned part": (KDA, {"rope.dimension_count": (7, "u32")}, "dimension_count is 7, expected an even count"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    file, keys, message = BAD[case]
    path = edited(standard(file), tmp_path / "bad.gguf", keys)
    with pytest.raises(MtprefError, match=message) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    assert [p for p in inspect_file(path)["problems"] if re.search(message, p)] != []


def test_a_head_of_another_norm_is_refused(tmp_path):
    path = edited(standard(COHERE), tmp_path / "other.gguf", {"attention.layer_norm_epsilon": (1e-6, "f32")})
    with pytest.raises(MtprefError, match=r"layer_norm_epsilon"):
        load(standard(COHERE), model_draft=path)


def test_a_head_without_its_norm_is_refused(tmp_path):
    """llama.cpp has no other norm for it; the trunk's would be taken in silence."""
    path = edited(standard(KDA), tmp_path / "bad.gguf", {}, drop=("blk.4.layer_output_norm.weight",))
    with pytest.raises(MtprefError, match=r"tensor blk\.4\.layer_output_norm\.weight is missing"):
        load(path)
    assert "blk.4.layer_output_norm.weight is missing" in inspect_file(path)["problems"]


HASHES = {
    COHERE: "4e232cb2a89f2287", RMS: "81644cc8b1a5e4bc", "micro-nemotron_h_moe-f32": "a9f8ddf70abeb057",
    KDA: "ac801eb7aa02418e", "micro-bailingmoe3-30-groups-f32": "0a4c1674c1b7e094",
}  # fmt: skip


@pytest.mark.parametrize("name", HASHES)
def test_the_planted_models_are_the_same_bytes_everywhere(name):
    assert hashlib.sha256(standard(name).read_bytes()).hexdigest().startswith(HASHES[name])
