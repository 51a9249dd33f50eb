"""Which parts make which tensor: decided tensor by tensor, from names, types and shapes.

Owns the names that programs give to codes, scales and what stands beside them. What fits nothing is an `Unread` that
says why, so that a reader that does not need it goes on. Reads no values but `weight_shape`.
"""

from __future__ import annotations

import math

from mtpref.files.tensor_files.safetensors import UNREAD
from mtpref.heads.hf.formats.bytewise import CUT, Made, of_bytes, of_codes
from mtpref.heads.hf.formats.declared import Declared, Facts
from mtpref.heads.hf.formats.foreign import fault, foreign_modules
from mtpref.heads.hf.formats.integers import of_packed
from mtpref.heads.hf.formats.raw import Raw
from mtpref.heads.hf.formats.scaled import Scaled
from mtpref.heads.hf.formats.stored import FLOATS, Stored, Unread, named
from mtpref.heads.hf.formats.words import of_words

FP8 = {"F8_E4M3": "FP8 E4M3", "F8_E5M2": "FP8 E5M2"}
# Of activations and of the cache: no part of a weight.
ASIDE = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale", "_activation_scale", ".k_scale",
    ".v_scale", ".q_scale", ".kv_scale", ".output_scale", ".prob_output_scale", ".qscale_act", ".input_amax",
)  # fmt: skip
# Parts that no tensor has by itself -> the ending of the tensor that they belong to
PARTS = {
    ".weight_scale_inv": ".weight", ".weight_scale": ".weight", ".weight_scale_2": ".weight",
    ".weight_zero_point": ".weight", ".weight_shape": ".weight", ".weight_g_idx": ".weight",
    ".weight_global_scale": ".weight", ".qscale_weight": ".weight", ".qzeros": ".weight", ".g_idx": ".weight",
}  # fmt: skip

_STACK = ".experts."


def recognise(raw: Raw, said: Declared) -> tuple[dict[str, Stored], list[str]]:
    """(tensors by plain name, in the files' order, sorted in each file; what is set aside)."""
    found = _Found(raw, said)
    for module, (kind, parts) in foreign_modules(raw).items():
        name = f"{module}.weight"
        found.add(Unread(raw, name, parts, kind, fault(kind, named(name)), is_foreign=True))
    for name in raw.names:
        if name not in found.taken:
            found.codes(name)
    for name in raw.names:
        if name not in found.taken:
            found.rest(name)
    found.tell_ranks()
    order = sorted(found.tensors.values(), key=lambda t: (raw.file_names[t.sources[0]], t.name))
    return {tensor.name: tensor for tensor in order}, found.aside


class _Found:
    """What has been made of the files' tensors. taken: names that are parts of something"""

    def __init__(self, raw: Raw, said: Declared) -> None:
        self.raw, self.said = raw, said
        self.tensors: dict[str, Stored] = {}
        self.taken: set[str] = set()
        self.aside: list[str] = []

    def add(self, tensor: Stored, facts: Facts | None = None) -> None:
        """A tensor, unless config.json contradicts it or another has its name."""
        self.taken.update(tensor.sources)
        if facts is not None and tensor.fault is None:
            why = self.said.contradicts(tensor.name.removesuffix(".weight"), facts)
            if why is not None:
                tensor = Unread(self.raw, tensor.name, tensor.sources, tensor.kind, f"{named(tensor.name)} {why}")
        other = self.tensors.get(tensor.name)
        if other is not None:
            text = (
                f"{named(other.sources[0])} and {named(tensor.sources[0])} both hold {named(tensor.name)}, expected one"
            )
            tensor = Unread(self.raw, tensor.name, other.sources + tensor.sources, tensor.kind, text)
        self.tensors[tensor.name] = tensor

    def codes(self, name: str) -> None:
        """A tensor of codes, with its parts."""
        dtype = self.raw.dtype(name)
        made: Made | None = None
        if name.endswith(".weight_packed"):
            made = of_packed(self.raw, self.said, name)
        elif name.endswith(".qweight"):
            made = of_words(self.raw, self.said, name)
        elif dtype in FP8 and not name.endswith(tuple(PARTS)):
            made = of_codes(self.raw, self.said, name, FP8[dtype])
        elif dtype in ("I8", "U8") and name.endswith(".weight") and len(self.raw.shape(name)) in (2, 3):
            made = of_bytes(self.raw, self.said, name)
        if made is not None:
            self.add(*made)

    def tell_ranks(self) -> None:
        """Over how many ranks matrices were cut: the number that the scales of all of them allow."""
        cut = [tensor for tensor in self.tensors.values() if isinstance(tensor, Scaled) and tensor.name.endswith(CUT)]
        if not cut:
            return
        common = tuple(n for n in cut[0].ranks if all(n in tensor.ranks for tensor in cut))
        known = len(common) == 1 or 1 in common
        for tensor in cut:
            if known:
                tensor.cut(common)
                continue
            other = next((one for one in cut if not set(one.ranks) & set(tensor.ranks)), tensor)
            text = f"{named(tensor.name)}: its scales are those of {_or(tensor.ranks)} tensor-parallel ranks"
            text += (
                ", and nothing tells which" if other is tensor
                else f", those of {named(other.name)} of {_or(other.ranks)}, expected one number"
            )  # fmt: skip
            self.tensors[tensor.name] = Unread(self.raw, tensor.name, tensor.sources, tensor.kind, text)

    def _plain(self, name: str) -> Stored:
        """A tensor that is stored as it is: floats, or integers where they are no weights of a matrix."""
        shape, dtype = self.raw.shape(name), self.raw.dtype(name)
        if dtype in UNREAD:
            return Unread(self.raw, name, (name,), dtype, fault(f"values of {dtype}", named(name)), is_foreign=True)
        if dtype not in FLOATS and len(shape) > 1 and name.endswith(".weight"):
            text = f"{named(name)} is {dtype} {shape} and has no scales, expected floats, or codes with their scales"
            return Unread(self.raw, name, (name,), "", text)
        return Stored(self.raw, name, (name,), shape, dtype)

    def _owner(self, name: str) -> str | None:
        """The tensor that a part belongs to by its name; None where the name is no part's."""
        ending = next((part for part in PARTS if name.endswith(part)), None)
        if ending is not None:
            return name.removesuffix(ending) + PARTS[ending]
        stack = name.removesuffix("_inv").removesuffix("_scale")  # of experts in one tensor
        return stack if stack != name and _STACK in name and stack in self.raw else None

    def rest(self, name: str) -> None:
        """A tensor that no codes have claimed."""
        owner = self._owner(name)
        if owner is None:
            is_quantised = bool(self.said.method) or any(tensor.kind for tensor in self.tensors.values())
            if name.endswith(ASIDE) and is_quantised and math.prod(self.raw.shape(name)) <= 1 << 16:
                self.taken.add(name)
                self.aside.append(name)
            else:
                self.add(self._plain(name))
            return
        there = self.tensors.get(owner)
        if there is not None and there.fault is not None:
            self.taken.add(name)
        elif there is not None or owner in self.raw:
            if there is not None and there.kind:
                found, expected = f"stored as {there.kind}", "no other part"
            else:
                found, expected = self.raw.dtype(owner), "codes, or no such part"
            text = f"{named(owner)} is {found} and has {named(name)} beside it, expected {expected}"
            self.tensors[owner] = Unread(self.raw, owner, (owner if owner in self.raw else name, name), "", text)
            self.taken.update((name, owner))
        else:
            text = (
                f"{named(name)} is there and its codes are not, expected {named(owner)} or packed ones beside it; was "
                "the checkpoint saved whole?"
            )
            self.add(Unread(self.raw, owner, (name,), "", text))


def _or(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))
