"""The contract: its fields, its presets and its textual form."""

from dataclasses import fields, replace
from itertools import product

import pytest

from mtpref.base.errors import MtprefError
from mtpref.spec.contract import BY_ARCHITECTURE, CHOICES, PRESETS, MtpContract, describe, parse_contract


def test_every_field_has_its_choices_and_the_default_is_among_them():
    assert set(CHOICES) == {f.name for f in fields(MtpContract)}
    for f in fields(MtpContract):
        assert f.default in CHOICES[f.name] or (f.default, f.name in BY_ARCHITECTURE) == ("arch", True)


def test_what_the_architecture_decides_is_resolved_once_and_named_by_no_word():
    contract = MtpContract().resolved("pre", "post")
    assert (contract.hidden, contract.chain) == ("pre", "post")
    assert contract.resolved("post", "pre") == contract
    assert describe(contract, "pre", "post") == "llama.cpp"
    assert describe(contract, "post", "post") == "llama.cpp,hidden=pre"
    assert MtpContract(hidden="post").resolved("pre", "pre") == MtpContract(hidden="post", chain="pre")


@pytest.mark.parametrize("field", [{"hidden": "banana"}, {"pos_offset": True}, {"first": None}, {"concat": "arch"}])
def test_a_value_that_a_field_does_not_have_is_refused(field):
    with pytest.raises(MtprefError, match=rf"^MtpContract\.{next(iter(field))}: .* is unknown, expected one of"):
        MtpContract(**field)


def test_every_choice_of_every_field_is_reached_by_text():
    for name, choices in CHOICES.items():
        for choice in choices:
            assert getattr(parse_contract(f"{name}={choice}"), name) == choice


def test_presets_are_what_they_are_said_to_be():
    assert parse_contract("llama.cpp") == MtpContract()
    assert parse_contract("training") == MtpContract(first="none", pos_offset=-1)


def test_fields_are_laid_over_the_preset_in_order():
    got = parse_contract("training, hidden=pre,chain=pre,hidden=post")
    assert got == replace(PRESETS["training"], chain="pre", hidden="post")


def test_describe_is_read_back_for_every_contract():
    for values in product(*CHOICES.values()):
        contract = MtpContract(**dict(zip(CHOICES, values, strict=True)))
        assert parse_contract(describe(contract)) == contract


def test_describe_names_the_preset_alone_where_nothing_differs():
    assert [describe(PRESETS[name]) for name in PRESETS] == list(PRESETS)


def test_the_first_cell_is_at_0_only_with_a_zero_hidden_row():
    assert [MtpContract(first=str(first)).first_pos for first in CHOICES["first"]] == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vllm", "preset 'vllm'"),
        ("", "preset ''"),
        ("llama.cpp,training", "field 'training'"),
        ("concatenation=eh", "field 'concatenation'"),
        ("hidden=both", "hidden='both'"),
        ("pos_offset=1", "pos_offset='1'"),
        ("hidden=", "hidden=''"),
    ],
)
def test_an_unknown_part_is_refused_by_name_with_what_is_known(text, found):
    with pytest.raises(MtprefError, match="expected one of ") as refusal:
        parse_contract(text)
    assert found in str(refusal.value)
    assert "\n" not in str(refusal.value)
