"""Replacements that take or give other things than the entry they replace: each marked line is a type error."""

from mtpref.engine.recipe import make_recipe
from mtpref.faults.fault import all_ops, head_ops, steps
from mtpref.spec import Distribution
from mtpref.spec.ops import OpEntries, Ops
from mtpref.spec.steps import StepEntries, Steps


def two_arguments(dist: Distribution, u: float) -> int:
    return dist.best()


def gives_text(target: Distribution, u: float) -> str:
    return ""


def one_norm(ops: Ops) -> OpEntries:
    return {"rms_norm": ops.l2_norm}  # wrong: no weight


def misspelt(table: Steps) -> StepEntries:
    return {"next_pendings": table.next_pending}  # wrong: no such step


right = steps(lambda table: {"bonus_token": two_arguments, "draw": two_arguments})
steps(lambda table: {"match_token": two_arguments})  # wrong: match_token is given the drafted id
steps(lambda table: {"bonus_token": gives_text})  # wrong: a token is a number
steps(lambda table: {"accept_greedy": lambda draft, target: 0})  # wrong: no end-of-generation ids
head_ops(lambda ops: {"attn_gate": lambda o: o})  # wrong: no gate
all_ops(lambda ops: {"ffn": ops.swiglu})  # wrong: a coarse entry is given the table
make_recipe().with_ops(swiglu=len)  # wrong: one argument
make_recipe().with_steps(next_pending=max)  # wrong: gives no row
make_recipe().with_steps(emitted=two_arguments)  # wrong: other arguments
