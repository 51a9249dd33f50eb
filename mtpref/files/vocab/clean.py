"""llama.cpp's clean-up of detokenized text: no spaces where a tokenizer of whole words puts them needlessly.

Source: llama.cpp src/llama-vocab.cpp (llama_vocab::impl::detokenize, clean_spaces).
"""

from __future__ import annotations

import re

_BEFORE_MARK = re.compile(rb" (?=[?!.,])")
_AROUND_APOSTROPHE = re.compile(rb" ' ")
_BEFORE_CONTRACTION = re.compile(rb" (?='(?:[sm]|re|ve))")


def clean_spaces(text: bytes) -> bytes:
    """`text` less some spaces.

    Rule     three passes, each over what the one before it left:
             1. A space goes before each of ? ! . ,
             2. An apostrophe between two spaces loses both.
             3. A space goes before 's, 'm, 're and 've.
    """
    text = _BEFORE_MARK.sub(b"", text)
    text = _AROUND_APOSTROPHE.sub(b"'", text)
    return _BEFORE_CONTRACTION.sub(b"", text)
