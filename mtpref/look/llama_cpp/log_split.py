"""Events of a log put together: one run after another, and requests of llama-server side by side in their slots."""

import re
from collections.abc import Callable

from mtpref.base.errors import MtprefError
from mtpref.look.llama_cpp.log_events import counts, events, seq_id, times
from mtpref.look.llama_cpp.rounds import Candidate, LlamaLog, Request, Round, Step

JITTER_S = 0.01  # lines of one program are in the order of their times but for this
Event = re.Match[str]


class Splitter:
    """Reads a text once. `split` gives its runs in the order of their beginnings.

    A program's own first lines, a time that falls and rounds after a count of tokens begin another run. A request
    begins where its slot takes it up; what a log holds of a request without its beginning is kept, with `damage` said.
    """

    def __init__(self) -> None:
        self.logs: list[LlamaLog] = []
        self._simple = LlamaLog()
        self._slots: dict[int, LlamaLog] = {}
        self._used: set[int] = set()
        self._steps: dict[int, list[Step]] = {}
        self._due: dict[int, list[int]] = {}
        self._settings: dict[str, float] = {}
        self._temp: float | None = None
        self._replay: tuple[int, int] | None = None  # accepted, drafted: of a batch that is being run again
        self._time = 0.0
        self._is_server = False

    def split(self, text: str) -> list[LlamaLog]:
        """Divide a log into runs.

        Errors  MtprefError where lines of llama-speculative-simple contradict each other
        """
        readers: dict[str, Callable[[Event], None]] = {
            "id_last": self._accepted, "n_tried": self._partial, "p_min": self._set, "start": self._start,
            "n_prompt": self._encoded, "value": self._summary, "statistics": self._counts, "us": self._timed,
            "temp": self._tempered, "is_child": self._launch, "n_task": self._prompt, "n_cached": self._cached,
            "n_drafted": self._added, "stop": self._stop, "shift": self._shift,
        }  # fmt: skip
        for match, piece in events(text):
            kind = match.lastgroup or ""
            if kind == "p":
                self._candidate(match, piece)
            elif kind == "next":
                self._token(match)
            else:
                readers[kind](match)
        self._end_program()
        return self.logs or [LlamaLog(settings=self._settings)]

    # ------------------------------------------------------------------------------------ program

    def _start(self, match: Event) -> None:
        self._end_program()
        self._settings = {}

    def _end_program(self) -> None:
        """What is open ends here: the next line is another program's."""
        self._end_simple()
        for slot, log in self._slots.items():
            log.unfinished = self._steps.get(slot, [])
        self._slots, self._used, self._steps, self._due = {}, set(), {}, {}
        self._is_server, self._time, self._temp = False, 0.0, None

    def _end_simple(self) -> None:
        log = self._simple
        if not self._is_server:
            log.unfinished, self._replay = self._steps.pop(0, []), None
        if not self._is_server and (log.rounds or log.unfinished or log.summary or log.statistics):
            self.logs.append(log)
        self._simple = LlamaLog(settings=self._settings)

    def _timed(self, match: Event) -> None:
        now = next((t for t in times(match) if t >= self._time - JITTER_S), None)
        if now is None:
            self._end_program()
        self._time = min(times(match)) if now is None else now

    def _set(self, match: Event) -> None:
        if self._simple.rounds or self._steps.get(0):
            self._end_program()
        self._settings = {"n_max": int(match["n_max"]), "n_min": int(match["n_min"]), "p_min": float(match["p_min"])}
        self._simple.settings = self._settings

    def _tempered(self, match: Event) -> None:
        self._temp = float(match["temp"])

    # --------------------------------------------------------------------------------- both programs

    def _candidate(self, match: Event, piece: str) -> None:
        seq = seq_id(match)
        if not self._is_server and "n_predict" in self._simple.summary:
            self._end_simple()
        steps = self._steps.setdefault(seq, [])
        rank, pos = int(match["rank"]), int(match["pos"])
        if rank == 0:
            steps.append(Step(pos))
        if not steps or rank != len(steps[-1].candidates) or pos != len(steps) - 1:
            self._hole(seq, f"candidate {rank} of pos {pos} comes out of order")
            return
        if "nan" in match["p"]:
            self._not_a_number(seq, rank, pos)
            return
        steps[-1].candidates.append(Candidate(int(match["id"]), float(match["p"]), piece))

    def _not_a_number(self, seq: int, rank: int, pos: int) -> None:
        """There is no best candidate among NaN: such a draft says nothing, and what the trunk does with it little."""
        what = f"the p of candidate {rank} of pos {pos} is nan: the head's logits are NaN"
        if not self._is_server:
            raise MtprefError(
                f"log: round {len(self._simple.rounds)}: {what}, expected numbers; an assistant's are NaN in llama.cpp "
                "after a prompt of one token, which leaves it no cell: use a longer prompt"
            )
        if seq in self._slots:
            self._damage(seq, f"round {len(self._slots[seq].rounds)}: {what}")
        self._steps[seq] = []

    def _hole(self, seq: int, what: str) -> None:
        """Lines are missing: a request is of no use any more, a log of llama-speculative-simple is refused."""
        if self._is_server:
            if seq in self._slots:
                self._damage(seq, f"round {len(self._slots[seq].rounds)}: {what}: lines are missing")
            self._steps[seq] = []
            return
        raise MtprefError(
            f"log: round {len(self._simple.rounds)}: {what}; expected the log of llama-speculative-simple or "
            "llama-server -lv 5 --spec-type draft-mtp with no line missing"
        )

    def _damage(self, slot: int, what: str) -> None:
        self._slots[slot].damage = self._slots[slot].damage or what

    # -------------------------------------------------------------------------- llama-speculative-simple

    def _accepted(self, match: Event) -> None:
        if "n_predict" in self._simple.summary:
            self._end_simple()
        steps = self._steps.pop(0, [])
        found = Round(steps, int(match["n_accepted"]), int(match["n_draft"]), int(match["id_last"]))
        if self._replay is not None:
            found = self._replayed(found, *self._replay)
        if not found.n_accepted <= found.n_draft <= len(steps):
            self._hole(0, f"accepted {found.n_accepted}/{found.n_draft} of {len(steps)} draft steps")
        self._simple.rounds.append(found)

    def _partial(self, match: Event) -> None:
        """A batch that is run again: of a draft, or of what was run again already, where a near tie fell otherwise."""
        n_kept, n_tried = int(match["n_kept"]), int(match["n_tried"])
        n_drafted = n_tried if self._replay is None else self._replay[1]
        if not n_kept < n_tried or (self._replay is not None and n_tried != self._replay[0] + 1):
            self._hole(0, f"accepted {n_kept} of {n_tried} in part")
        self._replay = (n_kept, n_drafted)

    def _replayed(self, told: Round, n_kept: int, n_drafted: int) -> Round:
        """The round whose accept line tells the batch that was run again: what was kept and the correction."""
        self._replay = None
        if not told.n_accepted == told.n_draft == n_kept + 1:
            self._hole(0, f"accepted {told.n_accepted}/{told.n_draft} of {n_kept + 1} that were run again")
        return Round(told.steps, n_kept, n_drafted, told.id_last, is_replayed=True)

    def _encoded(self, match: Event) -> None:
        self._simple.n_prompt = int(match["n_prompt"])

    def _summary(self, match: Event) -> None:
        self._simple.summary["n_" + match["count"]] = int(match["value"])

    def _counts(self, match: Event) -> None:
        if not self._is_server:
            log = self._simple
            log.statistics, log.calls, log.rates = counts(match["statistics"])

    # --------------------------------------------------------------------------------------- llama-server

    def _log_of(self, match: Event) -> LlamaLog:
        """The request that a slot's line is about."""
        slot, task = int(match["slot"]), int(match["task"])
        log = self._slots.get(slot)
        if log is None or log.request is None or log.request.task != task:
            if log is not None:
                log.unfinished = self._steps.pop(slot, [])
            log = LlamaLog(settings=self._settings, request=Request(slot, task))
            log.damage = "its beginning is not in the log"
            self._slots[slot], self._is_server = log, True
            self.logs.append(log)
        return log

    def _launch(self, match: Event) -> None:
        log, slot = self._log_of(match), int(match["slot"])
        assert log.request is not None
        log.request.is_first = slot not in self._used
        log.temp, log.damage = self._temp, "" if match["is_child"] == "0" else "its prompt was run in another slot"
        self._used.add(slot)
        self._steps[slot], self._due[slot] = [], []

    def _prompt(self, match: Event) -> None:
        self._log_of(match).n_prompt = int(match["n_task"])

    def _cached(self, match: Event) -> None:
        request = self._log_of(match).request
        if request is not None and request.n_cached is None:
            request.n_cached = int(match["n_cached"])

    def _added(self, match: Event) -> None:
        """What a round accepted, before its tokens are told one by one."""
        log, slot = self._log_of(match), int(match["slot"])
        steps = self._steps.pop(slot, [])
        found = Round(steps, int(match["n_ids"]) - 1, int(match["n_drafted"]), int(match["sampled"]))
        if not 0 <= found.n_accepted <= found.n_draft <= len(steps):
            self._hole(slot, f"accepted {found.n_accepted}/{found.n_draft} of {len(steps)} draft steps")
            return
        log.rounds.append(found)
        self._due[slot] = found.emitted

    def _token(self, match: Event) -> None:
        """A token of the round above it, the one that opens the first round, or one of a round without a draft."""
        log, slot, id = self._log_of(match), int(match["slot"]), int(match["next"])
        assert log.request is not None
        if int(match["n_gen"]) == 1:
            log.request.opening = id
        elif not self._due.get(slot):
            steps = self._steps.pop(slot, [])
            if (
                steps
                and not self._settings.get("n_min")
                and _p_of(steps[0]) > self._settings.get("p_min", 0.0) - 0.0005
            ):
                self._hole(slot, "a draft without its verdict")
            log.rounds.append(Round(steps, 0, 0, id))
        elif self._due[slot].pop(0) != id:
            self._hole(slot, f"token {id} is not the one that was accepted")

    def _stop(self, match: Event) -> None:
        log, slot = self._log_of(match), int(match["slot"])
        assert log.request is not None
        log.request.is_ended = True
        log.unfinished = self._steps.pop(slot, [])
        del self._slots[slot]

    def _shift(self, match: Event) -> None:
        self._log_of(match)
        self._damage(int(match["slot"]), "its context was shifted or restored while it ran")


def _p_of(step: Step) -> float:
    return step.candidates[0].p
