"""config.json, the index and the lists of modules of a quantised checkpoint that gets a head.

Owns the spellings of who is quantised and how: compressed-tensors' config_groups and ignore, modules_to_not_convert of
FP8 and AWQ, GPTQ's dynamic. compressed-tensors takes the first of: exact names, patterns (re:..., from the name's
beginning) in the order of their texts, classes ("Linear"); what `ignore` names is not quantised. Experts are named by a
pattern, all others by their names. What is made is looked up again for every module of the head.
Source: compressed_tensors utils/match.py (match_targets, is_match) and quantization/lifecycle/apply.py; transformers
quantizers/quantizers_utils.py (should_convert_module); GPTQModel's `dynamic`.
"""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

from mtpref.architectures.names import EXPERT
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import listed, printable
from mtpref.heads.hf import TextConfig
from mtpref.heads.into_hf.encode import Format
from mtpref.heads.into_hf.plan import HeadPlan

RECORD = "quantization_config"
LINEAR = "Linear"
LISTS = ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules")
COMPRESSED, FP8 = "compressed-tensors", "fp8"
MAX_PATTERN, MAX_STARS, MAX_SECONDS = 400, 4, 10.0
FORMATS = {"w4a16": "pack-quantized", "fp8-block": "float-quantized"}
Record = dict[str, Any]


def with_head(config: Record, text: TextConfig, plan: HeadPlan, method: str, label: str) -> tuple[Record, list[str]]:
    """config.json of the base with the head, and what is to be said.

    method   the base's quant_method, "" without one
    Errors   MtprefError where the base's words cannot say how the head is stored
    """
    made, notes = copy.deepcopy(config), list[str]()
    field = text.sheet.hf.n_heads if text.sheet.hf else ""
    inner = made.get("text_config")
    is_inner = isinstance(inner, dict) and "num_hidden_layers" in inner
    for level in (inner, made):
        if isinstance(level, dict) and (field in level or level is (inner if is_inner else made)):
            level[field] = plan.n_heads
    records = [level for level in (made, inner) if isinstance(level, dict) and isinstance(level.get(RECORD), dict)]
    if not records and plan.quantised:
        raise MtprefError(
            f"{label}: config.json has no {RECORD}, expected one that the head's {_kinds(plan)} can be said in; try "
            "`head_type` bf16"
        )
    for level in records:
        _update(level[RECORD], plan, method, label, notes)
    if not records and method and plan.plain_modules:
        notes.append(
            f"{method} is declared beside config.json, in a file of its own: its list of modules that stay plain must "
            f"name the head's ({listed(plan.plain_modules)})"
        )
    return made, list(dict.fromkeys(notes))


def _update(record: Record, plan: HeadPlan, method: str, label: str, notes: list[str]) -> None:
    if method == COMPRESSED:
        _Compressed(record, plan, label).update()
        return
    wrong = [c for c in plan.quantised if not (method == FP8 and c.form.kind == "fp8-block")]
    if wrong:
        raise MtprefError(
            f"{label}: the base is quantised by {printable(method) or 'no known method'}, whose config cannot say "
            f"{wrong[0].form.words()} of {printable(wrong[0].module)}; try `head_type` bf16"
        )
    found = [name for name in LISTS if isinstance(record.get(name), list)]
    if not found and method in (FP8, "awq"):
        record["modules_to_not_convert"] = []
        found = ["modules_to_not_convert"]
    names = [name for template in plan.plain_modules for name in _spelled(template)]
    for key in found:
        record[key] += [name for name in names if name not in record[key]]
    if method == "gptq" and not found:
        rules = record.get("dynamic")
        record["dynamic"] = (rules if isinstance(rules, dict) else {}) | {
            f"-:{pattern_of(template)}": {} for template in plan.plain_modules
        }
    elif not found:
        notes.append(
            f"no list of {printable(method) or 'the base'} is known that names modules which stay plain; the head's "
            f"are: {listed(plan.plain_modules)}"
        )


def _spelled(template: str) -> list[str]:
    """A module's name; of experts what holds them, for engines compare beginnings."""
    return [template.split(f".{EXPERT}.")[0]] if EXPERT in template else [template]


def pattern_of(template: str) -> str:
    """A pattern of a module's whole name, any expert's."""
    return "^" + re.escape(template).replace(re.escape(EXPERT), r"\d+") + "$"


def _kinds(plan: HeadPlan) -> str:
    return " and ".join(dict.fromkeys(c.form.words() for c in plan.quantised))


# COMPRESSED-TENSORS


@dataclass
class _Compressed:
    record: Record
    plan: HeadPlan
    label: str

    def update(self) -> None:
        self.began = time.monotonic()
        found = self.record.get("config_groups")
        groups: Record = found if isinstance(found, dict) else {}
        self.record["config_groups"] = groups
        ignore = self.record.get("ignore")
        self.record["ignore"] = ignore if isinstance(ignore, list) else []
        coded = {c.template: c for c in self.plan.quantised}
        for template, one in coded.items():
            self._unignore(template)
            self._target(groups, template, one.form)
        for template in self.plan.plain_modules:
            if self._group_of(groups, template) is not None and not self._is_ignored(template):
                self.record["ignore"].append(self._named(template))
        for template, form in [*((t, c.form) for t, c in coded.items()), *((t, None) for t in self.plan.plain_modules)]:
            found = None if self._is_ignored(template) else self._group_of(groups, template)
            if (found is None) != (form is None) or (found and form and not _fits(groups[found], form)):
                raise MtprefError(
                    f"{self.label}: {RECORD} cannot be made to say how {printable(template)} is stored, expected "
                    "groups and patterns that leave it alone; try `head_type` bf16"
                )

    def _unignore(self, template: str) -> None:
        """Take what ignores a module off the list; a pattern goes where it names nothing of the trunk."""
        name = _one(template)
        for entry in list(self.record["ignore"]):
            if not self._matches(entry, name):
                continue
            if isinstance(entry, str) and not entry.startswith("re:"):
                self.record["ignore"].remove(entry)
                continue
            raise MtprefError(
                f"{self.label}: {RECORD}.ignore has {printable(str(entry))}, which leaves {printable(name)} plain, "
                "expected no pattern over a module that is to be quantised; take it out, or try `head_type` bf16"
            )

    def _target(self, groups: Record, template: str, form: Format) -> None:
        """See to it that a module's group is one of its format."""
        found = self._group_of(groups, template)
        if found is not None and _fits(groups[found], form):
            return
        targets = [self._named(template)]
        if self._by_pattern(groups, template):  # of patterns the first by its text is taken; exact names go before
            targets = [c.module for c in self.plan.quantised if c.template == template]
        own = next((name for name, group in groups.items() if _fits(group, form)), None)
        if own is None:
            own = next(name for i in range(len(groups) + 1) if (name := f"group_{i}") not in groups)
            is_first = not groups
            for group in groups.values():
                group["format"] = group.get("format") or self.record.get("format")
            groups[own] = new_group(form)
            is_one = is_first or self.record.get("format") == FORMATS[form.kind]
            self.record["format"] = FORMATS[form.kind] if is_one else "mixed-precision"
        groups[own]["targets"] = [*_targets(groups[own]), *targets]

    def _by_pattern(self, groups: Record, template: str) -> bool:
        name = _one(template)
        targets = [t for group in groups.values() for t in _targets(group)]
        return any(t.startswith("re:") and self._matches(t, name) for t in targets)

    def _group_of(self, groups: Record, template: str) -> str | None:
        """The group that compressed-tensors takes for a linear module."""
        name = _one(template)
        by_target = {t: key for key, group in groups.items() for t in _targets(group)}
        ordered = sorted(by_target, key=lambda t: ("re:" in t, t))
        found = next((t for t in ordered if self._matches(t, name)), None)
        if found is None and LINEAR in by_target:
            found = LINEAR
        return by_target[found] if found is not None else None

    def _is_ignored(self, template: str) -> bool:
        return any(entry == LINEAR or self._matches(entry, _one(template)) for entry in self.record["ignore"])

    def _named(self, template: str) -> str:
        return f"re:{pattern_of(template)}" if EXPERT in template else template

    def _matches(self, entry: Any, name: str) -> bool:
        if not isinstance(entry, str):
            return False
        if not entry.startswith("re:"):
            return entry == name
        pattern = entry.removeprefix("re:")
        n_stars = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > MAX_PATTERN or n_stars > MAX_STARS or re.search(r"\)[*+{]", pattern):
            raise MtprefError(
                f"{self.label}: {RECORD} has the pattern {printable(pattern)}, which may take long, expected at most "
                f"{MAX_STARS} repetitions and none of a group"
            )
        if time.monotonic() - self.began > MAX_SECONDS:
            raise MtprefError(f"{self.label}: the patterns of {RECORD} take more than {MAX_SECONDS:.0f} s; refused")
        try:
            return re.match(pattern, name) is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise MtprefError(f"{self.label}: {RECORD}: {printable(pattern)} is no pattern ({error})") from None


def _one(template: str) -> str:
    """A module of a template: expert 0's."""
    return template.replace(EXPERT, "0")


def _targets(group: Any) -> list[str]:
    found = group.get("targets") if isinstance(group, dict) else None
    return [t for t in found if isinstance(t, str)] if isinstance(found, list) else []


def _fits(group: Any, form: Format) -> bool:
    """Whether a group's weights are of a format."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        return False
    wanted = new_group(form)["weights"]
    is_same = all(weights.get(key) == wanted[key] for key in ("num_bits", "type", "strategy"))
    if form.kind == "w4a16":
        return is_same and weights.get("group_size") == form.group and weights.get("symmetric") in (None, True)
    return is_same and weights.get("block_structure") in (None, list(form.block))


def new_group(form: Format) -> Record:
    """A config group of a format; FP8's activations are quantised as the model runs."""
    weights: Record = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": form.group,
                       "dynamic": False}  # fmt: skip
    activations = None
    if form.kind == "fp8-block":
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "dynamic": False,
                   "block_structure": list(form.block)}  # fmt: skip
        activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "group",
                       "group_size": form.block[1], "dynamic": True}  # fmt: skip
    return {"targets": [], "weights": weights, "input_activations": activations, "output_activations": None,
            "format": FORMATS[form.kind]}  # fmt: skip


# THE INDEX


def with_tensors(
    index: Record | None, base: dict[str, list[str]], file: str, names: list[str], n_bytes: tuple[int, int]
) -> Record:
    """model.safetensors.index.json with the head's tensors.

    index     the base's, None without one    base: its files -> the names in each
    n_bytes   of the base's tensors and of the head's
    """
    if index is None:
        weight_map = {name: part for part, held in base.items() for name in held}
        metadata: Any = {"total_size": n_bytes[0]}
        made: Record = {"metadata": metadata, "weight_map": weight_map}
    else:
        made = copy.deepcopy(index)
    metadata = made.get("metadata")
    if isinstance(metadata, dict) and type(metadata.get("total_size")) is int:
        metadata["total_size"] += n_bytes[1]
    made["weight_map"] |= dict.fromkeys(names, file)
    return made
