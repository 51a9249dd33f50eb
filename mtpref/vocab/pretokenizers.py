"""Pre-tokenizers of byte-level BPE: the patterns that cut text into words, by `tokenizer.ggml.pre` name.

Owns the patterns and the byte alphabet. A pre-tokenizer is a sequence of patterns; each cuts every piece left
by the one before it, and both the matches and the text between them become pieces.
Knows nothing of vocabularies.

Contractions are spelled 's, 'S, ... and not as a case-insensitive group: in Unicode case folding U+017F
(long s) equals "s", so (?i:'s) would match one character more than llama.cpp does.
Source: llama.cpp src/llama-vocab.cpp (pre_type table, regex_exprs), src/unicode.cpp (hand-written twins).
"""

from __future__ import annotations

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from mtpref.errors import MtprefError

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
# Qwen3.5 counts combining marks as letters.
_QWEN35 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES

PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
}
# Other names that llama.cpp gives the same rules.
ALIASES = {"deepseek-r1-qwen": "qwen2", "f2llmv2": "qwen2", "kormo": "qwen2", "megrez": "qwen2"}


def known_names() -> tuple[str, ...]:
    """Every value of `tokenizer.ggml.pre` that can be read, sorted."""
    return tuple(sorted({*PATTERNS, *ALIASES}))


def build_pre_tokenizer(name: str) -> PreTokenizer:
    """The cutter for `name`, ending in the byte alphabet (one character per UTF-8 byte).

    Errors   MtprefError, listing the known names, if `name` is unknown.
    """
    patterns = PATTERNS.get(ALIASES.get(name, name))
    if patterns is None:
        raise MtprefError(
            f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r}, expected one of {', '.join(known_names())}"
            "; try: mtpref inspect on the file to see what it holds"
        )
    splits: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in patterns]
    return Sequence(splits + [ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_alphabet() -> tuple[str, ...]:
    """byte -> character: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    out, spare = [], 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            out.append(chr(byte))
        else:
            out.append(chr(spare))
            spare += 1
    return tuple(out)


BYTE_TO_CHAR = _byte_alphabet()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
