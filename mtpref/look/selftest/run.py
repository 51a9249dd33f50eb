"""The table of checks, and the run over it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mtpref.base.errors import MtprefError
from mtpref.look.selftest import head, lossless, numerics, peers, states, tokens
from mtpref.look.selftest.bench import Bench, Failed, Skipped


@dataclass(frozen=True)
class Check:
    """One line of the summary. means: what a PASS says, in a few words; llama: needs llama.cpp's programs."""

    name: str
    means: str
    run: Callable[[Bench], str]
    llama: bool = False


@dataclass(frozen=True)
class Result:
    """What one check gave.

    verdict  PASS, FAIL or SKIP    found  what was seen, or why it was skipped
    """

    check: Check
    verdict: str
    found: str
    seconds: float


CHECKS = (
    Check("kernels", "compiled code computes the specification on this CPU", numerics.kernels_equal_spec),
    Check("instruction set", "the bits do not depend on the CPU's features", numerics.instruction_sets),
    Check("threads", "the bits do not depend on the number of threads", numerics.thread_counts),
    Check("prompt chunks", "the bits do not depend on --batch-size", numerics.prompt_chunks),
    Check("verify widths", "a token's bits are the same alone and in a verify batch", numerics.verify_widths),
    Check("made drafts", "any draft, right or wrong, leaves the text as it is", lossless.made_drafts),
    Check("MTP drafts", "drafting with the head leaves the text as it is", lossless.mtp_drafts),
    Check("match", "sampling with drafts gives the text of plain sampling", lossless.match_at_a_seed),
    Check("residual", "rejection sampling does not depend on the roll back", lossless.residual_at_a_seed),
    Check("checkpoints", "roll back brings back the very state", states.checkpoint_and_restore),
    Check("sessions", "a saved state goes on as if never saved", states.session_files),
    Check("tokenizer", "text survives tokens, on this file's vocabulary", tokens.round_trip),
    Check("MTP head", "the file's head is there and whole", head.head_is_there),
    Check("head's aim", "the head uses the hidden state it is fed", head.teacher_forced),
    Check("llama.cpp tokens", "llama-tokenize gives the same ids", peers.same_tokens, llama=True),
    Check("llama.cpp logits", "llama-results gives the same logits, up to rounding", peers.same_logits, llama=True),
    Check("llama.cpp drafts", "llama-speculative-simple drafts and accepts the same", peers.same_decisions, llama=True),
)


def run_checks(bench: Bench, checks: tuple[Check, ...] = CHECKS) -> Iterator[Result]:
    """Make the checks one after the other; whatever stops one is its verdict, and the next one runs."""
    for check in checks:
        bench.say(f"{check.name} ...")
        start = time.perf_counter()
        verdict, found = _verdict(check, bench)
        yield Result(check, verdict, found, time.perf_counter() - start)


def _verdict(check: Check, bench: Bench) -> tuple[str, str]:
    if check.llama and bench.llama_bin is None:
        return "SKIP", "--llama-bin is not given"
    try:
        return "PASS", check.run(bench)
    except Skipped as reason:
        return "SKIP", str(reason)
    except (Failed, MtprefError) as reason:
        return "FAIL", str(reason)
    except Exception as error:  # a check that breaks is a finding, and the others are still worth making
        return "FAIL", f"stopped by {type(error).__name__}: {str(error)[:200]}"
