"""Which ids are special: BOS, EOS, end of generation; from keys first, else from well-known texts.

Owns llama.cpp's rules for them, known texts included. Changes attributes where those rules do: a token with
a known text counts as control whatever its type says.
llama.cpp looks for a text in the order of a hash table, so where a vocabulary has two texts of one role its
choice is accidental; here it is the first in the lists below. Only FIM roles can differ by that.
Source: llama.cpp src/llama-vocab.cpp (llama_vocab::impl::load, "special tokens").
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError
from mtpref.files.vocab.base import CONTROL, NORMAL, UNKNOWN, USER_DEFINED

_KEY = "tokenizer.ggml.{}_token_id"
_EOT = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>",
)  # fmt: skip
_EOM = ("<|eom_id|>",)
# role -> (key names, the later one wins; texts that name the token if no key does)
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bos": (("bos",), ()),
    "eos": (("eos",), ()),
    "eot": (("eot",), _EOT),
    "eom": (("eom",), _EOM),
    "fim_pre": (("fim_pre", "prefix"), (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
        "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>")),
    "fim_suf": (("fim_suf", "suffix"), (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
        "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>")),
    "fim_mid": (("fim_mid", "middle"), (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
        "\u2581<MID>", "<|code_middle|>", "<|middle|>")),
    "fim_pad": (("fim_pad",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    "fim_rep": (("fim_rep",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    "fim_sep": (("fim_sep",), ("<|file_sep|>",)),
}  # fmt: skip
EOG_TEXTS = _EOT + _EOM + (
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>",
    "<|tool_response>", "[e~[",
)  # fmt: skip
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass
class SpecialIds:
    """Ids by role (None if there is none), the ids that end generation, and notes on what was odd."""

    roles: dict[str, int | None]
    eog: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def find_special(
    kv: Mapping[str, object],
    ids: Mapping[str, int],
    attrs: npt.NDArray[np.uint8],
    default_bos: int | None,
    default_eos: int | None,
) -> SpecialIds:
    """Special ids of a vocabulary; updates `attrs` in place.

    Rule     1. BOS and EOS start as their defaults (none if outside the vocabulary), other roles as none.
             2. A key sets its role; a value outside the vocabulary leaves it as it was, with a note.
             3. Roles still without id (BOS and EOS excepted) take a token with a known text.
             4. End of generation: fim_pad, fim_rep, fim_sep, every token with a text of EOG_TEXTS, EOS, EOT,
                EOM; less "<|end|>" and "</s>" in the vocabularies where those end no turn.
    Errors   MtprefError if an id key holds no unsigned 32-bit integer.
    """
    n_vocab = len(attrs)
    out = SpecialIds(dict.fromkeys(ROLES))
    for role, default in (("bos", default_bos), ("eos", default_eos)):
        out.roles[role] = default if default is not None and default < n_vocab else None
    for role, (names, texts) in ROLES.items():
        for name in names:
            _read_id(kv, _KEY.format(name), role, n_vocab, out)
        if out.roles[role] is None:
            found = next((text for text in texts if text in ids), None)
            if found is not None:
                out.roles[role] = ids[found]
                _make_control(found, ids[found], attrs, out)
    _collect_eog(ids, attrs, out)
    return out


def strippers(
    name: str, ids: Mapping[str, int], attrs: npt.NDArray[np.uint8], left: tuple[str, ...]
) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the special tokens that swallow the white space before them, and after them.

    Inputs   `name` general.name in lower case; `left` the texts that do the former by the pre-tokenizer's rules.
    Rule     In phi-3 models every special token and </s> swallows what is after it, save <unk>, <s> and
             <|endoftext|>. In modern-bert models [MASK] swallows what is before it. As llama.cpp looks for these
             by name, a renamed model behaves differently.
    """
    if not left and ("phi-3" in name or "phi3" in name):
        right = {*np.flatnonzero(attrs & (CONTROL | USER_DEFINED | UNKNOWN)).tolist(), ids.get("</s>", -1)}
        return frozenset(), frozenset(right - {ids.get(text, -1) for text in ("<unk>", "<s>", "<|endoftext|>")})
    if not left and "modern-bert" in name:
        left = ("[MASK]",)
    return frozenset(ids[text] for text in left if text in ids), frozenset()


def _read_id(kv: Mapping[str, object], key: str, role: str, n_vocab: int, out: SpecialIds) -> None:
    if key not in kv:
        return
    value = kv[key]
    try:
        id = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        id = -1
    if isinstance(value, bool) or not 0 <= id < 2**32:
        raise MtprefError(f"{key}: {value!r}, expected a token id (an unsigned 32-bit integer)")
    if id < n_vocab:
        out.roles[role] = id
    else:
        kept = out.roles[role]
        out.notes.append(
            f"{key}: {id} is outside the vocabulary of {n_vocab} tokens, ignored; "
            f"{role} is {'none' if kept is None else kept}"
        )


def _make_control(text: str, id: int, attrs: npt.NDArray[np.uint8], out: SpecialIds) -> None:
    if not attrs[id] & CONTROL:
        out.notes.append(f"token {id} {text!r} has a control token's text but not its type; treated as control")
        attrs[id] |= CONTROL


def _collect_eog(ids: Mapping[str, int], attrs: npt.NDArray[np.uint8], out: SpecialIds) -> None:
    out.eog = {id for id in (out.roles[r] for r in ("fim_pad", "fim_rep", "fim_sep")) if id is not None}
    for text in EOG_TEXTS:
        if text in ids:
            out.eog.add(ids[text])
            _make_control(text, ids[text], attrs, out)
    for text in _ALWAYS_SHOWN:
        if text in ids:
            attrs[ids[text]] = USER_DEFINED
    out.eog |= {id for id in (out.roles[r] for r in ("eos", "eot", "eom")) if id is not None}

    ends = {text for text, id in ((t, ids.get(t)) for t in (*EOG_TEXTS, "<|plamo:eos|>")) if id in out.eog}
    # Harmony and Solar vocabularies: <|end|> ends a message, not the answer.
    harmony = "<|return|>" in ends and ends & {"<|call|>", "<|calls|>"}
    solar = "<|flush|>" in ends and ends & {"<|call|>", "<|calls|>"}
    if "<|end|>" in ends and (harmony or solar):
        out.eog.discard(ids["<|end|>"])
        attrs[ids["<|end|>"]] = USER_DEFINED
    # Vocabularies with these texts have an ordinary </s>.
    if "</s>" in ends and ends & {"<|tool_response>", "<|plamo:eos|>"}:
        out.eog.discard(ids["</s>"])
        attrs[ids["</s>"]] = NORMAL
