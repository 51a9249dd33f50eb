"""A checkpoint folder: its configuration and its tensors, wherever the index says they are.

Owns the finding of files and the limits on what a folder can make a reader hold. Tensors are read over mmap, rows at a
time; how they are stored is formats/'s. Knows nothing of architectures (see names.py, config.py).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json_at
from mtpref.files.doors import read_regular
from mtpref.files.gguf import printable
from mtpref.files.gguf.whole import refuse_left_over
from mtpref.files.tensor_files.safetensors import SafetensorsFile
from mtpref.heads.hf.beside import head_files
from mtpref.heads.hf.formats import Index, Raw, Stored, declared, recognise
from mtpref.heads.hf.formats.foreign import MLX

CONFIG, INDEX, WHOLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"
MAX_JSON = 64 << 20  # bytes; the index of a model with 100,000 tensors has 10 MB
MAX_MEMORY = 384 << 20  # what that index, or the tokenizer.json of 262,144 tokens, may become
MAX_FILES = 4096
MAX_NAME = 255  # bytes: what file systems take
_EXPECTED = "expected a checkpoint folder with config.json and safetensors files"


class Checkpoint:
    """An open checkpoint. `names` are the tensors' plain names: file by file as the files' names sort, sorted in each.

    That is the order in which llama.cpp's converter visits them. `config` is config.json as it stands; `metadata` the
    safetensors headers' own, of the first file.
    A quantised tensor has the name, shape and values that it stands for (`mtpref.heads.hf.formats`); `aside` are scales
    of activations and caches. `unlisted` are files of a head that the index does not list.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        files: dict[str, SafetensorsFile],
        unlisted: tuple[str, ...] = (),
        label: str | None = None,
    ) -> None:
        self.folder, self.config, self.files, self.unlisted = folder, config, files, unlisted
        self.label = label or printable(str(folder), 400)
        self.declared = declared(config, self.label, self.json)
        self._tensors, self.aside = recognise(Raw(self.label, files), self.declared)
        self.names = list(self._tensors)
        self.metadata = files[min(files)].metadata if files else {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def stored(self, name: str) -> Stored:
        """A tensor as it is stored: its format, and blocks that keep its codes."""
        return self._tensors[name]

    def fault(self, name: str) -> str | None:
        """Why a tensor cannot be read, naming it; None where it can."""
        return self._tensors[name].fault

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The container's name of the type in which values come: F32, F16, BF16, ..., of quantised tensors F32."""
        return self._tensors[name].dtype

    def values(self, name: str) -> NDArray:
        """A copy of the whole tensor; BF16 comes as float32 (exact)."""
        return self._tensors[name].values()

    def rows(self, name: str, index: Index) -> NDArray:
        """A copy of some rows (along the last dimension), in the order of the index; BF16 comes as float32."""
        return self._tensors[name].rows(index)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages."""
        self._tensors[name].release()

    @property
    def is_mlx(self) -> bool:
        """Whether MLX saved it, by the files' own metadata or by its format."""
        is_marked = any(file.metadata.get("format") == "mlx" for file in self.files.values())
        return is_marked or any(tensor.kind == MLX for tensor in self._tensors.values())

    def formats(self) -> dict[str, int]:
        """Quantised formats -> how many tensors."""
        return dict(Counter(tensor.kind for tensor in self._tensors.values() if tensor.kind and tensor.fault is None))

    def json(self, name: str) -> dict[str, Any] | None:
        """Another JSON file of the folder (tokenizer_config.json, ...), or None where there is none.

        Errors   MtprefError for one that is no JSON object, or too large
        """
        return read_json(self.folder / name) if (self.folder / name).is_file() else None

    def text(self, name: str) -> str | None:
        """A text file of the folder, or None where there is none."""
        path = self.folder / name
        return _text(path) if path.is_file() else None

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def is_checkpoint(path: str | Path) -> bool:
    """Whether the path is a folder with a config.json."""
    return (Path(path) / CONFIG).is_file()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder.

    Errors   MtprefError: no folder, no or damaged config.json, an index that names files outside the folder or that
             are missing, files and index that disagree on their tensors, a tensor in two files, damaged safetensors
    """
    folder = Path(path)
    label = printable(str(path), 400)
    refuse_left_over(folder)
    if not folder.is_dir():
        raise MtprefError(f"{label}: not a folder, {_EXPECTED}")
    if (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in (INDEX, WHOLE)):
        raise MtprefError(
            f"{label}: a LoRA adapter ({ADAPTER}), not a model; merge it into its base model and give "
            "the merged folder (what saves it may drop mtp.*: see mtpref check)"
        )
    if not (folder / CONFIG).is_file():
        raise MtprefError(f"{label}: no {CONFIG}, {_EXPECTED}; is it one folder further down?")
    config = read_json(folder / CONFIG)
    index = read_index(folder)
    files: dict[str, SafetensorsFile] = {}
    try:
        for name in _file_names(folder, index):
            files[name] = SafetensorsFile(folder / name)
        check_names(label, index, files)
        unlisted = head_files(folder, label, config, files)
        files |= unlisted
        return Checkpoint(folder, config, files, tuple(unlisted))
    except BaseException:
        for file in files.values():
            file.close()
        raise


def read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file name, or None where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    found = read_json(path).get("weight_map")
    label = printable(str(path), 400)
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise MtprefError(f"{label}: no weight_map, expected an object of tensor name -> file name")
    for file in found.values():
        is_plain = Path(file).name == file and file.isprintable() and len(file.encode()) <= MAX_NAME
        if not is_plain or not file.endswith(".safetensors"):
            raise MtprefError(f"{label}: names the file {printable(file)}, expected a .safetensors file beside it")
    return found


def _file_names(folder: Path, index: dict[str, str] | None) -> list[str]:
    """The files to open, sorted."""
    label = printable(str(folder), 400)
    if index is None:
        names = sorted(p.name for p in folder.glob("model*.safetensors"))
        if not names:
            others = sorted(p.name for p in folder.glob("*.bin"))[:1]
            hint = f"; it has {printable(others[0])}: save it as safetensors first" if others else ""
            raise MtprefError(f"{label}: neither {INDEX} nor {WHOLE}, {_EXPECTED}{hint}")
    else:
        names = sorted(set(index.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise MtprefError(
                f"{label}: {len(missing)} of {len(names)} files of {INDEX} are missing, the first is "
                f"{printable(missing[0])}; is the download complete?"
            )
    if len(names) > MAX_FILES:
        raise MtprefError(f"{label}: {len(names)} safetensors files, expected at most {MAX_FILES}")
    return names


def check_names(label: str, index: dict[str, str] | None, files: dict[str, SafetensorsFile]) -> None:
    """Every tensor in one file, and the index of one mind with the files."""
    seen: dict[str, str] = {}
    for file in files:
        for name in files[file].names:
            if name in seen:
                raise MtprefError(
                    f"{label}: tensor {printable(name)} is in {printable(seen[name])} and in "
                    f"{printable(file)}, expected it once"
                )
            seen[name] = file
    if index is None:
        return
    missing = sorted(set(index) - set(seen))
    extra = sorted(set(seen) - set(index))
    if missing:
        raise MtprefError(
            f"{label}: {INDEX} lists {len(missing)} tensors that no file has, the first is "
            f"{printable(missing[0])}; is the download complete?"
        )
    if extra:
        raise MtprefError(
            f"{label}: {len(extra)} tensors are in the files and not in {INDEX}, the first is "
            f"{printable(extra[0])}; expected the index of these very files"
        )


def _text(path: Path) -> str:
    label = printable(str(path), 400)
    try:
        return read_regular(path, label, "expected a text of a checkpoint folder", MAX_JSON).decode("utf-8")
    except UnicodeDecodeError:
        raise MtprefError(f"{label}: no UTF-8 text, expected one; download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the folder. Errors: MtprefError for anything else, and for one that is too large"""
    label = printable(str(path), 400)
    found = parse_json_at(_text(path).encode("utf-8"), label, "; is it damaged?", max_memory=MAX_MEMORY)
    if not isinstance(found, dict):
        raise MtprefError(f"{label}: a {type(found).__name__}, expected a JSON object")
    return found
