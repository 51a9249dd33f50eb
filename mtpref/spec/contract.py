"""The MTP contract: what an engine feeds its MTP head, one field per point on which engines disagree.

Owns the fields, the presets and their textual form. It must not know how the fields are carried out
(steps.py does).
"""

from dataclasses import dataclass, fields, replace

from mtpref.base.settings import SettingError

ARCH = "arch"

# Field -> what a head that is bound to a model can have there.
CHOICES: dict[str, tuple[str | int, ...]] = {
    "hidden": ("post", "pre"),
    "chain": ("post", "pre"),
    "concat": ("eh", "he"),
    "first": ("zero_hidden", "none", "zero_embd"),
    "pos_offset": (0, -1),
    "prime": ("prompt", "none"),
    "prompt_end": ("hold", "whole"),
    "new_prompt": ("zero", "stale"),
    "replay": ("right", "stale"),
    "heads": ("each", "first"),
    "chain_end": ("cap", "reuse", "wrap"),
    "catch_up": ("target", "chain", "delayed"),
    "chain_row": ("last", "first"),
}
# Fields that the architecture decides unless they are set.
BY_ARCHITECTURE = ("hidden", "chain")
# Fields that only a model with several heads can show.
OF_CHAINS = ("heads", "chain_end", "catch_up", "chain_row")

# Fields that only a head with cells of its own can show.
OF_CELLS = ("first", "prime")


def _legal(name: str) -> tuple[str | int, ...]:
    return (*CHOICES[name], ARCH) if name in BY_ARCHITECTURE else CHOICES[name]


def _listed(names: object) -> str:
    return ", ".join(str(name) for name in names)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class MtpContract:
    """What a head is fed with, field by field.

    hidden      the trunk's row that the head sees: `post` or `pre` the final norm; `arch`: as its data sheet says
    chain       the head's own row that draft i + 1 sees: `post` or `pre` the head norm, or `arch`
    concat      the order before nextn.eh_proj: `eh` (embedding first) or `he`
    first       position 0: `zero_hidden` (llama.cpp: a cell for (x_0, h = 0)), `none` (the first cell is that of
                (x_1, h_0)), `zero_embd` (as `none`, with the first cell's embedding zeroed)
    pos_offset  what is added to MTP position p to give its RoPE position: 0, or -1 (code that runs (x_{p+1}, h_p) at
                position p)
    prime       whether the head's KV is filled over the prompt: `prompt` or `none`
    prompt_end  `hold`: the last prompt token is held back and opens the first draft (llama-speculative-simple);
                `whole`: the prompt is processed whole and the first token is sampled from it (llama-server)
    new_prompt  the pending hidden that a new prompt starts from: `zero`, or `stale` (left over from the last one)
    replay      the pending hidden that a replayed batch starts from: `right`, or `stale` (the last row of the rejected
                batch: llama.cpp on architectures without recurrent snapshots)
    heads       of several heads: `each` drafts one token, or the `first` drafts them all as if it were alone
    chain_end   after the last head of a chain: `cap` (the draft ends: llama.cpp), `reuse` (it runs again) or `wrap`
                (the first one follows: vLLM's step number modulo the number of heads)
    catch_up    the rows that head j of a chain is given over the text: `target`, the trunk's, as head 0 is (llama.cpp);
                `chain`, what head j - 1 made of the token before (SGLang's Step-3.5); `delayed`, the trunk's of j
                tokens earlier (SGLang's MiMo). Within a draft `target` hands on the heads' own rows, the others go on
    chain_row   the row that a head of a chain hands on: its `last`, of the token that it drafted after, or its `first`,
                of the draft's opening token (llama.cpp on hy_v3 with several heads)
    Errors      SettingError for a value that a field does not have
    """

    hidden: str = ARCH
    chain: str = ARCH
    concat: str = "eh"
    first: str = "zero_hidden"
    pos_offset: int = 0
    prime: str = "prompt"
    prompt_end: str = "hold"
    new_prompt: str = "zero"
    replay: str = "right"
    heads: str = "each"
    chain_end: str = "cap"
    catch_up: str = "target"
    chain_row: str = "last"

    def __post_init__(self) -> None:
        for name in CHOICES:
            value, legal = getattr(self, name), _legal(name)
            if value not in legal or isinstance(value, bool):
                raise SettingError(f"MtpContract.{name}", f"{value!r} is unknown, expected one of {_listed(legal)}")

    @property
    def first_pos(self) -> int:
        """The lowest position that has an MTP cell."""
        return 0 if self.first == "zero_hidden" else 1

    def resolved(self, hidden: str, chain: str) -> "MtpContract":
        """The same with an architecture's answers in place of `arch`."""
        own = {"hidden": hidden, "chain": chain}
        return replace(self, **{name: own[name] for name in BY_ARCHITECTURE if getattr(self, name) == ARCH})  # type: ignore[arg-type]


PRESETS: dict[str, MtpContract] = {
    "llama.cpp": MtpContract(),
    "training": MtpContract(first="none", pos_offset=-1),
}


def parse_contract(text: str) -> MtpContract:
    """Read `PRESET`, `field=value,...` or `PRESET,field=value,...`; fields start from the llama.cpp preset.

    Errors  SettingError naming the part that is not understood and what is
    """
    contract = PRESETS["llama.cpp"]
    for index, part in enumerate(text.split(",")):
        name, equals, value = part.strip().partition("=")
        if index == 0 and not equals:
            if name not in PRESETS:
                raise SettingError("contract", f"preset {name!r} is unknown, expected one of {_listed(PRESETS)}")
            contract = PRESETS[name]
            continue
        if name not in CHOICES:
            raise SettingError("contract", f"field {name!r} is unknown, expected one of {_listed(CHOICES)}")
        legal = {str(choice): choice for choice in _legal(name)}
        if value not in legal:
            raise SettingError("contract", f"{name}={value!r} is unknown, expected one of {_listed(legal)}")
        contract = replace(contract, **{name: legal[value]})  # type: ignore[arg-type]
    return contract


def describe(contract: MtpContract, hidden: str = ARCH, chain: str = ARCH) -> str:
    """The shortest text that `parse_contract` reads back: a preset and the fields that differ from it.

    hidden, chain   the architecture's answers, which need no words in a contract that is resolved
    """

    def changes(preset: MtpContract) -> list[str]:
        preset = preset.resolved(hidden, chain)
        names = [f.name for f in fields(MtpContract)]
        return [f"{n}={getattr(contract, n)}" for n in names if getattr(contract, n) != getattr(preset, n)]

    name = min(PRESETS, key=lambda preset: len(changes(PRESETS[preset])))
    return ",".join([name, *changes(PRESETS[name])])
