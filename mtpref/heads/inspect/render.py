"""The report of `mtpref inspect` as text for people. Every string from the file is escaped: see `printable`."""

import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from mtpref.files.gguf import printable

_STATUS = {
    "present": "present",
    "incomplete": "INCOMPLETE, required tensors are missing",
    "missing": "MISSING, declared but none of its tensors is here",
    "undeclared": "UNDECLARED, tensors are here but the key that counts them is not; it is not used",
    "partial": "PARTIAL, the rest may be in another file of this split model",
    "absent": "absent, no MTP drafting with this file",
    "apart": "not in this file: an assistant drafts for such models, from a file of its own (-md)",
    "assistant": "this whole file: an assistant, which drafts for its target over its cells (-m TARGET -md this)",
    "unknown": "unknown, mtpref does not know the blocks of this file",
}


def render(report: dict[str, Any], width: int = 100) -> str:
    """The whole report, sections in a fixed order; no control character whatever the file holds.

    width  columns that a row keeps to by carrying its last cells over; names and values are not broken
    """
    lines = [*_file(report), "", "hyper-parameters", *_pairs(report["hyper_parameters"])]
    lines += ["", "general", *_pairs(report["general"])]
    if report["other_keys"]:
        lines += ["", "other keys", *_pairs(report["other_keys"])]
    lines += ["", "tokenizer", *_tokenizer(report["tokenizer"])]
    lines += ["", *_layers(report["layers"]), "", *_head(report["mtp"])]
    if report["mtp_memory"] is not None:
        lines += ["", *_memory(report["mtp_memory"])]
    if report["fallbacks"]:
        lines += ["", "fallbacks in use (the file has no such tensor of its own)"]
        lines += _table((printable(r["tensor"]), f"uses {r['from']}") for r in report["fallbacks"])
    lines += ["", "quantisation", *_quantisation(report["quantisation"])]
    lines += ["", f"tensors ({len(report['tensors'])})"]
    lines += _table((printable(t["name"]), t["type"], _shape(t), _bytes(t["bytes"])) for t in report["tensors"])
    lines += ["", f"problems ({len(report['problems'])})"]
    lines += [f"  {printable(p, 400)}" for p in report["problems"]] or ["  none"]
    return "\n".join(part for line in lines for part in _folded(line, width))


def summary(report: dict[str, Any], width: int = 100) -> list[str]:
    """The file, its layers, its head and its types: a report without keys and the list of tensors."""
    lines = [*_file(report), *_layers(report["layers"]), *_head(report["mtp"])]
    if report["mtp_memory"] is not None:
        lines += _memory(report["mtp_memory"])
    lines += ["quantisation", *_quantisation(report["quantisation"])]
    return [part for line in lines for part in _folded(line, width)]


def _folded(line: str, width: int) -> list[str]:
    """A line in several, broken where two cells or words meet, what is carried over indented more."""
    if len(line) <= width:
        return [line]
    indent = len(line) - len(line.lstrip(" "))
    return textwrap.wrap(line, max(width, 40), subsequent_indent=" " * (indent + 4), break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _file(report: dict[str, Any]) -> list[str]:
    f, arch = report["file"], report["architecture"]
    what = [f"this is {report['what']}"] if report["what"] else []
    shards = [(f"  {printable(s['path'], 400)}", f"{s['n_tensors']} tensors", _bytes(s["bytes"])) for s in f["shards"]]
    split = [f"in {len(shards)} files", *_table(shards)] if shards else []
    split += [f"note: {f['note']}"] if f["note"] else []
    known = "supported" if report["supported"] else "not supported: keys and tensors are listed, kinds are unknown"
    return [
        f"{printable(f['path'], 400)}: GGUF version {f['version']}, {_bytes(f['bytes'])}, {f['n_keys']} keys, "
        f"{f['n_tensors']} tensors, alignment {f['alignment']}, data from byte {f['data_offset']}",
        *split,
        f"architecture {printable(arch) if arch is not None else 'not named'} ({known})",
        *what,
    ]


def _pairs(section: dict[str, Any]) -> list[str]:
    return _table((printable(key), _value(value)) for key, value in section.items()) or ["  none"]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        size = f"{value['count']} elements" if "count" in value else f"{value['bytes']} bytes"
        return f"<{value['kind']}, {size}{', unreadable' if 'error' in value else ''}>"
    if isinstance(value, list):
        if value and all(isinstance(v, bool) for v in value):
            return "[" + "".join("1" if v else "0" for v in value) + "]"
        return printable("[" + ", ".join(map(str, value)) + "]", 160)
    return printable(str(value), 160)


def _tokenizer(t: dict[str, Any]) -> list[str]:
    if t["model"] is None and t["n_tokens"] is None and not t["other"]:
        return ["  none"]
    pairs: dict[str, Any] = {key: t[key] for key in ("model", "pre") if t[key] is not None}
    pairs |= {name: t[f"n_{name}"] for name in ("tokens", "merges", "scores") if t[f"n_{name}"] is not None}
    pairs |= {f"{name}_token_id": value for name, value in t["special"].items()}
    if t["chat_template_bytes"] is not None:
        pairs["chat_template"] = {"kind": "str", "bytes": t["chat_template_bytes"]}
    return _pairs(pairs | t["other"])


def _layers(layers: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{n} {kind}" for kind, n in layers["counts"].items()) or "none"
    by = f", by {layers['declared_by']}" if layers["declared_by"] else ""
    rows = []
    same = groupby(layers["blocks"], key=lambda b: (b["kind"], b["found"], b["n_tensors"], b["bytes"]))
    for (kind, found, n_tensors, n_bytes), group in same:
        indices = [b["index"] for b in group]
        span = f"blk.{indices[0]}" + (f"..{indices[-1]}" if len(indices) > 1 else "")
        each = " each" if len(indices) > 1 else ""
        shown = kind if kind == found else f"{kind} (tensors: {found})"
        rows.append((span, shown, f"{n_tensors} tensors{each}", f"{_bytes(n_bytes)}{each}"))
    return [f"layers: {counts}{by}", *_table(rows)]


def _head(head: dict[str, Any]) -> list[str]:
    lines = [f"MTP head: {_STATUS[head['status']]}"]
    if head["declared"] is not None:
        lines[0] += f" (blocks declared: {head['declared']})"
    if head["trunk"] is False and head["status"] in ("present", "incomplete"):
        lines.append("  the file has no trunk: it is a head to be used with another file")
    for block in head["blocks"]:
        rows = []
        for t in block["tensors"]:
            source = {"own": "own", "fallback": f"falls back to {t['from']}", "missing": "MISSING"}[t["source"]]
            need = "" if t["required"] else ", optional"
            rows.append((printable(t["name"]), t["type"] or "", _shape(t), _bytes(t["bytes"]), source + need))
        lines += _table(rows)
    label = "not judged" if head["status"] == "unknown" else "unexpected"
    lines += [f"  {label}: {printable(name)}" for name in head["unexpected"]]
    return lines


def _memory(memory: dict[str, Any]) -> list[str]:
    on, state = memory["on"], memory["recurrent_state"]
    kv = f"KV of a token {_bytes(on['kv_f16'])} in f16, {_bytes(on['kv_f32'])} in f32"
    rows = [
        ("absent", "nothing"),
        ("off", f"nothing: its {_bytes(memory['file'])} in the file are not read, and it has no KV cells"),
        ("on", f"weights {_bytes(on['weights'])}; {kv}; hidden row {_bytes(on['pending'])}"),
    ]
    if state:
        rows.append(("", f"roll back by snapshot: {_bytes(state)} for each token of a draft; by replay: once"))
    return ["memory of the MTP head", *_table(rows)]


def _quantisation(mix: list[dict[str, Any]]) -> list[str]:
    total = sum(row["bytes"] or 0 for row in mix)
    rows = []
    for row in mix:
        share = "" if not row["bytes"] else f"{100 * row['bytes'] / total:.1f} %"
        rows.append(
            (row["type"], f"{row['tensors']} tensors", f"{row['elements']} values", _bytes(row["bytes"]), share)
        )
    return _table(rows) or ["  no tensors"]


def _shape(t: dict[str, Any]) -> str:
    return "" if t["shape"] is None else "(" + ", ".join(map(str, t["shape"])) + ")"


def _bytes(n: int | None) -> str:
    if n is None:
        return "size unknown"
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= step:
            return f"{n / step:.1f} {unit}"
    return f"{n} bytes"


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Left-aligned columns, two spaces apart, indented by two."""
    cells = list(rows)
    if not cells:
        return []
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))).rstrip() for row in cells]
