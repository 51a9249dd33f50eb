"""What a file's header, its small vectors and a sample of rows say. Bounded by the size of a header, not of a model.

Owns the static findings. Nothing here decides a norm's convention: the head's layer norms are set beside the trunk's of
the same kind, and only where all four lie one off in the same direction is it called suspect.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.architectures import ARCHITECTURES, D2T, Architecture, present_tensors
from mtpref.architectures.transforms import ZERO_CENTRED
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, other_counts, printable
from mtpref.files.gguf.parse import next_aligned
from mtpref.files.vocab.pretokenizers import known_names, unusual_pre
from mtpref.heads.check.findings import Finding
from mtpref.heads.check.sampling import FEW_BITS, sample_rows, vector
from mtpref.heads.inspect.layers import Problem, without_head
from mtpref.spec.quants import DEQUANTIZABLE

LOW_BITS = FEW_BITS | {"Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"}
SENSITIVE = ("nextn.eh_proj.weight", "nextn.shared_head_head.weight", "nextn.embed_tokens.weight")
SPECTRAL_ROWS, SPECTRAL_COLUMNS, SPECTRAL_LAYERS = 256, 512, 3
POWER_STEPS = 40
TRAINED, NOISE = 1.25, (0.93, 1.06)  # of the edge of noise


def inventory(report: dict[str, Any], problems: Sequence[Problem]) -> list[Finding]:
    """The findings in an inspect report and its problems: what is declared against what is there."""
    head, found, arch = report["mtp"], [], report["architecture"]
    status = head["status"]
    where = f"{report['architecture']}.nextn_predict_layers"
    by_status = {
        "absent": ("head-absent", "no head: the key is absent or 0, and no nextn tensor is there"),
        "apart": (
            "head-apart",
            "an assistant drafts for such models: mtpref check TARGET -md ASSISTANT",
        ),
        "missing": (
            "head-dropped",
            f"{head['declared']} declared, no nextn tensor there; {without_head(ARCHITECTURES.get(arch))}",
        ),
        "undeclared": ("head-undeclared", "absent or 0, and nextn tensors are there"),
        "partial": ("shards-missing", "not all of the head is in this file of a split model"),
    }
    apart = ""
    if status == "absent" and arch in ARCHITECTURES and ARCHITECTURES[arch].streams is not None:
        apart = "; such models have it in a file of its own: mtpref check TRUNK -md HEAD"
    if status in by_status:
        found.append(Finding(by_status[status][0], where, by_status[status][1] + apart))
    kinds = {row["index"]: row["found"] for row in report["layers"]["blocks"]}
    sheet = ARCHITECTURES.get(arch)
    of_trunk = {block.name for block in sheet.layers.all_blocks()} if sheet else set()
    for block in head["blocks"] if status == "incomplete" else ():
        if kinds.get(block["index"]) in of_trunk:
            text = f"{where} is {head['declared']}, and blk.{block['index']} is a trunk layer, which then is not run"
            found.append(Finding("heads-overcounted", block["missing"][0], f"missing: {text}"))
        else:
            found += [Finding("head-incomplete", name, "missing, expected in every head") for name in block["missing"]]
    named = {name for block in head["blocks"] for name in block["missing"]}
    for problem in problems:
        if problem.tensor in named or problem.kind in ("head", "type"):
            continue  # said by the head's status, and by `unreadable`
        if problem.kind == "shards":
            found.append(Finding("shards-missing", "shards", problem.text))
        elif problem.kind == "unused":
            found.append(Finding("unused-tensor", problem.tensor, "unexpected, and nothing reads it"))
        else:
            found.append(Finding("inventory", problem.tensor or "key", problem.text))
    shared = [f"{t['name'].split('.', 2)[-1]} = {t['from']}" for b in head["blocks"] for t in b["tensors"]
              if t["source"] == "fallback"]  # fmt: skip
    if head["blocks"] and status == "present":
        found.append(Finding("fallbacks", "shared with the trunk", ", ".join(shared) or "nothing"))
        found += list(_types(head["blocks"]))
    return found


def stand_ins(seen: dict[str, Any]) -> dict[str, str]:
    """Tensors of the head that are not there -> those of the trunk that a run takes for them."""
    rows = (t for b in seen["mtp"]["blocks"] for t in b["tensors"])
    return {t["name"]: t["from"] for t in rows if t["source"] == "fallback"}


def trailing(file: GgufFile) -> list[Finding]:
    """Bytes after the last tensor and its padding: a type that takes less than what was written leaves them."""
    found, elsewhere = [], {name for other in file.others for name in other.tensors}
    of_others = sum(other.n_bytes for other in file.others)  # the first file's n_bytes counts them too
    for part in (file, *file.others):
        own = [t for name, t in part.tensors.items() if part is not file or name not in elsewhere]
        if own:
            last = max(own, key=lambda t: t.offset)
            n_bytes = part.n_bytes - of_others if part is file else part.n_bytes
            n = n_bytes - next_aligned(last, part.data_offset, part.alignment)
            if n > 0:
                text = f"{n} bytes after {printable(last.name)} ({last.type_name}), expected none"
                found.append(Finding("trailing-bytes", part.label, text))
    return found


def counts(file: GgufFile) -> list[Finding]:
    """Files of a split model that a head was put beside."""
    text = other_counts(file)
    return [] if text is None else [Finding("other-counts", "split.count", text)]


def unreadable(file: GgufFile, unused: set[str]) -> list[Finding]:
    """Types without decoder among the tensors that a run would read: nothing can be said of their values.

    unused   printable names of those that nothing reads
    """
    names: dict[str, list[str]] = {}
    tables = _tables(file)
    for info in file.tensors.values():
        name = printable(info.name)
        if info.type_name == "I32" and info.name.split(".", 2)[-1] in tables:
            continue  # a load looks at every number of it
        if info.type_name not in DEQUANTIZABLE and info.name != D2T.name and name not in unused:
            names.setdefault(info.type_name, []).append(name)
    more = {kind: f" and {len(found) - 1} more" if len(found) > 1 else "" for kind, found in names.items()}
    return [
        Finding("unsupported", f"type {kind}", f"{found[0]}{more[kind]}: values cannot be read")
        for kind, found in names.items()
    ]


def _tables(file: GgufFile) -> set[str]:
    """The tensors of blocks that are tables of integers."""
    sheet = ARCHITECTURES.get(str(_text(file, "general.architecture")))
    return {t.name for block in sheet.blocks for t in block.all_tensors() if t.below is not None} if sheet else set()


def _types(blocks: list[dict[str, Any]]) -> Iterator[Finding]:
    own = [t for block in blocks for t in block["tensors"] if t["source"] == "own"]
    counts: dict[str, list[str]] = {}
    for t in own:
        counts.setdefault(t["type"], []).append(t["name"].split(".", 2)[2].removesuffix(".weight"))
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(counts.items()))
    yield Finding("types", "types", text)
    for t in own:
        if t["type"] in LOW_BITS and t["name"].endswith(SENSITIVE):
            yield Finding("low-bits", t["name"], f"{t['type']}, expected Q8_0 or better where acceptance matters")


# VALUES


def norms_never_loaded(file: GgufFile, sheet: Architecture, il: int) -> list[Finding]:
    """Whether every norm of the head is exactly 1."""
    names = [tensor.name for tensor in sheet.head_tensors(il, file.tensors) if tensor.name.endswith("norm.weight")]
    found = (vector(file, f"blk.{il}.{name}") for name in names)
    present = [x for x in found if x is not None]
    if present and all(np.all(x == 1) for x in present):
        return [Finding("norms-never-loaded", f"{len(present)} norms", "all values are exactly 1")]
    return []


def norms(file: GgufFile, sheet: Architecture, il: int, kinds: Sequence[str]) -> list[Finding]:
    """Whether all of the head's layer norms to which a converter adds 1 lie one off the trunk's of the same kind.

    kinds   names of the trunk's blocks
    """
    steps: dict[str, int] = {}
    block = sheet.head.block_at(il, file.tensors) if sheet.head else None
    comparable = [t.name for t in block.all_tensors() if t.change == ZERO_CENTRED] if block else []
    mixers = {b.name: b.mixer for b in sheet.layers.all_blocks()}
    alike = [i for i in range(il) if block and mixers.get(kinds[i]) == block.mixer]
    for name in comparable:
        trunk = [mean for i in alike if (mean := _mean(file, f"blk.{i}.{name}")) is not None]
        head = _mean(file, f"blk.{il}.{name}")
        if head is None or not trunk:
            return []
        distance = head - float(np.median(trunk))
        steps[name] = min((-1, 0, 1), key=lambda step: abs(distance - step))
    if len(set(steps.values())) == 1 and 0 not in steps.values():
        step = next(iter(steps.values()))
        where = "below" if step < 0 else "above"
        names = ", ".join(name.removesuffix(".weight") for name in comparable)
        return [Finding("norms-suspect", names, f"their means lie about 1 {where} those of the trunk's layers")]
    return []


@np.errstate(invalid="ignore", over="ignore")
def spectra(file: GgufFile, sheet: Architecture, il: int) -> list[Finding]:
    """Matrices of the head that look like noise, where the trunk's of the same kind do not.

    The greatest singular value of a matrix of independent values of deviation s is about s (sqrt m + sqrt n); training
    leaves some far above. Only kinds in which the trunk's are far above can tell.
    """
    found = []
    for name in _spectral(sheet, il, file.tensors):
        if (head := _edge(file, f"blk.{il}.{name}")) is None or not NOISE[0] <= head <= NOISE[1]:
            continue
        layers = [i for i in range(il) if f"blk.{i}.{name}" in file.tensors][:SPECTRAL_LAYERS]
        trunk = [e for i in layers if (e := _edge(file, f"blk.{i}.{name}")) is not None]
        if trunk and min(trunk) >= TRAINED:
            text = f"greatest singular value {head:.2f} of what noise has, in the trunk {min(trunk):.2f} or more"
            found.append(Finding("random-matrix", f"blk.{il}.{name}", text))
    return found


def _spectral(sheet: Architecture, il: int, there: Container[str]) -> list[str]:
    """The matrices and stacks of the head's block that a quantiser changes: no routers and gates."""
    block = sheet.head.block_at(il, there) if sheet.head else None
    return [t.name for t in present_tensors(block.tensors, il, there) if t.is_quantised] if block else []


def _edge(file: GgufFile, name: str) -> float | None:
    info = file.tensors.get(name)
    if info is None or len(info.shape) not in (2, 3) or info.type_name not in DEQUANTIZABLE:
        return None
    x = sample_rows(file, info, SPECTRAL_ROWS, SPECTRAL_COLUMNS).astype(np.float64)
    deviation = float(x.std())
    if not np.all(np.isfinite(x)) or deviation == 0.0:
        return None
    greatest = _greatest_singular(x - x.mean())
    return greatest / (deviation * (np.sqrt(x.shape[0]) + np.sqrt(x.shape[1])))


def _greatest_singular(x: NDArray[np.float64]) -> float:
    """By power iteration: never above the true value, and near it where it stands apart."""
    random = np.random.Generator(np.random.Philox(0))
    v: NDArray[np.float64] = np.asarray(random.standard_normal(x.shape[1]), np.float64)
    for _ in range(POWER_STEPS):
        v = np.asarray(x.T @ (x @ v), np.float64)
        v /= np.sqrt(np.dot(v, v))
    return float(np.linalg.norm(x @ v))


def _mean(file: GgufFile, name: str) -> float | None:
    x = vector(file, name)
    return None if x is None or not np.all(np.isfinite(x)) else float(np.mean(x, dtype=np.float64))


# TOKENIZER


def tokenizer(file: GgufFile) -> list[Finding]:
    """What the keys of the vocabulary say, without building it."""
    tokens = "tokenizer.ggml.tokens"
    if tokens not in file.kv:
        return [Finding("tokenizer", tokens, "missing, expected a vocabulary")]
    found: list[Finding] = []
    n_tokens = file.kv.size(tokens)
    embd = file.tensors.get("token_embd.weight")
    if embd is not None and len(embd.shape) == 2 and embd.shape[0] != n_tokens:
        kind = "tokenizer" if n_tokens > embd.shape[0] else "tokenizer-note"
        remedy = ": take the model's own tokenizer, or resize the embeddings before converting"
        too_many = remedy if n_tokens > embd.shape[0] else ""
        found.append(Finding(kind, tokens, f"{n_tokens} tokens, token_embd.weight has {embd.shape[0]} rows{too_many}"))
    model, pre = (_text(file, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model == "gpt2" and pre is None:
        found.append(Finding("tokenizer-note", "tokenizer.ggml.pre", "missing: ids may differ from those of training"))
    elif model == "gpt2" and pre not in known_names():
        found.append(
            Finding("unsupported", "tokenizer.ggml.pre", f"{printable(str(pre))}, expected a name that is known")
        )
    elif model == "gpt2" and (odd := _unusual_pre(file, str(pre))) is not None:
        found.append(Finding("tokenizer-note", "tokenizer.ggml.pre", odd))
    if model == "gpt2" and "tokenizer.ggml.merges" not in file.kv:
        found.append(Finding("tokenizer", "tokenizer.ggml.merges", "missing: every byte would be a token of its own"))
    for role in ("eos", "eot", "bos", "padding"):
        id = file.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(id, int) and not 0 <= id < n_tokens:
            found.append(Finding("tokenizer", f"tokenizer.ggml.{role}_token_id", f"{id}, expected below {n_tokens}"))
    if not any(f"tokenizer.ggml.{role}_token_id" in file.kv for role in ("eos", "eot", "eom")):
        found.append(Finding("tokenizer-note", "tokenizer.ggml.eos_token_id", "missing: nothing may end a text"))
    return found


def _unusual_pre(file: GgufFile, pre: str) -> str | None:
    arch = str(_text(file, "general.architecture"))
    return unusual_pre(arch, pre, ARCHITECTURES[arch].pre) if arch in ARCHITECTURES else None


def _text(file: GgufFile, key: str) -> str | None:
    try:
        value = file.get(key)
    except MtprefError:
        return None
    return value if isinstance(value, str) else None
