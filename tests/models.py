"""What the tests of loop, state and seam share: micro models, and plain decoding in its most obvious form."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.events import Event, RunEnded, Token
from mtpref.engine.decode import Decoder, Options, PolicyConfig, SamplingConfig
from mtpref.engine.decode.drafters import Drafter
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.spec.contract import MtpContract, parse_contract
from mtpref.spec.state import ModelState

MICRO = Path(__file__).parent / "data" / "micro"
ACCEPTS = (30, 60, 90)
# Contracts that differ in every field at least once, and all of whose runs leave a state that plain decoding can reach.
CONTRACTS = (
    "llama.cpp",
    "training",
    "hidden=pre",
    "chain=pre",
    "concat=he",
    "first=none",
    "first=zero_embd,pos_offset=-1",
    "prime=none",
    "prompt_end=whole",
    "training,prompt_end=whole,hidden=pre",
    "first=none,prime=none",
    "new_prompt=stale",
)


@lru_cache(maxsize=64)
def micro(
    accept: int = 60, numerics: str = "ggml", contract: str = "llama.cpp", use_kernels: bool | None = None
) -> Model:
    """The committed micro model whose first draft token is accepted in about `accept` percent of the rounds."""
    recipe = make_recipe(numerics, parse_contract(contract), use_kernels=use_kernels)
    return load(MICRO / f"micro-{accept}-q8_0.gguf", recipe)


class StubVocab:
    """A model's vocabulary with other end-of-generation ids."""

    def __init__(self, n_vocab: int, eog_ids: frozenset[int]) -> None:
        self.n_vocab, self.eog_ids = n_vocab, eog_ids

    def piece(self, id: int) -> bytes:
        return b"%x" % id


def with_eog(model: Model, *eog_ids: int) -> Model:
    return replace(model, vocab=StubVocab(model.n_vocab, frozenset(eog_ids)))


def without_head(model: Model) -> Model:
    return replace(model, heads=())


def prompt_of(n_tokens: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, 256, n_tokens)]


def cells_as_float(cells: NDArray, kv_type: str) -> NDArray:
    """KV cells as numbers."""
    if kv_type == "F16":
        return cells.view(np.float16)
    return (cells.astype(np.uint32) << 16).view(np.float32) if kv_type == "BF16" else cells


def has_nan(state: ModelState) -> bool:
    """Whether anything that counts as state is NaN: KV cells up to their length, recurrent arrays, pending hidden."""
    layers = [*state.layers, *(head.layer for head in state.heads)]
    kv_types = {f"{s.name}_l{il}": s.kv_type for il, layer in enumerate(layers) for s in layer.specs}
    return any(np.isnan(cells_as_float(a, kv_types.get(name, "F32"))).any() for name, a in state.live_arrays())


def trunk_digest(state: ModelState) -> bytes:
    """The bits of the trunk alone."""
    first = len(state.layers)
    head = {f"{spec.name}_l{il}" for il, one in enumerate(state.heads, first) for spec in one.layer.specs} | {
        "pending_h"
    }
    return b"".join(array.tobytes() for name, array in state.live_arrays() if name not in head)


@dataclass
class Plain:
    """Greedy decoding one token at a time, by nothing but the model's two forward passes.

    logits[p], hidden[p]  of position p;  digests[n], trunks[n]  of the state that holds n positions
    """

    ids: list[int]
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    hidden: list[NDArray[np.float32]] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    trunks: dict[int, bytes] = field(default_factory=dict)


def decode_plainly(model: Model, prompt: list[int], n_predict: int, *, warm_head: bool, n_ctx: int = 4096) -> Plain:
    """Prompt and n_predict tokens behind it. warm_head: the head sees every token with the hidden row before it."""
    contract: MtpContract = model.recipe.contract
    state = model.new_state(n_ctx)
    run = Plain(list(prompt))
    n_unprimed = 0
    if contract.prime == "none":
        n_unprimed = len(prompt) - (contract.prompt_end == "hold")
    run.digests[0], run.trunks[0] = state.digest(), trunk_digest(state)
    for pos in range(len(prompt) + n_predict - 1):
        out = model.trunk(state, [run.ids[pos]], n_logits=1)
        if warm_head and pos >= max(contract.first_pos, n_unprimed):
            for i, head in enumerate(model.heads):
                if not head.sheet.reads_target:
                    model.mtp(state, [run.ids[pos]], state.pending_h[None], pos, head=i, n_logits=0)
        state.pending_h = getattr(out.hidden, contract.hidden)[0].copy()
        run.logits.append(out.logits[0])
        run.hidden.append(state.pending_h)
        run.digests[pos + 1], run.trunks[pos + 1] = state.digest(), trunk_digest(state)
        if pos >= len(prompt) - 1:
            run.ids.append(int(np.flatnonzero(out.logits[0] == out.logits[0].max())[0]))
    return run


@dataclass
class Outcome:
    """A finished run of the decoder."""

    ids: list[int]
    sources: list[str]
    reason: str
    events: list[Event]
    decoder: Decoder

    @property
    def statistics(self) -> dict:
        return self.decoder.statistics.to_json()


def run_decoder(
    model: Model,
    prompt: list[int],
    n_predict: int = 24,
    *,
    state: ModelState | None = None,
    drafter: Drafter | None = None,
    n_ctx: int = 4096,
    spec_type: str = "draft-mtp",
    rollback: str = "snapshot",
    n_draft_vocab: int | None = None,
    n_batch: int = 512,
    sampling: SamplingConfig | None = None,
    stop: tuple[str, ...] = (),
    draft_ids: tuple[int, ...] | None = None,
    **policy: int,
) -> Outcome:
    """Run the loop to its end on a poisoned state."""
    sampling = sampling or SamplingConfig()
    options = Options(
        n_predict=n_predict,
        spec_type=spec_type,
        policy=PolicyConfig(**policy),
        rollback=rollback,
        n_draft_vocab=n_draft_vocab,
        n_batch=n_batch,
        sampling=sampling,
        stop=stop,
        draft_ids=draft_ids,
    )
    decoder = Decoder(model, state or model.new_state(n_ctx, poison=True), options, drafter)
    events = list(decoder.run(prompt))
    tokens = [event for event in events if isinstance(event, Token)]
    ended = events[-1]
    assert isinstance(ended, RunEnded)
    return Outcome([t.id for t in tokens], [t.source for t in tokens], ended.reason, events, decoder)
