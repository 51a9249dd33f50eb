"""Which runs of a log can be judged: those that are whole, and whose prompt is known."""

from collections.abc import Sequence
from typing import Annotated

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Ids, Sized, parse_json, read
from mtpref.files.gguf import printable
from mtpref.look.llama_cpp.rounds import Run

MAX_LISTED = 8
MAX_PROMPT_IDS = 1 << 20


def choose_runs(
    runs: Sequence[Run], label: str, prompt_ids: Sequence[int] | None, which: str | None = None
) -> list[tuple[Run, list[int]]]:
    """The runs to judge, each with its prompt.

    Rule  a run that holds its prompt (`prompt_ids` of a recording) is judged by it. The prompt that is given is that of
          one run: of the only one, of the only one with as many prompt tokens, or of that which is named
    which  "N": this run alone, counted from 0; "all": the given prompt is that of every run
    Errors  MtprefError where no run is left, or where it is not clear whose prompt it is
    """
    numbered = [(i, run) for i, run in enumerate(runs) if which in (None, "all") or str(i) == which]
    if not numbered:
        raise MtprefError(
            f"`run`: {printable(str(which), 20)} is not there, expected 0 .. {len(runs) - 1} or all: "
            f"{label} holds {_listed(list(enumerate(runs)))}"
        )
    sound = [(i, run) for i, run in numbered if not run.log.damage and (run.log.rounds or run.log.unfinished)]
    sound = [(i, run) for i, run in sound if run.log.request is None or run.log.request.opening is not None]
    if not sound:
        raise MtprefError(
            f"{label}: no run in it can be judged: {_listed(numbered)}; expected one from its beginning on"
        )
    if all("prompt_ids" in run.header for _, run in sound):
        return [(run, _recorded(run, label)) for _, run in sound]
    if prompt_ids is None:
        raise MtprefError(
            f"{label}: the log does not hold the prompt, expected the one that llama.cpp was given; use `prompt ids`"
        )
    fitting = [(i, run) for i, run in sound if run.log.n_prompt in (None, len(prompt_ids))]
    if not fitting:
        raise MtprefError(
            f"{label}: the prompt that was given has {len(prompt_ids)} tokens, expected that of "
            f"{_listed(sound)}; give the very text (a chat's with template) or `its ids`"
        )
    if len(fitting) > 1 and which is None:
        raise MtprefError(
            f"{label}: {len(fitting)} runs could have had this prompt: {_listed(fitting)}; choose one "
            "with `run` N, or say `run` all where all had it"
        )
    return [(run, list(prompt_ids)) for _, run in fitting]


def _listed(runs: Sequence[tuple[int, Run]]) -> str:
    told = [f"run {i}{_about(run)}" for i, run in runs[:MAX_LISTED]]
    return ", ".join(told) + (f", ... ({len(runs)} in all)" if len(runs) > MAX_LISTED else "")


def _about(run: Run) -> str:
    about = "; ".join(filter(None, [run.log.name, run.log.damage]))
    return f" ({about})" if about else ""


def _recorded(run: Run, label: str) -> list[int]:
    where = f"{label}: prompt_ids"
    try:
        found = parse_json(run.header["prompt_ids"].encode("utf-8", "surrogatepass"))
        ids: list[int] = read(Annotated[Ids, Sized(1, MAX_PROMPT_IDS)], found, where)
    except MtprefError as error:
        words = str(error) if str(error).startswith(where) else f"{where}: {error}"
        raise MtprefError(f"{words}; expected such as [1, 2] in the header of each run") from None
    return ids
