"""The model: a trunk and perhaps an MTP head over one set of weights.

Owns the wiring of layers and the advance of model state. It never decides anything: which tokens to run,
what to keep and what to throw away is the caller's (mtpref/engine/decode). Loading stands in load.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import Architecture, Block, HeadSheet
from mtpref.base.errors import MtprefError
from mtpref.base.settings import SettingError, checked
from mtpref.engine.model.finite import head_weights, is_finite, not_finite, trunk_weights
from mtpref.engine.recipe import Recipe
from mtpref.engine.weights import MtpWeights, Weights
from mtpref.files.draft_vocab import check_draft_ids
from mtpref.files.vocab import Vocab
from mtpref.spec.config import ModelConfig
from mtpref.spec.contract import MtpContract, describe
from mtpref.spec.indexer import Selection
from mtpref.spec.kinds import Around, LayerKind, Span
from mtpref.spec.moe import Routing
from mtpref.spec.ops import LayerTap, discard
from mtpref.spec.ops.compose import scaled_head
from mtpref.spec.state import LayerState, ModelState, Positions, StateSpec
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]
Tap = Callable[[str, NDArray], None]
Part = Literal["mixer", "ffn"]


@dataclass(frozen=True)
class Layer:
    """One block with the hyper-parameters of its mixer, of its feed-forward network, and of what stands around them."""

    block: Block
    cfg: Any
    ffn_cfg: Any
    residual_cfg: Any = None

    @property
    def kind(self) -> LayerKind:
        """The mixer."""
        return self.block.mixer

    def state(self, kv_type: str) -> tuple[StateSpec, ...]:
        """What a sequence keeps for it."""
        return (*self.block.mixer.state(self.cfg, kv_type), *self.block.ffn.state(self.ffn_cfg, kv_type))

    def with_forward(self, part: Part, forward: Callable[..., Any]) -> "Layer":
        """The layer with another forward of one of its parts."""
        kind = replace(self.block.mixer if part == "mixer" else self.block.ffn, forward=forward)
        block = replace(self.block, mixer=kind) if part == "mixer" else replace(self.block, ffn=kind)
        return replace(self, block=block)

    def forward(
        self,
        w: dict[str, Any],
        x: F32,
        state: LayerState,
        span: Span,
        eps: float,
        tap: LayerTap,
        inputs: F32 | None = None,
    ) -> F32:
        """The block on rows of the residual stream. inputs: what it is given of the tokens beside it (S105)"""

        def mixer(h: F32) -> F32:
            return self.block.mixer.forward(w, self.cfg, h, state, span, tap)

        def ffn(h: F32) -> F32:
            return self.block.ffn.forward(w, self.ffn_cfg, h, state, span, tap)

        return self.block.residual(x, Around(span.ops, w, eps, self.residual_cfg, inputs), mixer, ffn, tap)


@dataclass(frozen=True)
class Head:
    """An MTP head: what its data sheet says, its block, its weights.

    n_hidden  width of the hidden row that it takes
    before    of an assistant, the layers that its rows go through before `layer`, the last
    first     the number of its first block in its file; None: after the trunk's
    rms_eps   of its norms; None: the trunk's
    """

    sheet: HeadSheet
    layer: Layer
    weights: MtpWeights
    n_hidden: int
    before: tuple[Layer, ...] = ()
    first: int | None = None
    rms_eps: float | None = None

    @property
    def stack(self) -> list[tuple[Layer, dict[str, Any]]]:
        """Its layers with their weights, in order."""
        return list(zip((*self.before, self.layer), (*self.weights.before, self.weights.block), strict=True))

    @property
    def keeps_cells(self) -> bool:
        """Whether a sequence has cells of it, which must follow the text."""
        return not self.sheet.reads_target


@dataclass(frozen=True)
class Output:
    """What a pass of the trunk or of the MTP block gives.

    logits  (R, n_vocab, or the size of a trimmed head) for the rows asked for
    hidden  all T rows, before and after the final norm or the head norm
    routings  what the experts' networks chose for the T rows, in the order of their layers
    selections  what the indexers chose, likewise
    """

    logits: F32
    hidden: Hidden
    routings: tuple[Routing, ...] = ()
    selections: tuple[Selection, ...] = ()

    @property
    def gaps(self) -> list[float]:
        """For each row how near another choice was, of experts (S44) or of cells (S63), in the layer where it was
        nearest; empty for a model that chooses neither."""
        gaps = [*(routing.gap for routing in self.routings), *(selection.gap for selection in self.selections)]
        return np.min(gaps, axis=0).tolist() if gaps else []


@dataclass(frozen=True)
class Model:
    """Weights, their meaning and the recipe that runs them.

    heads   the MTP heads, in the order of a chain
    notes   lines that a user should see (tensors that no one reads, a missing head)
    kv      the file's keys
    mtp_status  where the head is: "none" (there is none), "own" (in the model's file), "file" (in a stand-alone file)
                or "off" (there, but not loaded)
    is_checked  whether a pass whose rows or logits are not finite ends in NotFiniteError (finite.py)
    changes  ids of what was changed in it on purpose; a run's first event tells them
    ends_cfg  hyper-parameters of what the architecture does at the two ends of the trunk

    The recipe's contract is resolved when a model is made: what it leaves to the architecture is the head's own.
    """

    config: ModelConfig
    arch: Architecture
    layers: tuple[Layer, ...]
    heads: tuple[Head, ...]
    weights: Weights
    recipe: Recipe
    vocab: Vocab
    kv_type: str = "F16"
    kv_type_draft: str = "F16"
    notes: tuple[str, ...] = ()
    kv: Mapping[str, Any] = field(default_factory=dict)
    mtp_status: str = "own"
    is_checked: bool = True
    changes: tuple[str, ...] = ()
    ends_cfg: Any = None

    def __post_init__(self) -> None:
        contract = self.recipe.contract.resolved(*self.own_rows)
        if self.has_assistant and contract.chain != "post":
            raise SettingError(
                "MtpContract.chain",
                f"chain is {contract.chain}, expected post: an assistant has one row for its next step, that of its "
                "projection to the target's width",
            )
        if not self.can_take(contract):
            name = "hidden" if contract.hidden != "pre" else "chain"
            raise SettingError(
                f"MtpContract.{name}",
                f"{name} is post, expected pre: the head of {self.config.arch} takes the streams, "
                f"{self.heads[0].n_hidden} values, and a normed row has {self.config.n_embd}",
            )
        if contract != self.recipe.contract:
            object.__setattr__(self, "recipe", replace(self.recipe, contract=contract))

    @property
    def own_rows(self) -> tuple[str, str]:
        """The rows that a head of this architecture takes: the trunk's, and its own along a chain."""
        return (self.arch.head.hidden, self.arch.head.chain) if self.arch.head else ("post", "post")

    def can_take(self, contract: MtpContract) -> bool:
        """Whether the rows that a contract hands to the heads are as wide as those that they take, and are there."""
        if self.has_assistant and contract.chain != "post":
            return False
        is_wide = self.arch.streams is not None and bool(self.heads)
        return not is_wide or (contract.hidden, contract.chain) == ("pre", "pre")

    @property
    def contract_name(self) -> str:
        """The contract in its shortest words."""
        return describe(self.recipe.contract, *self.own_rows)

    @property
    def type_names(self) -> set[str]:
        """The GGML types of every matrix, heads included."""
        w = self.weights
        found = [w.output, w.token_embd, *(x for layer in w.layers for x in layer.values()), *w.roots.values()]
        for one in (head.weights for head in self.heads):
            found += [one.eh_proj, one.shared_head_head, one.embed_tokens, *one.block.values()]
        return {x.type_name for x in found if hasattr(x, "type_name")}

    @property
    def n_vocab(self) -> int:
        return self.weights.token_embd.n_out

    @property
    def has_assistant(self) -> bool:
        """Whether its head is an assistant: it reads the trunk's cells, and makes its next step's row itself."""
        return any(head.sheet.leave is not None for head in self.heads)

    @property
    def has_mtp(self) -> bool:
        return bool(self.heads)

    @property
    def d2t(self) -> NDArray[np.int64] | None:
        """The token id of each row of a trimmed MTP head, ascending; None: a row's id is its number."""
        return self.heads[0].weights.d2t if self.heads else None

    @property
    def n_head_rows(self) -> int:
        """Ids that the MTP head can name: all, or those of a trimmed head."""
        return self.heads[0].weights.shared_head_head.n_out if self.heads else self.n_vocab

    def with_head(self, i: int = 0, *, layer: Layer | None = None, **weights: Any) -> "Model":
        """The same model with other weights (fields of MtpWeights), or another block, for head i."""
        head = self.heads[i]
        new = replace(head.weights, **weights) if weights else head.weights
        changed = replace(head, layer=layer or head.layer, weights=new)
        return replace(self, heads=(*self.heads[:i], changed, *self.heads[i + 1 :]))

    def with_draft_ids(self, ids: Sequence[int] | None) -> "Model":
        """The same model with an MTP head that can name these ids alone (None: as it is). The trunk keeps them all.

        Errors   MtprefError for ids that are no list of the head's ids
        """
        if ids is None:
            return self
        model, rows = self, check_draft_ids(ids, self.n_vocab, "draft_ids")
        for i, head in enumerate(self.heads):
            mtp = head.weights.trimmed(rows)
            if self.recipe.pack is not None:
                mtp = replace(mtp, shared_head_head=self.recipe.pack([mtp.shared_head_head])[0])
            model = model.with_head(i, shared_head_head=mtp.shared_head_head, d2t=mtp.d2t)
        return model

    def new_state(self, n_ctx: int = 0, *, poison: bool = False) -> ModelState:
        """An empty sequence of at most n_ctx positions (0: the model's own context length).

        Errors   SettingError for an n_ctx that is no count
        """
        n_ctx = checked(Positions, n_ctx, "n_ctx")
        layers = [layer.state(self.kv_type) for layer in self.layers]
        heads = [head.layer.state(self.kv_type_draft) for head in self.heads]
        n_hidden = self.heads[0].n_hidden if self.heads else self.config.n_embd
        return ModelState(layers, heads, n_hidden, n_ctx or self.config.n_ctx_train, poison=poison)

    def trunk(
        self, state: ModelState, ids: Sequence[int], *, n_logits: int, keep: int = 1, tap: Tap = discard
    ) -> Output:
        """Run T tokens through the trunk.

        Shapes   n_logits: the last so many rows get logits; keep: the recurrent state is kept after each
                 of the last so many tokens (planes), min(keep, T) in all
        Errors   MtprefError where the context is full or an id is not in the vocabulary
        """
        tokens = self._checked(ids)
        ops, w = self.recipe.ops, self.weights
        state.reserve(len(tokens))
        pos = np.arange(state.n_past, state.n_past + len(tokens), dtype=np.int32)
        span = Span(ops, pos, state.n_past, min(keep, len(tokens)), tokens=tokens, roots=w.roots)
        x = ops.get_rows(w.token_embd, tokens)
        tap("model.input_embed", x)
        streams, ends = self.arch.streams, self.arch.ends
        x = streams.enter(x, self.layers[0].residual_cfg) if streams else x
        x = ends.enter(span, x, self.ends_cfg, tap) if ends else x
        for il, (layer, lw) in enumerate(zip(self.layers, w.layers, strict=True)):
            layer_tap = _layer_tap(tap, il, self.arch.cb)
            inputs = None if span.inputs is None else span.inputs[il]
            x = layer.forward(lw, x, state.layers[il], span, self.config.rms_eps, layer_tap, inputs)
        state.n_past += len(tokens)
        last = streams.leave(ops, w.roots, x, self.layers[-1].residual_cfg, tap) if streams else x
        post = ops.rms_norm(last, w.output_norm, self.config.rms_eps)
        tap("h_nextn", Hidden(x, post).of(self.own_rows[0]))
        tap("result_norm", post)
        logits = _no_logits()
        if n_logits:
            logits = self.trunk_logits(post[len(tokens) - n_logits :])
            tap("result_output", logits)
        if self.is_checked and not is_finite(post, logits):
            raise not_finite(self, "trunk", partial(_trunk_again, self, tokens, n_logits), trunk_weights(self))
        return Output(logits, Hidden(x, post), tuple(span.routings), tuple(span.selections))

    def trunk_logits(self, post: F32) -> F32:
        """The trunk's logits of normed rows."""
        ops = self.recipe.ops
        logits = scaled_head(ops, self.weights.output, post, None, self.config.logit_scale)
        return logits if self.arch.ends is None else self.arch.ends.logits(ops, logits, self.ends_cfg)

    def mtp(
        self,
        state: ModelState,
        ids: Sequence[int],
        hidden: F32,
        first_pos: int,
        *,
        n_logits: int,
        head: int = 0,
        n_draft_vocab: int | None = None,
        tap: Tap = discard,
    ) -> Output:
        """Run T pairs (token x_p, hidden h_{p-1}) through an MTP head, at positions first_pos, first_pos + 1, ...

        Shapes   hidden: (T, n_hidden); n_logits: the last so many rows get logits; head: which of a chain;
                 n_draft_vocab: only the first so many ids do (FastMTP)
        Errors   MtprefError without a head; ValueError where positions would leave a hole
        """
        if not self.heads:
            raise MtprefError("the model has no MTP head; use `Options.spec_type` none")
        one, own = self.heads[head], state.heads[head]
        mw, layer, eps = one.weights, one.layer, self.config.rms_eps if one.rms_eps is None else one.rms_eps
        steps, contract = self.recipe.steps, self.recipe.contract
        tokens, ops, reads_target = self._checked(ids), self.recipe.head_ops, one.sheet.reads_target
        if not reads_target:
            steps.place_mtp(own, first_pos)
            own.reserve(len(tokens))
        elif not state.n_past:
            raise ValueError("a head that reads the trunk's cells, and the state holds none")
        il = self.config.n_layer + head if one.first is None else one.first
        tap_il = _mtp_tap(tap, il, self.arch.cb_head)

        # EMBED
        embd = steps.mtp_embedding(ops.get_rows(mw.embed_tokens, tokens), first_pos, contract)
        tap_il("tok_embd", embd)
        x = (one.sheet.enter or ops.mtp_input)(ops, mw, embd, hidden, eps, contract.concat, tap_il)

        # BLOCK
        pos = steps.mtp_positions(first_pos, len(tokens), contract)
        first = state.n_past if reads_target else own.n_cells
        span = Span(ops, pos, first, 1, target=state.layers, tokens=tokens, roots=mw.roots)
        for i, (part, w) in enumerate(one.stack):
            x = part.forward(w, x, own.layer, span, eps, _mtp_tap(tap, il + i, self.arch.cb_head))
        own.n_cells += 0 if reads_target else len(tokens)

        # HEAD
        streams = self.arch.streams
        last = streams.leave(ops, mw.roots, x, layer.residual_cfg, _mtp_root_tap(tap)) if streams else x
        post = ops.mtp_norm(ops, last, mw.shared_head_norm, eps)
        row = one.sheet.leave(ops, mw, post) if one.sheet.leave else post
        tap("mtp_h_nextn", Hidden(x, row).of(self.own_rows[1]))
        tap("mtp_shared_head_norm", post)
        logits = _no_logits()
        if n_logits:
            last_rows, scale = post[len(tokens) - n_logits :], self.config.logit_scale
            logits = scaled_head(ops, mw.shared_head_head, last_rows, n_draft_vocab, scale)
            tap("mtp_result_output", logits)
        if self.is_checked and not is_finite(post, logits):
            again = partial(_mtp_again, self, tokens, hidden, head, n_logits)
            raise not_finite(self, "MTP head", again, head_weights(self))
        return Output(logits, Hidden(x, row), tuple(span.routings), tuple(span.selections))

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int32]:
        tokens = np.asarray(ids, np.int64)
        if tokens.size == 0:
            raise ValueError("a batch without tokens")
        if tokens.min() < 0 or tokens.max() >= self.n_vocab:
            bad = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise MtprefError(f"token id {bad} is not in the vocabulary, expected 0 .. {self.n_vocab - 1}")
        return tokens.astype(np.int32)


def refuse_assistant(model: Model, who: str) -> None:
    """Errors   MtprefError for a head that reads its target's cells, where that is not followed. who: the verb"""
    if model.has_assistant:
        raise MtprefError(
            f"{who}: the head is an assistant, which reads its target's cells as they are when it drafts, and is not "
            "followed here; expected a head of cells of its own, or the target alone"
        )


def _trunk_again(model: Model, ids: NDArray[np.int32], n_logits: int, tap: Tap) -> None:
    replace(model, is_checked=False).trunk(model.new_state(len(ids)), ids.tolist(), n_logits=n_logits, tap=tap)


def _mtp_again(model: Model, ids: NDArray[np.int32], hidden: F32, head: int, n_logits: int, tap: Tap) -> None:
    first, unchecked = model.recipe.contract.first_pos, replace(model, is_checked=False)
    unchecked.mtp(model.new_state(first + len(ids)), ids.tolist(), hidden, first, head=head, n_logits=n_logits, tap=tap)


def _no_logits() -> F32:
    return np.empty((0, 0), np.float32)


# cb() names of the MTP graph that are not the trunk's name with "mtp_" in front. (llama.cpp gives two tensors of its
# MTP graph the trunk's very names, h_nextn and result_output; here they are mtp_h_nextn and mtp_result_output.)
MTP_NAMES = {"attn_output": "attn_out", "gate_reshaped": "gate"}


def _layer_tap(tap: Tap, il: int, cb: Mapping[str, str]) -> LayerTap:
    """The tap of a trunk layer. cb: the architecture's own names (Architecture.cb)"""
    return tap if tap is discard else lambda name, array: tap(f"{cb.get(name, name)}-{il}", array)


def _mtp_root_tap(tap: Tap) -> LayerTap:
    """The tap of what stands after the MTP block."""
    return tap if tap is discard else lambda name, array: tap(f"mtp_{name}", array)


def _mtp_tap(tap: Tap, il: int, cb: Mapping[str, str]) -> LayerTap:
    """The tap of the MTP block."""
    names = MTP_NAMES | dict(cb)
    return tap if tap is discard else lambda name, array: tap(f"mtp_{names.get(name, name)}-{il}", array)
