"""A tree with one edit, its covering tests up to the first that fails, then all others."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mutating.places import Module, Mutation, find, modules_of
from mutating.recording import Recording, copy_tree, run_pytest

WHOLE = 5400.0  # seconds for a whole suite
PATIENCE = 600.0  # seconds beyond ten times what the tests took: an edit may make a loop endless


@dataclass(frozen=True)
class Result:
    """One line of the results.

    verdict   killed, lived, or gone (the tree has no such line)
    by        the first test that failed, or what else ended the run
    stage     covering, area or whole: what was running
    """

    tree: str
    id: str
    verdict: str
    by: str = ""
    stage: str = ""
    n_covering: int = 0
    seconds: float = 0.0


def read_results(path: Path) -> list[Result]:
    """The results so far; of two for the same tree and mutation, the later one counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [Result(**json.loads(line)) for line in lines]
    return list({(r.tree, r.id): r for r in found}.values())


def judge_all(
    mutations: list[Mutation], tree: Path, label: str, work: Path, recording: Recording, target: Path
) -> None:
    """Judge each mutation that has no result in `target` yet, and add a line for it."""
    done = {r.id for r in read_results(target) if r.tree == label}
    modules = modules_of(tree)
    for mutation in mutations:
        if mutation.id in done:
            continue
        result = judge(mutation, modules, tree, label, work, recording)
        with target.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(f"{result.verdict:7} {result.seconds:6.0f} s  {mutation.id}  {result.by}", flush=True)


def judge(
    mutation: Mutation, modules: list[Module], tree: Path, label: str, work: Path, recording: Recording
) -> Result:
    """What becomes of one mutation. The kernels that only it has are thrown away afterwards."""
    place = find(mutation, modules)
    if place is None:
        return Result(label, mutation.id, "gone")
    edited, begin = work / "edited", time.monotonic()
    kernels = set((work / "numba" / "mtpref").glob("*"))
    shutil.rmtree(edited, ignore_errors=True)
    copy_tree(tree, edited)
    (edited / place.path).write_text(place.after, encoding="utf-8")
    covering = recording.covering(place, modules)
    others = recording.ordered(set(recording.tests) - set(covering))
    stage, by = "covering", _first_failure(covering, edited, work, recording)
    if not by:
        stage, by = "whole", _first_failure(others, edited, work, recording)
    for folder in set((work / "numba" / "mtpref").glob("*")) - kernels:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - begin, 1)
    return Result(label, mutation.id, "killed" if by else "lived", by, stage, len(covering), seconds)


def judge_by_area(
    mutations: list[Mutation], tree: Path, label: str, work: Path, areas: dict[str, list[str]], target: Path,
    is_whole: bool,
) -> None:  # fmt: skip
    """As `judge_all`, without a recording: an area's own test files, then, with is_whole, the whole suite.

    A file that the tree lacks is passed over. What lived in its area is judged anew by a later call with is_whole.
    """
    results = [r for r in read_results(target) if r.tree == label]
    done = {r.id for r in results if not (is_whole and r.stage == "area" and r.verdict == "lived")}
    modules = modules_of(tree)
    for mutation in mutations:
        if mutation.id in done:
            continue
        place, begin = find(mutation, modules), time.monotonic()
        result = Result(label, mutation.id, "gone")
        if place is not None:
            edited, compiled = work / "edited", work / "numba" / "mtpref"
            kernels = set(compiled.glob("*"))
            shutil.rmtree(edited, ignore_errors=True)
            copy_tree(tree, edited)
            (edited / place.path).write_text(place.after, encoding="utf-8")
            own = [f"tests/{name}.py" for name in areas[mutation.area] if (tree / f"tests/{name}.py").exists()]
            stage, by = "area", _failure(["-o", "addopts=", *own], edited, work, areas["hashes"])
            if not by and is_whole:
                stage, by = "whole", _failure([], edited, work, areas["hashes"])
            for folder in set(compiled.glob("*")) - kernels:
                shutil.rmtree(folder, ignore_errors=True)
            seconds = round(time.monotonic() - begin, 1)
            result = Result(label, mutation.id, "killed" if by else "lived", by, stage, 0, seconds)
        with target.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(f"{result.verdict:7} {result.seconds:6.0f} s  {mutation.id}  {result.by}", flush=True)


def _failure(
    arguments: list[str], edited: Path, work: Path, left_out: list[str], limit: float = WHOLE,
    select: list[str] | None = None,
) -> str:  # fmt: skip
    """The test that fails first in a tree, or how else the run ended; nothing where all pass.

    select   run these tests alone, in this order
    """
    leave, first = work / "leave.json", work / "first.txt"
    leave.parent.mkdir(parents=True, exist_ok=True)
    leave.write_text(json.dumps(left_out))
    first.unlink(missing_ok=True)
    more = {"MUTATION_LEAVE": str(leave), "MUTATION_FIRST": str(first)}
    if select is not None:
        (work / "select.json").write_text(json.dumps(select))
        more["MUTATION_SELECT"] = str(work / "select.json")
    code = run_pytest(edited, work, ["-x", *arguments], more, limit)
    if code in (0, 5):
        return ""
    if first.exists():
        return first.read_text()
    return f"did not end within {limit:.0f} s" if code == -14 else f"pytest ended with code {code}"


def _first_failure(chosen: list[str], edited: Path, work: Path, recording: Recording) -> str:
    """The test that fails first, or how else the run ended; nothing where all pass."""
    if not chosen:
        return ""
    limit = PATIENCE + 10 * sum(recording.tests[id][1] for id in chosen)
    files = list(dict.fromkeys(id.partition("::")[0] for id in chosen))
    return _failure(["-o", "addopts=", *files], edited, work, recording.left_out, limit, chosen)
