"""What a log of llama.cpp holds, once it is read: runs, rounds, draft steps, candidates."""

from dataclasses import dataclass, field

UNTOLD = -1  # an id that the log does not tell


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the best tokens of a draft step; p is the softmax over the ten best, to three decimals."""

    id: int
    p: float
    piece: str


@dataclass(slots=True)
class Step:
    """One draft step; `pos` counts from 0 within the round."""

    pos: int
    candidates: list[Candidate] = field(default_factory=list)


@dataclass
class Round:
    """One draft and its verdict. `id_last` is the correction or bonus token.

    is_replayed  the draft was accepted in part, and what stays was run again with the correction in the batch (S52):
                 id_last is the token after the correction, which the log does not tell
    """

    steps: list[Step]
    n_accepted: int
    n_draft: int
    id_last: int
    is_replayed: bool = False

    @property
    def draft(self) -> list[int]:
        """The ids that were verified: the best candidates of the first n_draft steps."""
        return [step.candidates[0].id for step in self.steps[: self.n_draft]]

    @property
    def emitted(self) -> list[int]:
        """The ids this round added to the text: accepted draft tokens, then the target's own token. Of a round that was
        replayed: accepted ones, UNTOLD for the correction, and the token after it."""
        return [*self.draft[: self.n_accepted], *[UNTOLD] * self.is_replayed, self.id_last]


@dataclass
class Request:
    """One request of llama-server: the task in its slot.

    opening   the token that was sampled from the whole prompt; it opens the first round. None: its line is not there
    is_first  nothing ran in its slot before it. llama.cpp pairs the first token of a later prompt with the hidden row
              that the request before left behind
    n_cached  prompt tokens that were taken from the state of an earlier request
    is_ended  the line that says so is there
    """

    slot: int
    task: int
    opening: int | None = None
    is_first: bool = False
    n_cached: int | None = None
    is_ended: bool = False


@dataclass
class LlamaLog:
    """A parsed run: rounds in order, the summary and statistics lines as the log gives them.

    settings    n_max, n_min, p_min as the drafter printed them when it was made (p_min to two decimals)
    unfinished  the steps of a round whose accept line the log does not hold
    n_prompt    tokens of the prompt, where the log says so
    temp        the temperature, where the log says so
    request     of llama-server: which one, None for llama-speculative-simple
    damage      why the rounds cannot be relied on, "" where they can
    """

    rounds: list[Round] = field(default_factory=list)
    settings: dict[str, float] = field(default_factory=dict)
    summary: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    calls: tuple[int, int, int] | None = None
    rates: list[float] = field(default_factory=list)
    unfinished: list[Step] = field(default_factory=list)
    n_prompt: int | None = None
    temp: float | None = None
    request: Request | None = None
    damage: str = ""

    @property
    def n_partial(self) -> int:
        """Rounds that were rolled back by a replay with the correction."""
        return sum(r.is_replayed for r in self.rounds)

    @property
    def ids(self) -> list[int]:
        """All generated ids in order, UNTOLD where the log does not tell one."""
        return [i for r in self.rounds for i in r.emitted]

    @property
    def is_complete(self) -> bool:
        """Whether its own count of tokens is there and agrees: a log may lose its tail."""
        if self.request is not None:
            return self.request.is_ended
        return self.summary.get("n_predict") == len(self.ids)

    @property
    def name(self) -> str:
        """A request by its slot and task, and how many tokens its prompt has; "" where nothing is known."""
        where = f"slot {self.request.slot} task {self.request.task}" if self.request else ""
        return ", ".join(filter(None, [where, "" if self.n_prompt is None else f"prompt of {self.n_prompt} tokens"]))


@dataclass
class Run:
    """One recorded run: its header (model, prompt, prompt_ids, n_predict, n_max, p_min, ...) and its log."""

    header: dict[str, str]
    log: LlamaLog
