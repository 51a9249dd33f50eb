"""mtpref as a port of the cases that need a whole model: the trunk, the MTP block, its chain.

Owns the loading of a case's model and what is run of it. `Port` is the one object that answers every level.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.engine.decode.drafters import late_rows
from mtpref.engine.model import Model, Pairs, load, pair, run_heads
from mtpref.engine.recipe import Recipe, make_recipe
from mtpref.golden import loops
from mtpref.golden.derive import NAMES, derive
from mtpref.golden.format import Case, Suite, UnfitError
from mtpref.golden.inputs import Inputs, Outputs
from mtpref.golden.port import answer
from mtpref.golden.taps import Tap, tap_of
from mtpref.spec.contract import parse_contract
from mtpref.spec.ops import discard
from mtpref.spec.steps import is_chain

GIVEN = "given"  # the model of a case that is not in the folder
# What the arithmetic of an operation raises where parameters are missing, or shapes do not go together.
UNFIT = (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass
class Port:
    """Answers cases of every level.

    root           the folder of the vectors, where models are
    use_kernels    False: the readable specification
    given          the file of cases whose model is "given"
    change_recipe  applied to the recipe of every case without a model, change_model to every model (a fault, say)
    """

    root: Path
    use_kernels: bool | None = None
    change_recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    change_model: Callable[[Model], Model] = lambda model: model
    given: Path | None = None
    _made: tempfile.TemporaryDirectory[str] | None = None
    _models: dict[tuple[str, ...], Model] = field(default_factory=dict)

    def __call__(self, suite: Suite, case: Case, inputs: Inputs) -> Outputs | None:
        """Errors  MtprefError for a model that is missing or does not fit; UnfitError for a case that does not fit its
        operation, or needs an architecture that this version does not have"""
        try:
            return self._answer(suite, case, inputs)
        except (UnfitError, UnsupportedError) as error:
            raise UnfitError(f"golden case {case.id}: {error}") from error
        except UNFIT as error:
            why = f"{type(error).__name__}: {error}"
            raise UnfitError(
                f"golden case {case.id}: its parameters or inputs do not fit operation {suite.op} "
                f"({why[:200]}); fetch the folder again"
            ) from error

    def _answer(self, suite: Suite, case: Case, inputs: Inputs) -> Outputs | None:
        run = MODEL_ANSWERS.get(suite.op)
        if run is not None:
            wanted = [expected.name for expected in case.expected]
            return run(self.model(case), {**case.params, "wanted": wanted}, inputs)
        recipe = self.change_recipe(self._recipe(case))
        decide = loops.MODELLESS_ANSWERS.get(suite.op)
        return answer(recipe, suite.op, case, inputs) if decide is None else decide(recipe, case.params, inputs)

    def model(self, case: Case) -> Model:
        """The case's model: its file and that of its head or assistant, numerics, KV type and contract are its
        parameters. Kept for the next case."""
        params = case.params
        kv_type, draft = str(params.get("kv_type", "F32")), str(params.get("model_draft", ""))
        key = (str(params["model"]), draft, case.numerics, kv_type, str(params.get("contract", "")))
        if key not in self._models:
            kv_type_draft = str(params.get("kv_type_draft", kv_type))
            path, recipe = self._path(case, key[0]), self._recipe(case)
            model_draft = self._path(case, draft) if draft else None
            model = load(path, recipe, kv_type=kv_type, kv_type_draft=kv_type_draft, model_draft=model_draft)
            self._models[key] = self.change_model(model)
        return self._models[key]

    def _path(self, case: Case, name: str) -> Path:
        if name == GIVEN:
            if self.given is None:
                raise MtprefError(f"golden case {case.id}: its model is not in the folder, expected it with `model`")
            return self.given
        if name in NAMES:
            return self._packaged(name)
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise MtprefError(f"golden case {case.id}: model {name!r} is outside the folder of the vectors")
        return path

    def _packaged(self, name: str) -> Path:
        """The tiny model of the package, or a quantisation of it, which is made in a temporary folder."""
        tiny = Path(str(files("mtpref") / "data" / "tiny.gguf"))
        if name == "tiny":
            return tiny
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix="mtpref-golden-")
        target = Path(self._made.name) / f"{name}.gguf"
        derive(name, tiny, target)
        return target

    def _recipe(self, case: Case) -> Recipe:
        contract = parse_contract(str(case.params.get("contract", "llama.cpp")))
        return make_recipe(case.numerics, contract, use_kernels=self.use_kernels)


def _ids(inputs: Inputs, name: str = "tokens") -> list[int]:
    return [int(i) for i in inputs[name].values()]


def _trunk(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The prompt in batches of the sizes given; every tensor of every token."""
    tap = tap_of(params["wanted"])
    _run_trunk(model, _ids(inputs), params["batches"], tap)
    return dict(tap.kept)


def _run_trunk(
    model: Model, tokens: Sequence[int], batches: Sequence[int], tap: Callable[[str, NDArray], None] = discard
) -> tuple[Any, NDArray]:
    state, at, rows = model.new_state(max(len(tokens), 1)), 0, []
    for size in batches:
        out = model.trunk(state, tokens[at : at + size], n_logits=size, tap=tap)
        rows.append(model.recipe.steps.target_hidden(out.hidden, model.recipe.contract))
        at += size
    return state, np.concatenate(rows)


def run_prompt(model: Model, tokens: Sequence[int], batches: Sequence[int], tap: Tap) -> None:
    """A prompt through trunk and head, batch by batch; the head sees the pairs of the contract."""
    state, recipe = model.new_state(max(len(tokens), 1)), model.recipe
    for size in batches:
        pos0 = tap.pos0 = state.n_past
        chunk = tokens[pos0 : pos0 + size]
        out = model.trunk(state, chunk, n_logits=len(chunk), tap=tap)
        rows = recipe.steps.target_hidden(out.hidden, recipe.contract)
        pairs = pair(model, chunk, rows, pos0, state.pending_h)
        tap.pos0 = pairs.first
        run_heads(model, state, pairs, with_logits=True, tap=tap)
        state.pending_h = rows[-1].copy()


def _prompt(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    tap = tap_of(params["wanted"], params.get("rows"))
    run_prompt(model, _ids(inputs), params["batches"], tap)
    return dict(tap.kept)


def _mtp(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """The MTP block, of several that of number `head`, over pairs (token, hidden row) from position `first_pos` on, on
    an empty cache."""
    tokens, tap = _ids(inputs), tap_of(params["wanted"])
    hidden = np.asarray(inputs["hidden"].values(), np.float32)
    state = model.new_state(int(params["first_pos"]) + len(tokens) + 1)
    head, n = int(params.get("head", 0)), len(tokens)
    model.mtp(state, tokens, hidden, int(params["first_pos"]), n_logits=n, head=head, tap=tap)
    return dict(tap.kept)


def _assistant(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """Steps of a head that reads the target's cells, each a pair (token, hidden row) of its own, at the position after
    the prompt, which the trunk has run."""
    tap, (state, _) = tap_of(params["wanted"]), _run_trunk(model, _ids(inputs), params["batches"])
    hidden = np.asarray(inputs["hidden"].values(), np.float32)
    ids, steps, pos0 = _ids(inputs, "draft"), model.recipe.steps, state.n_past
    read = steps.cells_to_read(state, ids[0])
    for step, (token, row) in enumerate(zip(ids, hidden, strict=True)):
        model.mtp(read, [token], row[None], steps.draft_position(pos0, step, 1, True), n_logits=1, tap=tap)
    return dict(tap.kept)


def _mtp_chain(model: Model, params: Mapping[str, Any], inputs: Inputs) -> Outputs:
    """A draft of n tokens after a prompt whose last token is decided but not yet run by the trunk."""
    tokens, steps, contract = _ids(inputs), model.recipe.steps, model.recipe.contract
    prompt, id_last = tokens[:-1], tokens[-1]
    state, rows = _run_trunk(model, prompt, params["batches"])
    first = contract.first_pos
    if contract.prime == "prompt" and len(prompt) > first:
        paired = steps.pair_hidden(rows, state.pending_h)
        run_heads(model, state, Pairs(prompt[first:], paired[first:], first))
    row_ids, hidden, pos0, n_heads = [id_last], rows[-1:], len(prompt), len(model.heads)
    chained, reads = is_chain(n_heads, contract), model.has_assistant
    read = steps.cells_to_read(state, id_last) if reads else state
    ids, p, states = [], [], []
    for step in range(int(params["n"])):
        head = steps.chain_head(step, n_heads, contract)
        if head is None:
            break
        if chained:
            steps.trim_mtp(state, pos0)
        pos, n_rows = steps.draft_position(pos0, step, len(row_ids), reads), params.get("n_draft_vocab")
        out = model.mtp(read, row_ids, hidden, pos, n_logits=1, head=head, n_draft_vocab=n_rows)
        candidates, probabilities = model.recipe.ops.top_candidates(out.logits[0])
        token = int(candidates[0])
        own = steps.chain_hidden(out.hidden, contract)
        row = steps.chain_row(own, contract)
        row_ids, hidden = steps.chain_input(row_ids, hidden, token, row, chained)
        if chained:
            hidden = late_rows(model, state, step + 1, hidden, own)
        ids.append(token)
        p.append(np.asarray(probabilities, np.float32))
        states.append(row[0])
    return {"ids": ids, "p": np.stack(p), "chain": np.stack(states)}


MODEL_ANSWERS: dict[str, Callable[[Model, Mapping[str, Any], Inputs], Outputs]] = {
    "trunk": _trunk,
    "prompt": _prompt,
    "mtp": _mtp,
    "assistant": _assistant,
    "mtp_chain": _mtp_chain,
    **loops.MODEL_ANSWERS,
}
