"""Checks of numbers: kernels against the specification, and batch invariance on the file's own weights."""

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mtpref import kernels
from mtpref.engine.decode import Decoder, Options
from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.look.selftest.bench import Bench, Failed, Skipped, n_different
from mtpref.spec.ops import OpEntries, spec_ops
from mtpref.spec.ops.table import FINE
from mtpref.spec.state import ModelState

# Plain x86-64: neither AVX nor FMA.
PLAIN_TARGET = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
COMPILE_TIMEOUT_S = 600


def kernels_equal_spec(bench: Bench) -> str:
    """Every operation of a prompt pass, a decode pass and a draft step, computed twice on the same inputs."""
    if not kernels.available():
        raise Skipped("NUMBA_DISABLE_JIT is set: only the specification runs")
    seen = Comparison(bench.size.n_rows)
    ops, numerics = bench.model.recipe.ops, bench.model.recipe.numerics
    reference = Recipe(numerics, spec_ops(numerics)).normed_as(bench.model.config).ops
    twins = {name: seen.both(name, getattr(ops, name), getattr(reference, name)) for name in FINE}
    model = replace(bench.model, recipe=bench.model.recipe.with_ops(**cast(OpEntries, twins)))
    n = min(6, len(bench.prompt))
    state = bench.new_state()
    out = model.trunk(state, bench.prompt[: n - 1], n_logits=1, keep=2)
    out = model.trunk(state, bench.prompt[n - 1 : n], n_logits=1)
    model.recipe.ops.argmax(out.logits)
    model.recipe.ops.top_candidates(out.logits[0])
    if model.has_mtp:
        at = n if model.has_assistant else 0  # it reads the cells that are there
        model.mtp(state, bench.prompt[n - 1 : n], out.hidden.of(bench.model.recipe.contract.hidden), at, n_logits=1)
    if seen.wrong:
        name, where, n_wrong = seen.wrong[0]
        raise Failed(f"{name}{where}: {n_wrong} values differ, expected equal bits; {len(seen.wrong)} such calls")
    types = ", ".join(sorted(seen.types))
    return f"{seen.calls.total()} calls of {len(seen.calls)} operations, equal bits; weights {types}"


class Comparison:
    """Runs an operation and its specification on the same arguments. Of a matrix, n_rows rows are compared."""

    def __init__(self, n_rows: int) -> None:
        self.calls: Counter[str] = Counter()
        self.types: set[str] = set()
        self.wrong: list[tuple[str, str, int]] = []
        self._n_rows = n_rows

    def both(self, name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
        """An entry for the table that gives what `ours` gives."""

        def entry(*args: Any, **kwargs: Any) -> Any:
            found = ours(*args, **kwargs)
            where = ""
            if name == "mul_mat":
                w, x = args
                rows = self._rows(w.n_out)
                where = f" of {w.name} ({w.type_name})"
                self.types.add(w.type_name)
                self._compare(name, where, found[:, rows], theirs(_rows_of(w, rows), x))
            else:
                self._compare(name, where, found, theirs(*args, **kwargs))
            self.calls[name] += 1
            return found

        return entry

    def _rows(self, n_out: int) -> NDArray[np.int64]:
        """The first and the last row, and others evenly between them."""
        return np.unique(np.linspace(0, n_out - 1, min(self._n_rows, n_out)).astype(np.int64))

    def _compare(self, name: str, where: str, found: Any, expected: Any) -> None:
        ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
        n_wrong = sum(n_different(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True))
        if n_wrong:
            self.wrong.append((name, where, n_wrong))


def _rows_of(w: Any, rows: NDArray[np.int64]) -> Any:
    return replace(w, n_out=len(rows), raw=w.raw.reshape(w.n_out, -1)[rows].reshape(-1))


# ------------------------------------------------------------------------------------ invariance


def prompt_chunks(bench: Bench) -> str:
    """Trunk, head and state by prompt chunks of several sizes."""
    expected = _prefilled(bench, len(bench.prompt))
    chunks = [n for n in bench.size.chunks if n < len(bench.prompt)]
    for n in chunks:
        bench.say(f"prompt in chunks of {n}")
        logits, digest = _prefilled(bench, n)
        if n_wrong := n_different(logits, expected[0]):
            raise Failed(f"chunks of {n}: {n_wrong} logits differ from those of one pass, expected equal bits")
        if digest != expected[1]:
            raise Failed(f"chunks of {n}: the model state differs from that of one pass, expected equal bits")
    sizes = ", ".join(str(n) for n in chunks)
    return f"{len(bench.prompt)} tokens in one pass and in chunks of {sizes}: equal logits and state"


def _prefilled(bench: Bench, n_batch: int) -> tuple[NDArray, str]:
    """The logits after the prompt, and the state, head included."""
    model, state = bench.model, bench.new_state()
    options = Options(n_predict=0, spec_type="draft-mtp" if model.has_mtp else "none", n_batch=n_batch)
    for _ in Decoder(model, state, options).run(bench.prompt):
        pass
    logits = model.trunk(state, bench.prompt[-1:], n_logits=1).logits
    return logits, state.digest()


def verify_widths(bench: Bench) -> str:
    """The same tokens after the same prefix, by passes of several widths."""
    model, state, ids = bench.model, bench.new_state(), bench.prompt
    n_last = max(bench.size.widths)
    if len(ids) <= n_last:
        ids = ids * (1 + (n_last + 1) // len(ids))
    model.trunk(state, ids[:-n_last], n_logits=0)
    saved = state.checkpoint()
    expected = _in_widths(model, state, ids[-n_last:], 1)
    for width in bench.size.widths[1:]:
        bench.say(f"verify width {width}")
        state.restore(saved)
        logits, digest = _in_widths(model, state, ids[-n_last:], width)
        if n_wrong := n_different(logits, expected[0]):
            raise Failed(f"width {width}: {n_wrong} logits differ from one token at a time, expected equal bits")
        if digest != expected[1]:
            raise Failed(f"width {width}: the model state differs from one token at a time, expected equal bits")
    return f"{n_last} tokens by passes of {', '.join(str(w) for w in bench.size.widths)}: equal logits and state"


def _in_widths(model: Model, state: ModelState, ids: list[int], width: int) -> tuple[NDArray, str]:
    parts = [ids[i : i + width] for i in range(0, len(ids), width)]
    logits = [model.trunk(state, part, n_logits=len(part), keep=len(part)).logits for part in parts]
    return np.concatenate(logits), state.digest()


def thread_counts(bench: Bench) -> str:
    """The same pass with one thread, two and all."""
    if not kernels.available():
        raise Skipped("NUMBA_DISABLE_JIT is set: the specification runs in one thread")
    before = kernels.n_threads()
    try:
        kernels.set_threads(1 << 20)
        n_all = kernels.n_threads()
        if n_all == 1:
            raise Skipped("this machine, or NUMBA_NUM_THREADS, has one thread")
        counts = sorted({1, 2, n_all})
        found = []
        for n in counts:
            kernels.set_threads(n)
            found.append(_prefilled(bench, len(bench.prompt)))
    finally:
        kernels.set_threads(before)
    for n, (logits, digest) in zip(counts[1:], found[1:], strict=True):
        n_wrong = n_different(logits, found[0][0])
        if n_wrong or digest != found[0][1]:
            raise Failed(f"{n} threads: {n_wrong} logits differ from one thread, expected equal bits, state included")
    return f"{', '.join(str(n) for n in counts)} threads: equal logits and state"


def instruction_sets(bench: Bench) -> str:
    """The same pass compiled for plain x86-64, in a process of its own."""
    if not kernels.available():
        raise Skipped("NUMBA_DISABLE_JIT is set: nothing is compiled")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise Skipped(f"this machine is {platform.machine()}, the check is for x86-64")
    if not bench.size.is_full:
        raise Skipped("--quick: it compiles every kernel again")
    if bench.model.mtp_status == "file":
        raise Skipped("the head is in a file of its own")
    bench.say("compiling for plain x86-64: once, up to a minute")
    request = {"path": str(bench.path), "numerics": bench.model.recipe.numerics, "ids": bench.prompt[:4],
               "kv_type": bench.model.kv_type}  # fmt: skip
    code = "from mtpref.look.selftest.numerics import answer_in_process; answer_in_process()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True,
            env={**os.environ, **PLAIN_TARGET}, timeout=COMPILE_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Skipped(f"compiling took more than {COMPILE_TIMEOUT_S} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise Failed(f"the process for plain x86-64 ended with {done.returncode}: {last[:200]}")
    theirs = json.loads(done.stdout)
    ours = _fingerprint(bench.model, bench.prompt[:4])
    if theirs["digest"] != ours:
        raise Failed("plain x86-64: the model state differs from that of this machine's instructions")
    return f"{theirs['cpu']} without features and {_target()}: equal logits and state"


def answer_in_process() -> None:
    """What the other process does: read a request, write a digest."""
    from mtpref.engine.model import load
    from mtpref.engine.recipe import make_recipe

    request = json.loads(sys.stdin.read())
    model = load(request["path"], make_recipe(request["numerics"]), kv_type=request["kv_type"])
    digest = _fingerprint(model, request["ids"])
    print(json.dumps({"digest": digest, "cpu": kernels.effective_target()[1]}))


def _fingerprint(model: Model, ids: list[int]) -> str:
    """A digest of logits and state after a few tokens; the logits stand in for the pending hidden row."""
    state = model.new_state(64)
    out = model.trunk(state, ids, n_logits=1)
    state.pending_h = out.logits[0]
    return state.digest()


def _target() -> str:
    _, cpu, features = kernels.effective_target()
    return describe_target(cpu, features)


def describe_target(cpu: str, features: str) -> str:
    """A target in a few words: the features that the kernels' paths depend on."""
    has = [name for name in ("avx2", "fma", "avx512f", "avx512vnni", "neon") if f"+{name}" in features.split(",")]
    return f"{cpu} with {', '.join(has)}" if has else f"{cpu} without features"
