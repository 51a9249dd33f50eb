"""Golden vectors in the containers of other languages, and the trunk's logits as stock llama.cpp's tools read them.

Owns what an exported folder holds: export.json (format mtpref-golden-export-1) with the hash of every file, and

npz, safetensors   each suite as NAME.json and, with tensors, NAME.npz or NAME.safetensors; names are kept. The suite's
                   JSON gets `types`: tensor -> ggml type and NumPy shape, where the container cannot say it
                   (quantised blocks are bytes, BF16 in npz is uint16)
llama-results      MODEL-K.gguf for `llama-results --check`, for each F32 model and prompt
bin                MODEL-K/data/pytorch-MODEL.bin and its companions, for llama.cpp's examples/model-conversion
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, load
from mtpref.engine.recipe import make_recipe
from mtpref.files.doors import declare_inputs
from mtpref.files.gguf import printable
from mtpref.files.tensor_files import write_npz, write_safetensors, write_whole
from mtpref.golden.format import Folder, Tensor, read_json, sha256_of
from mtpref.look.llama_cpp.conversion import write_bin
from mtpref.look.llama_cpp.results import write_results
from mtpref.spec import quants

FORMAT = "mtpref-golden-export-1"
CONTAINERS = ("npz", "safetensors")
PROMPTS = ("The quick brown fox jumps", "0123456789 and more text to read here", "abcdef")
# What stock llama.cpp must be told so that it computes what the file holds.
LLAMA_FLAGS = "-fa off -ctk f32 -ctv f32 -t 1 -fit off"


@dataclass(frozen=True)
class Exported:
    """What was written: path names it, files are all its files. check: the command that has stock llama.cpp compute the
    same and, for llama-results, judge itself by it; "" for suites."""

    path: Path
    about: str
    files: tuple[Path, ...]
    check: str = ""


def export_suites(folder: Folder, container: str, out: Path, level: str | None, name: str | None) -> list[Exported]:
    """Write suites as npz or safetensors.

    Errors   MtprefError where nothing matches, or a file cannot be written
    """
    _check_target(folder, out)
    written = []
    for record in folder.suite_records(level, name):
        path = _inside(str(record["path"]))
        data = read_json(folder.verify(str(path)))
        (suite,) = folder.suites(record["level"], record["suite"])
        tensors, types, bf16 = _arrays(folder.tensors(suite), container)
        files = [out / path]
        data["format"] = FORMAT
        if tensors:
            target = out / path.with_suffix(f".{container}")
            data.update(tensors=target.name, types=types)
            files.append(target)
            write_npz(target, tensors) if container == "npz" else write_safetensors(target, tensors, bf16)
        write_whole(out / path, json.dumps(data, indent=1, ensure_ascii=True).encode() + b"\n")
        written.append(Exported(out / path, f"{len(tensors)} tensors, {len(data['cases'])} cases", tuple(files)))
    if not written:
        raise MtprefError("golden export: no suite matches, expected a level or suite of `mtpref golden list`")
    paths = [w.path.relative_to(out).as_posix() for w in written]
    about = {"version": folder.manifest.get("version"), "classes": folder.classes}
    _write_index(out, {"container": container, **about, "suites": paths}, written)
    return written


def _arrays(
    tensors: dict[str, Tensor], container: str
) -> tuple[dict[str, NDArray], dict[str, dict[str, Any]], frozenset[str]]:
    """Arrays by name; what the container cannot say of them; which are BF16."""
    arrays, types, bf16 = {}, {}, set()
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor.raw)
        native = {"F32": "<f4", "F16": "<f2", "I8": "<i1", "I32": "<i4", "BF16": "<u2"}.get(tensor.type_name)
        if native is not None:
            arrays[name] = raw.view(native).reshape(tensor.shape)
        else:
            width = quants.row_bytes(tensor.type_name, tensor.shape[-1])
            arrays[name] = raw.reshape(*tensor.shape[:-1], width)
        if tensor.type_name == "BF16" and container == "safetensors":
            bf16.add(name)
        elif native is None or tensor.type_name == "BF16":
            types[name] = {"type": tensor.type_name, "shape": list(tensor.shape)}
    return arrays, types, frozenset(bf16)


def export_logits(folder: Folder, form: str, out: Path, prompts: Sequence[str]) -> list[Exported]:
    """Write the trunk's logits of every prompt and every F32 model of the folder, in `ggml` numerics with F32 KV.

    Only F32 models: on quantised weights llama.cpp's vector code rounds some activations to another code than its
    scalar reference, and its limits (1e-6, not to be changed) leave no room for that.
    Errors   MtprefError for a folder without models, an empty prompt, or a file that cannot be written
    """
    _check_target(folder, out)
    paths = [name for name in folder.files if name.startswith("models/") and name.endswith("-f32.gguf")]
    if not paths:
        raise MtprefError(
            f"{printable(str(folder.root), 400)}: no F32 model in models/, expected one; fetch the whole folder"
        )
    written = []
    for name in paths:
        model = load(folder.verify(name), make_recipe("ggml"), kv_type="F32", kv_type_draft="F32")
        for k, prompt in enumerate(prompts, 1):
            ids = model.vocab.encode(prompt)
            if not ids:
                raise MtprefError("`text`: a prompt without tokens, expected a text")
            logits = _logits(model, ids)
            written.append(_write_logits(folder, form, out, name, k, prompt, ids, logits))
    runs = [{"path": w.path.relative_to(out).as_posix(), "about": w.about, "check": w.check} for w in written]
    _write_index(out, {"container": form, "runs": runs}, written)
    return written


def _logits(model: Model, ids: list[int]) -> NDArray[np.float32]:
    out = model.trunk(model.new_state(max(len(ids), 1)), ids, n_logits=len(ids))
    return np.asarray(out.logits, np.float32)


def _write_logits(
    folder: Folder, form: str, out: Path, name: str, k: int, prompt: str, ids: list[int], logits: NDArray[np.float32]
) -> Exported:
    stem, model_path = Path(name).stem, str(folder.root / name)
    quoted = "'" + prompt.replace("'", "'\\''") + "'"
    about = f"{prompt!r}: {len(ids)} tokens"
    if form == "llama-results":
        target = out / f"{stem}-{k}.gguf"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_results(target, model_path, ids, logits)
        return Exported(
            target, about, (target,), f"llama-results -m {model_path} -o {target} -p {quoted} {LLAMA_FLAGS} --check"
        )
    data = out / f"{stem}-{k}" / "data"
    files = write_bin(data, f"pytorch-{stem}", prompt, ids, logits[-1])
    check = f"llama-debug -m {model_path} -p {quoted} {LLAMA_FLAGS} --save-logits --logits-output-dir {data}"
    return Exported(data, about, tuple(files), check)


def _inside(path: str) -> Path:
    """A path of the manifest that stays below the folder it is written to."""
    found = Path(path)
    if found.is_absolute() or ".." in found.parts:
        raise MtprefError(f"golden export: manifest.json names {printable(path)}, expected a path inside the folder")
    return found


def _check_target(folder: Folder, out: Path) -> None:
    if out.resolve() == folder.root.resolve():
        raise MtprefError(f"`out` {printable(str(out), 400)}: that is the folder of the vectors itself; choose another")
    declare_inputs([folder.root / name for name in folder.files])


def _write_index(out: Path, about: dict[str, Any], written: list[Exported]) -> None:
    """export.json: what is there, with the hash of each file."""
    files = []
    for path in sorted(path for w in written for path in w.files):
        name = path.relative_to(out).as_posix()
        files.append({"path": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)})
    data = {"format": FORMAT, **about, "files": files}
    write_whole(out / "export.json", json.dumps(data, indent=1, ensure_ascii=True).encode() + b"\n")
