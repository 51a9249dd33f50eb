"""mtpref as a port of the cases that need a whole model: the trunk, the MTP block, its chain.

Owns the loading of a case's model and the taps that become outputs. `Port` is the one object that answers every level.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.contract import parse_contract
from mtpref.errors import MtprefError
from mtpref.golden import loops
from mtpref.golden.format import Case, Suite
from mtpref.golden.port import Inputs, Outputs, answer
from mtpref.model import Model, load
from mtpref.recipe import Recipe, make_recipe


class Taken(dict[str, NDArray]):
    """A tap that keeps copies, in the order of execution; a name that comes again is extended along the tokens."""

    def __call__(self, name: str, array: NDArray) -> None:
        new = np.array(array, np.float32)
        self[name] = np.concatenate([self[name], new]) if name in self else new


@dataclass
class Port:
    """Answers cases of every level.

    root           the folder of the vectors, where models are
    use_kernels    False: the readable specification
    change_recipe, change_model   applied to every recipe and model (an injected fault, say)
    """

    root: Path
    use_kernels: bool | None = None
    change_recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    change_model: Callable[[Model], Model] = lambda model: model
    _models: dict[tuple[str, ...], Model] = field(default_factory=dict)

    def __call__(self, suite: Suite, case: Case, inputs: Inputs) -> Outputs | None:
        """Errors  MtprefError for a model that is missing or does not fit"""
        run = MODEL_ANSWERS.get(suite.op)
        if run is not None:
            return run(self.model(case), case.params, inputs)
        recipe = self.change_recipe(self._recipe(case))
        decide = loops.MODELLESS_ANSWERS.get(suite.op)
        return answer(recipe, suite.op, case, inputs) if decide is None else decide(recipe, case.params, inputs)

    def model(self, case: Case) -> Model:
        """The case's model: file, numerics, KV type and contract are its parameters. Kept for the next case."""
        params = case.params
        kv_type = str(params.get("kv_type", "F32"))
        key = (str(params["model"]), case.numerics, kv_type, str(params.get("contract", "")))
        if key not in self._models:
            path = (self.root / key[0]).resolve()
            if not path.is_relative_to(self.root.resolve()):
                raise MtprefError(f"golden case {case.id}: model {key[0]!r} is outside the folder of the vectors")
            recipe = self.change_recipe(self._recipe(case))
            self._models[key] = self.change_model(load(path, recipe, kv_type=kv_type, kv_type_draft=kv_type))
        return self._models[key]

    def _recipe(self, case: Case) -> Recipe:
        contract = parse_contract(str(case.params.get("contract", "llama.cpp")))
        return make_recipe(case.numerics, contract, use_kernels=self.use_kernels)


def _ids(inputs: Inputs, name: str = "tokens") -> list[int]:
    return [int(i) for i in inputs[name].values()]


def _trunk(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The prompt in batches of the sizes given; every tensor of every token."""
    tokens, taken = _ids(inputs), Taken()
    _run_trunk(model, tokens, params["batches"], taken)
    return dict(taken)


def _run_trunk(model: Model, tokens: Sequence[int], batches: Sequence[int], taken: Taken) -> tuple[Any, NDArray]:
    state, at, rows = model.new_state(max(len(tokens), 1)), 0, []
    for size in batches:
        out = model.trunk(state, tokens[at : at + size], n_logits=size, tap=taken)
        rows.append(model.recipe.steps.target_hidden(out.hidden, model.recipe.contract))
        at += size
    return state, np.concatenate(rows)


def _mtp(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The MTP block over pairs (token, hidden row) from position `first_pos` on, on an empty cache."""
    tokens, taken = _ids(inputs), Taken()
    hidden = np.asarray(inputs["hidden"].values(), np.float32)
    state = model.new_state(int(params["first_pos"]) + len(tokens) + 1)
    model.mtp(state, tokens, hidden, int(params["first_pos"]), n_logits=len(tokens), tap=taken)
    return dict(taken)


def _mtp_chain(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """A draft of n tokens behind a prompt whose last token is decided but not yet run by the trunk."""
    tokens, steps, contract = _ids(inputs), model.recipe.steps, model.recipe.contract
    prompt, id_last = tokens[:-1], tokens[-1]
    state, rows = _run_trunk(model, prompt, params["batches"], Taken())
    first = contract.first_pos
    if contract.prime == "prompt" and len(prompt) > first:
        paired = steps.pair_hidden(rows, state.pending_h)
        model.mtp(state, prompt[first:], paired[first:], first, n_logits=0)
    token, hidden = id_last, rows[-1:]
    ids, p, states = [], [], []
    for pos in range(len(prompt), len(prompt) + int(params["n"])):
        out = model.mtp(state, [token], hidden, pos, n_logits=1, n_draft_vocab=params.get("n_draft_vocab"))
        candidates, probabilities = model.recipe.ops.top_candidates(out.logits[0])
        token, hidden = int(candidates[0]), steps.chain_hidden(out.hidden, contract)
        ids.append(token)
        p.append(np.asarray(probabilities, np.float32))
        states.append(hidden[0])
    return {"ids": ids, "p": np.stack(p), "chain": np.stack(states)}


MODEL_ANSWERS: dict[str, Callable[[Model, Mapping[str, Any], Inputs], Outputs]] = {
    "trunk": _trunk,
    "mtp": _mtp,
    "mtp_chain": _mtp_chain,
    **loops.MODEL_ANSWERS,
}
