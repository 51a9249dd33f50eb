"""The tokenizer of a checkpoint as GGUF keys: byte-level BPE, its added tokens, special ids, chat template.

Owns token types and their order. Merges, special ids and the template are read by the gguf package's SpecialVocab, as
llama.cpp's converter does. What is written is tried before anything is: mtpref's own vocabulary made of the keys must
give the ids of the checkpoint's tokenizer.
Facts: llama.cpp conversion/base.py (get_vocab_base).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mtpref.architectures import Architecture
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.files.vocab.load import load_vocab
from mtpref.heads.convert import characters, tiktoken
from mtpref.heads.convert.general import quiet, recorded
from mtpref.heads.convert.keys import Keys
from mtpref.heads.convert.pre import PROBE, find_pre
from mtpref.heads.hf import Checkpoint

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MAX_VOCAB = 1 << 20
Roles = Sequence[tuple[str, str]]
_LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


def vocabulary(checkpoint: Checkpoint, n_vocab: int | None, sheet: Architecture, pre: str | None = None) -> Keys:
    """The tokenizer.* keys.

    n_vocab   rows of the embedding (config.json's vocab_size): ids after the tokenizer's own become unused tokens
    pre       the pre-tokenizer's name, where it is not to be found by behaviour
    sheet     for the name that is taken where several pre-tokenizers do the same, and for added tokens with a role
    Errors    MtprefError: no or damaged tokenizer.json (or tiktoken.model), no byte-level BPE, more tokens than rows,
              an unknown pre-tokenizer, a vocabulary that gives other ids than the tokenizer
    """
    if is_tiktoken(checkpoint):
        return _of_ranks(checkpoint, n_vocab, pre)
    plain = sheet.hf.plain_bpe if sheet.hf else ""
    tokenizer, found = _load(checkpoint, "BPE over characters" if plain else "byte-level BPE")
    label = f"{checkpoint.label}: tokenizer.json"
    if plain:
        keys = characters.keys_of(checkpoint, tokenizer, found, n_vocab, plain)
        _check_ids(tokenizer, keys, label, characters.PROBE)
        return keys
    tokens, types = _tokens(tokenizer, n_vocab, label)
    ignore_merges = bool(found["model"].get("ignore_merges"))
    pre = pre or find_pre(tokenizer, ignore_merges=ignore_merges, label=label, usual=sheet.pre)
    keys = [
        ("tokenizer.ggml.model", "gpt2", "str"),
        ("tokenizer.ggml.pre", pre, "str"),
        ("tokenizer.ggml.tokens", tokens, "arr:str"),
        ("tokenizer.ggml.token_type", types, "arr:i32"),
    ]
    more = _special(checkpoint, found, tokenizer, sheet.hf.special_of(checkpoint.config) if sheet.hf else ())
    keys += [pair for pair in more if pair[0] != "general.architecture"]
    _check_ids(tokenizer, keys, label)
    return keys


def is_tiktoken(checkpoint: Checkpoint) -> bool:
    """Whether a tiktoken file is all that a checkpoint has."""
    return not (checkpoint.folder / "tokenizer.json").exists() and (checkpoint.folder / tiktoken.FILE).is_file()


def _of_ranks(checkpoint: Checkpoint, n_vocab: int | None, pre: str | None) -> Keys:
    """The keys of a tiktoken file."""
    ranks = tiktoken.read_ranks(checkpoint)
    special = tiktoken.special_tokens(checkpoint, len(ranks))
    n_rows = len(ranks) + len(special) if n_vocab is None else n_vocab
    n_needed = 1 + max([len(ranks) - 1, *(id for id, text in special.items() if not tiktoken.is_reserved(id, text))])
    if not n_needed <= n_rows <= MAX_VOCAB:
        raise MtprefError(
            f"{checkpoint.label}: {tiktoken.FILE} and tokenizer_config.json have tokens up to id {n_needed - 1}, "
            f"expected all below config.json's vocab_size, {n_rows} (at most {MAX_VOCAB}): they have no row of the "
            "embeddings"
        )
    after = range(len(ranks), n_rows)
    tokens = tiktoken.texts_of(ranks) + [special.get(id, f"[PAD{id}]") for id in after]
    types = [NORMAL] * len(ranks) + [CONTROL if id in special else UNUSED for id in after]

    def fill(writer: Any) -> None:
        import gguf

        gguf.SpecialVocab(checkpoint.folder, load_merges=False).add_to_gguf(writer, quiet=True)

    more = recorded(fill, "", f"{checkpoint.label}: tokenizer files")
    keys: Keys = [
        ("tokenizer.ggml.model", "gpt2", "str"),
        ("tokenizer.ggml.pre", pre or tiktoken.pre_of(checkpoint), "str"),
        ("tokenizer.ggml.tokens", tokens, "arr:str"),
        ("tokenizer.ggml.token_type", types, "arr:i32"),
        ("tokenizer.ggml.merges", tiktoken.merges_of(ranks), "arr:str"),
    ]
    return keys + [pair for pair in more if pair[0] != "general.architecture"]


def _load(checkpoint: Checkpoint, kind_of: str) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and tokenizer.json as it stands."""
    found = checkpoint.json("tokenizer.json")
    label = f"{checkpoint.label}: tokenizer.json"
    if found is None:
        raise MtprefError(f"{label}: there is none, expected a {kind_of} tokenizer (or {tiktoken.FILE})")
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise MtprefError(f"{label}: a tokenizer of type {printable(repr(kind))}, expected {kind_of}")
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    except Exception as error:  # the package throws bare Exception
        raise MtprefError(
            f"{label}: cannot be read ({printable(str(error), 160)}); a newer tokenizers package may"
        ) from None
    _add_configured(checkpoint, tokenizer)
    return tokenizer, found


def _add_configured(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Tokens that only tokenizer_config.json adds, by id, as transformers does."""
    config = checkpoint.json("tokenizer_config.json") or {}
    added = config.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return
    where = f"{checkpoint.label}: tokenizer_config.json: added_tokens_decoder"
    known = set(tokenizer.get_vocab(with_added_tokens=True))
    entries = [(i, e) for i, e in added.items() if isinstance(e, dict) and isinstance(e.get("content"), str)]
    if len(entries) != len(added) or not all(i.isascii() and i.isdecimal() and len(i) < 10 for i, _ in entries):
        raise MtprefError(f"{where}: an entry has another form, expected id -> object with content")
    for id_text, entry in sorted(entries, key=lambda pair: int(pair[0])):
        text = entry["content"]
        if text in known or not text:
            continue
        token = AddedToken(
            text,
            normalized=bool(entry.get("normalized")),
            special=bool(entry.get("special")),
            lstrip=bool(entry.get("lstrip")),
            rstrip=bool(entry.get("rstrip")),
            single_word=bool(entry.get("single_word")),
        )
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(text) != int(id_text):
            raise MtprefError(
                f"{where}: {printable(text)} has id {id_text}, expected {tokenizer.token_to_id(text)}, "
                "the next one after tokenizer.json's"
            )


def _tokens(tokenizer: Tokenizer, n_vocab: int | None, label: str) -> tuple[list[str], list[int]]:
    """Texts and types by id; an id without a token is [PADn], unused."""
    by_id = {id: text for text, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    n_needed = max(by_id, default=-1) + 1
    n_rows = n_needed if n_vocab is None else n_vocab
    if n_rows < n_needed <= MAX_VOCAB:
        first = next(text for id, text in sorted(by_id.items()) if id >= n_rows)
        raise MtprefError(
            f"{label}: tokens have ids up to {n_needed - 1}, config.json's vocab_size is {n_rows}, so that "
            f"{n_needed - n_rows} (first {printable(first)}) have no row of the embeddings, expected one each; "
            "take added tokens that the model was not trained with out of tokenizer.json and tokenizer_config.json, or "
            f"resize the embeddings to {n_needed} rows before saving"
        )
    if not 0 < n_needed <= n_rows <= MAX_VOCAB:
        raise MtprefError(
            f"{label}: ids up to {n_needed - 1}, expected some, all below config.json's vocab_size "
            f"{n_rows} (at most {MAX_VOCAB})"
        )
    added = tokenizer.get_added_tokens_decoder()
    texts, types = [], []
    for id in range(n_rows):
        text = by_id.get(id)
        if text is None:
            texts.append(f"[PAD{id}]")
            types.append(UNUSED)
        elif id in added:
            text, kind = _added(tokenizer, text, added[id])
            texts.append(text)
            types.append(kind)
        else:
            texts.append(text)
            types.append(NORMAL)
    return texts, types


def _added(tokenizer: Tokenizer, text: str, token: Any) -> tuple[str, int]:
    if not token.normalized:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        text = tokenizer.decode(ids, skip_special_tokens=False)
    if token.special or _looks_special(text):
        return text, CONTROL
    return text.replace("\u2581", " "), USER_DEFINED


def _looks_special(text: str) -> bool:
    return text in _LOOKS_SPECIAL or any(text.startswith(a) and text.endswith(b) for a, b in _BRACKETS)


def _special(checkpoint: Checkpoint, found: dict[str, Any], tokenizer: Tokenizer, roles: Roles) -> Keys:
    """Merges, special ids, add_bos, chat template."""
    label = f"{checkpoint.label}: tokenizer.json"

    def fill(writer: Any) -> None:
        import gguf

        vocab = gguf.SpecialVocab(checkpoint.folder, load_merges=True)
        for role, text in roles:
            if role not in vocab.special_token_ids:
                vocab.special_token_ids[role] = _added_id(tokenizer, role, text, label)
        vocab.add_to_gguf(writer, quiet=True)

    keys = recorded(fill, "", f"{checkpoint.label}: tokenizer files")
    steps = _steps_after(found)
    return _with_flags(keys, is_told=not TELLING.isdisjoint(steps)) if "ByteLevel" in steps else keys


def _added_id(tokenizer: Tokenizer, role: str, text: str, label: str) -> int:
    id = next((id for id, token in tokenizer.get_added_tokens_decoder().items() if token.content == text), None)
    if id is None:
        raise MtprefError(f"{label}: no added token {text}, expected it: such models have it as their {role} token")
    return id


TELLING = {"TemplateProcessing", "RobertaProcessing"}  # steps that say which special tokens are added


def _steps_after(found: dict[str, Any]) -> set[Any]:
    """The kinds of what the tokenizer does after the merges."""
    given = found.get("post_processor")
    steps = given.get("processors", [given]) if isinstance(given, dict) else []
    return {step.get("type") for step in steps if isinstance(step, dict)}


def _with_flags(keys: Keys, *, is_told: bool) -> Keys:
    """add_bos_token and add_eos_token of a tokenizer with a step ByteLevel, which is taken to add none.

    is_told  whether another step says which are added; without, tokenizer_config.json is not asked, as llama.cpp has it
             (older gguf packages ask it, or leave them out)
    """
    flags = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
    given = {key: value for key, value, _ in keys}
    last = ("tokenizer.chat_template", "tokenizer.ggml.normalizer")
    at = next((i for i, pair in enumerate(keys) if pair[0].startswith(last)), len(keys))
    head = [pair for pair in keys[:at] if pair[0] not in flags]
    return head + [(key, is_told and given.get(key, False), "bool") for key in flags] + keys[at:]


def _check_ids(tokenizer: Tokenizer, keys: Keys, label: str, probe: str = PROBE) -> None:
    """Refuse a vocabulary whose ids are not the tokenizer's."""
    with quiet():
        vocab = load_vocab({key: value for key, value, _ in keys})
    wanted = tokenizer.encode(probe, add_special_tokens=False).ids
    got = vocab.encode(probe, add_special=False, parse_special=True)
    if got != wanted:
        at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
        texts = [printable(vocab.decode(ids[at : at + 3])) for ids in (got, wanted)]
        raise MtprefError(
            f"{label}: as a GGUF vocabulary it gives other ids from token {at} of the probe text on "
            f"({texts[0]} for {texts[1]}), expected the same; does it normalise the text?"
        )
