"""The stages that make the model, each a function of its inputs: text, tokenizer, token streams, training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from mtpref.base.errors import MtprefError

from .criteria import judge
from .data import Corpus, load_corpus
from .evaluate import teacher_forced
from .export import read_gguf_state
from .model import TinyConfig, TinyModel
from .text import Tokens, digest, encode, held_out_stories, training_stories
from .tokenizer import Vocabulary, train_tokenizer, vocabulary
from .train import Trainer, TrainPlan

N_HELD_OUT = 200
# The tokenizer sees so many characters of stories for each of code: as many as training will.
STORIES_TO_CODE = 3


@dataclass(frozen=True)
class Prepared:
    """Code, stories, tokenizer and both parts of the text as tokens."""

    corpus: Corpus
    stories: list[str]
    held_out_stories: list[str]
    tokenizer: Tokenizer
    vocab: Vocabulary
    train: Tokens
    held_out: Tokens


def prepare(cfg: TinyConfig, seed: int, n_stories: int, processes: int) -> Prepared:
    """Read the code, write the stories, train the tokenizer on training text only, encode both parts."""
    corpus = load_corpus()
    texts, held_out = training_stories(seed, n_stories, processes), held_out_stories(N_HELD_OUT)
    code = [text for _, text in corpus.train]
    n_chars = STORIES_TO_CODE * sum(map(len, code))
    enough = [text for i, text in enumerate(texts) if i * len(texts[0]) < n_chars]
    tokenizer = train_tokenizer([*enough, *code], cfg.n_vocab)
    vocab = vocabulary(tokenizer)
    if len(vocab.tokens) != cfg.n_vocab:
        raise MtprefError(f"tokenizer: {len(vocab.tokens)} tokens, expected {cfg.n_vocab}; is the corpus too small?")
    train = encode(tokenizer, texts, corpus.train, vocab.eos_id)
    return Prepared(
        corpus, texts, held_out, tokenizer, vocab, train, encode(tokenizer, held_out, corpus.held_out, vocab.eos_id)
    )


def train_model(cfg: TinyConfig, data: Prepared, plan: TrainPlan, work: Path, threads: int, resume: bool) -> TinyModel:
    """Train (or continue) a model; log and checkpoints go to ``work``."""
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    model = TinyModel(cfg)
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, data.train, data.held_out, plan, work)
    if resume and trainer.resume():
        print(f"resumed at step {trainer.step}, {trainer.spent:.0f} s spent", flush=True)
    trainer.run()
    return model


def described(data: Prepared) -> dict[str, object]:
    """What identifies the text."""
    return {
        "python": data.corpus.python_version,
        "stories": {"train": len(data.stories), "held_out": len(data.held_out_stories)},
        "files": {"train": len(data.corpus.train), "held_out": len(data.corpus.held_out)},
        "tokens": {
            "stories": len(data.train.stories),
            "code": len(data.train.code),
            "held_out_stories": len(data.held_out.stories),
            "held_out_code": len(data.held_out.code),
        },
        "sha256_stories": digest(data.stories),
        "sha256_held_out_stories": digest(data.held_out_stories),
        "sha256_code": data.corpus.sha256_train,
        "sha256_held_out_code": data.corpus.sha256_held_out,
    }


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(
    path: Path, cfg: TinyConfig, data: Prepared, n_prompts: int, llama_cpp: Path | None
) -> tuple[dict[str, object], str]:
    """The report of a written file (weights as stored, dequantised), and the table of criteria."""
    model = TinyModel(cfg)
    state = read_gguf_state(path, cfg)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    forced = {name: teacher_forced(model, data.held_out, share) for name, share in (("stories", 0.0), ("code", 1.0))}
    report: dict[str, object] = {
        **described(data),
        "bytes": path.stat().st_size,
        "sha256": file_hash(path),
        "teacher_forced": forced,
    }
    if n_prompts == 0:
        return report, ""
    result = judge(path, n_prompts, llama_cpp, forced["stories"])
    report["greedy"] = result.figures
    return report, result.table()
