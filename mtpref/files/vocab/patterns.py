"""The rules that go with each `tokenizer.ggml.pre` name: the patterns that cut text into words, and the defaults.

Owns facts only, one `Rules` for each set of names. Read next: pretokenizers.py, which builds the cutter.

The patterns are what llama.cpp does, in Oniguruma's syntax; where it differs from the pattern of the model's own
tokenizer.json, llama.cpp wins. The known cases:
- llama.cpp has no letter case beyond ASCII: where a tokenizer.json tells \\p{Lu} from \\p{Ll} (gpt-4o, tekken,
  kimi-k2 and those after them), a letter that is not ASCII counts as both, and a combining mark as no letter.
- Contractions are spelled 's, 'S, ... and not as a case-insensitive group: in Unicode case folding U+017F
  (long s) equals "s", so (?i:'s) would match one character more.
- In patterns without a Unicode category white space beyond ASCII belongs to \\s alone, never to a range.
Source: llama.cpp src/llama-vocab.cpp (pre_type table, regex_exprs), src/unicode.cpp (hand-written twins).
"""

from __future__ import annotations

from typing import NamedTuple

GPT2_DEFAULT_ID = 11  # llama.cpp's BOS and EOS of a byte-level BPE vocabulary that names none


class Rules(NamedTuple):
    """patterns       each cuts every piece that the one before it left; matches and what is between become pieces
    ignore_merges  a word that is a token as a whole is that token, whatever the merges say
    add_bos        whether BOS is added where the file has no tokenizer.ggml.add_bos_token
    clean_spaces   whether `Vocab.detokenize` drops spaces before punctuation
    bos_id         BOS where the file has no tokenizer.ggml.bos_token_id
    needs_merges   whether a file without merges is refused
    lstrip         texts of special tokens that swallow the white space before them
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    clean_spaces: bool = True
    bos_id: int | None = GPT2_DEFAULT_ID
    needs_merges: bool = True
    lstrip: tuple[str, ...] = ()


_C = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_C}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_C}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
# Qwen3.5 counts combining marks as letters.
_QWEN35 = rf"{_C}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_NEWLINES = r"[^\n]+|[\n]+"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_SIGN_AND_LATIN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = rf"{_SIGN_AND_LATIN}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
# The first of these cuts no punctuation with its line break, and cuts each break and digit alone.
_SPARK = rf"{_SIGN_AND_LATIN}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
# From U+0800 on all scripts but what the other two ranges leave out; white space as said above.
_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
# Latin, Greek, Cyrillic and other scripts that have two cases.
_TWO_CASES = (
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[A-Za-z{_TWO_CASES}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
    r"\s+\z",
    _EAST,
    r"\p{N}+",
)


def _cased(letter: str, suffix: str) -> str:
    """A word of upper-case, then lower-case letters, either missing."""
    upper, lower = rf"[{letter}&&[^a-z]]", rf"[{letter}&&[^A-Z]]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"


_SLASH_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = _cased(r"\p{L}", "") + rf"|\p{{N}}|{_SLASH_SIGNS}|{_SPACES}"
_GPT4O = _cased(r"\p{L}", _C + "?") + rf"|\p{{N}}{{1,3}}|{_SLASH_SIGNS}|{_SPACES}"
_GRANITE = _cased(r"\p{L}\p{M}", _C + "?") + rf"|\p{{N}}{{1,3}}|{_SLASH_SIGNS}|{_SPACES}"
_CASELESS = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_C}?"

# What llama.cpp takes for Han: whole blocks, unassigned code points and all.
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_KIMI = rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_C}?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"

# Threes from the right. The text before a number stays in one piece with its first one to three digits.
_THREES = r"\P{N}*+\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}++\z"
_ASIA = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK
)
_EXAONE_WORDS = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"

_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(?:IMGIMG)(?:A|B|C|D|E|F|G|H|I){1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_SUPERBPE = (r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")
_MASK = ("<mask>",)

# Names, separated by spaces, and their rules.
_TABLE: tuple[tuple[str, Rules], ...] = (
    ("default", Rules(_DEFAULT)),
    (
        "gpt-2 phi-2 jina-es jina-de jina-v1-en roberta-bpe gigachat a.x-4.0 mellum modern-bert mpt olmo jais exaone4",
        Rules((_GPT2,)),
    ),
    ("jina-v2-es jina-v2-de jina-v2-code", Rules((_GPT2,), lstrip=_MASK)),
    ("trillion granite-docling", Rules((_GPT2,), clean_spaces=False)),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Rules((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe", Rules((_LLAMA3,))),
    ("chatglm-bpe", Rules((_LLAMA3,), bos_id=None)),
    ("glm4 glm5", Rules((_LLAMA3,), ignore_merges=True, bos_id=None)),
    ("jais-2", Rules((rf"{_C}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|{_JAIS2_SPACES}",))),
    (
        "minicpm5",
        Rules((r"\p{N}{1,3}", rf"{_C}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACES}"), ignore_merges=True),
    ),
    (
        # The last three are written otherwise, but \s*[\r\n] ends where \s*[\r\n]+ does.
        "qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe",
        Rules((_QWEN2,), clean_spaces=False),
    ),
    ("stablelm2 megrez", Rules((_QWEN2,))),
    ("ufakzeka", Rules((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}",), clean_spaces=False)),
    ("laguna", Rules((_NEWLINES, _QWEN2), clean_spaces=False)),
    ("qwen35", Rules((_QWEN35,), clean_spaces=False)),
    ("seed-coder", Rules((rf"{_C}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",), clean_spaces=False)),
    (
        "exaone-moe",
        Rules((rf"{_C}|{_EXAONE_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",)),
    ),
    ("deepseek-llm", Rules(_DEEPSEEK_LLM, clean_spaces=False)),
    (
        "deepseek-coder",
        Rules((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST, r"\p{N}"), clean_spaces=False),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Rules((r"\p{N}{1,3}", _CJK, _DEEPSEEK3), clean_spaces=False)),
    ("spark2_5", Rules((r"\p{N}{1,3}", _CJK, _SPARK, r"\p{N}"), clean_spaces=False)),
    ("afmoe", Rules((_THREES, _ASIA, _DEEPSEEK3), clean_spaces=False)),
    ("kimi-k2", Rules((_KIMI,), clean_spaces=False, needs_merges=False)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Rules((_GPT4O,), clean_spaces=False)),
    ("granite-embed-multi-97m", Rules((_GRANITE,), ignore_merges=True, clean_spaces=False)),
    ("tekken", Rules((_TEKKEN,), ignore_merges=True, add_bos=True, clean_spaces=False)),
    (
        "tiny_aya cohere2moe",
        Rules((_THREES, rf"{_CASELESS}|\p{{N}}{{1,3}}|{_SLASH_SIGNS}|{_SPACES}"), clean_spaces=False),
    ),
    (
        "youtu",
        Rules((_YOUTU, rf"{_CASELESS}|\p{{N}}|{_SLASH_SIGNS}|{_SPACES}"), ignore_merges=True, clean_spaces=False),
    ),
    ("falcon", Rules(_FALCON)),
    ("starcoder refact codeshell exaone minerva-7b mellum2", Rules((r"\p{N}", _GPT2))),
    ("command-r smollm", Rules((r"\p{N}", _GPT2), clean_spaces=False)),
    ("poro-chat", Rules((_BLOOM,), clean_spaces=False)),
    ("bloom gpt3-finnish", Rules((_BLOOM,))),
    ("viking", Rules((_BLOOM, r"\p{N}"), clean_spaces=False)),
    ("chameleon", Rules(_CHAMELEON, add_bos=True, clean_spaces=False)),
    ("superbpe", Rules(_SUPERBPE, clean_spaces=False)),
)

RULES: dict[str, Rules] = {name: rules for names, rules in _TABLE for name in names.split()}
