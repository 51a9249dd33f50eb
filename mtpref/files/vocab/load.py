"""A vocabulary from the `tokenizer.*` keys of a GGUF.

Owns the reading and checking of those keys: refuses what llama.cpp refuses, tolerates what it tolerates (and
says so in `Vocab.notes`). Read next: special.py, bpe.py, spm.py, hashed.py.
Source: llama.cpp src/llama-vocab.cpp (llama_vocab::impl::load).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.files.vocab.base import NORMAL, TOKEN_TYPES, Header, Vocab
from mtpref.files.vocab.bpe import BpeVocab, build_bpe
from mtpref.files.vocab.byte_texts import byte_of
from mtpref.files.vocab.hashed import HashedVocab
from mtpref.files.vocab.patterns import Rules
from mtpref.files.vocab.plain_bpe import PlainBpeVocab
from mtpref.files.vocab.pretokenizers import rules_of
from mtpref.files.vocab.special import SpecialIds, find_special, strippers
from mtpref.files.vocab.spm import SpmVocab, build_spm

KNOWN_MODELS = ("gpt2", "llama", "gemma4", "test")
# What llama.cpp reads and this package does not.
OTHER_MODELS = {
    "bert": "WordPiece",
    "t5": "a SentencePiece unigram model",
    "rwkv": "RWKV's greedy trie",
    "plamo2": "PLaMo-2's lattice",
    "hybriddna": "BPE with DNA k-mers",
    "whitespace": "words between white space",
    "none": "no tokenizer at all",
    "no_vocab": "no tokenizer at all",
}
_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
_TYPES, _SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_BYTE_TYPE = 6
MAX_TEXTS = {_TOKENS: 1 << 20, _MERGES: 1 << 21}  # the largest real vocabularies have 262,144 tokens, 600,000 merges
# llama.cpp's defaults of the models that have no pre-tokenizer.
_LLAMA_RULES = Rules((), add_bos=True, clean_spaces=False, bos_id=1)
# Whatever its keys say, BOS is added, as llama.cpp has it.
_GEMMA_RULES = Rules((), add_bos=True, bos_id=None)
_TEST_RULES = Rules((), clean_spaces=False, bos_id=None)
_EOS_DEFAULTS = {"gpt2": 11, "llama": 2, "gemma4": None, "test": None}


def load_vocab(kv: Mapping[str, object]) -> Vocab:
    """The vocabulary that the keys of a GGUF describe.

    Inputs   kv: key -> value; arrays as the GGUF reader gives them, or plain lists (str or bytes, int).
    Models   `tokenizer.ggml.model` gpt2 (pre-tokenizers: `mtpref.files.vocab.known_names()`), llama,
             gemma4, test.
    Errors   MtprefError: unknown model or pre-tokenizer (lists the known ones), missing or mistyped arrays,
             token_type or scores shorter than tokens, two tokens with one text, an empty vocabulary.
    """
    model = _model(kv)
    pre, rules, notes = _rules(kv, model)
    # Merges before tokens, so that the cheaper and commoner fault is named first.
    merges = _merges(kv, rules, notes) if model in ("gpt2", "gemma4") else []
    texts = _tokens(kv)
    ids = _ids(texts)
    scores = _numbers(kv, _SCORES, len(texts), ("f32", "i32"))
    types = _token_types(kv, len(texts))
    attrs = types if types is not None else np.full(len(texts), NORMAL, np.uint8)
    special = find_special(kv, ids, attrs, rules.bos_id, _EOS_DEFAULTS[model])
    special.notes = notes + special.notes
    odd = _raw_texts(texts, attrs)
    header = _header(kv, model, pre, rules, ids, attrs, special)
    if model == "test":
        return HashedVocab(header, attrs, odd)
    if model == "gemma4":
        if not header.add_bos:
            note = "tokenizer.ggml.add_bos_token is false; BOS is added all the same, as llama.cpp does for gemma4"
            header = replace(header, add_bos=True, notes=(*header.notes, note))
        return PlainBpeVocab(header, attrs, odd, texts, merges)
    if model == "llama":
        header = replace(header, notes=header.notes + _llama_notes(kv, scores))
        processor = build_spm(texts, np.zeros(len(texts), np.float32) if scores is None else scores.astype(np.float32))
        return SpmVocab(header, attrs, odd, processor, ids)
    del texts
    tokenizer, fallback, more = build_bpe(rules, ids, merges)
    header = replace(header, notes=header.notes + tuple(more))
    return BpeVocab(header, attrs, odd, tokenizer, fallback, rules.ignore_merges)


def _header(
    kv: Mapping[str, object],
    model: str,
    pre: str,
    rules: Rules,
    ids: Mapping[str, int],
    attrs: npt.NDArray[np.uint8],
    special: SpecialIds,
) -> Header:
    lstrip, rstrip = strippers(_name(kv), ids, attrs, rules.lstrip)
    return Header(
        model=model,
        pre=pre,
        n_vocab=len(attrs),
        bos_id=special.roles["bos"],
        eos_id=special.roles["eos"],
        add_bos=_flag(kv, "tokenizer.ggml.add_bos_token", rules.add_bos),
        add_eos=_flag(kv, "tokenizer.ggml.add_eos_token", False),
        eog_ids=frozenset(special.eog),
        notes=tuple(special.notes),
        add_space_prefix=_flag(kv, _SPACE_PREFIX, model == "llama"),
        clean_spaces=rules.clean_spaces,
        lstrip=lstrip,
        rstrip=rstrip,
    )


def _model(kv: Mapping[str, object]) -> str:
    model = _text(kv, _MODEL)
    if model in KNOWN_MODELS:
        return model
    if model is None:
        found = "missing"
    elif model in OTHER_MODELS:
        found = f"{model!r} ({OTHER_MODELS[model]}) is not supported"
    else:
        found = f"unknown tokenizer model {model!r}"
    kind = MtprefError if model is None else UnsupportedError
    raise kind(f"{_MODEL}: {found}, expected one of {', '.join(KNOWN_MODELS)}; try: mtpref inspect on the file")


def _rules(kv: Mapping[str, object], model: str) -> tuple[str, Rules, list[str]]:
    """(name of the pre-tokenizer, rules, notes)."""
    pre = _text(kv, _PRE) or ""
    if model == "gemma4":
        return "gemma4", _GEMMA_RULES, []
    if model != "gpt2":
        return pre, _LLAMA_RULES if model == "llama" else _TEST_RULES, []
    if pre:
        return pre, rules_of(pre), []
    note = f"{_PRE}: missing, using default; the ids may differ from those of training"
    return "default", rules_of("default"), [note]


def _merges(kv: Mapping[str, object], rules: Rules, notes: list[str]) -> list[str]:
    if _MERGES in kv or rules.needs_merges:
        return _strings(kv, _MERGES)
    notes.append(f"{_MERGES}: missing; every byte is a token of its own")
    return []


def _llama_notes(kv: Mapping[str, object], scores: object) -> tuple[str, ...]:
    notes = []
    if scores is None:
        notes.append(f"{_SCORES}: missing; every merge counts the same, the leftmost first")
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if kv.get(f"tokenizer.ggml.{name}"):
            notes.append(f"tokenizer.ggml.{name}: ignored, as llama.cpp does in a llama vocabulary")
    return tuple(notes)


def _name(kv: Mapping[str, object]) -> str:
    name = kv.get("general.name")
    return name.lower() if isinstance(name, str) else ""


def _text(kv: Mapping[str, object], key: str) -> str | None:
    value = kv.get(key)
    if value is not None and not isinstance(value, str):
        raise MtprefError(f"{key}: {value!r}, expected a string")
    return value


def _flag(kv: Mapping[str, object], key: str, default: bool) -> bool:
    value = kv.get(key, default)
    if not isinstance(value, bool | np.bool_):
        raise MtprefError(f"{key}: {value!r}, expected a bool")
    return bool(value)


def _strings(kv: Mapping[str, object], key: str) -> list[str]:
    """A string array; bytes that are no UTF-8 become lone surrogates (surrogateescape).

    A text ends at its first NUL, as in llama.cpp.
    """
    value: Any = kv.get(key)
    if value is None:
        raise MtprefError(f"{key}: missing, expected an array of strings; is this a GGUF with a tokenizer?")
    if hasattr(value, "__len__") and len(value) > MAX_TEXTS[key]:
        raise MtprefError(f"{key}: {len(value)} strings, expected at most {MAX_TEXTS[key]}; is it a vocabulary?")
    if hasattr(value, "to_bytes_list"):
        texts = [raw.decode("utf-8", "surrogateescape") for raw in value.to_bytes_list()]
    elif isinstance(value, list | tuple) and all(isinstance(item, bytes | str) for item in value):
        texts = [s if isinstance(s, str) else s.decode("utf-8", "surrogateescape") for s in value]
    else:
        raise MtprefError(f"{key}: {_kind(value)}, expected an array of strings")
    return [text.partition("\0")[0] for text in texts] if any("\0" in text for text in texts) else texts


def _tokens(kv: Mapping[str, object]) -> list[str]:
    texts = _strings(kv, _TOKENS)
    if not texts:
        raise MtprefError(f"{_TOKENS}: 0 tokens, expected at least one")
    if "" in texts:
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
    return texts


def _ids(texts: list[str]) -> dict[str, int]:
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) != len(texts):
        again = next(i for i, text in enumerate(texts) if ids[text] != i)
        raise MtprefError(
            f"{_TOKENS}: {len(texts) - len(ids)} texts occur twice, first {ascii(texts[again])[:60]} as ids "
            f"{again} and {ids[texts[again]]}, expected each once; convert the model again"
        )
    return ids


def _token_types(kv: Mapping[str, object], n_tokens: int) -> npt.NDArray[np.uint8] | None:
    """Attribute bits from token_type, None if there is none."""
    values = _numbers(kv, _TYPES, n_tokens, ("i32",))
    if values is None:
        return None
    table = np.zeros(max(TOKEN_TYPES) + 1, np.uint8)
    for value, attr in TOKEN_TYPES.items():
        table[value] = attr
    known = (values >= 0) & (values < len(table))
    return table[np.where(known, values, 0).astype(np.int64)]


def _numbers(kv: Mapping[str, object], key: str, n_tokens: int, kinds: tuple[str, ...]) -> npt.NDArray[Any] | None:
    value: Any = kv.get(key)
    if value is None:
        return None
    wanted = f"an array of {' or '.join(kinds)}"
    if getattr(value, "element_type", kinds[0]) not in kinds:
        raise MtprefError(f"{key}: array of {value.element_type}, expected {wanted}")
    try:
        # What stands after the last token's number does not count, so it is not read: it may be of any length.
        array = value.to_numpy(n_tokens) if hasattr(value, "to_numpy") else np.asarray(value)
    except (ValueError, OverflowError):
        raise MtprefError(f"{key}: {_kind(value)}, expected {wanted}") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in ("iuf" if "f32" in kinds else "iu")):
        raise MtprefError(f"{key}: {_kind(value)}, expected {wanted}")
    if len(array) < n_tokens:
        raise MtprefError(f"{key}: {len(array)} values, expected {n_tokens}, one for each of {_TOKENS}")
    return array[:n_tokens]


def _raw_texts(texts: list[str], attrs: npt.NDArray[np.uint8]) -> dict[int, bytes]:
    """id -> raw text of every token that is not plain NORMAL, or whose text is no UTF-8."""
    odd = {}
    for id in np.flatnonzero(attrs != NORMAL).tolist():
        odd[id] = texts[id].encode("utf-8", "surrogateescape")
        if attrs[id] == TOKEN_TYPES[_BYTE_TYPE]:
            byte_of(id, odd[id])
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        for id, text in enumerate(texts):
            if not text.isascii():
                odd[id] = text.encode("utf-8", "surrogateescape")
    return odd


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
