"""What the head would draft, at every position of the model's own continuations.

Owns prompts, continuations and the record of drafts. The record is made by the loop itself: plain decoding with the
head kept warm, and at every position a draft as long as any setting asks for, which is written down and not proposed.
So a draft here is the very draft that a run under any setting makes there. It must not know what a setting is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.base.events import Token
from mtpref.engine.decode import Decoder, DraftLength, MtpDrafter, Options, SamplingConfig, Statistics
from mtpref.engine.decode.drafters import Draft, Drafter
from mtpref.engine.decode.sampling import Sampler
from mtpref.engine.model import Model
from mtpref.engine.model.model import Output
from mtpref.files.draft_vocab import check_draft_ids, read_draft_ids
from mtpref.measure.experts import Choices, choices
from mtpref.measure.probe import Text
from mtpref.spec import fixed_probability
from mtpref.spec.state import ModelState

MIN_PROMPT = 2
TRIM_FROM, TRIM_TO = 65536, 32768
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trim:
    """A head vocabulary. name: `full`, `first N` or a file's name; head: the model with it; flag: for generate."""

    name: str
    head: Model
    flag: str = ""

    @property
    def n_rows(self) -> int:
        return self.head.n_head_rows


@dataclass(frozen=True)
class Drafted:
    """Per position, a whole draft: ids, and their probability among the ten best in units of 2**-32."""

    ids: list[list[int]] = field(default_factory=list)
    p: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model makes of it.

    ids      the generated tokens; n_before of them came with the prompt, before any round
    drafts   Trim.name -> the draft after each of ids[n_before - 1 ..] (-1: the prompt's last token), one a round
    budget   tokens that might have been generated; fewer were where the text ended
    experts  what each token that opened a round chose, (T, n_layer, n_used); None for a model without experts
    """

    label: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    n_before: int
    budget: int
    eog_ids: frozenset[int]
    drafts: dict[str, Drafted]
    experts: Choices | None = None


def default_trims(n_rows: int) -> list[str]:
    """The whole head, and a quarter of its rows, or 32768 of 65536 and more."""
    return ["full", str(TRIM_TO if n_rows >= TRIM_FROM else max(1, n_rows // 4))]


def trims_of(model: Model, wanted: Sequence[str]) -> list[Trim]:
    """Head vocabularies by name: `full`, a number of first rows, or a file of ids.

    Errors   MtprefError as `--spec-draft-vocab`
    """
    trims = []
    for word in wanted:
        if word == "full":
            trims.append(Trim("full", model))
            continue
        if word.isascii() and word.isdigit():
            n, n_rows = int(word[:18]), model.n_head_rows
            if not 1 <= n <= n_rows:
                raise MtprefError(f"`trims`: {word[:40]} is out of range, expected 1 .. {n_rows}, the head's rows")
            rows = range(n) if model.d2t is None else model.d2t[:n].tolist()
            trims.append(Trim(f"first {n}", model.with_draft_ids(tuple(rows)), f"--spec-draft-vocab {n}"))
            continue
        ids = check_draft_ids(read_draft_ids(word, model.n_vocab), model.n_vocab, word)
        trims.append(Trim(Path(word).name, model.with_draft_ids(ids), f"--spec-draft-vocab {word}"))
    names = [trim.name for trim in trims]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MtprefError(f"`trims`: {twice!r} is given twice, expected each head vocabulary once")
    return trims


def prompts_of(texts: Sequence[Text], n_prompts: int, n_tokens: int) -> list[tuple[str, tuple[int, ...]]]:
    """(label, ids) of prompts of n_tokens, evenly spread over each text, about as many from each.

    Errors   MtprefError where the texts have no prompt of two tokens
    """
    prompts = []
    for i, text in enumerate(texts):
        n_own = n_prompts // len(texts) + (i < n_prompts % len(texts))
        n = min(n_tokens, len(text.ids))
        n_own = min(n_own, len(text.ids) // n) if n >= MIN_PROMPT else 0
        room = len(text.ids) - n
        starts = [room * k // max(1, n_own - 1) for k in range(n_own)]
        prompts += [(text.label, text.ids[start : start + n]) for start in starts]
    if not prompts:
        raise MtprefError("plan: no prompt of 2 tokens or more, expected one; give `a longer text`")
    return prompts


class _WatchedTrunk:
    """The model's trunk; remembers what the tokens of passes of one token chose."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._chosen: list[Choices] = []

    def __call__(self, state: ModelState, ids: Sequence[int], *, n_logits: int, keep: int = 1) -> Output:
        out = self._model.trunk(state, ids, n_logits=n_logits, keep=keep)
        chosen = choices(out.routings) if len(ids) == 1 else None
        if chosen is not None:
            self._chosen.append(chosen)
        return out

    @property
    def experts(self) -> Choices | None:
        return np.concatenate(self._chosen) if self._chosen else None


class _Recorder(Drafter):
    """Drafts with every head, writes it down, and proposes nothing."""

    reads_head = True

    def __init__(self, trims: Sequence[Trim], n_max: int, sampler: Sampler) -> None:
        self._heads = [(trim.name, MtpDrafter(trim.head, Statistics(), None, sampler)) for trim in trims]
        self._n_max = n_max
        self.drafts = {trim.name: Drafted() for trim in trims}

    def draft(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        for name, drafter in self._heads:
            n = min(self._n_max, state.n_ctx - state.n_past - 1)
            found = drafter.draft(state, id_last, DraftLength.of(n))
            self.drafts[name].ids.append(list(found.ids))
            self.drafts[name].p.append([fixed_probability(step.p[0]) for step in found.steps if step.p])
        return Draft()


def record(
    model: Model,
    prompts: Sequence[tuple[str, tuple[int, ...]]],
    trims: Sequence[Trim],
    n_max: int,
    n_predict: int,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
) -> list[Continuation]:
    """Every prompt continued, with a draft of n_max tokens at every position.

    progress   called with (tokens done, tokens in all)
    Errors     MtprefError for `residual`, where a run's text depends on its drafts
    """
    sampling = sampling or SamplingConfig()
    if sampling.draws_drafts:
        raise MtprefError(
            "plan: `SamplingConfig.accept` residual draws its drafts, so that each setting writes a text "
            "of its own; use `SamplingConfig.accept` match, or greedy decoding"
        )
    out = []
    options = Options(n_predict=n_predict, spec_type="none", sampling=sampling)
    for i, (label, prompt) in enumerate(prompts):
        recorder = _Recorder(trims, n_max, Sampler(model, sampling))
        state = model.new_state(len(prompt) + n_predict + n_max + 1)
        trunk = _WatchedTrunk(model)
        decoder, ids = Decoder(model, state, options, recorder, trunk=trunk), []
        n_before = 0
        for event in decoder.run(list(prompt)):
            if isinstance(event, Token):
                ids.append(event.id)
                n_before += not any(drafted.ids for drafted in recorder.drafts.values())
                if progress is not None:
                    progress(i * n_predict + len(ids), len(prompts) * n_predict)
        eog = frozenset(model.vocab.eog_ids)
        out.append(Continuation(label, prompt, tuple(ids), n_before, n_predict, eog, recorder.drafts, trunk.experts))
    return out
