"""The stages that make the model, each a function of its inputs: text, tokenizer, token streams, training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from mtpref.base.errors import MtprefError

from .data import Corpus, load_corpus
from .evaluate import greedy, held_out_prompts, llama_cpp, teacher_forced
from .export import read_gguf_state
from .model import TinyConfig, TinyModel
from .tokenizer import Vocabulary, encode_files, train_tokenizer, vocabulary
from .train import Trainer, TrainPlan


@dataclass(frozen=True)
class Prepared:
    """Corpus, tokenizer and the two token streams."""

    corpus: Corpus
    tokenizer: Tokenizer
    vocab: Vocabulary
    train: np.ndarray
    held_out: np.ndarray


def prepare(cfg: TinyConfig) -> Prepared:
    """Read the corpus, train the tokenizer on its training part only, encode both parts."""
    corpus = load_corpus()
    tokenizer = train_tokenizer([text for _, text in corpus.train], cfg.n_vocab)
    vocab = vocabulary(tokenizer)
    if len(vocab.tokens) != cfg.n_vocab:
        raise MtprefError(f"tokenizer: {len(vocab.tokens)} tokens, expected {cfg.n_vocab}; is the corpus too small?")
    train = encode_files(tokenizer, corpus.train, vocab.eos_id)
    held_out = encode_files(tokenizer, corpus.held_out, vocab.eos_id)
    return Prepared(corpus, tokenizer, vocab, train, held_out)


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


def measure(
    path: Path, cfg: TinyConfig, data: Prepared, n_prompts: int, llama_cpp_binary: Path | None
) -> dict[str, object]:
    """Acceptance of a written file (weights as stored, dequantised) and what identifies the data."""
    model = TinyModel(cfg)
    state = read_gguf_state(path, cfg)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    prompts = held_out_prompts(data.corpus)[:n_prompts]
    report: dict[str, object] = {
        "python": data.corpus.python_version,
        "sha256_train": data.corpus.sha256_train,
        "sha256_held_out": data.corpus.sha256_held_out,
        "files": {"train": len(data.corpus.train), "held_out": len(data.corpus.held_out)},
        "tokens": {"train": len(data.train), "held_out": len(data.held_out)},
        "bytes": path.stat().st_size,
        "teacher_forced": teacher_forced(model, data.held_out),
    }
    if prompts:
        report["greedy"] = greedy(model, data.tokenizer, prompts)
    if prompts and llama_cpp_binary is not None:
        for n_max in (1, 3):
            report[f"llama_cpp_n_max_{n_max}"] = llama_cpp(llama_cpp_binary, path, data.tokenizer, prompts, n_max)
    return report
