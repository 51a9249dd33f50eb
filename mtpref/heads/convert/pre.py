"""Which `tokenizer.ggml.pre` a tokenizer.json is: found by what it does, not by its hash or its name.

Owns the probe text and the choice among names that do the same. llama.cpp recognises a tokenizer by the hash of some
ids, so that one more added token makes it unknown. Here its own cutter and every known one cut a text that holds what
tells them apart; then the whole vocabulary encodes it, and the ids must be those of the tokenizer.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from mtpref.base.errors import MtprefError
from mtpref.files.vocab.patterns import RULES
from mtpref.files.vocab.pretokenizers import build_pre_tokenizer

# Letters with and without marks, digits of several scripts, runs of spaces and line breaks, contractions in both
# cases, signs beside letters, CJK beside kana, what a case fold changes. In NFC, since llama.cpp does not normalise.
PROBE = (
    "Hello, world! I'm you'RE he'Ll we'd 'tis don'T ANDROID's\n"
    "x = foo_bar(1234567, 3.14e-10) # 0x1F\t\ttabs\r\n\r\n   three spaces\n\n\n \n \t end \n"
    "caf\u00e9 na\u00efve \u017fs 'S' \u0130stanbul Stra\u00dfe \u01c5ungla\n"
    "\u0391\u03b8\u03ae\u03bd\u03b1 \u041c\u043e\u0441\u043a\u0432\u0430 q\u0323\u0307\n"
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22\u0e49\u0e33 \u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd\n"
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0651\u0629\n12\u0663\u0664\u0665\n"
    "\u0967\u0968\u0969\u096a \u2167\u00bd\u00b2\n"
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01123\u4e2d\u6587 \u3053\u3093\u306b\u3061\u306f\u30ab\u30bf\u30ab\u30ca\n"
    "\ud55c\uad6d\uc5b4 \U0001f600\U0001f468\u200d\U0001f469 \u2014 \u2026\u201cquoted\u201d\u2019s\n"
    "$%^&*()!! ...?? <|x|> </s> [a]{b}\\c/d @user #tag a+b=c 10% \u20ac5 \u00a0nbsp \u2003em \u3000wide\n"
    "CamelCaseWORD HTTPServer2Go v1.2.3 ABCdef 1a2b3c 00000000 1,000,000 'a 'A ''s  \n"
)
# Where several names do the same, the one that most files of that behaviour have.
_PREFERRED = ("qwen35", "qwen2", "llama-bpe", "gpt-2", "deepseek-v3", "deepseek-llm", "gpt-4o", "tekken")


def find_pre(tokenizer: Tokenizer, *, ignore_merges: bool, label: str, usual: str = "") -> str:
    """The name whose cutter cuts the probe text as the tokenizer's own does.

    usual    the name that files of the architecture have: taken where several do the same

    Errors   MtprefError where none does, with the one that comes closest and the first word that differs
    """
    wanted = _pieces(tokenizer.pre_tokenizer, PROBE)
    names = list(dict.fromkeys([*([usual] if usual else []), *_PREFERRED, *sorted(RULES)]))
    closest, most = names[0], -1
    for name in names:
        got = _pieces(build_pre_tokenizer(RULES[name]), PROBE)
        if got == wanted and RULES[name].ignore_merges == ignore_merges:
            return name
        pairs = zip(got, wanted, strict=False)
        n_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(wanted)))
        if n_equal > most:
            closest, most = name, n_equal
    found = wanted[most] if most < len(wanted) else "the end"
    raise MtprefError(
        f"{label}: its pre-tokenizer is none that llama.cpp has; the closest is {closest}, which first "
        f"differs at {found!r} (ignore_merges {ignore_merges}); give a name with `convert.Settings.pre`"
    )


def _pieces(cutter: object, text: str) -> list[str]:
    return [piece for piece, _ in cutter.pre_tokenize_str(text)] if cutter is not None else [text]  # type: ignore[attr-defined]
