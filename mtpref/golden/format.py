"""The files of a folder of golden vectors: manifest, suites, tensors.

Owns reading and refusing. golden/README.md is the normative page; golden/schemas has the JSON schemas. A reader
ignores keys that it does not know, and refuses a format that it does not know.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Ids, Within, describe, parse_json_at, read
from mtpref.files.doors import open_regular, read_regular
from mtpref.files.gguf import GgufFile, open_gguf, printable
from mtpref.spec import quants

FORMAT = "mtpref-golden-1"
# Limits of the NMSE, sum((a - b)^2) / sum(a^2). A manifest repeats them: a port reads them there.
CLASSES: dict[str, dict[str, Any]] = {
    "exact": {"about": "the same bits, where any NaN equals any NaN; or the same JSON value"},
    "op_f32": {"about": "one operation on float32 values", "nmse": 1e-9},
    "layer_f32": {"about": "a whole layer with float32 weights", "nmse": 1e-8},
    "op_ggml": {"about": "a product with activations quantised as ggml does", "nmse": 1e-6},
    "model_f32": {"about": "a whole model with float32 weights and float32 KV", "nmse": 1e-6},
    "model_ggml": {"about": "a whole model with quantised weights and activations", "nmse": 5e-4},
}
MAX_JSON_BYTES = 32 << 20
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "I32": np.int32}


class UnfitError(MtprefError):
    """A case that cannot be answered, while others can: it is of another version, or the port said an error."""


@dataclass(frozen=True)
class Tensor:
    """One array of a case. type_name is ggml's; `raw` are its bytes, row after row; shape is NumPy's."""

    type_name: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @staticmethod
    def of(array: NDArray) -> "Tensor":
        """A float32 or int32 array as a tensor.

        Errors  ValueError for another dtype
        """
        names = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}
        if array.dtype not in names:
            raise ValueError(f"golden tensor of dtype {array.dtype}, expected float32 or int32")
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return Tensor(names[array.dtype], array.shape, raw)

    def values(self) -> NDArray:
        """Integers as they are; F32 as it is; F16, BF16 and quantised types as float32 (exact)."""
        if self.type_name in ("F32", "I8", "I32"):
            return self.raw.view(DTYPES[self.type_name]).reshape(self.shape)
        return quants.dequantize(self.type_name, self.raw, self.shape).reshape(self.shape)


@dataclass(frozen=True)
class Expected:
    """One expected output: a tensor of the suite's GGUF, or a JSON value.

    tolerance  a class of the manifest: "exact" (bits), or a limit of the NMSE
    digest     in place of a tensor: what golden/README.md calls its digest
    noise      the NMSE of the specification's own `exact` numerics against the value, None where it is its own
    either     for a list of token ids: index -> all ids that are right there (a near tie)
    """

    name: str
    tolerance: str
    tensor: str | None = None
    value: Any = None
    digest: Mapping[str, Any] | None = None
    noise: float | None = None
    either: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One case: what goes in, what must come out. `inputs` and tensors of `expected` are names in the suite's GGUF."""

    id: str
    comment: str
    numerics: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    expected: tuple[Expected, ...]
    flags: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """One file of cases of one operation. `requires` of the suite and of a case say why a port may skip."""

    name: str
    level: str
    op: str
    spec: tuple[str, ...]
    about: str
    cases: tuple[Case, ...]
    tensors: Path | None = None


def hex_float(x: float) -> str:
    """A float as JSON holds it where it must be exact: C99 hex notation ("0x1.8p-2")."""
    return float(x).hex()


def param_float(params: Mapping[str, Any], name: str) -> float:
    """A hex-float parameter.

    Errors  UnfitError where it is missing or no hex float
    """
    try:
        return float.fromhex(params[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UnfitError(f"parameter {name} is {params.get(name)!r}, expected a hex float string") from None


class Folder:
    """A folder of golden vectors, checked against its manifest as it is read."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.manifest = read_json(self.root / "manifest.json")
        found = self.manifest.get("format")
        if found != FORMAT:
            raise MtprefError(
                f"{self._label('manifest.json')}: format {printable(str(found))}, expected {FORMAT}; "
                "use the vectors that belong to this version"
            )
        self.files = {str(f["path"]): f for f in self._records("files")}
        self.classes = self._classes()

    def _classes(self) -> dict[str, Mapping[str, Any]]:
        """The tolerance classes; every limit is a number."""
        classes = self.manifest.get("classes", {})
        self._read(dict[str, _Class], classes, "classes")
        return dict(classes)

    def suites(self, level: str | None = None, name: str | None = None) -> Iterator[Suite]:
        """The suites, in the order of the manifest; `level` ("L1") and `name` ("rms_norm") choose some."""
        for record in self.suite_records(level, name):
            yield self._suite(str(record["path"]))

    def suite_records(self, level: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        """What the manifest says of these suites: at least their path, name and level."""
        records = self._records("suites")
        return [r for r in records if level in (None, r["level"]) and name in (None, r["suite"])]

    def tensors(self, suite: Suite) -> dict[str, Tensor]:
        """All tensors of a suite by name; empty for a suite without a file of tensors."""
        if suite.tensors is None:
            return {}
        self.verify(str(suite.tensors))
        with open_gguf(self.root / suite.tensors) as file:
            return {name: _tensor(file, name) for name in file.tensors}

    def limit(self, tolerance: str) -> float:
        """The greatest NMSE of a class; 0 for "exact".

        Errors  MtprefError for a class that the manifest does not have
        """
        if tolerance == "exact":
            return 0.0
        try:
            return float(self.classes[tolerance]["nmse"])
        except (KeyError, TypeError, ValueError):
            raise MtprefError(
                f"{self._label('manifest.json')}: class {printable(tolerance)} has no limit, "
                f"expected one of {', '.join(self.classes)}"
            ) from None

    def verify(self, path: str) -> Path:
        """The file's path, its bytes being those of the manifest.

        Errors  MtprefError for a file that is missing, not in the manifest or other than it says
        """
        record = self.files.get(path)
        if record is None:
            raise MtprefError(f"{self._label(path)}: not in manifest.json, expected one of its files")
        found = sha256_of(self.root / path)
        if found != record["sha256"]:
            wanted = f"{str(record['sha256'])[:16]}... as in manifest.json"
            raise MtprefError(
                f"{self._label(path)}: SHA-256 {found[:16]}..., expected {wanted}; fetch the folder again"
            )
        return self.root / path

    def _suite(self, path: str) -> Suite:
        data = read_json(self.verify(path))
        try:
            found: _Suite = read(_Suite, data, "suite")
            tensors = None if found.tensors is None else Path(path).with_name(found.tensors)
        except (MtprefError, ValueError) as error:
            raise MtprefError(f"{self._label(path)}: no suite of {FORMAT} ({error}); see golden/README.md") from None
        cases = tuple(case.case() for case in found.cases)
        return Suite(found.suite, found.level, found.op, found.spec, found.about, cases, tensors)

    def _records(self, key: str) -> list[dict[str, Any]]:
        records = self.manifest.get(key)
        self._read(list[_File] if key == "files" else list[_Record], records, key)
        return list(records or [])

    def _read(self, kind: Any, value: Any, key: str) -> Any:
        try:
            return read(kind, value, key)
        except MtprefError as error:
            raise MtprefError(f"{self._label('manifest.json')}: {error}; fetch the folder again") from None

    def _label(self, path: str) -> str:
        return printable(str(self.root / path), 400)


def sha256_of(path: Path) -> str:
    label = printable(str(path), 400)
    try:
        with open_regular(path, label, "expected a file of golden vectors") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MtprefError(f"{label}: cannot be read ({error.strerror}); expected a file of golden vectors") from None


@dataclass(frozen=True)
class _Out:
    """One expected output of a case's JSON."""

    class_: str
    tensor: str | None = None
    value: Any = None
    digest: dict[str, Any] | None = None
    noise: float | None = None
    either: dict[str, Ids] | None = None

    def named(self, name: str) -> Expected:
        either = {int(i): tuple(ids) for i, ids in (self.either or {}).items() if i.isascii() and i.isdigit()}
        return Expected(name, self.class_, self.tensor, self.value, self.digest, self.noise, either)


@dataclass(frozen=True)
class _Case:
    id: str
    comment: str
    numerics: str
    params: dict[str, Any]
    in_: dict[str, str]
    out: dict[str, _Out]
    flags: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    def case(self) -> Case:
        expected = tuple(out.named(name) for name, out in self.out.items())
        return Case(self.id, self.comment, self.numerics, self.params, self.in_, expected, self.flags, self.requires)


@dataclass(frozen=True)
class _Suite:
    suite: str
    level: str
    op: str
    spec: tuple[str, ...]
    about: str
    cases: list[_Case]
    tensors: str | None = None


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str


@dataclass(frozen=True)
class _Record:
    path: str
    suite: str
    level: str


@dataclass(frozen=True)
class _Class:
    nmse: Annotated[float, Within(0, 1)] = 0.0


def _tensor(file: GgufFile, name: str) -> Tensor:
    info = file.tensors[name]
    return Tensor(info.type_name, info.shape, np.array(file.data(info), copy=True).reshape(-1).view(np.uint8))


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file of the folder.

    Errors  MtprefError for a file that cannot be read, is too large or is no JSON object
    """
    label = printable(str(path), 400)
    raw = read_regular(path, label, "expected a folder of golden vectors", MAX_JSON_BYTES)
    data = parse_json_at(raw, label, "; fetch the folder again")
    if not isinstance(data, dict):
        raise MtprefError(f"{label}: {describe(data)}, expected an object")
    return data
