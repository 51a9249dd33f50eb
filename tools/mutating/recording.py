"""Which test runs which line of a tree, recorded once, a test file at a time.

Every module of the tree that is recorded ends in one more statement that means nothing. A test that fails then holds a
hash of the source, not what the source does, and would notice every edit: such tests are left out of all that follows.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mutating.places import PACKAGE, Module, Place, modules_of, users

HERE = Path(__file__).parent
NEUTRAL = "\n_NOTHING = None  # changes no result\n"
_LEFT_BEHIND = (".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", "*.egg-info", "build", "dist")
_RC = """[run]
source = {package}
parallel = true
data_file = {folder}/part
context = ${{MUTATION_TEST-}}
patch = subprocess
core = ctrace
disable_warnings = no-data-collected
"""


def copy_tree(tree: Path, target: Path) -> None:
    """The tree as it is, without what git and builds leave in it."""
    shutil.copytree(tree, target, ignore=shutil.ignore_patterns(*_LEFT_BEHIND), symlinks=True)


def _own_environment() -> dict[str, str]:
    """What is set for a run of coverage around this one must not move its files."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MUTATION_", "COVERAGE_"))}


def run_pytest(
    tree: Path, work: Path, arguments: Iterable[str], more: dict[str, str], limit: float | None = None
) -> int:
    """pytest in a tree: its exit code, negative where it crashed or did not end within `limit` seconds.

    Everything that its processes write lies below `work`; only the tree's own package can be imported.
    """
    environment = _own_environment() | {"NUMBA_CACHE_DIR": str(work / "numba"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": f"{tree}{os.pathsep}{work / 'side'}"} | more
    (work / "side").mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "pytest_side.py", work / "side")
    prefix = ["-m", "coverage", "run", f"--rcfile={more['COVERAGE_RCFILE']}"] if "COVERAGE_RCFILE" in more else []
    command = [sys.executable, *prefix, "-m", "pytest", "-q", "-p", "pytest_side", "-p", "no:cacheprovider"]
    command += [f"--basetemp={work / 'temporary'}", *arguments]
    with (work / "pytest.log").open("w") as log, subprocess.Popen(
        command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return -signal.SIGALRM
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(work / "temporary", ignore_errors=True)


@dataclass(frozen=True)
class Recording:
    """A folder with the coverage of each test file of a tree, and the outcome and seconds of each test."""

    folder: Path

    @cached_property
    def tests(self) -> dict[str, tuple[str, float]]:
        """Test -> outcome, seconds; in the order of files and of the tests in them."""
        lines = [line for path in sorted(self.folder.glob("*.tests")) for line in path.read_text().splitlines()]
        return {id: (outcome, seconds) for id, outcome, seconds in map(json.loads, lines)}

    @cached_property
    def left_out(self) -> list[str]:
        """Tests that notice an edit that changes nothing, or fail in any case."""
        return [id for id, (outcome, _) in self.tests.items() if outcome != "passed"]

    def of_lines(self, path: str, lines: range) -> set[str]:
        """The tests that run one of the lines."""
        from coverage import CoverageData

        found: set[str] = set()
        for data_file in sorted(path for path in self.folder.glob("*.coverage") if path.stat().st_size):
            data = CoverageData(str(data_file))
            data.read()
            measured = next((name for name in data.measured_files() if name.endswith(f"/tree/{path}")), None)
            if measured is not None:
                by_line = data.contexts_by_lineno(measured)
                found |= {context for n in lines for context in by_line.get(n, ())}
        return found & set(self.tests)

    def covering(self, place: Place, modules: list[Module]) -> list[str]:
        """The tests to run for an edit, the cheapest files first.

        Those that run its lines; where Python runs them in no test (compiled code, constants), those that run a
        function which names what holds the lines, or one that names that one, and so on.
        """
        found = self.of_lines(place.path, range(place.lines[0], place.lines[1] + 1))
        names, seen = place.names, set(place.names)
        while not found and names:
            above = users(names, modules)
            for _, path, lines in above:
                found |= self.of_lines(path, lines)
            names = tuple({name for own, _, _ in above for name in own} - seen)
            seen |= set(names)
        return self.ordered(found)

    def ordered(self, tests: set[str]) -> list[str]:
        """Files by the seconds of their tests, rising; tests of a file in its own order, which shares fixtures."""
        chosen = [id for id in self.tests if id in tests and id not in self.left_out]
        seconds: dict[str, float] = {}
        for id in chosen:
            seconds[_file(id)] = seconds.get(_file(id), 0.0) + self.tests[id][1]
        return sorted(chosen, key=lambda id: seconds[_file(id)])


def _file(id: str) -> str:
    return id.partition("::")[0]


def record(tree: Path, work: Path, suite: list[str]) -> Recording:
    """Record what is not recorded yet. work: gets `tree`, a copy with neutral edits, and `recorded`."""
    folder = work / "recorded"
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted({path for pattern in suite for path in tree.glob(pattern)})
    left = [path for path in files if not (folder / f"{path.stem}.coverage").exists()]
    if left:
        shutil.rmtree(work / "tree", ignore_errors=True)
        copy_tree(tree, work / "tree")
        for module in modules_of(work / "tree"):
            (work / "tree" / module.path).write_text(module.text + NEUTRAL, encoding="utf-8")
    for i, path in enumerate(left):
        print(f"recording {path.name}, {i + 1} of {len(left)}", file=sys.stderr)
        _record_file(path.relative_to(tree), work, folder)
    return Recording(folder)


def _record_file(path: Path, work: Path, folder: Path) -> None:
    parts, tests = work / "parts", folder / f"{path.stem}.tests"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    tests.unlink(missing_ok=True)
    (parts / "rc").write_text(_RC.format(package=PACKAGE, folder=parts))
    more = {"COVERAGE_RCFILE": str(parts / "rc"), "MUTATION_RECORD": str(tests)}
    run_pytest(work / "tree", work, ["-o", "addopts=", str(path)], more)
    if not tests.exists():
        log = re.sub(r"\s+", " ", (work / "pytest.log").read_text()[-300:])
        tests.write_text("")
        print(f"  no test ran: {log}", file=sys.stderr)
    target = folder / f"{path.stem}.coverage"
    command = [sys.executable, "-m", "coverage", "combine", f"--rcfile={parts / 'rc'}", str(parts)]
    subprocess.run(command, check=False, capture_output=True, env=_own_environment())
    made = parts / "part"
    made.rename(target) if made.exists() else target.touch()
