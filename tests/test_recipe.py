"""The recipe: who chooses kernels, the tables of entries, and the rule that ties fused entries to their parts."""

from dataclasses import FrozenInstanceError, fields, replace
from functools import partial

import pytest

from mtpref import kernels, spec
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import Options, SamplingConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import NUMERICS, make_recipe
from mtpref.engine.session import Session
from mtpref.spec.contract import MtpContract
from mtpref.spec.ops import FINE, PARTS, Ops, compose, spec_ops
from mtpref.spec.steps import Steps
from tests.micro_moe import assistant, standard
from tests.models import micro, prompt_of, run_decoder

# Between them every entry that the model of qwen35 does not call.
MOE = ("micro-qwen35moe-f32", "micro-glm4moe-groups-f32", "micro-qwen3next-fused-f32",
       "micro-deepseek2-f32", "micro-deepseek2-old-f32", "micro-deepseek32-f32", "micro-glm-dsa-f32",
       "micro-deepseek4-f32", "micro-step35-f32", "micro-mimo2-f32", "micro-cohere2moe-f32",
       "micro-nemotron_h_moe-f32", "micro-bailingmoe3-f32", "micro-bailingmoe3-90-sections-f32")  # fmt: skip
ASSISTED = ("micro-gemma4-edge-30-f32", "micro-gemma4-moe-f32")  # targets that an assistant drafts for
DOTS = {"conv_silu", "conv_bias_silu", "delta_rule", "channel_delta_rule", "ssm_scan",
        "attention", "sink_attention", "cell_attention", "unscaled_attention"}  # fmt: skip
OPERATIONS = {f.name for f in fields(Ops)} - {"composed"}


def plain_function(entry):
    return entry.func if isinstance(entry, partial) else entry


def spied(table, names, log):
    """The table with entries that note their name when they are called."""

    def spy(name, entry):
        def noted(*args, **kwargs):
            log.append(name)
            return entry(*args, **kwargs)

        return noted

    return replace(table, **{name: spy(name, getattr(table, name)) for name in names})


# ------------------------------------------------------------------------------------------- choice


def test_other_numerics_are_refused():
    with pytest.raises(MtprefError, match="'fp16' is unknown, expected one of ggml, exact"):
        make_recipe("fp16")


def test_without_a_jit_the_readable_spec_runs_and_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert make_recipe().ops.swiglu is spec.swiglu
    with pytest.raises(MtprefError, match="NUMBA_DISABLE_JIT"):
        make_recipe(use_kernels=True)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_kernels_stand_where_numba_compiles_and_the_spec_where_it_is_asked_for(numerics):
    readable = make_recipe(numerics, use_kernels=False).ops
    for name in FINE:
        assert plain_function(getattr(readable, name)).__module__.startswith("mtpref.spec."), name
    if not kernels.available():
        pytest.skip("Numba's JIT is off")
    compiled = make_recipe(numerics).ops
    for name in ("mul_mat", "delta_rule", "attention", "argmax"):
        assert plain_function(getattr(compiled, name)).__module__.startswith("mtpref.kernels."), name


def test_the_two_numerics_differ_in_products_and_sums_alone():
    ggml, exact = spec_ops("ggml"), spec_ops("exact")
    same = {name for name in FINE if getattr(ggml, name) == getattr(exact, name)}
    assert set(FINE) - same == {"mul_mat", "geglu"} | DOTS
    assert (ggml.mul_mat, exact.mul_mat) == (spec.mul_mat_ggml, spec.mul_mat_exact)
    assert (ggml.geglu, exact.geglu) == (spec.geglu_f16, spec.geglu)  # ggml's has a table
    for name in DOTS:
        assert getattr(ggml, name).keywords == {"dot": spec.dot32}
        assert getattr(exact, name).keywords == {"dot": spec.dot64}


def test_the_contract_is_part_of_the_recipe():
    assert make_recipe().contract == MtpContract()
    assert make_recipe(contract=MtpContract(hidden="pre")).contract.hidden == "pre"


# ------------------------------------------------------------------------------------------- tables


def test_tables_are_frozen_and_replacing_leaves_the_original_alone():
    recipe = make_recipe(use_kernels=False)
    other = recipe.with_ops(swiglu=len).with_steps(next_pending=max)
    assert (other.ops.swiglu, other.steps.next_pending) == (len, max)
    assert (recipe.ops.swiglu, recipe.steps.next_pending) == (spec.swiglu, spec.next_pending)
    with pytest.raises(FrozenInstanceError):
        recipe.ops = other.ops  # type: ignore[misc]
    with pytest.raises(TypeError):
        recipe.with_ops(swigloo=len)
    with pytest.raises(TypeError):
        recipe.with_steps(next_pendings=len)


def test_every_entry_is_fine_or_coarse_and_parts_are_fine_or_have_parts_among_them():
    assert OPERATIONS == set(FINE) | set(PARTS) == set(FINE) | set(spec_ops("ggml").composed)
    assert not set(FINE) & set(PARTS)
    for parts in PARTS.values():
        assert parts <= set(FINE) | set(PARTS)
        assert all(PARTS[part] <= parts for part in parts & set(PARTS))


@pytest.mark.parametrize("coarse", sorted(PARTS))
def test_replacing_a_part_drops_the_fused_parent_and_no_other(coarse):
    table = spec_ops("ggml").replaced(**dict.fromkeys(PARTS, print))
    for name in FINE:
        got = getattr(table.replaced(**{name: len}), coarse)
        assert got is (spec_ops("ggml").composed[coarse] if name in PARTS[coarse] else print), name


@pytest.mark.parametrize("coarse", sorted(PARTS))
def test_a_fused_entry_that_comes_with_its_part_stays(coarse):
    table = spec_ops("ggml").replaced(**{coarse: print, next(iter(PARTS[coarse])): len})
    assert getattr(table, coarse) is print


def test_a_fused_entry_is_used_until_one_of_its_parts_is_replaced():
    model, calls = micro(60), []

    def fused(ops, *args):
        calls.append("fused")
        return compose.ffn(ops, *args)

    fused_recipe = model.recipe.with_ops(ffn=fused)
    expected = run_decoder(model, prompt_of(5), 4).decoder.state.digest()
    assert run_decoder(replace(model, recipe=fused_recipe), prompt_of(5), 4).decoder.state.digest() == expected
    assert calls
    calls.clear()
    unfused = fused_recipe.with_ops(swiglu=spec.swiglu)
    assert run_decoder(replace(model, recipe=unfused), prompt_of(5), 4).decoder.state.digest() == expected
    assert not calls


def test_parts_are_exactly_the_entries_that_a_composition_calls():
    seen: dict[str, set[str]] = {coarse: set() for coarse in PARTS}

    def watched(coarse):
        def run(ops, *args):
            log: list[str] = []
            result = spec_ops("ggml").composed[coarse](spied(ops, OPERATIONS, log), *args)
            seen[coarse] |= set(log)
            return result

        return run

    for model in (
        micro(60, use_kernels=False),
        *(load(standard(name), make_recipe(use_kernels=False)) for name in MOE),
        *(load(standard(name), make_recipe(use_kernels=False), model_draft=assistant(name)) for name in ASSISTED),
    ):
        model = replace(model, recipe=model.recipe.with_ops(**{coarse: watched(coarse) for coarse in PARTS}))
        run_decoder(model, prompt_of(5), 4)
    seen["dense_beside_experts"] |= {"group_scores", "limit_groups"}  # of its routing, which has no groups
    for name in ("expanded_attn_layer", "indexed_attn_layer"):
        seen[name] |= {"rope"}  # of the latent row's input in models with sections, which have no such layers
    assert seen == {coarse: set(parts) for coarse, parts in PARTS.items()}


def test_no_entry_of_either_table_is_dead():
    model, log = micro(30), []
    recipe = replace(
        model.recipe,
        ops=spied(model.recipe.ops, OPERATIONS, log),
        steps=spied(model.recipe.steps, [f.name for f in fields(Steps)], log),
    )
    for rollback in ("snapshot", "replay"):
        run_decoder(replace(model, recipe=recipe), prompt_of(9), 12, rollback=rollback)
    for accept in ("match", "residual"):
        sampling = SamplingConfig(temp=2.0, accept=accept)
        run_decoder(replace(model, recipe=recipe), prompt_of(9), 40, sampling=sampling)
    contract = MtpContract()  # what is left to an architecture is its own
    by_parts = replace(recipe, pack=None, contract=contract, ops=spied(spec_ops("ggml"), OPERATIONS, log))
    for name in MOE:
        other = load(standard(name), by_parts)
        run_decoder(other, prompt_of(9), 4)
    for name in ASSISTED:
        run_decoder(load(standard(name), by_parts, model_draft=assistant(name)), prompt_of(9), 4)
    session = Session(replace(model, recipe=recipe))
    for _ in range(2):
        list(session.run(prompt_of(9), Options(n_predict=2)))
    assert set(log) == OPERATIONS | {f.name for f in fields(Steps)}
