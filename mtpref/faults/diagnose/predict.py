"""Predictions for a dump: the tensors of one pass over the prompt, under a hypothesis.

Owns the sharing of the trunk's pass between hypotheses that only touch the head. It must not know the port.
"""

from collections.abc import Callable, Collection, Iterator

from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, first_step, pair, run_heads
from mtpref.engine.model.model import Output
from mtpref.faults.diagnose.hypotheses import Hypothesis, shares_trunk
from mtpref.spec.state import ModelState

Sink = Callable[[str, NDArray], None]
Passed = tuple[Output, ModelState]  # what the trunk's pass over a prompt gives and leaves


def run_trunk(model: Model, ids: list[int], sink: Sink, wants_logits: bool) -> Passed:
    """The trunk over the whole prompt from an empty state; logits at every position where they are wanted."""
    state = model.new_state(len(ids))
    keep = 2 if model.has_assistant else 1  # it reads the state before the last token
    return model.trunk(state, ids, n_logits=len(ids) if wants_logits else 0, keep=keep, tap=sink), state


def run_head(model: Model, ids: list[int], passed: Passed, sink: Sink, wants_logits: bool) -> None:
    """The head over the same tokens, fed with the trunk's rows as the contract says, from an empty state. An assistant
    has none to catch up with: the first step of a draft from the prompt's last token."""
    output, left = passed
    hidden = model.recipe.steps.target_hidden(output.hidden, model.recipe.contract)
    if not model.has_assistant:
        state = model.new_state(len(ids))
        run_heads(model, state, pair(model, ids, hidden, 0, state.pending_h), with_logits=wants_logits, tap=sink)
    elif len(ids) > 1:
        before = left.branch()
        before.choose_plane(1)
        first_step(model, before, ids[-1], hidden[-2], with_logits=wants_logits, tap=sink)


class Predictor:
    """Tensors of hypotheses over one prompt, of these names alone, each shown once to a sink, in order of execution."""

    def __init__(self, base: Model, ids: list[int], names: Collection[str]) -> None:
        self.base, self.ids, self.names = base, ids, names
        self._shared: Passed | None = None
        self._trunk_logits = "result_output" in names
        self._head_logits = "mtp_result_output" in names

    def trunk(self, sink: Sink) -> None:
        """The healthy trunk; it is kept for hypotheses that do not touch it."""
        self._shared = run_trunk(self.base, self.ids, self._only(sink), self._trunk_logits)

    def shares(self, hypothesis: Hypothesis) -> bool:
        """Whether the hypothesis has the healthy trunk's tensors: then only the head is run."""
        return shares_trunk(hypothesis.apply(self.base), self.base)

    def run(self, hypothesis: Hypothesis, sink: Sink) -> None:
        """Show the sink what differs from the healthy trunk's pass: the head's tensors, or all of them.

        Errors  MtprefError where the hypothesis is impossible in this model
        """
        model = hypothesis.apply(self.base)
        only = self._only(sink)
        if shares_trunk(model, self.base):
            if self._shared is None:
                self.trunk(lambda name, array: None)
            passed = self._shared
        else:
            passed = run_trunk(model, self.ids, only, self._trunk_logits)
        if passed is None:
            raise MtprefError("diagnose: no pass of the trunk")
        run_head(model, self.ids, passed, only, self._head_logits)

    def _only(self, sink: Sink) -> Sink:
        names = self.names

        def tap(name: str, array: NDArray) -> None:
            if name in names:
                sink(name, array)

        return tap


def tensor_names(model: Model, ids: list[int]) -> Iterator[str]:
    """Every name that a dump of this model can have, in order of execution: of a pass over two tokens, or over as many
    as leave a row of each kind, where rows stand for several."""
    names: list[str] = []
    n = max(2, *(spec.stride for layer in model.layers for spec in layer.state(model.kv_type)))
    short = ids[:n] if len(ids) > 1 else ids * 2

    def note(name: str, array: NDArray) -> None:
        names.append(name)

    passed = run_trunk(model, short, note, True)
    run_head(model, short, passed, note, True)
    yield from dict.fromkeys(names)
