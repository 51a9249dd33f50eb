"""Checks of the tokenizer on the file."""

from mtpref.look.selftest.bench import PASSAGE, Bench, Failed, Skipped

TEXTS = (
    "Hello, world!",
    PASSAGE,
    "  two leading blanks, trailing ones  \n\n\n\tand tabs\t",
    "1 22 333 4444 55555 1234567890 3.14159 0x7f",
    "don't I'll we've it's DON'T",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe e\u0301",
    "\u4e2d\u6587\u5b57\u7b26 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "a" * 200 + " " * 50 + "b",
)


def round_trip(bench: Bench) -> str:
    """Text to ids and back, and piece by piece."""
    vocab = bench.model.vocab
    if not vocab.holds_text:
        raise Skipped(f"tokenizer {vocab.model!r} makes ids of hashes: they hold no text")
    n_ids = 0
    for text in TEXTS:
        ids = vocab.encode(text, add_special=False, parse_special=False)
        n_ids += len(ids)
        bad = [id for id in ids if not 0 <= id < vocab.n_vocab]
        if bad:
            raise Failed(f"{text[:20]!a}: id {bad[0]} is outside the vocabulary of {vocab.n_vocab}")
        back = vocab.detokenize(ids)
        if back != text.encode() and not vocab_cleans(bench):
            at = next((i for i, (a, b) in enumerate(zip(back, text.encode(), strict=False)) if a != b), len(back))
            raise Failed(f"{text[:20]!a} comes back as other bytes from byte {at} on")
    for id in range(0, vocab.n_vocab, max(1, vocab.n_vocab // 1000)):
        vocab.piece(id, special=True)
    return (
        f"{len(TEXTS)} texts, {n_ids} tokens of {vocab.n_vocab} ({vocab.model}, {vocab.pre or 'default'}): equal bytes"
    )


def vocab_cleans(bench: Bench) -> bool:
    """Vocabularies of whole words lose spaces when they are written out: llama.cpp's own rule."""
    return bool(bench.model.kv.get("tokenizer.ggml.clean_spaces", False)) and bench.model.vocab.model != "gpt2"
