"""Predictions for a dump: the tensors of one pass over the prompt, under a hypothesis.

Owns the sharing of the trunk's pass between hypotheses that only touch the head. It must not know the port.
"""

from collections.abc import Callable, Collection, Iterator

from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, pair, run_heads
from mtpref.engine.model.model import Output
from mtpref.faults.diagnose.hypotheses import Hypothesis, shares_trunk

Sink = Callable[[str, NDArray], None]


def run_trunk(model: Model, ids: list[int], sink: Sink, wants_logits: bool) -> Output:
    """The trunk over the whole prompt from an empty state; logits at every position where they are wanted."""
    state = model.new_state(len(ids))
    return model.trunk(state, ids, n_logits=len(ids) if wants_logits else 0, tap=sink)


def run_head(model: Model, ids: list[int], output: Output, sink: Sink, wants_logits: bool) -> None:
    """The head over the same tokens, fed with the trunk's rows as the contract says, from an empty state."""
    state = model.new_state(len(ids))
    hidden = model.recipe.steps.target_hidden(output.hidden, model.recipe.contract)
    run_heads(model, state, pair(model, ids, hidden, 0, state.pending_h), with_logits=wants_logits, tap=sink)


class Predictor:
    """Tensors of hypotheses over one prompt, of these names alone, each shown once to a sink, in order of execution."""

    def __init__(self, base: Model, ids: list[int], names: Collection[str]) -> None:
        self.base, self.ids, self.names = base, ids, names
        self._shared: Output | None = None
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
            output = self._shared
        else:
            output = run_trunk(model, self.ids, only, self._trunk_logits)
        if output is None:
            raise MtprefError("diagnose: no pass of the trunk")
        run_head(model, self.ids, output, only, self._head_logits)

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

    output = run_trunk(model, short, note, True)
    run_head(model, short, output, note, True)
    yield from dict.fromkeys(names)
