"""Building suites: the JSON and GGUF of a suite, its expected values, and the manifest of a folder.

Owns the layout of what is written. Where the values come from is the caller's matter.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.files.gguf import write_gguf, write_whole
from mtpref.golden.format import CLASSES, FORMAT, Tensor, read_json, sha256_of
from mtpref.golden.sources import source_sha256
from mtpref.look.compare.measures import nmse


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
    write_whole(path, (json.dumps(data, indent=1, ensure_ascii=True) + "\n").encode("ascii"))


def manifest(
    root: Path, version: str, model: Mapping[str, Any] | None = None, models: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The index of a folder: suites, each with the hash of what decides its values, files with their hashes, classes.

    model   what identifies the model of vectors that were made for one (golden/README.md)
    models  tensors_sha256 of models that cases name and the folder does not hold
    """
    paths = sorted(p for folder in ("models", *FOLDERS.values()) for p in (root / folder).glob("*.*"))
    files = [{"path": p.relative_to(root).as_posix(), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths]
    index: dict[str, Any] = {"format": FORMAT, "version": version, "classes": CLASSES}
    if model is not None:
        index["model"] = dict(model)
    if models is not None:
        index["models"] = dict(models)
    return index | {"suites": [_suite_record(root, p) for p in paths if p.suffix == ".json"], "files": files}


def _suite_record(root: Path, path: Path) -> dict[str, Any]:
    data = read_json(path)
    record = {name: data[name] for name in ("suite", "level", "op", "spec")}
    flags = sorted({flag for case in data["cases"] for flag in case["flags"]})
    requires = sorted({need for case in data["cases"] for need in case["requires"]})
    return record | {
        "path": path.relative_to(root).as_posix(), "n_cases": len(data["cases"]), "requires": requires, "flags": flags,
        "source_sha256": source_sha256(data["op"]),
    }  # fmt: skip
