"""How far what is drawn with a fault is from the target's distribution, at one prompt, over many seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mtpref import spec
from mtpref.base.events import Token
from mtpref.engine.decode import Decoder, Options, PolicyConfig, SamplingConfig
from mtpref.engine.model import Model, Output
from mtpref.faults import Fault, inject
from mtpref.look.dump import record
from mtpref.spec.state import Checkpoint, ModelState
from mtpref.spec.steps import Hidden


class Prepared(Model):
    """The model at one prompt with its rows computed beforehand, so that the same round over many seeds costs only its
    draws: a draft of one token, verified in two phases, so that nothing rolls back."""

    real: Model
    state: ModelState
    saved: Checkpoint
    n: int
    known: dict[int, Any]

    def __init__(self, model: Model, prompt: list[int]) -> None:
        for f in fields(Model):
            object.__setattr__(self, f.name, getattr(model, f.name))
        state = model.new_state()
        rows = model.trunk(state, prompt, n_logits=1)
        draft = record(model, prompt, "^mtp_result_output$").tensors["mtp_result_output"]
        for name, value in (("real", model), ("state", state), ("saved", state.checkpoint()), ("n", len(prompt)),
                            ("known", {-1: rows.logits, -2: draft[-1:]})):  # fmt: skip
            object.__setattr__(self, name, value)

    def after(self, id: int) -> Any:
        """The trunk's logits after the prompt (-1) or after one more token; -2: the head's after the prompt."""
        if id not in self.known:
            self.known[id] = self.real.trunk(self.state, [id], n_logits=1).logits
            self.state.restore(self.saved)
        return self.known[id]

    def trunk(self, state: ModelState, ids: Sequence[int], **how: Any) -> Output:
        state.n_past += len(ids)
        hidden = np.zeros((len(ids), self.config.n_embd), np.float32)
        logits = self.after(int(ids[-1]) if state.n_past > self.n else -1) if how["n_logits"] else hidden[:0]
        return Output(logits, Hidden(hidden, hidden))

    def mtp(self, state: ModelState, ids: Sequence[int], hidden: Any, first_pos: int, **how: Any) -> Output:
        state.heads[0].start, state.heads[0].n_cells = 0, first_pos + len(ids)
        return Output(self.after(-2), Hidden(hidden, hidden))


def measure(
    healthy: Model, fault: Fault | None, text: str, policy: PolicyConfig, sampling: SamplingConfig, n_seeds: int
) -> dict[str, Any]:
    """Total variation between what is drawn over n_seeds seeds and the target's own distribution, for the token of a
    row that has a draft and for the token after it (where the first is the draft that is accepted most)."""
    prompt = healthy.vocab.encode(text)
    model = Prepared(healthy, prompt)
    if fault is not None:
        object.__setattr__(model, "recipe", inject(healthy, fault).recipe)
    firsts: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in range(n_seeds):
        options = Options(n_predict=2, policy=policy, rollback="two-phase", sampling=replace(sampling, seed=seed))
        tokens = [e for e in Decoder(model, healthy.new_state(), options).run(prompt) if isinstance(e, Token)]
        firsts[tokens[0].id] += 1
        accepted[tokens[0].id] += tokens[0].source == "draft"
        if len(tokens) > 1:
            pairs[tokens[0].id, tokens[1].id] += 1
    commonest = min(accepted, key=lambda id: (-accepted[id], -firsts[id], id))
    seconds = Counter({second: n for (first, second), n in pairs.items() if first == commonest})
    return {
        "first": total_variation(firsts, spec.filtered(model.after(-1)[0], sampling.chain)),
        "second": total_variation(seconds, spec.filtered(model.after(commonest)[0], sampling.chain)),
        "draws": [firsts.total(), seconds.total()],
    }


def total_variation(drawn: Counter[int], target: spec.Distribution) -> float:
    n, p = drawn.total(), dict(zip(target.ids.tolist(), target.p.tolist(), strict=True))
    return round(sum(abs(drawn[id] / n - p.get(id, 0.0)) for id in sorted({*drawn, *p})) / 2, 4)
