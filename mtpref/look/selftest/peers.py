"""Checks against stock llama.cpp's programs: token ids, logits, draft candidates and accept decisions."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from mtpref.engine.decode import Options, PolicyConfig, most_drafted
from mtpref.engine.decode.loop import Decoder
from mtpref.engine.model import Model
from mtpref.look.compare.measures import measure
from mtpref.look.llama_cpp.agree import Agreement, compare_rounds
from mtpref.look.llama_cpp.limits import decision_limits, limits_of
from mtpref.look.llama_cpp.programs import Programs
from mtpref.look.selftest.bench import Bench, Failed, Skipped
from mtpref.look.selftest.tokens import TEXTS
from mtpref.spec.contract import MtpContract

# No backslashes: the programs read them as escapes.
LOGITS_TEXT = "def read_lines(path):\n    with open(path) as file:\n        return file.read().splitlines()\n"
DRAFT_TEXTS = ("def read_lines(path):\n", "The parser reads one line at a time and keeps")
SETTINGS = ((3, 0.0), (2, 0.5))
N_DRAFT_CTX = 1024


def same_tokens(bench: Bench) -> str:
    """The ids of every built-in text without a backslash."""
    programs, n_ids = _programs(bench), 0
    texts = [text for text in TEXTS if "\\" not in text][: None if bench.size.is_full else 3]
    for text in texts:
        ours, theirs = bench.model.vocab.encode(text), programs.tokenize(bench.path, text)
        n_ids += len(ours)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
            raise Failed(f"{text[:20]!a}: {ours[at : at + 3]} at token {at}, llama.cpp has {theirs[at : at + 3]}")
    return f"{len(texts)} texts, {n_ids} equal ids"


def same_logits(bench: Bench) -> str:
    """The logits after every token of a text, with F32 KV."""
    model = _with_f32_kv(bench.model)
    limits, kind = limits_of(model.type_names)
    with tempfile.TemporaryDirectory() as folder:
        ids, theirs = _programs(bench).logits(bench.path, LOGITS_TEXT, Path(folder))
    if max(ids) >= model.n_vocab or theirs.shape[1] != model.n_vocab:
        raise Failed(f"llama.cpp's logits have {theirs.shape[1]} columns, the model {model.n_vocab} tokens")
    ours = model.trunk(model.new_state(N_DRAFT_CTX), ids, n_logits=len(ids)).logits
    nmse = measure(theirs, ours).nmse
    n_same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    limit = limits.exact if model.recipe.numerics == "exact" else limits.ggml
    told = f"NMSE {nmse:.1e} (limit {limit:g} for {kind}), {n_same} of {len(ids)} greedy tokens equal"
    if not nmse <= limit:
        raise Failed(told)
    return told


def same_decisions(bench: Bench) -> str:
    """Draft candidates, their probabilities, drafts and accept decisions of whole rounds."""
    model = _with_f32_kv(bench.model)
    if not model.has_mtp:
        raise Skipped("the file has no MTP head")
    if model.mtp_status == "file":
        raise Skipped("the head is in a file of its own")
    if model.recipe.contract != MtpContract().resolved(*model.own_rows):
        raise Skipped("the contract is not llama.cpp's")
    p_limit, near_margin, _ = decision_limits(model.type_names, model.recipe.numerics)
    agreement = Agreement(p_limit, near_margin)
    n_predict, n_lost = max(16, bench.size.n_predict), 0
    for text in DRAFT_TEXTS[: 2 if bench.size.is_full else 1]:
        for n_max, p_min in SETTINGS:
            bench.say(f"llama-speculative-simple, drafts of up to {n_max}, p_min {p_min:g}")
            log = _programs(bench).speculative(bench.path, text, n_predict, n_max, p_min)
            n_lost += not log.is_complete
            policy = PolicyConfig(n_max=n_max, p_min=p_min)
            decoder = Decoder(model, model.new_state(N_DRAFT_CTX), Options(n_predict=n_predict, policy=policy))
            events = list(decoder.run(model.vocab.encode(text)))
            most = most_drafted(bench.model, n_max)
            compare_rounds(agreement, log.rounds, events, n_predict, most, p_min, f"{text[:12]!a} n_max {n_max}")
    return _judged(agreement, n_lost)


def _judged(agreement: Agreement, n_lost: int) -> str:
    told = (
        f"{agreement.n_rounds} rounds, {agreement.n_candidates} candidates, {agreement.n_near_ties} near ties, "
        f"greatest error of p {agreement.max_p_error:.4f}"
    )
    told += f"; {n_lost} logs lost their tail" if n_lost else ""
    if agreement.mismatches:
        raise Failed(f"{agreement.mismatches[0]}; {len(agreement.mismatches)} differences in {told}")
    if not agreement.n_rounds:
        raise Skipped(f"no round could be compared: {told}")
    return told


def _programs(bench: Bench) -> Programs:
    assert bench.llama_bin is not None
    return Programs(bench.llama_bin, threads=min(8, os.cpu_count() or 1), n_ctx=N_DRAFT_CTX)


def _with_f32_kv(model: Model) -> Model:
    return replace(model, kv_type="F32", kv_type_draft="F32")
