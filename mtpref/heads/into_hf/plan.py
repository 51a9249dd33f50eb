"""What of an original's head becomes what in a quantised checkpoint: names, formats, and which modules stay plain.

Rule   a matrix of the head's block is stored as the base has the same module in its last trunk layer that has it:
       packed INT4, FP8 in blocks, or plain; `head_type` says so of the experts alone (of the feed-forward network,
       where there are none), or with bf16 of everything. What has no twin (eh_proj, embeddings, norms, the router)
       stays plain.
       A format that is not written here (AWQ, GPTQ, NVFP4, ...) leaves the head BF16, and that is said.
       Codes that the original has in the wanted format already are copied.
Names are the base's: the prefix with which it saved its trunk, and its words for scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mtpref.architectures import fused_of, joined_of, place_of, stacks_of
from mtpref.architectures.names import EXPERT
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.heads.hf import Checkpoint, TextConfig, canonical
from mtpref.heads.hf.beside import is_head_name
from mtpref.heads.hf.formats.packed import Packed
from mtpref.heads.hf.formats.scaled import Scaled
from mtpref.heads.hf.formats.stored import Stored
from mtpref.heads.into_hf.encode import Format

HEAD_TYPES = ("bf16", "fp8-block", "w4a16")
GROUP = 128  # of w4a16 where the base has none
_DENSE = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
_NO_LINEAR = ("embed_tokens.weight",)


@dataclass(frozen=True)
class Plain:
    """A tensor whose bits are copied. source: its name in the original's files; expert: whose it is, if one's"""

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    expert: int | None = None


@dataclass(frozen=True)
class Coded:
    """A matrix that is stored in a format.

    module   its name without .weight    source: the original's tensor; first: its first row there
    tensor   the GGUF tensor that it is of, or the first of several    expert: which matrix of a stack
    copied   parts of the original that hold these very codes: what follows the module's name -> (type, source)
    """

    module: str
    source: str
    first: int
    shape: tuple[int, int]
    form: Format
    tensor: str
    expert: int | None = None
    copied: tuple[tuple[str, str, str], ...] = ()

    @property
    def template(self) -> str:
        """The module's name with {e} for the expert's number."""
        return _template(self.module, self.expert)


@dataclass
class HeadPlan:
    """plain, coded: what is written, in order. plain_modules: linear ones that are not quantised"""

    n_heads: int
    plain: list[Plain] = field(default_factory=list)
    coded: list[Coded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def plain_modules(self) -> list[str]:
        """Linear modules of the head that stay plain, by template."""
        names = [c.template for c in self.coded if c.form.kind == "bf16"]
        names += [
            _template(p.name.removesuffix(".weight"), p.expert)
            for p in self.plain
            if len(p.shape) == 2 and p.name.endswith(".weight") and not p.name.endswith(_NO_LINEAR)
        ]
        return list(dict.fromkeys(names))

    @property
    def quantised(self) -> list[Coded]:
        return [c for c in self.coded if c.form.kind != "bf16"]


def _template(module: str, expert: int | None) -> str:
    return module if expert is None else module.replace(f".experts.{expert}.", f".experts.{EXPERT}.")


def plan_head(
    base: Checkpoint, original: Checkpoint, config: TextConfig, head_type: str | None, group: int | None
) -> HeadPlan:
    """The plan. config: the base's

    Errors   MtprefError for a tensor of the head that cannot be read, rows that groups do not divide
    """
    return _Planner(base, original, config, head_type, group).plan()


class _Planner:
    def __init__(
        self, base: Checkpoint, original: Checkpoint, config: TextConfig, head_type: str | None, group: int | None
    ) -> None:
        self.base, self.original, self.config = base, original, config
        self.head_type, self.group = head_type, group
        self.rename = _renamer(base, original)
        self.by_plain = {canonical(name): name for name in base.names}
        self.unwritten: dict[str, int] = {}
        self.has_experts = False

    def plan(self) -> HeadPlan:
        n_layer, sheet = self.config.n_layer, self.config.sheet
        names = [name for name in self.original.names if is_head_name(name, n_layer)]
        self.has_experts = any(".experts." in name for name in names)
        made, blocks = HeadPlan(0), set()
        for name in names:
            fault = self.original.fault(name)
            if fault is not None:
                raise MtprefError(f"{self.original.label}: {fault}")
            plain = canonical(name)
            stacks = stacks_of(sheet, plain, n_layer)
            fused = fused_of(sheet, plain, n_layer)
            joined = joined_of(sheet, plain, n_layer)
            whole = fused[1][0] if fused else joined[0] if joined else plain
            place = stacks[0] if stacks else place_of(sheet, whole, n_layer)
            if place is None:
                made.notes.append(f"{printable(name)} has no place in a {sheet.name} head that is known; it is copied")
                self._copy(made, name)
                continue
            blocks.add(place.il)
            if stacks and self._is_split(name):
                self._split(made, name, len(stacks))
            elif place.tensor.is_quantised and len(self.original.shape(name)) == 2 and name.endswith(".weight"):
                form = self._format(plain, place.name, self.original.shape(name)[-1])
                is_own = form.kind == "bf16" and self.original.stored(name).kind == ""
                if is_own and self.original.dtype(name) == "BF16":
                    self._check_ranks(name, plain, is_copied=True)
                    self._copy(made, name, place.expert)
                else:
                    one = self._coded(name, self.rename(name), place.name, form, expert=place.expert)
                    self._check_ranks(name, plain, is_copied=bool(one.copied))
                    made.coded.append(one)
            else:
                self._copy(made, name)
        made.n_heads = len({il for il in blocks if il is not None})
        for kind, n in sorted(self.unwritten.items()):
            made.notes.append(f"the base has {n} of these modules in {kind}, which is not written here: BF16 instead")
        return made

    def _copy(self, made: HeadPlan, name: str, expert: int | None = None) -> None:
        stored = self.original.stored(name)
        if stored.kind:
            form = Format("bf16")
            if len(stored.shape) != 2:
                raise MtprefError(
                    f"{self.original.label}: {printable(name)} is stored as {stored.kind} of shape {stored.shape}, "
                    "expected a plain tensor or a matrix"
                )
            made.coded.append(self._coded(name, self.rename(name), "", form))
            return
        dtype, shape = self.original.dtype(name), self.original.shape(name)
        made.plain.append(Plain(self.rename(name), name, dtype, shape, expert))

    def _coded(self, name: str, renamed: str, tensor: str, form: Format, *, expert: int | None = None) -> Coded:
        shape = self.original.shape(name)
        two = (int(shape[0]), int(shape[1]))
        form.check(printable(name), two)
        module = renamed.removesuffix(".weight")
        stored = self.original.stored(name)
        copied = _same_codes(stored, form)
        if copied:
            form = _with_types(form, stored)
        return Coded(module, name, 0, two, form, tensor, expert, copied)

    def _check_ranks(self, name: str, plain: str, *, is_copied: bool) -> None:
        """Refuse a matrix that was cut over tensor-parallel ranks in one checkpoint and not alike in the other: a
        reader takes all such matrices of a folder for cut alike."""
        twin = self._twin(plain)
        own = self.original.stored(name).ranks
        others = self.base.stored(twin).ranks if twin else (1,)
        if own != others or (own != (1,) and not is_copied):
            raise MtprefError(
                f"{self.original.label}: {printable(name)}: cut over {_or(own)} tensor-parallel ranks, the base's over "
                f"{_or(others)}, expected codes that can be copied; graft the head into a GGUF instead, where rows are "
                "in one order"
            )

    # STACKS

    def _is_split(self, name: str) -> bool:
        """Whether experts that the original has in one tensor are written one by one."""
        stored = self.base.stored(twin) if (twin := self._twin(canonical(name))) else None
        if stored is None:
            return True
        is_plain = stored.kind == "" and self.head_type in (None, "bf16")
        if not is_plain and self.head_type in (None, "bf16"):
            self.unwritten[f"{stored.kind}, all experts in one tensor"] = 1
        return self.head_type not in (None, "bf16")

    def _split(self, made: HeadPlan, name: str, n_parts: int) -> None:
        sheet, n_layer = self.config.sheet, self.config.n_layer
        plain, renamed = canonical(name), self.rename(name)
        known = sheet.hf.stacks if sheet.hf else ()
        stack = next(one for one in known if plain.removesuffix(".weight").endswith(one.hf))
        before = renamed.removesuffix(".weight").removesuffix(stack.hf)
        plain_before = plain.removesuffix(".weight").removesuffix(stack.hf)
        n_expert, n_row, n_column = self.original.shape(name)
        if n_row % n_parts:
            raise MtprefError(f"{printable(name)}: {n_row} rows of an expert, expected {n_parts} equal parts")
        height = n_row // n_parts
        for e in range(n_expert):
            for i, part in enumerate(stack.parts):
                own = part.replace(EXPERT, str(e))
                place = place_of(sheet, plain_before + own, n_layer)
                form = self._format(plain_before + own, place.name if place else "", n_column)
                form.check(printable(name), (height, n_column))
                first = e * n_row + i * height
                module = (before + own).removesuffix(".weight")
                made.coded.append(Coded(module, name, first, (height, n_column), form, place.name if place else "", e))

    # FORMATS

    def _format(self, plain: str, tensor: str, width: int) -> Format:
        short = tensor.split(".", 2)[-1]
        is_expert = "_exps." in short or (not self.has_experts and short in _DENSE)
        if self.head_type == "bf16":
            return Format("bf16")
        twin = self._twin(plain)
        found = self._as_base(self.base.stored(twin), width) if twin else None
        if not is_expert or self.head_type is None:
            return found or Format("bf16")
        if found is not None and found.kind == self.head_type and self.group in (None, found.group):
            return found
        return self._wanted()

    def _wanted(self) -> Format:
        if self.head_type == "w4a16":
            packed = next((s for s in map(self.base.stored, self.base.names) if isinstance(s, Packed)), None)
            like = self._as_base(packed, 0) if packed is not None else None
            group = self.group or (like.group if like else GROUP)
            if like is None:
                return Format("w4a16", group)
            return Format("w4a16", group, scale_dtype=like.scale_dtype, shape_dtype=like.shape_dtype)
        scaled = (self._as_base(s, 0) for s in map(self.base.stored, self.base.names) if isinstance(s, Scaled))
        like = next((form for form in scaled if form is not None), None)
        if like is not None:
            return like
        if self.base.declared.method == "fp8":
            block = self.base.declared.blocks[0] if self.base.declared.blocks else (128, 128)
            return Format("fp8-block", block=block, scale="weight_scale_inv", scale_dtype="F32")
        return Format("fp8-block")

    def _twin(self, plain: str) -> str | None:
        """The base's name of the same module in the last trunk layer that has it."""
        hf, n_layer = self.config.sheet.hf, self.config.n_layer
        if hf is None:
            return None
        for i in range(self.config.n_heads or self.config.sheet.n_heads):
            prefix = hf.head_block.format(i=i, il=n_layer + i)
            if plain.startswith(prefix):
                short = plain[len(prefix) :]
                names = (hf.layer.format(il=il) + short for il in range(n_layer - 1, -1, -1))
                return next((self.by_plain[name] for name in names if name in self.by_plain), None)
        return None

    def _as_base(self, stored: Stored, width: int) -> Format | None:
        """The format in which the base has a module; None: plain, or none that is written here."""
        if stored.kind == "":
            return None
        raw = stored.raw
        if isinstance(stored, Packed) and stored.n_bits == 4 and stored.zero is None and stored.order is None:
            shape_type = next((raw.dtype(name) for name in stored.sources if name.endswith("_shape")), "I64")
            if width % stored.group == 0:
                return Format("w4a16", stored.group, scale_dtype=raw.dtype(stored.sources[1]), shape_dtype=shape_type)
        if isinstance(stored, Scaled) and raw.dtype(stored.sources[0]) == "F8_E4M3" and len(stored.shape) == 2:
            block = _block(stored, self.base)
            scale = stored.sources[1].removeprefix(stored.name.removesuffix("weight"))
            if block is not None:
                return Format("fp8-block", block=block, scale=scale, scale_dtype=raw.dtype(stored.sources[1]))
        if width:
            self.unwritten[stored.kind] = self.unwritten.get(stored.kind, 0) + 1
        return None


def _or(ranks: tuple[int, ...]) -> str:
    return " or ".join(map(str, ranks))


def _block(stored: Scaled, checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The block of a grid; where one is the whole matrix, what config.json says."""
    if _is_of_tensor(stored):
        return None
    if stored.grid.n_rows == stored.grid.n_columns == 1:
        return checkpoint.declared.blocks[0] if checkpoint.declared.blocks else None
    return (stored.grid.rows, stored.grid.columns) if stored.grid.rows > 1 else None


def _is_of_tensor(stored: Scaled) -> bool:
    """Whether one scale is the tensor's, and not that of the one block of a small matrix."""
    return stored.grid.is_one and len(stored.raw.shape(stored.sources[1])) < 2


def _same_codes(stored: Stored, form: Format) -> tuple[tuple[str, str, str], ...]:
    """Where the original's codes are the wanted ones: (what follows the module's name, type, source)."""
    raw = stored.raw
    if form.kind == "w4a16" and isinstance(stored, Packed):
        is_same = stored.n_bits == 4 and stored.zero is None and stored.order is None and stored.group == form.group
        parts = ("weight_packed", form.scale, "weight_shape")
        if is_same and len(stored.sources) == len(parts) and len(stored.scale_shape) == 2:
            return tuple((part, raw.dtype(name), name) for part, name in zip(parts, stored.sources, strict=True))
    if form.kind == "fp8-block" and isinstance(stored, Scaled) and raw.dtype(stored.sources[0]) == "F8_E4M3":
        grid, (down, across) = stored.grid, form.block
        n = stored.grid.n_ranks
        wanted = (n * -(-(stored.shape[-2] // n) // down), -(-stored.shape[-1] // across))
        is_same = len(stored.shape) == 2 and not _is_of_tensor(stored) and (grid.n_rows, grid.n_columns) == wanted
        is_same = is_same and (wanted == (1, 1) or (grid.rows, grid.columns) == form.block)
        if is_same and (raw.dtype(stored.sources[1]) == "F8_E8M0") == (form.scale_dtype == "F8_E8M0"):
            codes, scale = stored.sources[:2]
            return (("weight", "F8_E4M3", codes), (form.scale, raw.dtype(scale), scale))
    return ()


def _with_types(form: Format, stored: Stored) -> Format:
    """The format with the types of parts that are copied."""
    raw = stored.raw
    shape = next((raw.dtype(name) for name in stored.sources if name.endswith("_shape")), form.shape_dtype)
    return Format(form.kind, form.group, form.block, form.scale, raw.dtype(stored.sources[1]), shape)


def _renamer(base: Checkpoint, original: Checkpoint) -> Callable[[str], str]:
    """The original's names as the base would have saved them: by a trunk tensor that both have."""
    ours = {canonical(name): name for name in base.names}
    theirs = {canonical(name): name for name in original.names}
    both = next((name for name in ours if name in theirs and ".layers." in name), None)
    a, b = (theirs[both], ours[both]) if both is not None else ("", "")
    n = 0
    while n < min(len(a), len(b)) and a[-n - 1] == b[-n - 1]:
        n += 1
    before, after = a[: len(a) - n], b[: len(b) - n]

    def rename(name: str) -> str:
        is_changed = before != after and not name.startswith("mtp.") and name.startswith(before)
        return after + name[len(before) :] if is_changed else name

    return rename
