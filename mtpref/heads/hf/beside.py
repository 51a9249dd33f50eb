"""A head in a file of its own, beside a model whose index does not list it (`mtp.safetensors`).

Programs that quantise a trunk save the head so. A file counts where every tensor of it is a head's by its name; others
(a second copy of the model, adapters) are left alone, as they always were.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.tensor_files.safetensors import SafetensorsFile
from mtpref.heads.hf.names import canonical

MAX_BESIDE = 64  # files that are looked into
_BLOCK = re.compile(r"model\.layers\.(\d{1,6})\.")
_NAMED = re.compile(r"mtp|nextn", re.IGNORECASE)


def head_files(
    folder: Path, label: str, config: dict[str, Any], files: dict[str, SafetensorsFile]
) -> dict[str, SafetensorsFile]:
    """Files beside those of the model that hold nothing but a head, open.

    Errors   MtprefError for a head's file that is damaged, or has a part of its tensors in common with the model's
    """
    beside = [name for name in sorted(p.name for p in folder.glob("*.safetensors")) if name not in files]
    n_layer = _n_layer(config)
    known = {name for file in files.values() for name in file.names}
    found: dict[str, SafetensorsFile] = {}
    try:
        for name in beside[:MAX_BESIDE]:
            file = _open(folder / name, is_needed=bool(_NAMED.search(name)))
            if file is None:
                continue
            names = set(file.names)
            if not names or not all(is_head_name(tensor, n_layer) for tensor in names) or names <= known:
                file.close()
                continue
            found[name] = file
            both = sorted(names & known)
            if both:
                raise MtprefError(
                    f"{label}: tensor {printable(both[0])} is in {printable(name)} and in a file of the model, "
                    "expected it once; take one of the two away"
                )
            known |= names
    except BaseException:
        for file in found.values():
            file.close()
        raise
    return found


def _open(path: Path, *, is_needed: bool) -> SafetensorsFile | None:
    try:
        return SafetensorsFile(path)
    except MtprefError:
        if is_needed:
            raise
        return None


def is_head_name(name: str, n_layer: int | None) -> bool:
    """Whether a name is that of a head's tensor: below mtp, or of a block after the trunk's."""
    plain = canonical(name)
    block = _BLOCK.match(plain)
    return plain.startswith("mtp.") or (n_layer is not None and block is not None and int(block[1]) >= n_layer)


def _n_layer(config: dict[str, Any]) -> int | None:
    inner = config.get("text_config")
    found = (inner if isinstance(inner, dict) else {}).get("num_hidden_layers", config.get("num_hidden_layers"))
    return found if type(found) is int else None
