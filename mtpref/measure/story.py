"""The story of llama.cpp PR #20700: what stale rows, cooldown, roll back and a trimmed head do to acceptance and speed.

Owns the runs behind the table, its counts and its ceilings. Everything is counted, nothing is timed, so the same model
gives the same story everywhere. How it is printed stands in mtpref/front/cli/story.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import Decoder, Drafter, InlineDrafter, Options, PolicyConfig, ScriptedDrafter, Statistics
from mtpref.engine.model import Model
from mtpref.spec.state import ModelState

PROMPTS = (
    "The pie was gone.",
    "On market day",
    "A letter came for",
    "The river had risen in the night.",
    "It had snowed all night.",
    "Ruby wanted a drum.",
    "On the hill stood",
    "The fog lay over the harbour",
    "Eva and Hugo built a snowman.",
    "It had rained all night, and",
    "The cat was sitting on the roof.",
    '"Who took my hat?" asked the baker.',
)
CYCLE = 12  # ceilings are run over a multiple of this many tokens: every pattern below ends with its cycle
FAST_MTP_ROWS = 32768  # what the PR keeps of 248320
GRAM = 4

DECODINGS = ("one-phase", "no roll back", "two-phase")
ROWS = (("last", 0), ("last", 1), ("right", 0))  # which row a draft is read from, and rounds of cooldown


@dataclass(frozen=True)
class Setup:
    """decoding       one-phase (the draft is verified in the opening token's own pass, and rolled back), no roll back
                   (the same, but recurrent state keeps the rejected token) or two-phase
    row, cooldown  the row that the draft is read from, and the rounds of silence after a rejection
    n_draft_vocab  rows of a trimmed head, None: the full head
    """

    decoding: str
    row: str
    cooldown: int
    n_draft_vocab: int | None


@dataclass(frozen=True)
class Line:
    """Counts over all prompts.

    fresh, stale  (accepted, drafted) of drafts read from the row of a kept token, and of a rejected one
    new           (accepted, drafted) where the target's token ends a 4-gram that the text has not had before
    n_same        prompts whose text is that of plain decoding; differs_at: the first token that is not
    """

    setup: Setup
    n_tokens: int
    n_passes: int
    fresh: tuple[int, int]
    stale: tuple[int, int]
    new: tuple[int, int]
    n_same: int
    differs_at: int | None

    @property
    def n_accepted(self) -> int:
        return self.fresh[0] + self.stale[0]

    @property
    def n_drafted(self) -> int:
        return self.fresh[1] + self.stale[1]


@dataclass(frozen=True)
class Ceiling:
    """A drafter that knows the text: a cycle of `rule[1]` passes that gives `rule[0]` tokens, and what a run needed."""

    what: str
    arithmetic: str
    rule: tuple[int, int]
    n_tokens: int
    n_passes: int


@dataclass(frozen=True)
class Story:
    """n_nameable: tokens of the plain texts that the trimmed head can name. n_repeated of n_grams: 4-token sequences
    of the plain texts that occurred earlier in the same text; text that loops is easy to draft.
    """

    model: str
    numerics: str
    n_predict: int
    n_prompts: int
    n_vocab: int
    n_draft_vocab: int
    n_tokens: int
    n_nameable: int
    n_repeated: int
    n_grams: int
    lines: tuple[Line, ...]
    ceilings: tuple[Ceiling, ...]


def tell(model: Model, prompts: Sequence[str], n_predict: int) -> Story:
    """Run every setup on every prompt.

    Errors   MtprefError without an MTP head, for an empty prompt, or for fewer than 12 tokens
    """
    if not model.has_mtp:
        raise MtprefError("story: the file has no MTP head, expected one; try: mtpref inspect FILE")
    if n_predict < CYCLE:
        raise MtprefError(f"`n_predict`: {n_predict} is out of range, expected {CYCLE} or more")
    prompt_ids = [model.vocab.encode(prompt, limit=model.config.n_ctx_train) for prompt in prompts]
    options = Options(n_predict=n_predict, spec_type="none")
    plain = [_run(model, ids, options, None).ids for ids in prompt_ids]
    n_draft_vocab = min(FAST_MTP_ROWS, max(1, model.n_head_rows // 2))
    nameable = set(range(n_draft_vocab) if model.d2t is None else model.d2t[:n_draft_vocab].tolist())
    setups = [
        Setup(decoding, row, cooldown, n)
        for n in (None, n_draft_vocab)
        for decoding in DECODINGS
        for row, cooldown in ROWS
    ]
    tokens = [token for ids in plain for token in ids]
    grams = [_grams(ids) for ids in plain]
    return Story(
        model=model.config.name,
        numerics=model.recipe.numerics,
        n_predict=n_predict,
        n_prompts=len(prompts),
        n_vocab=model.n_vocab,
        n_draft_vocab=n_draft_vocab,
        n_tokens=len(tokens),
        n_nameable=sum(token in nameable for token in tokens),
        n_repeated=sum(len(of_text) - len(set(of_text)) for of_text in grams),
        n_grams=sum(len(of_text) for of_text in grams),
        lines=tuple(run_setup(model, setup, prompt_ids, plain, n_predict) for setup in setups),
        ceilings=_ceilings(model, prompt_ids, plain),
    )


# ------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class _Draft:
    is_stale: bool
    is_new: bool
    n_accepted: int


@dataclass(frozen=True)
class _Outcome:
    ids: list[int]
    statistics: Statistics
    drafts: list[_Draft]


def _run(model: Model, prompt_ids: list[int], options: Options, drafter: Drafter | None) -> _Outcome:
    decoder = Decoder(model, model.new_state(), options, drafter)
    text, drafts, grams = list(prompt_ids), list[_Draft](), set(_grams(prompt_ids))
    is_stale = False
    for event in decoder.run(prompt_ids):
        if isinstance(event, Drafted):
            is_stale = isinstance(drafter, InlineDrafter) and drafter.is_stale
        elif isinstance(event, Verified) and event.draft_ids:
            gram = (*text[1 - GRAM :], event.target_ids[0])
            drafts.append(_Draft(is_stale, gram not in grams, event.n_accepted))
        elif isinstance(event, Token):
            text.append(event.id)
            grams.add(tuple(text[-GRAM:]))
    return _Outcome(text[len(prompt_ids) :], decoder.statistics, drafts)


def _grams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]


def _count(runs: Sequence[_Outcome], is_counted: Callable[[_Draft], bool]) -> tuple[int, int]:
    """(accepted, drafted)."""
    counted = [draft.n_accepted for run in runs for draft in run.drafts if is_counted(draft)]
    return sum(counted), len(counted)


def run_setup(model: Model, setup: Setup, prompts: list[list[int]], plain: list[list[int]], n_predict: int) -> Line:
    """Run one setup on every prompt; plain: the ids that plain decoding gives."""
    if setup.decoding == "no roll back":
        steps = model.recipe.steps
        model = replace(model, recipe=model.recipe.with_steps(choose_plane=_without_recurrent(steps.choose_plane)))
    rollback = "two-phase" if setup.decoding == "two-phase" else "snapshot"
    policy = PolicyConfig(n_max=1, cooldown=setup.cooldown)
    options = Options(n_predict=n_predict, policy=policy, rollback=rollback)
    runs = [
        _run(model, ids, options, InlineDrafter(model, Statistics(), setup.n_draft_vocab, row=setup.row))
        for ids in prompts
    ]
    at = [_first_difference(run.ids, ids) for run, ids in zip(runs, plain, strict=True)]
    return Line(
        setup=setup,
        n_tokens=sum(len(run.ids) for run in runs),
        n_passes=sum(run.statistics.n_trunk_passes for run in runs),
        fresh=_count(runs, lambda draft: not draft.is_stale),
        stale=_count(runs, lambda draft: draft.is_stale),
        new=_count(runs, lambda draft: draft.is_new),
        n_same=at.count(None),
        differs_at=min((i for i in at if i is not None), default=None),
    )


def _without_recurrent(step: Callable[..., None]) -> Callable[..., None]:
    """The roll back of an engine that cuts KV cells only: recurrent state keeps the rejected tokens."""

    def rolled_back(state: ModelState, n_drop: int) -> None:
        kept = [
            [(spec.name, layer.arrays[spec.name]) for spec in layer.specs if not spec.positional]
            for layer in state.layers
        ]
        step(state, n_drop)
        for layer, arrays in zip(state.layers, kept, strict=True):
            layer.arrays.update(arrays)

    return rolled_back


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --------------------------------------------------------------------------------------- the ceilings

# What is drafted, the arithmetic of a cycle (tokens, passes), the script of a cycle, cooldown, roll back.
_CEILINGS: tuple[tuple[str, str, tuple[int, int], list[list[bool]], int, str], ...] = (
    ("every draft accepted, one-phase", "2 tokens / 1 pass", (2, 1), [[True]], 0, "snapshot"),
    (
        "every draft accepted, every other round silent",
        "(2 + 1) tokens / 2 passes",
        (3, 2),
        [[True], []],
        0,
        "snapshot",
    ),
    (
        "every other draft accepted, cooldown after each rejection",
        "(2 + 1 + 1) tokens / 3 passes",
        (4, 3),
        [[True], [False]],
        1,
        "snapshot",
    ),
    ("no draft accepted, cooldown after each rejection", "(1 + 1) tokens / 2 passes", (2, 2), [[False]], 1, "snapshot"),
    ("every draft accepted, two-phase", "2 tokens / 2 passes", (2, 2), [[True]], 0, "two-phase"),
)


def _ceilings(model: Model, prompts: list[list[int]], plain: list[list[int]]) -> tuple[Ceiling, ...]:
    """Each pattern run with a drafter that knows the text. Empty where every text ends within 12 tokens."""
    prompt, text = max(zip(prompts, plain, strict=True), key=lambda pair: len(pair[1]))
    n = len(text) // CYCLE * CYCLE
    if n == 0:
        return ()
    found = []
    for what, arithmetic, rule, cycle, cooldown, rollback in _CEILINGS:
        options = Options(n_predict=n, policy=PolicyConfig(n_max=1, cooldown=cooldown), rollback=rollback)
        drafter = ScriptedDrafter(text, cycle * n, len(prompt), model.n_vocab)
        run = _run(model, prompt, options, drafter)
        found.append(Ceiling(what, arithmetic, rule, len(run.ids), run.statistics.n_trunk_passes))
    return tuple(found)


# ------------------------------------------------------------------------------------------- the laws


def speed_with_cooldown(acceptance: float) -> float:
    """Tokens per pass, one-phase, one round of cooldown after each rejection: 2 / (2 - a).

    A draft gives 2 tokens in 1 pass (accepted), or 1 token in its own pass and 1 in the silent one (rejected): always
    2 tokens, in a + 2 (1 - a) = 2 - a passes. a = 1/2 gives 4/3.
    """
    return 2 / (2 - acceptance)


def stale_acceptance(fresh: float, stale: float) -> float:
    """Acceptance over all drafts where rows stay stale until a draft is accepted: s / (1 - p + s).

    Each rejection makes the next draft stale and each acceptance the next one fresh, so a share A of the drafts, the
    acceptance itself, is fresh: A = p A + s (1 - A).
    """
    return stale / (1 - fresh + stale) if stale or fresh < 1 else 1.0


def stale_from(overall: float, fresh: float) -> float:
    """The stale drafts' own acceptance s that `stale_acceptance` needs to give `overall`: A (1 - p) / (1 - A)."""
    return overall * (1 - fresh) / (1 - overall)


def to_json(story: Story) -> dict[str, Any]:
    """The story as JSON-able values."""
    return {"schema": "mtpref-story-1", **asdict(story)}
