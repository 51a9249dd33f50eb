"""Family H: several residual streams (hyper-connections): how sub-layers mix them, and how they come to the head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.model import Model
from mtpref.faults.fault import Fault, Signature, all_ops, broken, head_ops
from mtpref.spec.contract import MtpContract
from mtpref.spec.ops import OpEntries, Ops, discard
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]

# ------------------------------------------------------------------------------------------------ the head's input


def _given(change: Callable[[F32, int], F32]) -> Callable[[Ops], OpEntries]:
    """The head's input from other hidden rows. change: rows (T, n * n_embd), n -> rows"""

    def entries(ops: Ops) -> OpEntries:
        def streams_input(table: Ops, w: Any, embd: F32, hidden: F32, *rest: Any) -> F32:
            n_streams = hidden.shape[1] // embd.shape[1]
            return ops.streams_input(table, w, embd, change(hidden, n_streams), *rest)

        return {"streams_input": streams_input}

    return entries


def _mean(hidden: F32, n: int) -> F32:
    return np.tile(hidden.reshape(len(hidden), n, -1).mean(axis=1, dtype=np.float32), (1, n))


def _by_dimension(hidden: F32, n: int) -> F32:
    return np.ascontiguousarray(hidden.reshape(len(hidden), -1, n).swapaxes(1, 2)).reshape(len(hidden), -1)


HNORM_OF_MEAN = Fault(
    id="H1-hnorm-of-mean",
    title="The head is given the mean of the streams",
    mechanism="hnorm and eh_proj run once, on the mean, and every stream of the head starts from the same row; each"
    " of the trunk's streams has a row of its own.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.streams_input",),
    predicted=Signature("mtp_hnorm", "lower"),
    where=("head streams",),
    apply_recipe=head_ops(_given(_mean)),
)

STREAMS_INTERLEAVED = Fault(
    id="H1b-streams-interleaved",
    title="The head reads the streams dimension by dimension",
    mechanism="A hidden row is stream after stream. It is read as if its streams alternated value by value, so each"
    " has a quarter of the dimensions of all.",
    bug_type="WRONG_LAYOUT",
    replaces=("mtp_ops.streams_input",),
    predicted=Signature("mtp_hnorm", "near 0"),
    where=("head streams",),
    apply_recipe=head_ops(_given(_by_dimension)),
)


def _across(ops: Ops) -> OpEntries:
    def concat(first: F32, second: F32) -> F32:
        joined = ops.mtp_concat(*(x.reshape(len(x), -1) for x in (first, second)))
        return joined.reshape(*first.shape[:2], -1)

    def streams_input(table: Ops, *rest: Any) -> F32:
        return ops.streams_input(replace(table, mtp_concat=concat), *rest)

    return {"streams_input": streams_input}


CONCAT_ACROSS = Fault(
    id="H2-concat-across-streams",
    title="eh_proj's input is joined over all streams at once",
    mechanism="All embeddings, then all hidden rows, cut into streams afterwards: the first half of the streams is "
    "given two embeddings, the other two hidden rows. Each stream needs an embedding and its own hidden "
    "row.",
    bug_type="WRONG_LAYOUT",
    replaces=("mtp_ops.streams_input",),
    predicted=Signature("mtp_concat", "near 0"),
    where=("head streams",),
    apply_recipe=head_ops(_across),
)


def _left(model: Model, step: str) -> Callable[[Hidden, MtpContract], F32]:
    """Rows after the head's reading of the streams, one row for each of them."""
    streams, of_trunk = model.arch.streams, step == "target_hidden"
    assert streams is not None
    roots = model.weights.roots if of_trunk else model.heads[0].weights.roots
    ops = model.recipe.ops if of_trunk else model.recipe.head_ops
    cfg, before = model.layers[-1].residual_cfg, getattr(model.recipe.steps, step)

    def rows(hidden: Hidden, asked: MtpContract) -> F32:
        return np.tile(streams.leave(ops, roots, before(hidden, asked), cfg, discard), (1, cfg.n_streams))

    return rows


def _handed_on(*names: str) -> Callable[[Model], Model]:
    def apply(model: Model) -> Model:
        entries = {name: _left(model, name) for name in names}
        return replace(model, recipe=model.recipe.with_steps(**entries))  # type: ignore[arg-type]

    return apply


HIDDEN_AFTER_HEAD = Fault(
    id="H3-hidden-after-head",
    title="The head is given the row that hc_head makes of the streams",
    mechanism="The hidden row is taken after output_hc_*, one row for all streams, as it is in models of one "
    "stream; the head needs the raw streams, in front of it.",
    bug_type="DOUBLE_STEP",
    replaces=("steps.target_hidden",),
    predicted=Signature("mtp_hnorm", "lower"),
    where=("head streams",),
    apply_model=_handed_on("target_hidden"),
)

CHAIN_AFTER_HEAD = Fault(
    id="H3b-chain-after-head",
    title="The chain carries the row that hc_head makes of the head's streams",
    mechanism="Draft steps after the first are given one row for all streams instead of the block's own.",
    bug_type="DOUBLE_STEP",
    replaces=("steps.chain_hidden",),
    predicted=Signature("", "a1 the same, a2 and later lower"),
    where=("head streams",),
    apply_model=_handed_on("chain_hidden"),
)

HIDDEN_NORMED = Fault(
    id="H3c-hidden-normed",
    title="The head is given the trunk's row after hc_head and the final norm",
    mechanism="The row that logits are made of, as in models whose head takes rows after the norm, once for each "
    "stream.",
    bug_type="DOUBLE_STEP",
    replaces=("steps.target_hidden",),
    predicted=Signature("mtp_hnorm", "lower"),
    where=("head streams",),
    apply_recipe=lambda recipe: recipe.with_steps(
        target_hidden=lambda rows, asked: np.tile(rows.post, (1, rows.pre.shape[1] // rows.post.shape[1]))
    ),
)


def _trunks_roots(model: Model) -> Model:
    for i in range(len(model.heads)):
        model = model.with_head(i, roots=model.weights.roots)
    return model


HEAD_OF_TRUNK = Fault(
    id="H4-hc-head-of-trunk",
    title="The MTP head reads its streams with the trunk's hc_head",
    mechanism="output_hc_* has one name in both files, and the trunk's is loaded. The file with the MTP block has "
    "its own: mtp.0.hc_head_*.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_hc_head", "lower"),
    where=("own hc_head",),
    apply_model=_trunks_roots,
)

# ------------------------------------------------------------------------------------------------ around sub-layers

Weights = tuple[F32, F32, F32]


def _mixed(change: Callable[..., Weights]) -> Callable[[Ops], OpEntries]:
    """Other weights of the streams. change: what they are, and what they are made of -> what they become"""
    return lambda ops: {"stream_weights": lambda *of: change(*ops.stream_weights(*of), *of)}


def _transposed(pre: F32, post: F32, comb: F32, *of: Any) -> Weights:
    return pre, post, np.ascontiguousarray(comb.swapaxes(1, 2))


COMB_TRANSPOSED = Fault(
    id="H5-comb-transposed",
    title="The matrix that mixes the streams is transposed",
    mechanism="Its values are [source][target], targets next to each other; they are read as [target][source]. Rows"
    " and columns both add up to 1, so nothing grows.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.stream_weights",),
    predicted=broken("hc_attn_post"),
    where=("streams",),
    needs=(),
    apply_recipe=all_ops(_mixed(_transposed)),
)


def _softmax_alone(pre: F32, post: F32, comb: F32, mixes: F32, scale: F32, base: F32, n: int, *_: Any) -> Weights:
    raw = mixes[:, 2 * n :] * scale[2] + base[2 * n :]
    return pre, post, spec.expert_probs(raw.reshape(-1, n), "softmax").reshape(-1, n, n)


SINKHORN_SKIPPED = Fault(
    id="H5b-sinkhorn-skipped",
    title="The matrix that mixes the streams is a softmax alone",
    mechanism="Sinkhorn's rounds are left out: what a source gives adds up to 1, what a target gets does not.",
    bug_type="MISSING_STEP",
    replaces=("ops.stream_weights",),
    predicted=broken("hc_attn_post"),
    where=("streams",),
    needs=(),
    apply_recipe=all_ops(_mixed(_softmax_alone)),
)

POST_NOT_DOUBLED = Fault(
    id="H5c-post-not-doubled",
    title="What writes to the streams is a sigmoid, not twice that",
    mechanism="pre and post are both taken for sigmoid(...): sub-layers write half of what they should.",
    bug_type="MISSING_STEP",
    replaces=("ops.stream_weights",),
    predicted=broken("hc_attn_post"),
    where=("streams",),
    needs=(),
    apply_recipe=all_ops(_mixed(lambda pre, post, comb, *of: (pre, post * np.float32(0.5), comb))),
)
