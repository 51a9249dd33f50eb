"""Pre-tokenizers of byte-level BPE: the cutter of text into words, by `tokenizer.ggml.pre` name.

Owns the building of the cutter; the patterns are in patterns.py. A pre-tokenizer is a
sequence of patterns; each cuts every piece left by the one before it, and both the matches and the text between
them become pieces. Knows nothing of vocabularies.
"""

from __future__ import annotations

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from mtpref.base.errors import UnsupportedError
from mtpref.files.vocab.patterns import RULES, Rules


def unusual_pre(arch: str, pre: str, usual: str) -> str | None:
    """A note on a pre-tokenizer that files of this architecture do not have; None where nothing is odd.

    usual   the name that files of its published models have; "" where none is known
    """
    if usual in (pre, ""):
        return None
    return f"pre-tokenizer {pre}, where {arch} models have {usual}: is the tokenizer this model's own?"


def known_names() -> tuple[str, ...]:
    """Every value of `tokenizer.ggml.pre` that can be read, sorted."""
    return tuple(sorted(RULES))


def rules_of(name: str) -> Rules:
    """The rules that go with `name`.

    Errors   MtprefError, listing the known names, if `name` is unknown.
    """
    if name not in RULES:
        raise UnsupportedError(
            f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r}, expected one of {', '.join(known_names())}"
            "; try: mtpref inspect on the file to see what it holds"
        )
    return RULES[name]


def build_pre_tokenizer(rules: Rules) -> PreTokenizer:
    """The cutter, ending in the byte alphabet (one character per UTF-8 byte)."""
    splits: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    return Sequence(splits + [ByteLevel(add_prefix_space=False, use_regex=False)])
