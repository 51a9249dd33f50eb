"""A naive speculative loop in float64: every draft and every verification starts from scratch.

Owns llama.cpp's draft-mtp decisions in their obvious form: there is no cache to trim, no pending hidden, no
checkpoint. What a real engine keeps between calls is recomputed here from the tokens alone.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from tests import naive
from tests.naive_model import HParams, Weights, mtp, trunk


class Candidate(NamedTuple):
    """One MTP step: the ten best ids with p over these ten; `taken` is whether ids[0] joined the draft."""

    ids: list[int]
    p: list[float]
    taken: bool


class Round(NamedTuple):
    """One draft and its verification. `emitted` = the accepted prefix and the correction or bonus token."""

    candidates: list[Candidate]
    draft: list[int]
    n_accepted: int
    emitted: list[int]


def draft(
    weights: Weights,
    hparams: HParams,
    tokens: list[int],
    n_max: int,
    n_min: int = 0,
    p_min: float = 0.0,
    contract: str = "llama.cpp",
    n_vocab: int | None = None,
) -> tuple[list[int], list[Candidate]]:
    """Draft after `tokens`, whose last one is decided but not yet decoded by the target.

    llama.cpp: row p is (x_p, h_{p-1}) at position p, row 0 with a zero hidden. training: the same rows
    without row 0, each one position lower. Along the chain the hidden is the block's own post-norm row. A
    token with p < p_min is not taken and ends the draft; a draft shorter than n_min is dropped. n_vocab: only
    ids below it.
    """
    if contract not in ("llama.cpp", "training"):
        raise ValueError(f"contract {contract!r}, expected 'llama.cpp' or 'training'")
    n_embd = weights["output_norm.weight"].shape[0]
    hiddens = [np.zeros(n_embd)]
    if len(tokens) > 1:
        hiddens += list(trunk(weights, hparams, tokens[:-1]).h_post)
    rows, positions = list(tokens), list(range(len(tokens)))
    if contract == "training":
        rows, hiddens, positions = rows[1:], hiddens[1:], positions[:-1]
    drafted: list[int] = []
    candidates: list[Candidate] = []
    while rows and len(drafted) < n_max:
        out = mtp(weights, hparams, rows, np.stack(hiddens), positions)
        ids, p = naive.top10(out.logits[-1][:n_vocab])
        candidates.append(Candidate(ids, p, p[0] >= p_min))
        if p[0] < p_min:
            break
        drafted.append(ids[0])
        rows.append(ids[0])
        hiddens.append(out.h_nextn[-1])
        positions.append(positions[-1] + 1)
    return (drafted if len(drafted) >= n_min else []), candidates


def verify(
    weights: Weights, hparams: HParams, tokens: list[int], drafted: list[int], eog: Collection[int] = ()
) -> list[int]:
    """The target's greedy tokens after `tokens`: the accepted part of the draft, then one of its own.

    Stops at the first token that differs from the draft, or at an end-of-generation token inside the draft.
    n_accepted = len(result) - 1, as llama.cpp counts.
    """
    logits = trunk(weights, hparams, tokens + drafted).logits[len(tokens) - 1 :]
    emitted: list[int] = []
    for i, token in enumerate(drafted):
        emitted.append(naive.argmax(logits[i]))
        if emitted[-1] != token or (emitted[-1] in eog and i + 1 < len(drafted)):
            return emitted
    return [*emitted, naive.argmax(logits[len(drafted)])]


def speculate(
    weights: Weights,
    hparams: HParams,
    prompt: list[int],
    n_predict: int,
    n_max: int,
    n_min: int = 0,
    p_min: float = 0.0,
    eog: Collection[int] = (),
    contract: str = "llama.cpp",
) -> tuple[list[int], list[Round]]:
    """Greedy speculative decoding; the tokens end at n_predict or after the first end-of-generation token.

    Every round drafts up to n_max tokens, also the last one, which may go past n_predict before the cut.
    """
    tokens, rounds = list(prompt), list[Round]()
    while len(tokens) - len(prompt) < n_predict:
        drafted, candidates = draft(weights, hparams, tokens, n_max, n_min, p_min, contract)
        emitted = verify(weights, hparams, tokens, drafted, eog)
        rounds.append(Round(candidates, drafted, len(emitted) - 1, emitted))
        for token in emitted:
            tokens.append(token)
            if token in eog:
                return tokens[len(prompt) :][:n_predict], rounds
    return tokens[len(prompt) :][:n_predict], rounds


class InlineRound(NamedTuple):
    """A round of an inline engine. is_stale: the draft was read from the row of a rejected token."""

    draft: list[int]
    is_stale: bool
    emitted: list[int]


def inline(
    weights: Weights, hparams: HParams, prompt: list[int], n_predict: int, row: str, cooldown: int = 0
) -> tuple[list[int], list[InlineRound]]:
    """Greedy decoding with the head inside the trunk's pass, one draft token a round, in one phase.

    Every row t of a batch goes on through the head as the pair (argmax of its logits, its hidden row) at position
    t + 1. The next draft is what the head's row says: `last` reads the last row of the batch, `right` that of the last
    kept token. The prompt's last token is held back, so the first draft comes from the prompt's own last pair. After a
    rejection `cooldown` rounds draft nothing.
    """
    tokens, rounds, silent, is_stale = list(prompt), list[InlineRound](), 0, False
    drafted, _ = draft(weights, hparams, tokens, 1)
    while len(tokens) - len(prompt) < n_predict:
        ids = drafted if not silent and len(tokens) - len(prompt) < n_predict - 1 else []
        first = len(tokens) - 1
        out = trunk(weights, hparams, tokens + ids)
        chosen = [naive.argmax(logits) for logits in out.logits[first:]]
        emitted = chosen if ids == chosen[:-1] else chosen[:1]
        rounds.append(InlineRound(ids, bool(ids) and is_stale, emitted))
        silent = cooldown if len(emitted) == 1 and ids else max(0, silent - 1)
        hiddens = np.stack([np.zeros(out.h_post.shape[1]), *out.h_post])
        head = mtp(weights, hparams, tokens + chosen, hiddens, list(range(len(hiddens))))
        at = -1 if row == "last" else first + len(emitted)
        drafted = [naive.top10(head.logits[at])[0][0]]
        is_stale = row == "last" and len(emitted) < len(chosen)
        tokens += emitted
    return tokens[len(prompt) :][:n_predict], rounds


def greedy(
    weights: Weights, hparams: HParams, prompt: list[int], n_predict: int, eog: Collection[int] = ()
) -> list[int]:
    """Plain greedy decoding, the whole sequence recomputed for every token."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < n_predict and not (len(tokens) > len(prompt) and tokens[-1] in eog):
        tokens.append(naive.argmax(trunk(weights, hparams, tokens).logits[-1]))
    return tokens[len(prompt) :]
