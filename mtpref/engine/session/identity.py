"""Which model a saved state belongs to: a digest of what the model reads, cheap enough to take at every save and load.

Owns what goes into it. It must not know what the digests are compared for.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np

from mtpref.engine.model import Layer, Model

WHOLE_BYTES = 1 << 18  # tensors up to this size count whole
PROVENANCE = ("origin", "borrowed", "file")  # of MtpWeights: which file and name a tensor came by, not what it is
OF_ASSISTANTS = ("before", "post_projection")  # whose states are the trunk's
N_BLOCKS, BLOCK_BYTES = 16, 4096  # of larger ones: so many blocks, evenly spaced, first and last bytes among them


def trunk_id(core: Model) -> str:
    """SHA-256 over hyper-parameters, and name, type, shape and bytes of every tensor that the trunk reads.

    Rule     of a tensor of more than WHOLE_BYTES bytes, N_BLOCKS blocks of BLOCK_BYTES stand for the rest: another
             model, another quantisation or another training shows, a few bytes changed by hand between blocks do not
    """
    config = {name: value for name, value in asdict(core.config).items() if name not in ("name", "n_layer_nextn")}
    sha = hashlib.sha256(_text(config, [_layer(layer) for layer in core.layers]))
    for part in fields(core.weights):
        _add(sha, part.name, getattr(core.weights, part.name))
    return sha.hexdigest()


def head_id(core: Model) -> str:
    """The same over the MTP heads, with the trunk's tensors that it borrows; empty where there is none.

    Also empty for one that keeps nothing: the state of a sequence is then the trunk's alone, whoever drafts.

    A head has the same id in the model's file and in a file of its own.
    """
    if not any(head.keeps_cells for head in core.heads):
        return ""
    sha = hashlib.sha256(_text([_layer(head.layer) for head in core.heads]))
    for i, head in enumerate(core.heads):
        for part in fields(head.weights):
            if part.name not in PROVENANCE + OF_ASSISTANTS:
                _add(sha, f"mtp{i}.{part.name}", getattr(head.weights, part.name))
    return sha.hexdigest()


def _layer(layer: Layer) -> list[Any]:
    own = [] if layer.residual_cfg is None else [_plain(layer.residual_cfg)]
    return [layer.kind.name, _plain(layer.cfg), layer.block.ffn.name, _plain(layer.ffn_cfg), *own]


def _plain(cfg: Any) -> Any:
    return asdict(cfg) if is_dataclass(cfg) and not isinstance(cfg, type) else cfg


def _text(*values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, default=repr).encode()


def _add(sha: Any, name: str, value: Any) -> None:
    """Walk records, tables and lists down to arrays and plain values.

    A field that takes no part in comparisons is passed over: a matrix laid out anew for the kernels is the same matrix.
    """
    if isinstance(value, np.ndarray):
        sha.update(_text(name, str(value.dtype), value.shape))
        for block in _blocks(value):
            sha.update(block)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            if part.compare:
                _add(sha, f"{name}.{part.name}", getattr(value, part.name))
    elif isinstance(value, dict):
        for key in sorted(value):
            _add(sha, f"{name}.{key}", value[key])
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            _add(sha, f"{name}.{i}", item)
    else:
        sha.update(_text(name, value))


def _blocks(array: np.ndarray) -> Iterator[bytes]:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if raw.size <= WHOLE_BYTES:
        yield raw.tobytes()
        return
    for i in range(N_BLOCKS):
        start = (raw.size - BLOCK_BYTES) * i // (N_BLOCKS - 1)
        yield raw[start : start + BLOCK_BYTES].tobytes()
