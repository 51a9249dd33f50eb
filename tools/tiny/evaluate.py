"""Acceptance of the MTP block: teacher-forced and greedy on held-out text, in torch or in llama.cpp.

a_s is the share of positions where chain depth s picks the trunk's own argmax, every earlier draft step being
the text itself. Greedy acceptance is counted as llama.cpp counts it: accepted drafts over drafts
proposed, each round starting where the last one ended. The repeated-4-gram rate stands beside it, since
text that loops flatters the head.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from mtpref.base.errors import MtprefError

from .data import Corpus
from .model import TinyModel

PROMPT_LINES = 10
LLAMA_FLAGS = (
    "--spec-type draft-mtp --temp 0 --top-k 1 -fa off -ctk f32 -ctv f32 -ctkd f32 -ctvd f32 -t 1 -fit off --no-escape"
)


def held_out_prompts(corpus: Corpus, per_file: int = 6) -> list[str]:
    """Up to ``per_file`` prompts a held-out file, files taking turns: 9 lines and a ``def`` or ``class`` line."""
    prompts: list[str] = []
    for part in range(per_file):
        for _, text in corpus.held_out:
            lines = text.split("\n")
            start = len(lines) * (part + 1) // (per_file + 1)
            for i in range(max(start, PROMPT_LINES), len(lines)):
                if lines[i].lstrip().startswith(("def ", "class ")):
                    prompts.append("\n".join(lines[i - PROMPT_LINES + 1 : i + 1]).strip("\n"))
                    break
    return list(dict.fromkeys(prompts))


def repeated_4gram_rate(ids: list[int]) -> float:
    """Share of 4-grams that occurred earlier in the same text."""
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    for i in range(len(ids) - 3):
        gram = tuple(ids[i : i + 4])
        repeated += gram in seen
        seen.add(gram)
    return repeated / max(1, len(ids) - 3)


@torch.no_grad()
def teacher_forced(model: TinyModel, stream: np.ndarray, seq_len: int = 512, n_seq: int = 64) -> dict[str, float]:
    """Losses per token and agreement a1..a3 over evenly spaced windows of held-out text."""
    starts = np.linspace(0, len(stream) - seq_len - 2, n_seq).astype(np.int64)
    hits, counts = np.zeros(3), np.zeros(3)
    loss_trunk = loss_mtp = 0.0
    for start in starts:
        window = torch.from_numpy(stream[start : start + seq_len + 1].astype(np.int64))[None]
        ids, targets = window[:, :-1], window[0, 1:]
        hidden = model.model(ids)
        logits = model.logits(hidden)
        loss_trunk += float(F.cross_entropy(logits[0], targets)) / n_seq
        for level, out in enumerate(model.draft_hidden(ids, hidden, 3)):
            scores = model.logits(out)
            if level == 0:
                loss_mtp += float(F.cross_entropy(scores[0], targets)) / n_seq
            same = (scores.argmax(-1) == logits.argmax(-1))[0, level:]
            hits[level] += float(same.sum())
            counts[level] += len(same)
    rates = {f"a{level + 1}": hits[level] / counts[level] for level in range(3)}
    return {"loss_trunk": loss_trunk, "loss_mtp": loss_mtp, **rates, "positions": counts[0]}


@torch.no_grad()
def greedy_ids(model: TinyModel, prompts: list[list[int]], n_predict: int) -> list[list[int]]:
    """Greedy continuations; whole sequences recomputed each step, padded on the right, where nothing looks."""
    rows = [list(prompt) for prompt in prompts]
    for _ in range(n_predict):
        width = max(len(row) for row in rows)
        hidden = model.model(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        for row, choice in zip(rows, model.logits(last).argmax(-1).tolist(), strict=True):
            row.append(choice)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


@torch.no_grad()
def greedy_rounds(model: TinyModel, prompt: list[int], generated: list[int], n_max: int = 1) -> tuple[int, int]:
    """(drafted, accepted) of the loop with n_max = 1 over text the trunk itself wrote."""
    if n_max != 1:
        raise ValueError("greedy_rounds simulates n_max = 1 only")
    ids = torch.tensor([prompt + generated])
    draft: Tensor = model.logits(model.draft_hidden(ids, model.model(ids), 1)[0]).argmax(-1)[0]
    drafted = accepted = 0
    pos = len(prompt) - 1
    while pos + 1 < ids.shape[1]:
        drafted += 1
        hit = bool(draft[pos] == ids[0, pos + 1])
        accepted += hit
        pos += 2 if hit else 1
    return drafted, accepted


@torch.no_grad()
def agreement_on_new_text(model: TinyModel, prompt: list[int], generated: list[int]) -> tuple[int, int]:
    """(agreeing, counted) over the generated tokens that end a 4-gram not seen earlier in the generated text."""
    ids = torch.tensor([prompt + generated])
    draft: Tensor = model.logits(model.draft_hidden(ids, model.model(ids), 1)[0]).argmax(-1)[0]
    seen: set[tuple[int, ...]] = set()
    agreeing = counted = 0
    for i in range(len(generated)):
        gram = tuple(generated[max(0, i - 3) : i + 1])
        if gram not in seen:
            counted += 1
            agreeing += int(draft[len(prompt) + i - 1]) == generated[i]
        seen.add(gram)
    return agreeing, counted


def greedy(model: TinyModel, tokenizer: Tokenizer, prompts: list[str], n_predict: int = 128) -> dict[str, float]:
    """Greedy acceptance at n_max = 1 over the prompts, the same on new text only, the mean repeated-4-gram rate."""
    totals = np.zeros(4)
    rates = []
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    for ids, out in zip(encoded, greedy_ids(model, encoded, n_predict), strict=True):
        totals += [*greedy_rounds(model, ids, out), *agreement_on_new_text(model, ids, out)]
        rates.append(repeated_4gram_rate(out))
    drafted, accepted, agreeing, counted = totals
    return {
        "a1": accepted / drafted,
        "drafted": drafted,
        "a1_new_text": agreeing / counted,
        "new_text_tokens": counted,
        "repeated_4gram": float(np.mean(rates)),
    }


def run_llama_cpp(binary: Path, model: Path, prompt: str, n_max: int) -> tuple[dict[str, str], str]:
    """(counts, generated text) of one run. Its logger may lose the last lines at exit, so it is asked up to 5 times."""
    for _ in range(5):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as handle:
            handle.write(prompt)
            handle.flush()
            command = [str(binary), "-m", str(model), "--spec-draft-n-max", str(n_max), "-n", "128", "-f", handle.name]
            done = subprocess.run(
                command + LLAMA_FLAGS.split(), capture_output=True, text=True, errors="replace", check=False
            )
        if done.returncode:
            raise MtprefError(f"{binary.name}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        counts = dict(re.findall(r"(n_drafted|n_accept)\s*=\s*(\d+)", done.stderr + done.stdout))
        if len(counts) == 2:
            return counts, done.stdout.split(prompt, 1)[-1]
    raise MtprefError(f"{binary.name}: no n_drafted and n_accept in its log, expected both; try another build")


def llama_cpp(binary: Path, model: Path, tokenizer: Tokenizer, prompts: list[str], n_max: int) -> dict[str, float]:
    """Drafted and accepted counts of stock ``llama-speculative-simple``, summed over the prompts (-n 128)."""
    drafted = accepted = 0
    rates = []
    for prompt in prompts:
        counts, text = run_llama_cpp(binary, model, prompt, n_max)
        drafted += int(counts["n_drafted"])
        accepted += int(counts["n_accept"])
        rates.append(repeated_4gram_rate(tokenizer.encode(text, add_special_tokens=False).ids))
    return {"accept": accepted / drafted, "drafted": drafted, "repeated_4gram": float(np.mean(rates))}
