"""Rates in the logs of engines other than llama.cpp: vLLM, SGLang, mlx-vlm, oMLX.

Owns their lines and what each counts.
"""

import re
from dataclasses import replace

from mtpref.faults.diagnose.rate_pool import F, N, falling, lines_with, numbers, pool
from mtpref.faults.diagnose.rates import MAX_N, Rates, is_cut

_VLLM = re.compile(r"(?:SpecDecoding|Speculative) metrics: ([^\n]{1,2000})")
_VLLM_BENCH = re.compile(
    rf"Acceptance length: +{F}\s+Drafts: +{N}\s+Draft tokens: +{N}\s+Accepted tokens: +{N}"
    rf"((?:\s+Per-position acceptance \(%\):)?(?:\s+Position \d{{1,4}}: +{F}){{0,1024}})"
)
_VLLM_BENCH_LINES = ("Acceptance length:", "Drafts:", "Draft tokens:", "Accepted tokens:", "Position ", "Per-position")
_SGLANG = re.compile(rf"Decode batch\b(?:(?!\n|accept len)[^\n]){{0,600}}accept len: {F}")
_SGLANG_ARG = re.compile(r"\b(speculative_num_steps|speculative_eagle_topk|decode_log_interval)=(\d{1,9})\b")
_RUNNING = re.compile(r"#running-req: (\d{1,9})")
_MLX_VLM = re.compile(
    rf"Speculative decoding: {F} accepted tokens(?:/round \({F} accepted drafts/round, {F}% of drafted, "
    rf"avg draft {F}\))? over {N} rounds"
)
_OMLX_VLM = re.compile(rf"vlm_mtp stats: [^\n]{{0,300}}?rounds={N} accepted={N}/{N}(?:[^\n]{{0,200}}?block_size={N})?")
_OMLX = re.compile(rf"MTP\[[^\]\n]{{1,40}}\] finish=[^\n]{{0,120}}?accept={N}/{N}(?:[^\n]{{0,40}}?depth\[d1={N}/{N})?")


def _of_vllm(text: str) -> Rates | None:
    """Lines of one interval each; by position in parts of all drafts."""
    parts = []
    for match in _VLLM.finditer(lines_with(text, " metrics: ")):
        line = match[1]
        counts = [re.search(rf"{name} {N}", line) for name in ("Accepted:", "Drafted:")]
        if not all(counts):
            counts = [re.search(rf"Number of {name} tokens: {N}", line) for name in ("accepted", "draft")]
        mean = re.search(rf"Mean acceptance length: {F}", line)
        by_position = re.search(r"Per-position acceptance rate: ((?:\d\.\d{1,6}(?:, )?){1,1024})", line)
        rates = numbers(by_position[1]) if by_position else []
        accepted, drafted = (int(c[1]) if c else 0 for c in counts)
        parts.append(_interval(accepted, drafted, float(mean[1]) if mean else None, rates))
    return pool("vLLM", [part for part in parts if part])


def _interval(accepted: int, drafted: int, mean: float | None, rates: list[float]) -> Rates | None:
    """One interval of vLLM; drafts are not printed, and follow from the mean length or from the rates."""
    if not drafted and mean is None:
        return None
    rounds = drafted / len(rates) if drafted and rates else None
    if drafted and accepted and sum(rates) > 0:
        rounds = accepted / sum(rates)
    elif drafted and mean is not None and mean >= 1.1:
        rounds = accepted / (mean - 1)
    n = len(rates) or None
    by_position = falling(tuple(rates))
    if not drafted:
        return Rates("", n_max=n, positions=by_position, mean=None if rates else mean)
    return Rates("", accepted, drafted, rounds, n, by_position, is_cut=is_cut(drafted, rounds, n))


def _of_vllm_bench(text: str) -> Rates | None:
    parts = []
    for match in _VLLM_BENCH.finditer(lines_with(text, *_VLLM_BENCH_LINES)):
        drafts, drafted, accepted = (int(match[i]) for i in (2, 3, 4))
        rates = [float(x) / 100 for x in re.findall(rf"Position \d{{1,4}}: +{F}", match[5])]
        if drafts and drafted:
            n = len(rates) or min(max(1, round(drafted / drafts)), MAX_N)
            by_position, short = falling(tuple(rates)), is_cut(drafted, drafts, n)
            parts.append(Rates("", accepted, drafted, drafts, n, by_position, is_cut=short))
    return pool("vLLM's benchmark", parts)


def _of_sglang(text: str) -> Rates | None:
    """Lines of one interval each. The mean length counts the target's own token; the rate beside it does so up to pull
    request 23530 and not after it, so it is not used. Rounds: decode_log_interval (default 40) times the requests."""
    arguments = {key: int(value) for key, value in _SGLANG_ARG.findall(lines_with(text, "speculative_num_steps"))}
    steps = arguments.get("speculative_num_steps")
    if arguments.get("speculative_eagle_topk", 1) > 1:
        steps = None
    every = arguments.get("decode_log_interval", 40)
    parts = []
    for match in _SGLANG.finditer(lines_with(text, "accept len:")):
        running = _RUNNING.search(match[0])
        rounds = float(every * int(running[1])) if running and int(running[1]) else None
        parts.append(Rates("", rounds=rounds, n_max=steps, mean=max(1.0, float(match[1]))))
    found = pool("SGLang", parts)
    if found is not None and arguments.get("speculative_eagle_topk", 1) > 1:
        return replace(
            found, spoiled="SGLang drafted a tree (speculative_eagle_topk above 1); signatures are of chains"
        )
    return found


def _of_mlx_vlm(text: str) -> Rates | None:
    parts = []
    for match in _MLX_VLM.finditer(lines_with(text, "Speculative decoding: ")):
        mean, rounds = float(match[1]), int(match[5])
        accepted = round((mean - 1) * rounds)
        if rounds and match[4] and 0 < float(match[4]) <= MAX_N:
            drafted = max(accepted, round(float(match[4]) * rounds))
            n = max(1, round(float(match[4])))
            parts.append(Rates("", accepted, drafted, rounds, n, is_cut=abs(float(match[4]) - n) > 0.1))
        elif rounds:
            parts.append(Rates("", rounds=rounds, mean=mean))
    return pool("mlx-vlm", parts)


def _of_omlx_vlm(text: str) -> Rates | None:
    parts = []
    for match in _OMLX_VLM.finditer(lines_with(text, "vlm_mtp stats:")):
        rounds, accepted, drafted = (int(match[i]) for i in (1, 2, 3))
        if rounds and drafted:
            n = int(match[4]) - 1 if match[4] else round(drafted / rounds)
            parts.append(Rates("", accepted, drafted, rounds, min(max(n, 1), MAX_N)))
    return pool("oMLX (vlm_mtp)", parts)


def _of_omlx(text: str) -> Rates | None:
    """oMLX chooses the depth of each draft by what was accepted before: only depth 1, which every draft has, is a rate
    of all drafts."""
    matches = list(_OMLX.finditer(lines_with(text, "MTP[")))
    if matches and all(match[4] and int(match[4]) for match in matches):
        parts = [Rates("", int(m[3]), int(m[4]), int(m[4]), 1, (int(m[3]) / int(m[4]),)) for m in matches]
        found = pool("oMLX", [part for part in parts if (part.accepted or 0) <= (part.drafted or 0)])
        note = "deeper drafts were made only where oMLX expected them to be accepted: position 1 alone was judged"
        return replace(found, notes=(note,)) if found else None
    return pool("oMLX", [Rates("", int(m[1]), int(m[2])) for m in matches if 0 < int(m[1]) <= int(m[2])])


READERS = (_of_vllm, _of_vllm_bench, _of_sglang, _of_mlx_vlm, _of_omlx_vlm, _of_omlx)
