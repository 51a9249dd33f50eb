"""The model: a trunk and perhaps an MTP head over one set of weights.

Owns the wiring of layers and the advance of model state. It never decides anything: which tokens to run,
what to keep and what to throw away is the caller's (mtpref/decode). Loading stands in load.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.config import ModelConfig
from mtpref.draft_vocab import check_draft_ids
from mtpref.errors import MtprefError
from mtpref.model.architectures import Architecture
from mtpref.model.finite import head_weights, is_finite, not_finite, trunk_weights
from mtpref.model.kinds import LayerKind, Span
from mtpref.ops import LayerTap, discard
from mtpref.recipe import Recipe
from mtpref.state import LayerState, ModelState
from mtpref.steps import Hidden
from mtpref.vocab import Vocab
from mtpref.weights import Weights

F32 = NDArray[np.float32]
Tap = Callable[[str, NDArray], None]


@dataclass(frozen=True)
class Layer:
    """One mixer with its hyper-parameters."""

    kind: LayerKind
    cfg: Any


@dataclass(frozen=True)
class Output:
    """What a pass of the trunk or of the MTP block gives.

    logits  (R, n_vocab, or the size of a trimmed head) for the rows asked for
    hidden  all T rows, before and after the final norm or the head norm
    """

    logits: F32
    hidden: Hidden


@dataclass(frozen=True)
class Model:
    """Weights, their meaning and the recipe that runs them.

    notes   lines that a user should see (tensors that no one reads, a missing head)
    kv      the file's keys
    mtp_status  where the head is: "none" (there is none), "own" (in the model's file), "file" (in a stand-alone file)
                or "off" (there, but not loaded)
    is_checked  whether a pass whose rows or logits are not finite ends in NotFiniteError (finite.py)
    """

    config: ModelConfig
    arch: Architecture
    layers: tuple[Layer, ...]
    ffn_cfg: Any
    mtp_layer: Layer | None
    weights: Weights
    recipe: Recipe
    vocab: Vocab
    kv_type: str = "F16"
    kv_type_draft: str = "F16"
    notes: tuple[str, ...] = ()
    kv: Mapping[str, Any] = field(default_factory=dict)
    mtp_status: str = "own"
    is_checked: bool = True

    @property
    def n_vocab(self) -> int:
        return self.weights.token_embd.n_out

    @property
    def has_mtp(self) -> bool:
        return self.weights.mtp is not None

    @property
    def d2t(self) -> NDArray[np.int64] | None:
        """The token id of each row of a trimmed MTP head, ascending; None: a row's id is its number."""
        return self.weights.mtp.d2t if self.weights.mtp else None

    @property
    def n_head_rows(self) -> int:
        """Ids that the MTP head can name: all, or those of a trimmed head."""
        return self.weights.mtp.shared_head_head.n_out if self.weights.mtp else self.n_vocab

    def with_draft_ids(self, ids: Sequence[int] | None) -> "Model":
        """The same model with an MTP head that can name these ids alone (None: as it is). The trunk keeps them all.

        Errors   MtprefError for ids that are no list of the head's ids
        """
        mtp = self.weights.mtp
        if ids is None or mtp is None:
            return self
        mtp = mtp.trimmed(check_draft_ids(ids, self.n_vocab, "draft_ids"))
        if self.recipe.pack is not None:
            mtp = replace(mtp, shared_head_head=self.recipe.pack([mtp.shared_head_head])[0])
        return replace(self, weights=replace(self.weights, mtp=mtp))

    def new_state(self, n_ctx: int = 0, *, poison: bool = False) -> ModelState:
        """An empty sequence of at most n_ctx positions (0: the model's own context length)."""
        mtp = self.mtp_layer.kind.state(self.mtp_layer.cfg, self.kv_type_draft) if self.mtp_layer else ()
        specs = [layer.kind.state(layer.cfg, self.kv_type) for layer in self.layers]
        return ModelState(specs, mtp, self.config.n_embd, n_ctx or self.config.n_ctx_train, poison=poison)

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
        span = Span(ops, pos, state.n_past, min(keep, len(tokens)))
        x = ops.get_rows(w.token_embd, tokens)
        tap("model.input_embed", x)
        for il, (layer, lw) in enumerate(zip(self.layers, w.layers, strict=True)):
            x = self._block(layer, lw, x, state.layers[il], span, _layer_tap(tap, il))
        state.n_past += len(tokens)
        post = ops.rms_norm(x, w.output_norm, self.config.rms_eps)
        tap("h_nextn", post)
        tap("result_norm", post)
        logits = _no_logits()
        if n_logits:
            logits = ops.head(ops, w.output, post[len(tokens) - n_logits :], None)
            tap("result_output", logits)
        if self.is_checked and not is_finite(post, logits):
            raise not_finite(self, "trunk", partial(_trunk_again, self, tokens, n_logits), trunk_weights(self))
        return Output(logits, Hidden(x, post))

    def mtp(
        self,
        state: ModelState,
        ids: Sequence[int],
        hidden: F32,
        first_pos: int,
        *,
        n_logits: int,
        n_draft_vocab: int | None = None,
        tap: Tap = discard,
    ) -> Output:
        """Run T pairs (token x_p, hidden h_{p-1}) through the MTP block, at positions first_pos, first_pos
        + 1, ...

        Shapes   hidden: (T, n_embd); n_logits: the last so many rows get logits; n_draft_vocab: only the
                 first so many ids do (FastMTP)
        Errors   MtprefError without a head; ValueError where positions would leave a hole
        """
        mw = self.weights.mtp
        if mw is None or self.mtp_layer is None:
            raise MtprefError("the model has no MTP head; use --spec-type none")
        steps, contract, eps = self.recipe.steps, self.recipe.contract, self.config.rms_eps
        steps.place_mtp(state, first_pos)
        tokens, ops = self._checked(ids), self.recipe.head_ops
        state.reserve_mtp(len(tokens))
        tap_il = _mtp_tap(tap, self.config.n_layer)

        # EMBED
        embd = steps.mtp_embedding(ops.get_rows(mw.embed_tokens, tokens), first_pos, contract)
        tap_il("tok_embd", embd)
        x = ops.mtp_input(ops, mw, embd, hidden, eps, contract.concat, tap_il)

        # BLOCK
        span = Span(ops, steps.mtp_positions(first_pos, len(tokens), contract), state.n_mtp, 1)
        x = self._block(self.mtp_layer, mw.block, x, state.mtp, span, tap_il)
        state.n_mtp += len(tokens)

        # HEAD
        post = ops.mtp_norm(ops, x, mw.shared_head_norm, eps)
        tap("mtp_h_nextn", post)
        tap("mtp_shared_head_norm", post)
        logits = _no_logits()
        if n_logits:
            logits = ops.head(ops, mw.shared_head_head, post[len(tokens) - n_logits :], n_draft_vocab)
            tap("mtp_result_output", logits)
        if self.is_checked and not is_finite(post, logits):
            again = partial(_mtp_again, self, tokens, hidden, n_logits)
            raise not_finite(self, "MTP head", again, head_weights(self))
        return Output(logits, Hidden(x, post))

    def _block(self, layer: Layer, w: dict[str, Any], x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
        """x += mixer(norm(x)); x += ffn(norm(x))."""
        rms_norm, eps = span.ops.rms_norm, self.config.rms_eps
        h = rms_norm(x, w[self.arch.mixer_norm], eps)
        tap("attn_norm", h)
        x = x + layer.kind.forward(w, layer.cfg, h, state, span, tap)
        tap("attn_residual", x)
        h = rms_norm(x, w[self.arch.ffn_norm], eps)
        tap("attn_post_norm", h)
        x = x + self.arch.ffn.forward(w, self.ffn_cfg, h, state, span, tap)
        tap("post_ffn", x)
        tap("l_out", x)
        return x

    def _checked(self, ids: Sequence[int]) -> NDArray[np.int32]:
        tokens = np.asarray(ids, np.int64)
        if tokens.size == 0:
            raise ValueError("a batch without tokens")
        if tokens.min() < 0 or tokens.max() >= self.n_vocab:
            bad = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise MtprefError(f"token id {bad} is not in the vocabulary, expected 0 .. {self.n_vocab - 1}")
        return tokens.astype(np.int32)


def _trunk_again(model: Model, ids: NDArray[np.int32], n_logits: int, tap: Tap) -> None:
    replace(model, is_checked=False).trunk(model.new_state(len(ids)), ids.tolist(), n_logits=n_logits, tap=tap)


def _mtp_again(model: Model, ids: NDArray[np.int32], hidden: F32, n_logits: int, tap: Tap) -> None:
    first, unchecked = model.recipe.contract.first_pos, replace(model, is_checked=False)
    unchecked.mtp(model.new_state(first + len(ids)), ids.tolist(), hidden, first, n_logits=n_logits, tap=tap)


def _no_logits() -> F32:
    return np.empty((0, 0), np.float32)


# cb() names of the MTP graph that are not the trunk's name with "mtp_" in front. (llama.cpp gives two tensors of its
# MTP graph the trunk's very names, h_nextn and result_output; here they are mtp_h_nextn and mtp_result_output.)
MTP_NAMES = {"attn_output": "attn_out", "gate_reshaped": "gate"}


def _layer_tap(tap: Tap, il: int) -> LayerTap:
    """The tap of a trunk layer."""
    return tap if tap is discard else lambda name, array: tap(f"{name}-{il}", array)


def _mtp_tap(tap: Tap, il: int) -> LayerTap:
    """The tap of the MTP block."""
    return tap if tap is discard else lambda name, array: tap(f"mtp_{MTP_NAMES.get(name, name)}-{il}", array)
