"""Golden vectors of the user's own model: activations of prompts, draft chains, whole runs.

Owns what is recorded and how much of it. Values are the specification's own in the numerics asked for (the float64
oracle is too slow for a real model), so `noise` is absent. The model is named by the hash of its tensors.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.settings import Bounds, OneOf, check_fields
from mtpref.base.typed import parse_json
from mtpref.engine.decode import NEAR_TIE, STRATEGIES
from mtpref.engine.model import Model, refuse_assistant
from mtpref.files.doors import check_output_folder, in_place, read_regular
from mtpref.files.gguf import GgufFile, open_gguf, printable
from mtpref.golden import loops
from mtpref.golden.build import SuiteBuilder, close, manifest, value, write_json
from mtpref.golden.digest import digest_of
from mtpref.golden.format import FORMAT, MAX_JSON_BYTES, Tensor
from mtpref.golden.models import GIVEN, run_prompt
from mtpref.golden.taps import Tap

VERSION = "0.0.0"
RUN_SPEC = ("S20", "S22", "S23", "S24", "S30", "S31", "S32", "S33", "S34", "S35", "S38", "S40")
NEAR_P = 1e-3  # candidates of a draft whose probabilities are nearer than this may be exchanged
MOST = 1 << 20
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to record of every prompt.

    tensors     a regular expression over cb() names
    rows        "last", "all" or token numbers of the prompt
    n_batch     tokens of a pass
    n_predict   tokens of each run; 0: no runs
    drafts      longest draft of each run (0: no drafts), rollbacks: by these strategies
    is_digest   digests in place of tensors
    """

    tensors: str = r"^(l_out-\d+|result_norm|result_output|mtp_(eh_proj-\d+|l_out-\d+|result_output))$"
    rows: Annotated[str, OneOf(("last", "all"))] | tuple[Annotated[int, Bounds(0, MOST)], ...] = "last"
    n_batch: Annotated[int, Bounds(1, MOST)] = 512
    n_predict: Annotated[int, Bounds(0, MOST)] = 32
    drafts: tuple[Annotated[int, Bounds(0, MOST)], ...] = (0, 3)
    rollbacks: tuple[Annotated[str, OneOf(tuple(STRATEGIES))], ...] = ("snapshot",)
    is_digest: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "golden.Plan")


def tensors_sha256(file: GgufFile) -> str:
    """SHA-256 over all tensors by name: name, type, NumPy shape, bytes. Neither the path nor the keys count."""
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        info = file.tensors[name]
        digest.update(f"{name}\0{info.type_name}\0{list(info.shape)}\0".encode())
        digest.update(file.data(info).data)
    return digest.hexdigest()


def generate_vectors(
    model: Model, path: str | Path, prompts: Sequence[tuple[str, list[int]]], plan: Plan, out: Path, progress: Progress
) -> None:
    """Write a folder of golden vectors for `model`, which was loaded from `path`. All of it or nothing.

    prompts     (a name of letters, digits and "_", token ids)
    Errors      MtprefError for an empty prompt, a pattern that matches nothing, a folder that is there already and
                holds something else
    """
    refuse_assistant(model, "golden gen")
    _check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        root = Path(made) / "golden"
        root.mkdir()
        for i, (name, ids) in enumerate(prompts):
            progress(f"prompt {i + 1} of {len(prompts)} ({name}, {len(ids)} tokens)")
            _activations(model, name, ids, plan).write(root)
            if plan.n_predict:
                _runs(model, name, ids, plan, progress).write(root)
        progress("hash of the model's tensors")
        with open_gguf(path) as file:
            identity = {
                "tensors_sha256": tensors_sha256(file),
                "n_tensors": len(file.tensors),
                "arch": model.config.arch,
            }
        write_json(root / "manifest.json", manifest(root, VERSION, identity))
        _replace(root, out)


def check_model(identity: Any, path: str | Path) -> None:
    """The file is the model that vectors were made for.

    Errors  MtprefError where it is another
    """
    with open_gguf(path) as file:
        found = tensors_sha256(file)
        if not isinstance(identity, dict) or found != identity.get("tensors_sha256"):
            wanted = str(identity.get("tensors_sha256"))[:16] if isinstance(identity, dict) else "none"
            raise MtprefError(
                f"{file.label}: its tensors have SHA-256 {found[:16]}..., the vectors were made for "
                f"{wanted}...; expected the same file, not another quantisation"
            )


def _activations(model: Model, name: str, ids: list[int], plan: Plan) -> SuiteBuilder:
    pattern = _pattern(plan.tensors)
    rows = _rows(plan.rows, len(ids))
    batches = [min(plan.n_batch, len(ids) - at) for at in range(0, len(ids), plan.n_batch)]
    tap = Tap(lambda tensor: pattern.search(tensor) is not None, rows)
    run_prompt(model, ids, batches, tap)
    kept = {tensor: array for tensor, array in tap.kept.items() if array.size}
    if not kept:
        raise MtprefError(f"`tensors`: {plan.tensors!r} matches no activation of the model; try: mtpref dump")
    suite = SuiteBuilder(
        "L3", f"prompt_{name}", "prompt", ("S6", "S20", "S30", "S31"), f"Prompt {name} through trunk and head."
    )
    params = _params(model) | {"batches": batches}
    if rows is not None:
        params["rows"] = rows
    out = {tensor: _expected(model, array, plan) for tensor, array in kept.items()}
    need = ["mtp"] if model.has_mtp else []
    suite.case("activations", "chosen tokens of chosen tensors", inputs={"tokens": np.array(ids, np.int32)}, out=out,
               params=params, numerics=model.recipe.numerics, flags=["basic"], requires=need)  # fmt: skip
    return suite


def _runs(model: Model, name: str, ids: list[int], plan: Plan, progress: Progress) -> SuiteBuilder:
    """Greedy runs, each ending in front of its first near tie: after one, an honest port may go on differently."""
    suite = SuiteBuilder("L6", f"text_{name}", "generate", RUN_SPEC, f"Greedy runs on {name}.")
    inputs = {"tokens": Tensor.of(np.array(ids, np.int32))}
    for n_max in plan.drafts:
        for rollback in plan.rollbacks if n_max else ("snapshot",):
            progress(f"  drafts of up to {n_max}, {rollback}")
            params = _params(model) | {"n_max": n_max, "n_predict": plan.n_predict, "rollback": rollback}
            params["n_predict"] = n_tokens = n_sure(model, params, inputs, plan.n_predict)
            if n_tokens == 0:
                continue
            given = loops.generate(model, params, inputs)
            out = {key: value(given[key]) for key in ("ids", "drafts", "n_accepted", "reason", "text")}
            comment = f"drafts of up to {n_max}, {rollback}" if n_max else "no drafts"
            if n_tokens < plan.n_predict:
                comment += f"; ends in front of a near tie at token {n_tokens}"
            suite.case(f"n{n_max}_{rollback.replace('-', '_')}", comment, inputs=inputs, params=params, out=out,
                       numerics=model.recipe.numerics, flags=["basic"],
                       requires=["mtp", rollback] if n_max else [])  # fmt: skip
    if not suite.cases:
        raise MtprefError(f"prompt {name}: its first token is a near tie already; choose another prompt")
    return suite


def n_sure(model: Model, params: dict[str, Any], inputs: dict[str, Tensor], n_predict: int) -> int:
    """Tokens in front of the first near tie of a choice or of a drafted candidate; all of them where there is none."""
    margins, gaps = loops.margins(model, params, inputs)
    sure = next((i for i, margin in enumerate(margins) if margin < NEAR_TIE), n_predict)
    return min(sure, next((at for at, gap in gaps if gap < NEAR_P), n_predict))


def _params(model: Model) -> dict[str, Any]:
    contract = model.contract_name
    return {"model": GIVEN, "contract": contract, "kv_type": model.kv_type, "kv_type_draft": model.kv_type_draft}


def _expected(model: Model, array: NDArray, plan: Plan) -> dict[str, Any]:
    tolerance = "model_f32" if model.recipe.numerics == "exact" and model.kv_type == "F32" else "model_ggml"
    if plan.is_digest:
        return {"class": tolerance, "digest": digest_of(array)}
    return close(tolerance, array)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise MtprefError(f"`tensors`: {text[:80]!r} is no regular expression ({error})") from None


def _rows(rows: str | tuple[int, ...], n: int) -> list[int] | None:
    if n == 0:
        raise MtprefError("prompt: it has no tokens, expected at least one")
    if rows == "all":
        return None
    chosen = [n - 1] if rows == "last" else sorted({int(r) for r in rows})
    if chosen and not 0 <= chosen[0] <= chosen[-1] < n:
        raise MtprefError(f"`rows`: {chosen[-1]} is out of range, expected 0 .. {n - 1}, the prompt's tokens")
    return chosen


def _check_target(out: Path) -> None:
    """A folder that is there is replaced whole, so it may hold nothing that an earlier run did not write."""
    check_output_folder(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MtprefError(f"`out` {out}: is there and is no folder, expected a new or a golden folder")
    if not out.exists() or not any(out.iterdir()):
        return
    written = _files_of_gen(out / "manifest.json")
    if written is None:
        raise MtprefError(f"`out` {out}: is there and holds no golden vectors of golden gen, expected a new folder")
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if name not in written and (path.is_symlink() or not path.is_dir()):
            raise MtprefError(
                f"`out` {out}: holds {printable(name, 200)}, which golden gen did not write, expected a "
                "new folder, since the whole of an old one is replaced"
            )


def _files_of_gen(path: Path) -> set[str] | None:
    """The files that a manifest of golden gen names, itself included; None where it is none."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with in_place():  # it is replaced later
            record = parse_json(read_regular(path, str(path), "expected a manifest", MAX_JSON_BYTES))
    except MtprefError:
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT or "model" not in record:
        return None  # another program's, or the published vectors, which have "models"
    listed = record.get("files")
    files = listed if isinstance(listed, list) else []
    return {"manifest.json"} | {str(f.get("path")) for f in files if isinstance(f, dict)}


def _replace(root: Path, out: Path) -> None:
    """The new folder takes the place of the old one, which is put aside first and removed last."""
    _check_target(out)  # what has come to be, or was read, since the first check
    if not out.exists():
        os.replace(root, out)
        return
    aside = root.parent / "old"
    os.replace(out, aside)
    try:
        os.replace(root, out)
    except BaseException:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
