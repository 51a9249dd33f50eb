"""Dumps: any tensor of any layer, trunk and head, written to a GGUF under llama.cpp's cb() names.

Owns what is run for a dump (one pass over the whole prompt, trunk first, then the head with its paired rows) and the
file's keys. mtpref/look/compare reads it.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, first_step, run_both
from mtpref.engine.model.finite import FirstBad
from mtpref.files.gguf import write_gguf

SCHEMA = "mtpref-dump-1"
KEY = "mtpref.dump"


class Recorder:
    """A tap that keeps copies of the tensors whose name matches (`re.search`), in the order of execution."""

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise MtprefError(f"`tensors`: {pattern!r} is no regular expression ({error})") from None
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self.first_bad = FirstBad()  # whether its name matches or not
        self.seen: list[str] = []

    def __call__(self, name: str, array: NDArray) -> None:
        self.seen.append(name)
        self.first_bad(name, array)
        if self._pattern.search(name):
            self.tensors[name] = np.array(array, np.float32)


def record(model: Model, prompt_ids: list[int], pattern: str) -> Recorder:
    """Run the prompt once, all of it, with logits at every position; then the head over the same tokens.

    The head sees what the contract feeds it: position p takes (x_p, h_{p-1}), the first one the zero row.
    Results that are not finite are recorded as they are; `Recorder.first_bad` names the first.
    Errors  MtprefError for an empty prompt, or a pattern that matches nothing (the names are listed)
    """
    model = replace(model, is_checked=False)
    if not prompt_ids:
        raise MtprefError("prompt: it has no tokens, expected at least one; give `a text`")
    recorder = Recorder(pattern)
    state = model.new_state(max(len(prompt_ids), 1))
    run_both(model, state, prompt_ids, with_logits=True, tap=recorder)
    if model.has_assistant and len(prompt_ids) > 1:
        _run_assistant(model, prompt_ids, recorder)
    if not recorder.tensors:
        kinds = sorted({re.sub(r"-\d+$", "-N", name) for name in recorder.seen})
        raise MtprefError(f"`tensors`: {pattern!r} matches none of {', '.join(kinds)}")
    return recorder


def _run_assistant(model: Model, prompt_ids: list[int], tap: Recorder) -> None:
    """The first step of a draft after the prompt: its last token, over the cells of those before it."""
    state = model.new_state(len(prompt_ids))
    out = model.trunk(state, prompt_ids[:-1], n_logits=0)
    rows = model.recipe.steps.target_hidden(out.hidden, model.recipe.contract)
    first_step(model, state, prompt_ids[-1], rows[-1], with_logits=True, tap=tap)


def write_dump(path: str | Path, model: Model, prompt_ids: list[int], tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write tensors (float32, NumPy shape reversed in the file as GGUF does) and the prompt's ids."""
    kv = [
        ("general.architecture", "mtpref-dump", "str"),
        (f"{KEY}.schema", SCHEMA, "str"),
        (f"{KEY}.model_arch", model.config.arch, "str"),
        (f"{KEY}.numerics", model.recipe.numerics, "str"),
        (f"{KEY}.contract", model.contract_name, "str"),
        (f"{KEY}.contract_fields", [f"{k}={v}" for k, v in asdict(model.recipe.contract).items()], "arr:str"),
        (f"{KEY}.order", list(tensors), "arr:str"),
    ]
    ids = np.asarray(prompt_ids, np.int32)
    items: list[tuple[str, str, tuple[int, ...], NDArray]] = [("tokens", "I32", ids.shape, ids)]
    items += [(name, "F32", array.shape, array) for name, array in tensors.items()]
    write_gguf(path, kv, items)
