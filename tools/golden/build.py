"""Building suites: inputs from named streams, expected values, the JSON and GGUF of a suite.

Owns the layout of a suite file and the numbers that go in. Values come from splitmix64 with integer arithmetic and
exact scaling only, so that no library decides them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import quants
from mtpref.gguf import write_gguf
from mtpref.golden.check import nmse
from mtpref.golden.format import FORMAT, Tensor

F32 = NDArray[np.float32]
U64 = np.uint64


def stream(name: str, n: int) -> NDArray[np.uint64]:
    """n integers of splitmix64; the seed is the first 8 bytes (little-endian) of the SHA-256 of the name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = U64(seed) + np.arange(1, n + 1, dtype=np.uint64) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> U64(31)))


def uniform(name: str, shape: Sequence[int], low: float, high: float) -> F32:
    """low + (high - low) u, u = k / 2**24: one float64 expression, rounded once."""
    k = (stream(name, int(np.prod(shape))) >> U64(40)).astype(np.float64)
    return (low + (high - low) * (k / 2.0**24)).astype(np.float32).reshape(shape)


def bell(name: str, shape: Sequence[int], scale: float = 1.0) -> F32:
    """Bell-shaped values of standard deviation `scale`: the sum of four 16-bit uniforms, centred."""
    z = stream(name, int(np.prod(shape)))
    total = np.zeros(z.shape, np.float64)
    for shift in (0, 16, 32, 48):
        total += ((z >> U64(shift)) & U64(0xFFFF)).astype(np.float64)
    centred = (total - 4 * 32767.5) / 65536.0  # variance 4 / 12
    return (centred * (scale * 1.7320508075688772)).astype(np.float32).reshape(shape)


def quantised(type_name: str, x: F32) -> Tensor:
    """A weight as blocks of `type_name`, through the package's own quantiser."""
    raw = quants.quantize(type_name, x).reshape(-1).view(np.uint8)
    return Tensor(type_name, x.shape, raw)


@dataclass
class SuiteBuilder:
    """Collects cases; `write` gives NAME.json and, where there are tensors, NAME.gguf."""

    level: str
    name: str
    op: str
    spec: tuple[str, ...]
    about: str
    cases: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def case(
        self,
        id: str,
        comment: str,
        *,
        inputs: Mapping[str, NDArray | Tensor],
        out: Mapping[str, dict[str, Any]],
        params: Mapping[str, Any] | None = None,
        numerics: str = "exact",
        flags: Sequence[str] = (),
        requires: Sequence[str] = (),
    ) -> None:
        """Add a case. `out` values come from `exact`, `close` and `value`."""
        record: dict[str, Any] = {"id": f"{self.name}/{id}", "comment": comment, "numerics": numerics}
        record |= {"flags": sorted(flags), "requires": sorted(requires), "params": dict(params or {})}
        record["in"] = {name: self._keep(f"{id}/{name}", array) for name, array in inputs.items()}
        record["out"] = {}
        for name, expected in out.items():
            entry = dict(expected)
            if "tensor" in entry:
                entry["tensor"] = self._keep(f"{id}/out.{name}", entry["tensor"])
            record["out"][name] = entry
        self.cases.append(record)

    def write(self, root: Path) -> None:
        folder = root / FOLDERS[self.level]
        folder.mkdir(parents=True, exist_ok=True)
        head: dict[str, Any] = {"format": FORMAT, "suite": self.name, "level": self.level, "op": self.op}
        head |= {"spec": list(self.spec), "about": self.about}
        if self.tensors:
            head["tensors"] = f"{self.name}.gguf"
            items = [(name, t.type_name, t.shape, t.raw) for name, t in self.tensors.items()]
            write_gguf(folder / head["tensors"], [("general.architecture", "mtpref-golden", "str")], items)
        write_json(folder / f"{self.name}.json", head | {"cases": self.cases})

    def _keep(self, name: str, array: NDArray | Tensor) -> str:
        """The name under which the suite holds a tensor; equal tensors are held once."""
        tensor = array if isinstance(array, Tensor) else Tensor.of(array)
        for known, other in self.tensors.items():
            if (other.type_name, other.shape) == (tensor.type_name, tensor.shape) and np.array_equal(
                other.raw, tensor.raw
            ):
                return known
        self.tensors[name] = tensor
        return name


FOLDERS = {
    "L0": "L0-dequantize", "L1": "L1-operations", "L2": "L2-layers", "L3": "L3-trunk", "L4": "L4-mtp",
    "L5": "L5-loop", "L6": "L6-text",
}  # fmt: skip


def exact(array: NDArray) -> dict[str, Any]:
    """An expected tensor, bit for bit."""
    return {"tensor": array, "class": "exact"}


def close(tolerance: str, oracle: NDArray, ours: NDArray | None = None) -> dict[str, Any]:
    """An expected tensor within a class: the oracle's float64 values rounded once, our own noise beside them."""
    entry: dict[str, Any] = {"tensor": np.asarray(oracle, np.float64).astype(np.float32), "class": tolerance}
    if ours is not None:
        entry["noise"] = float(f"{nmse(np.asarray(oracle, np.float64), np.asarray(ours)):.1e}")
    return entry


def value(json_value: Any, either: Mapping[int, Sequence[int]] | None = None) -> dict[str, Any]:
    """An expected JSON value; `either` lists the ids that are right at near ties."""
    entry: dict[str, Any] = {"value": json_value, "class": "exact"}
    if either:
        entry["either"] = {str(i): list(ids) for i, ids in either.items()}
    return entry


def write_json(path: Path, data: Any) -> None:
    """JSON with a fixed layout: two levels indented, keys in the order given, ASCII, a final newline."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=True) + "\n", encoding="ascii")
