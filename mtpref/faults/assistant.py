"""Families A, G, K and L, assistants: a head that is a model of its own, and reads its target's cells."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.engine.model.model import Head, Layer
from mtpref.engine.recipe import Recipe
from mtpref.faults.fault import Fault, Signature, head_ops, steps
from mtpref.faults.places import n_window, sources_by_depth
from mtpref.spec.ops import OpEntries, Ops
from mtpref.spec.state import ModelState
from mtpref.spec.steps import Steps

F32 = NDArray[np.float32]
WIDEST = 4096  # cells that a window which is ignored reaches back to


def _stacks(model: Model, changed: Any) -> Model:
    """The model with the layers of its assistant changed. changed: (head, its layers in order) -> these layers"""
    heads = []
    for head in model.heads:
        *before, last = changed(head, [*head.before, head.layer])
        heads.append(replace(head, before=tuple(before), layer=last))
    return replace(model, heads=tuple(heads))


# ------------------------------------------------------------------------------------------------ the target's cells


def _keeping(model: Model, width: Callable[[int], int]) -> Model:
    """The model whose target keeps, in the layers with a window that the assistant reads, the cells that a window of
    width(n) in place of n needs; the target's own window stays."""

    def wide(layer: Layer) -> Layer:
        kind, n = layer.block.mixer, width(n_window(layer))
        keeping = replace(kind, state=lambda cfg, kv_type: kind.state(replace(cfg, n_window=n), kv_type))
        return replace(layer, block=replace(layer.block, mixer=keeping))

    read = {layer.cfg.source for head in model.heads for layer in (*head.before, head.layer) if n_window(layer)}
    return replace(model, layers=tuple(wide(layer) if il in read else layer for il, layer in enumerate(model.layers)))


def _one_more(n: int) -> int:
    """For the cell at the query's own position, which nothing else needs."""
    return n + 1


def _sees_opening(model: Model) -> Model:
    model = _keeping(model, _one_more)
    before = model.recipe.steps.cells_to_read

    def cells_to_read(state: ModelState, id_last: int) -> ModelState:
        read = before(state, id_last).branch()
        if read.n_past < read.n_ctx:
            model.trunk(read, [id_last], n_logits=0)
        return read

    return replace(model, recipe=model.recipe.with_steps(cells_to_read=cells_to_read))


OPENING_SEEN = Fault(
    id="K15-opening-cell-seen",
    title="The assistant sees the cell of the token that it drafts after",
    mechanism="The draft attends to the target's cells 0 .. n instead of 0 .. n - 1: the target has run the opening "
    "token before the draft, or the length that the draft is given counts it. The assistant was trained without that "
    "key, at the very position of its query.",
    bug_type="OFF_BY_ONE",
    replaces=("layers", "steps.cells_to_read"),
    predicted=Signature("mtp_kqv_out", "a little lower in every step"),
    where=("assistant",),
    apply_model=_sees_opening,
)


def _advances(pos0: int, step: int, n_rows: int, reads_target: bool) -> int:
    return pos0 + step + 1 - n_rows


POSITION_ADVANCES = Fault(
    id="K16-position-advances",
    title="The assistant's position advances with the steps of a draft",
    mechanism="Step i is turned for position n + i, as that of any other head is. An assistant is trained with "
    "position n in every step: its queries move away from keys that stay.",
    bug_type="WRONG_RULE",
    replaces=("steps.draft_position",),
    predicted=Signature("", "a1 the same, a2 and later a little lower"),
    seen=(("openvino.genai #3958, asked for in review",
           "https://github.com/openvinotoolkit/openvino.genai/pull/3958"),),
    where=("assistant",),
    apply_recipe=steps(lambda table: {"draft_position": _advances}),
)  # fmt: skip


def _keeping_rejected(model: Model, n_kept: Callable[[int], int]) -> Recipe:
    """The recipe in which a draft reads the state as it was before the roll back, with n_kept(n) of n rejected
    tokens."""
    table: Steps = model.recipe.steps
    left: dict[str, Any] = {}

    def choose_plane(state: ModelState, n_drop: int) -> None:
        before = _copied(state, n_drop)
        before.choose_plane(n_drop - n_kept(n_drop))
        table.choose_plane(state, n_drop)
        left.update(before=before, state=state, n_past=state.n_past)

    def cells_to_read(state: ModelState, id_last: int) -> ModelState:
        if left.get("state") is state and left["n_past"] == state.n_past:
            before: ModelState = left["before"]
            return before
        return table.cells_to_read(state, id_last)

    return model.recipe.with_steps(choose_plane=choose_plane, cells_to_read=cells_to_read)


def _copied(state: ModelState, n_drop: int) -> ModelState:
    """The state with copies of the cells that a roll back cuts: later passes write over them."""
    before = state.branch()
    for layer in before.layers if n_drop else ():
        for name in (spec.name for spec in layer.specs if spec.positional):
            layer.arrays[name] = layer.arrays[name][: state.n_past].copy()
    return before


def _all_rejected_seen(model: Model) -> Model:
    def entries(ops: Ops) -> OpEntries:
        def unscaled_seen(own: Ops, cfg: Any, q: F32, k: Any, v: Any, kv_type: str, pos: Any, last: int) -> F32:
            return ops.unscaled_seen(own, cfg, q, k, v, kv_type, np.maximum(pos, last + 1), last)

        return {"unscaled_seen": unscaled_seen}

    return replace(model, recipe=head_ops(entries)(_keeping_rejected(model, lambda n: n)))


def _first_rejected_seen(model: Model) -> Model:
    model = _keeping(model, _one_more)
    return replace(model, recipe=_keeping_rejected(model, lambda n: min(n, 1)))


REJECTED_SEEN = Fault(
    id="K17-rejected-cells-seen",
    title="The assistant sees the cells of rejected tokens",
    mechanism="The draft is given the target's cells, or their number, as the verified batch left them: those of "
    "rejected tokens are among them, as if the text were so much longer.",
    bug_type="STALE_STATE",
    replaces=("mtp_ops.unscaled_seen", "steps.cells_to_read", "steps.choose_plane"),
    predicted=Signature("", "lower", split="after a partial acceptance lower, after a full one the same"),
    seen=(
        ("vLLM #47920", "https://github.com/vllm-project/vllm/pull/47920"),
        ("mlx-swift-lm #308", "https://github.com/ml-explore/mlx-swift-lm/pull/308"),
    ),
    needs=("mtp", "snapshot"),
    where=("assistant",),
    apply_model=_all_rejected_seen,
)

FIRST_REJECTED_SEEN = Fault(
    id="K17b-first-rejected-cell-seen",
    title="The assistant sees the cell of the first rejected token",
    mechanism="The target's cells are cut to the length of the text, which counts the token that the draft goes on "
    "from. That one has no cell yet: what stands in its place is the rejected token's.",
    bug_type="OFF_BY_ONE",
    replaces=("layers", "steps.cells_to_read", "steps.choose_plane"),
    predicted=Signature("", "a little lower", split="after a partial acceptance lower, after a full one the same"),
    seen=(("transformers 5.24, read and not run",
           "https://github.com/huggingface/transformers/blob/main/src/transformers/generation/candidate_generator.py"),),
    needs=("mtp", "snapshot"),
    where=("assistant",),
    apply_model=_first_rejected_seen,
)  # fmt: skip


def _by_depth(model: Model) -> Model:
    sources = iter(sources_by_depth(model))

    def changed(head: Head, layers: list[Layer]) -> list[Layer]:
        return [replace(layer, cfg=replace(layer.cfg, source=next(sources))) for layer in layers]

    return _stacks(model, changed)


OTHER_LAYERS_READ = Fault(
    id="K18-other-layers-read",
    title="Each layer of the assistant reads a layer of its own of the target",
    mechanism="The assistant's layers are paired with the target's last ones, one to one. All of its layers with a "
    "window read the same one, the target's last with a window; its shapes fit the others as well.",
    bug_type="WRONG_RULE",
    replaces=("heads.before", "heads.layer"),
    predicted=Signature("mtp_kqv_out", "lower in every step"),
    seen=(("llama.cpp #23398, asked for in review", "https://github.com/ggml-org/llama.cpp/pull/23398"),),
    where=("assistant of several layers",),
    apply_model=_by_depth,
)


def _with_window(model: Model, width: Callable[[int], int]) -> Model:
    """The assistant with windows of width(n) in place of n, and a target that keeps the cells for them."""

    def changed(head: Head, layers: list[Layer]) -> list[Layer]:
        return [
            replace(one, cfg=replace(one.cfg, n_window=width(n_window(one)))) if n_window(one) else one
            for one in layers
        ]

    return _stacks(_keeping(model, width), changed)


def _without_window(model: Model) -> Model:
    return _with_window(model, lambda n: max(n, min(WIDEST, model.config.n_ctx_train)) + 1)


WINDOW_IGNORED = Fault(
    id="A17-assistants-window-ignored",
    title="The assistant's layers with a window see all cells",
    mechanism="The window never reaches the assistant's layers: their queries attend to every cell that the target's "
    "layer has.",
    bug_type="MISSING_STEP",
    replaces=("heads.before", "layers"),
    predicted=Signature("mtp_kqv_out", "lower", drift="only in texts longer than the window"),
    seen=(("mobius #363", "https://github.com/onnxruntime/mobius/pull/363"),),
    where=("assistant with a window",),
    apply_model=_without_window,
)

WINDOW_OF_TRANSFORMERS = Fault(
    id="L18-window-of-transformers",
    title="The assistant's windows are those of transformers",
    mechanism="A layer of the assistant with a window of n sees the n + 1 cells before its position, as transformers' "
    "mask has it; in llama.cpp it sees n - 1, the window counting the position itself. Which of them an assistant was "
    "trained with is not known.",
    bug_type="LOOK_ALIKE",
    replaces=("heads.before", "layers"),
    predicted=Signature("mtp_kqv_out", "nearly the same", drift="only in texts longer than the window"),
    seen=(("transformers", "https://github.com/huggingface/transformers"),),
    where=("assistant with a window",),
    apply_model=lambda model: _with_window(model, lambda n: n + 2),
)

# ------------------------------------------------------------------------------------------------------- the graph


def _of_raw_rows(ops: Ops) -> OpEntries:
    last: dict[str, F32] = {}

    def mtp_norm(own: Ops, x: F32, weight: F32, eps: float) -> F32:
        last["row"] = x
        return ops.mtp_norm(own, x, weight, eps)

    def assistant_row(own: Ops, w: Any, post: F32) -> F32:
        return ops.assistant_row(own, w, last["row"])

    return {"mtp_norm": mtp_norm, "assistant_row": assistant_row}


ROW_BEFORE_NORM = Fault(
    id="G11-row-before-norm",
    title="The assistant's next row is made of its row before the norm",
    mechanism="nextn.post_projection is multiplied with what the last layer gives, and output_norm comes after it, for "
    "the logits alone. Every step but the first is fed with a row of another scale, without the norm's gains.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.mtp_norm", "mtp_ops.assistant_row"),
    predicted=Signature("mtp_h_nextn", "a1 the same, a2 and later lower"),
    seen=(("ik_llama.cpp #1993", "https://github.com/ikawrakow/ik_llama.cpp/pull/1993"),),
    effect="drafts of 1 to 5 tokens: 91 80 72 61 51 % instead of 91 80 75 66 60 %",
    where=("assistant",),
    apply_recipe=head_ops(_of_raw_rows),
)

EMBEDDING_UNSCALED = Fault(
    id="G20-embedding-unscaled",
    title="The assistant is given the target's embedding without its scale",
    mechanism="The row of token_embd is handed on as it stands, not times sqrt(n_embd) as the target's first layer "
    "gets it: beside the hidden row it nearly vanishes.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.scaled_embedding",),
    predicted=Signature("mtp_inp_embd_target", "far lower"),
    where=("assistant",),
    apply_recipe=head_ops(lambda ops: {"scaled_embedding": lambda x: x}),
)


def _scaled_by_own_width(model: Model) -> Model:
    factor = np.float32(sqrt(model.heads[0].layer.cfg.n_embd))
    recipe = head_ops(lambda ops: {"scaled_embedding": lambda x: x * factor})(model.recipe)
    return replace(model, recipe=recipe)


SCALED_BY_OWN_WIDTH = Fault(
    id="G20b-embedding-of-own-width",
    title="The target's embedding is scaled by the assistant's width",
    mechanism="The factor sqrt(n_embd) takes the n_embd of the file that is being run, the assistant's, and not that "
    "of the target whose row it is.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.scaled_embedding",),
    predicted=Signature("mtp_inp_embd_target", "lower in a trained assistant; a planted one has fewer mistakes"),
    where=("assistant",),
    apply_model=_scaled_by_own_width,
)


def _scaled_scores(ops: Ops) -> OpEntries:
    def unscaled_attention(q: F32, *rest: Any) -> F32:
        return ops.unscaled_attention(q * np.float32(1 / sqrt(q.shape[-1])), *rest)

    return {"unscaled_attention": unscaled_attention}


SCORES_SCALED = Fault(
    id="G21-scores-scaled",
    title="The assistant's scores are scaled by 1 / sqrt(n_key)",
    mechanism="The assistant's attention is that of other models: its scores are divided by the square root of a key's "
    "width. Queries and keys are normed, and have no such factor.",
    bug_type="DOUBLE_STEP",
    replaces=("mtp_ops.unscaled_attention",),
    predicted=Signature("mtp_kqv_out", "lower in every step"),
    where=("assistant",),
    apply_recipe=head_ops(_scaled_scores),
)


def _without_scale(model: Model) -> Model:
    name = "layer_output_scale.weight"

    def changed(w: dict[str, Any]) -> dict[str, Any]:
        return {key: np.ones_like(x) if key == name else x for key, x in w.items()}

    for i, head in enumerate(model.heads):
        before = tuple(changed(w) for w in head.weights.before)
        model = model.with_head(i, block=changed(head.weights.block), before=before)
    return model


OUTPUT_SCALE_FORGOTTEN = Fault(
    id="G22-output-scale-forgotten",
    title="The assistant's layers are not scaled",
    mechanism="layer_output_scale, which each block's output is multiplied with, is left out of the assistant's graph.",
    bug_type="MISSING_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_out_scaled", "lower in every step"),
    where=("assistant",),
    apply_model=_without_scale,
)
