"""Tokenizer: `load_vocab` makes a `Vocab` from GGUF keys; `StreamDecoder`, `terminal_safe` for output.

Rules and limits: docs/tokenizer.md.
"""

from mtpref.files.vocab.base import Vocab
from mtpref.files.vocab.load import KNOWN_MODELS, load_vocab
from mtpref.files.vocab.pretokenizers import known_names
from mtpref.files.vocab.stream import StreamDecoder, terminal_safe

__all__ = ["KNOWN_MODELS", "StreamDecoder", "Vocab", "known_names", "load_vocab", "terminal_safe"]
