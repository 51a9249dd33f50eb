"""The tokenizer against stock llama.cpp: recorded for every pre-tokenizer, live with the vocabularies of its tree."""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from mtpref.files.gguf import open_gguf
from mtpref.files.vocab import Vocab, known_names, load_vocab
from mtpref.files.vocab.patterns import RULES
from tests.vocab_cases import BLOCKS, PREFIX, RECORDED, TEXTS, digest, run_kv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import record_vocab

RUNS = RECORDED["runs"]


@pytest.mark.parametrize("run", RUNS)
def test_vocabulary_is_that_of_llama_cpp(run: str) -> None:
    vocab, recorded = load_vocab(run_kv(run)), RUNS[run]
    assert [-1 if id is None else id for id in (vocab.bos_id, vocab.eos_id)] == [recorded["bos"], recorded["eos"]]
    # llama.cpp's model `test` never adds either, whatever it says.
    assert [vocab.add_bos, vocab.add_eos] == recorded["add"]
    assert sorted(vocab.eog_ids) == recorded["eog"]
    pieces = [vocab.piece(id, special=special) for id in range(vocab.n_vocab) for special in (False, True)]
    assert digest(b"\0".join(pieces)) == recorded["pieces"]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.covering
def test_ids_equal_those_of_llama_cpp(run: str, parse_special: bool) -> None:
    vocab, recorded = load_vocab(run_kv(run)), RUNS[run]
    for i, text in enumerate(TEXTS):
        expected = recorded["parsed"][i] if parse_special else recorded["plain"].get(str(i), recorded["parsed"][i])
        ids = vocab.encode(text, parse_special=parse_special)
        assert (ids if isinstance(expected, list) else digest(ids)) == expected, ascii(text)


def detokenized_four_ways(vocab: Vocab, ids: list[int]) -> list[bytes]:
    modes = [(remove, unparse) for remove in (False, True) for unparse in (False, True)]
    return [vocab.detokenize(ids, remove_special=remove, unparse_special=unparse) for remove, unparse in modes]


@pytest.mark.parametrize("run", RUNS)
def test_text_of_ids_equals_that_of_llama_cpp(run: str) -> None:
    vocab, recorded = load_vocab(run_kv(run)), RUNS[run]
    for text, expected in zip(TEXTS, recorded["detokenized"], strict=True):
        ids = vocab.encode(text)
        assert digest(b"\0".join(detokenized_four_ways(vocab, ids))) == expected, ascii(text)


def test_recorded_runs_tell_the_pre_tokenizers_apart() -> None:
    by_ids: dict[str, set[tuple[str, ...]]] = {}
    for recorded in RUNS.values():
        if recorded["vocabulary"] == "trained":
            add = recorded["add"][0]
            ids = [digest(ids[add:]) if isinstance(ids, list) else ids for ids in recorded["parsed"]]
            by_ids.setdefault(digest(ids), set()).add(RULES[recorded["keys"]["tokenizer.ggml.pre"]].patterns)
    assert len(by_ids) > 20
    assert all(len(patterns) == 1 for patterns in by_ids.values()), by_ids


def test_every_pre_tokenizer_has_a_recorded_twin() -> None:
    recorded = {RULES[name] for spec in RUNS.values() if (name := spec["keys"].get("tokenizer.ggml.pre"))}
    assert {RULES[name] for name in known_names()} == recorded


@pytest.mark.parametrize("run", [run for run, spec in RUNS.items() if spec["vocabulary"] == "trained"])
def test_corpus_decodes_to_its_own_bytes(run: str) -> None:
    vocab = load_vocab(run_kv(run))
    for text in BLOCKS:
        assert vocab.decode(vocab.encode(text, add_special=False), special=True) == text.encode("utf-8")


TREE = ["command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3"]
TREE += ["qwen2", "qwen35", "refact", "starcoder"]


@pytest.mark.parametrize("name", TREE)
def test_vocabularies_of_a_llama_cpp_tree(name: str) -> None:
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp source tree (models/ggml-vocab-*.gguf)")
    path = Path(root) / "models" / f"ggml-vocab-{name}.gguf"
    with open_gguf(path) as file:
        vocab = load_vocab(file.kv)
    *cases, rest = Path(f"{path}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    rows = [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert rest == ""
    assert len(cases) == len(rows) > 40
    for text, ids in zip(cases, rows, strict=True):
        assert vocab.encode(text, add_special=False) == ids, text
        # Some of the older ones lack bytes; the phi-3 tokenizer drops white space.
        if not vocab.notes and name != "phi-3":
            front = b" " if vocab.model == "llama" and text else b""
            assert vocab.decode(ids, special=True) == front + text.encode("utf-8")


def random_texts(seed: int, n: int) -> list[bytes]:
    """Pieces of the recorded texts in random order, of any length, cut anywhere; some bytes that are no UTF-8."""
    rng, whole = random.Random(seed), "".join(TEXTS)
    out = []
    for _ in range(n):
        parts = []
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(len(whole))
            parts.append(whole[at : at + rng.randint(1, 9)].encode("utf-8", "surrogateescape"))
        raw = b"".join(parts)
        if rng.random() < 0.2:
            at = rng.randrange(len(raw))
            raw = raw[:at] + bytes([rng.randrange(0x80, 0xC2)]) + raw[at:]
        out.append(raw)
    return out


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root or not (Path(root) / "build" / "bin" / "libllama.so").exists() or not shutil.which("cc"):
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build; needs cc")
    return record_vocab.compile_probe(Path(root), tmp_path_factory.mktemp("probe"))


@pytest.mark.parametrize("run", RUNS)
def test_random_texts_give_the_ids_and_texts_of_llama_cpp(run: str, probe: Path, tmp_path: Path) -> None:
    kv, about = run_kv(run), random_texts(len(run), 300)
    record_vocab.write(tmp_path / "vocab.gguf", kv)
    answer = record_vocab.ask(probe, tmp_path / "vocab.gguf", len(kv[PREFIX + "tokens"]), about)
    vocab = load_vocab(kv)
    for i, (raw, ids, whole) in enumerate(zip(about, answer["parsed"], answer["detokenized"], strict=True)):
        text = raw.decode("utf-8", "surrogateescape")
        assert vocab.encode(text) == ids, ascii(text)
        assert vocab.encode(text, parse_special=False) == answer["plain"].get(str(i), ids), ascii(text)
        assert digest(b"\0".join(detokenized_four_ways(vocab, ids))) == whole, ascii(text)
