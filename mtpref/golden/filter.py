"""The filter protocol: any program in any language answers cases, one JSON object a line.

Owns both ends: `Filter` drives a program, `serve` is mtpref as such a program. golden/README.md has the fields.
"""

import base64
import binascii
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json
from mtpref.golden.format import Case, Expected, Suite, Tensor, UnfitError
from mtpref.golden.inputs import Inputs, Outputs
from mtpref.spec.quants import TYPE_IDS, row_bytes

CASE_FORMAT = "mtpref-golden-case-1"
MAX_LINE = 64 << 20
MAX_MEMORY = 192 << 20  # what such a line may become
RESULT_DTYPES = {"F32": "<f4", "I32": "<i4"}


def request(root: Path, suite: Suite, case: Case, inputs: Inputs) -> str:
    """The line that asks for one case."""
    head: dict[str, Any] = {"format": CASE_FORMAT, "suite": suite.name, "op": suite.op, "id": case.id}
    head |= {"numerics": case.numerics, "params": dict(case.params), "root": str(root.resolve())}
    head["want"] = [expected.name for expected in case.expected]
    head["in"] = {name: _encoded(tensor) for name, tensor in inputs.items()}
    return json.dumps(head)


class Filter:
    """A running program that answers cases; a context manager.

    Errors  MtprefError for a program that cannot be started, ends early or answers with something else
    """

    def __init__(self, command: list[str], root: Path) -> None:
        self._root, self._command = root, command
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise MtprefError(
                f"`command` {command[0]}: cannot be started ({error.strerror}); expected a program"
            ) from None

    def __enter__(self) -> "Filter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __call__(self, suite: Suite, case: Case, inputs: Inputs) -> Outputs | None:
        """The program's answer; None where it skips."""
        to, source = self._process.stdin, self._process.stdout
        if to is None or source is None:
            raise MtprefError(f"`command` {self._command[0]}: has no standard input or output")
        try:
            to.write(request(self._root, suite, case, inputs) + "\n")
            to.flush()
            line = source.readline(MAX_LINE)
        except OSError:
            line = ""
        if not line:
            raise MtprefError(
                f"`command` {self._command[0]}: ended at case {case.id} (exit code "
                f"{self._process.poll()}), expected one line of JSON; run it by hand on that "
                "case"
            )
        return reply_outputs(line, case.id, self._command[0])


def reply_outputs(line: str, id: str, program: str) -> Outputs | None:
    """The outputs of one reply; None for a skip.

    Errors  MtprefError for a reply that is no JSON, is for another case or holds malformed tensors; UnfitError for one
            that is an error
    """
    where = f"`command` {program}: the reply to case {id}"
    try:
        reply = _parsed(line)
    except MtprefError as error:
        raise MtprefError(f"{where} is {error}: {line[:60]!r}; expected one object a line") from None
    if not isinstance(reply, dict) or reply.get("id") != id:
        raise MtprefError(f"{where} is for another case; expected the id that was asked for")
    if "error" in reply:
        raise UnfitError(f"{where} is an error: {str(reply['error'])[:200]}")
    if "skip" in reply:
        return None
    if not isinstance(reply.get("out"), dict):
        raise MtprefError(f"{where} has no object 'out'")
    return {str(name): _decoded(entry, f"{where}, output {name}") for name, entry in reply["out"].items()}


def serve(answers: Callable[[Suite, Case, Inputs], Outputs | None], lines: Iterable[str], out: TextIO) -> None:
    """Answer requests until the input ends. A request that cannot be answered gets an "error", never silence."""
    for line in lines:
        if line.strip():
            out.write(json.dumps(_answer_line(answers, line)) + "\n")
            out.flush()


def _answer_line(answers: Callable[[Suite, Case, Inputs], Outputs | None], line: str) -> dict[str, Any]:
    id = None
    try:
        asked = _parsed(line)
        id = asked["id"]
        inputs = {name: _tensor(entry) for name, entry in asked["in"].items()}
        suite = Suite(asked["suite"], "", asked["op"], (), "", ())
        wanted = tuple(Expected(str(name), "exact") for name in asked.get("want", ()))
        given = answers(suite, Case(id, "", asked["numerics"], asked["params"], {}, wanted), inputs)
    except (MtprefError, ArithmeticError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return {"id": id, "error": f"{type(error).__name__}: {error}"}
    if given is None:
        return {"id": id, "skip": f"no operation {suite.op}"}
    return {"id": id, "out": {name: _encoded_output(value) for name, value in given.items()}}


def _parsed(line: str) -> Any:
    return parse_json(line.encode("utf-8", "surrogatepass"), max_memory=MAX_MEMORY)


def _encoded(tensor: Tensor) -> dict[str, Any]:
    data = base64.b64encode(tensor.raw.tobytes()).decode("ascii")
    return {"type": tensor.type_name, "shape": list(tensor.shape), "data": data}


def _encoded_output(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        return {"value": value}
    kind = "I32" if value.dtype.kind in "iu" else "F32"
    raw = np.ascontiguousarray(value.astype(RESULT_DTYPES[kind])).reshape(-1).view(np.uint8)
    return _encoded(Tensor(kind, value.shape, raw))


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    shape, kind = tuple(int(n) for n in entry["shape"]), str(entry["type"])
    if kind not in TYPE_IDS or not shape or min(shape) < 1:
        raise ValueError(f"tensor of type {kind} and shape {shape}")
    raw = np.frombuffer(base64.b64decode(entry["data"], validate=True), np.uint8)
    wanted = int(np.prod(shape[:-1])) * row_bytes(kind, shape[-1])
    if raw.size != wanted:
        raise ValueError(f"tensor of {raw.size} bytes, expected {wanted} for {kind} of shape {shape}")
    return Tensor(kind, shape, raw)


def _decoded(entry: Any, where: str) -> Any:
    if isinstance(entry, dict) and "value" in entry:
        return entry["value"]
    try:
        if entry["type"] not in RESULT_DTYPES:
            raise ValueError(f"type {entry['type']}, expected F32 or I32")
        return _tensor(entry).values()
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, binascii.Error) as error:
        raise MtprefError(f"{where} is no tensor ({error}); expected type, shape and base64 data") from None
