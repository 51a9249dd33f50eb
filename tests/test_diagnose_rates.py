"""mtpref diagnose with the rates that people have: what engines print, counts, mean lengths, percentages.

LINES are lines that engines print, word for word where an address stands beside them; data/rates holds real logs.
HEALTHY are published acceptance rates of healthy engines (none may be accused), FAULTY those of faults that cost more
than an ordinary text does (none may be called healthy). One case of each source, most of them from the threads.
"""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.faults.diagnose import diagnose_stats, parse_stats, read_rates, with_n_max
from mtpref.faults.diagnose.rate_lines import find_rates
from mtpref.faults.diagnose.rates import Rates, Reading, readings, usual
from mtpref.front.cli import main

DATA = Path(__file__).parent / "data" / "rates"
GGML = "https://github.com/ggml-org/llama.cpp"


def verdict(text, n_max=None, rounds=None):
    return diagnose_stats(with_n_max(parse_stats(text, n_max, rounds), n_max)).verdict


# ------------------------------------------------------------------------------------------------- what is printed

VLLM_LINES = """\
(APIServer pid=95669) INFO 07-20 18:11:49 [metrics.py:101] SpecDecoding metrics: Mean acceptance length: 2.87, \
Accepted throughput: 9.40 tokens/s, Drafted throughput: 15.10 tokens/s, Accepted: 282 tokens, Drafted: 453 tokens, \
Per-position acceptance rate: 0.821, 0.609, 0.437, Avg Draft acceptance rate: 62.3%
(APIServer pid=95673) INFO 07-20 18:11:49 [metrics.py:101] SpecDecoding metrics: Mean acceptance length: 2.98, \
Accepted throughput: 9.97 tokens/s, Drafted throughput: 15.10 tokens/s, Accepted: 299 tokens, Drafted: 453 tokens, \
Per-position acceptance rate: 0.821, 0.675, 0.483, Avg Draft acceptance rate: 66.0%
"""
VLLM_BENCH = """\
---------------Speculative Decoding---------------
Acceptance rate (%):                     43.71
Acceptance length:                       4.50
Drafts:                                  11043
Draft tokens:                            88344
Accepted tokens:                         38611
Per-position acceptance (%):
  Position 0:                            76.17
  Position 1:                            61.58
  Position 2:                            51.25
  Position 3:                            42.43
  Position 4:                            36.40
  Position 5:                            30.94
  Position 6:                            27.22
  Position 7:                            23.65
==================================================
"""
SGLANG = """\
[2026-09-27 00:15:25] server_args=ServerArgs(speculative_algorithm='NEXTN', speculative_num_steps=3, \
speculative_eagle_topk=1, speculative_num_draft_tokens=4, decode_log_interval=40)
[2026-09-27 00:15:25 TP0] Decode batch, #running-req: 10, #full token: 685000, full token usage: 0.49, mamba num: 12, \
mamba usage: 0.67, accept len: 2.77, accept rate: 0.69, cuda graph: True, gen throughput (token/s): 8.44, #queue-req: 0
[2026-09-27 00:15:29 TP0] Decode batch, #running-req: 2, #full token: 5632, accept len: 3.12, accept rate: 0.56, cuda \
graph: True, gen throughput (token/s): 95.33, #queue-req: 1
"""
OMLX = (
    "2026-08-17 17:31:43,911 - omlx.patches.mlx_lm_mtp.batch_generator - INFO - [-] - MTP[1] finish=length tokens=128 "
    "cycles=57 tok/cycle=2.25 accept=70/101 (69.3%) depth[d1=44/57,d2=19/34,d3=7/10] d0=18 emits[init=2]\n"
)
LINES = [
    # llama-server before and since pull request 24536 (in whose thread both spellings of the newer line stand).
    ("draft acceptance rate = 0.36667 (   44 accepted /   120 generated)", {"accepted": 44, "drafted": 120}),
    (f"{GGML}/issues/27151: draft acceptance = 0.00158 (    1 accepted /   633 generated), mean len =  1.00",
     {"accepted": 1, "drafted": 633, "rounds": None}),
    ("slot print_timing: id  1 | task 0 | draft acceptance = 0.64479 (  167 accepted /   259 generated), mean "
     "acceptance length =  2.92, acceptance rate per position = (0.805, 0.632, 0.483)",
     {"accepted": 167, "drafted": 259, "rounds": 87, "positions": (0.805, 0.632, 0.483)}),
    # ik_llama.cpp and llama.cpp of the first MTP builds.
    ("statistics mtp: #calls(b,g,a) = 1 861 690, #gen drafts = 690, #acc drafts = 690, #gen tokens = 1207, "
     "#acc tokens = 1186, dur(b,g,a) = 0.006, 3112.317, 0.287 ms", {"accepted": 1186, "drafted": 1207, "rounds": 690}),
    (VLLM_LINES, {"accepted": 581, "drafted": 906, "rounds": 302, "n_parts": 2, "positions": (0.821, 0.642, 0.460)}),
    ("SpecDecoding metrics: Draft acceptance rate: 100.0%, Accepted: 66 tokens, Drafted: 66 tokens",
     {"accepted": 66, "drafted": 66}),
    ("SpecDecoding metrics: Mean acceptance length: 1.98, Per-position acceptance rate: 0.600, 0.385",
     {"positions": (0.6, 0.385), "drafted": None}),
    (VLLM_BENCH, {"accepted": 38611, "rounds": 11043, "n_max": 8}),
    (SGLANG, {"n_max": 3, "rounds": 480, "mean": 2.828, "n_parts": 2}),
    # https://github.com/Blaizzy/mlx-vlm: with and without the lengths of drafts.
    ("Speculative decoding: 2.08 accepted tokens/round (1.08 accepted drafts/round, 54.0% of drafted, avg draft 2.00) "
     "over 246 rounds", {"accepted": 266, "drafted": 492, "rounds": 246, "n_max": 2}),
    ("Speculative decoding: 2.31 accepted tokens over 605 rounds", {"mean": 2.31, "rounds": 605}),
    # https://github.com/jundot/omlx/pull/1839
    ("vlm_mtp stats: request=e2af9130 finish=stop rounds=1079 accepted=1414/2158 (65.5%) tokens_per_round=2.31 "
     "emitted=2493 block_size=3", {"accepted": 1414, "drafted": 2158, "rounds": 1079, "n_max": 2}),
    (OMLX, {"accepted": 44, "drafted": 57, "n_max": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), LINES, ids=[re.sub(r"\W+", "-", text)[:40] for text, _ in LINES])
def test_the_lines_of_engines_are_read(text, expected, tmp_path):
    log = tmp_path / "engine.log"
    log.write_text(f"loading model\n{text}\nbye\n")
    rates = read_rates(log)
    for name, value in expected.items():
        found = getattr(rates, name)
        assert found is None if value is None else found == pytest.approx(value, abs=1.5e-3, rel=2e-3), name
    assert diagnose_stats(rates).verdict in ("healthy", "found", "undecided")


def test_a_pasted_line_is_read_by_stats_too():
    assert parse_stats(LINES[1][0]) == find_rates(LINES[1][0])


def test_intervals_are_weighed_by_their_counts():
    busy = VLLM_LINES.split("\n")[0].replace("282", "28200").replace("453", "45300")
    rates = find_rates("\n".join([busy, VLLM_LINES.split("\n")[1]]))
    assert rates.accepted == 28499
    assert rates.positions[2] == pytest.approx(0.437, abs=1e-3)  # not the middle of 0.437 and 0.483


def test_statistics_are_cumulative_and_begin_anew_with_a_program():
    line = "statistics draft-mtp: #calls(b,g,a) = {} 9 9, #gen drafts = {}, #acc drafts = 5, #gen tokens = {}, "
    line += "#acc tokens = {}"
    text = "\n".join(line.format(*x) for x in [(1, 10, 30, 20), (2, 20, 60, 45), (1, 5, 15, 9)])
    assert (find_rates(text).accepted, find_rates(text).drafted, find_rates(text).rounds) == (54, 75, 25)


def test_positions_that_were_never_accepted_are_missing_in_the_statistics_and_count_as_zero():
    text = (
        "- n_max=3, n_min=0, p_min=0.00, n_embd=256\nstatistics draft-mtp: #calls(b,g,a) = 1 9 9, #gen drafts = 211, "
        "#acc drafts = 1, #gen tokens = 633, #acc tokens = 1, #mean acc len = 1.00, #acc rate/pos = (0.005), dur = 1"
    )
    assert find_rates(text).positions == (0.005, 0, 0)
    assert diagnose_stats(find_rates(text)).verdict == "found"


def test_sglang_without_its_arguments_leaves_n_max_open_and_a_tree_is_no_chain():
    lines = SGLANG.split("\n", 1)
    assert find_rates(lines[1]).n_max is None
    tree = find_rates(SGLANG.replace("topk=1", "topk=4"))
    assert "tree" in diagnose_stats(tree).headline
    assert diagnose_stats(tree).verdict == "undecided"


def test_drafts_of_another_drafter_are_not_judged_as_a_head():
    text = (
        "statistics ngram-mod: #calls(b,g,a) = 10 730 3, #gen drafts = 3, #acc drafts = 3, #gen tokens = 192, "
        "#acc tokens = 43\ndraft acceptance rate = 0.22396 (   43 accepted /   192 generated)"
    )
    report = diagnose_stats(find_rates(text))
    assert report.verdict == "undecided"
    assert "ngram-mod" in report.headline
    both = text + (
        "\nstatistics draft-mtp: #calls(b,g,a) = 10 727 727, #gen drafts = 727, #acc drafts = 632, #gen tokens = 1447, "
        "#acc tokens = 1135"
    )
    assert (find_rates(both).accepted, find_rates(both).spoiled) == (1135, "")


# -------------------------------------------------------------------------------------- llama.cpp's real logs


def test_a_trace_of_rounds_gives_the_rates_that_the_server_prints():
    """Requests are told apart: the same requests, once as rounds, once as the server's own numbers."""
    rounds, printed = (read_rates(DATA / f"server-temp-1{name}.log") for name in ("-trace", ""))
    lines = re.findall(r"accepted +(\d+)/ *(\d+) draft tokens", (DATA / "server-temp-1-trace.log").read_text())
    accepted, drafted = (sum(int(line[i]) for line in lines) for i in (0, 1))
    assert (rounds.accepted, rounds.drafted, rounds.rounds, rounds.n_parts) == (accepted, drafted, len(lines), 10)
    assert (printed.accepted, printed.drafted, printed.n_parts) == (accepted, drafted, 10)
    assert printed.rounds == pytest.approx(len(lines), rel=2e-3)
    assert rounds.positions == pytest.approx(printed.positions, abs=1e-3)
    last = (DATA / "server-temp-1.log").read_text().rsplit("#acc rate/pos = (", 1)[1]
    assert printed.positions == pytest.approx([float(x) for x in last.split(")")[0].split(",")], abs=1e-3)


@pytest.mark.parametrize("name", ["server-temp-1", "server-temp-1-trace", "simple", "simple-lv-4", "simple-p-min"])
def test_real_logs_of_a_sound_head_are_not_accused(name):
    """At temperature 1 it accepts little, greedily nearly all, on a text that repeats: neither is a fault."""
    assert diagnose_stats(read_rates(DATA / f"{name}.log")).verdict in ("undecided", "healthy")


@pytest.mark.parametrize(
    ("name", "id"), [("eh-proj-swapped", "G1-concat-swapped"), ("norms-raw", "W1-norm-shift-missing")]
)
def test_real_logs_of_a_broken_head_are_found_and_the_cause_is_in_the_list(name, id):
    report = diagnose_stats(read_rates(DATA / f"server-{name}.log"))
    assert report.verdict == "found"
    assert id in [i for cause in report.causes for i in cause.ids]


def test_a_packed_log_is_read(tmp_path):
    log = tmp_path / "server.log.gz"
    log.write_bytes(gzip.compress((DATA / "server-temp-1.log").read_bytes()))
    plain = read_rates(DATA / "server-temp-1.log")
    assert replace(read_rates(log), source=plain.source) == plain


# --------------------------------------------------------------------------------- numbers that mean nothing

REPLAY = """\
n_draft   = 3
n_predict = 49
n_drafted = 39
n_accept  = 39
accept    = 100.000%
statistics        draft-mtp: #calls(b,g,a) =    1     23     23, #gen drafts =     23, #acc drafts =    23, \
#gen tokens =     69, #acc tokens =    39, #mean acc len = 2.70, #acc rate/pos = (1.000, 0.500, 0.200)
"""


def test_totals_of_checkpoint_replay_are_said_to_mean_nothing():
    """A qwen3next: 69 tokens were drafted, and the summary counts 39 of 39."""
    report = diagnose_stats(find_rates(REPLAY))
    assert report.verdict == "undecided"
    assert "mean nothing" in report.headline
    assert not report.causes
    sound = REPLAY.replace("69", "39").replace("23", "13")
    assert find_rates(sound).spoiled == ""
    assert "restored from checkpoints" in find_rates(sound).notes[0]


def test_rounds_that_went_back_to_a_checkpoint_count_once():
    slot = "slot   operator(): id  {} | task 0 | accepted {} draft tokens{}\n"
    text = "".join(
        slot.format(*x)
        for x in [
            (0, " 3/ 3", ""),
            (0, " 1/ 3", " (restore checkpoint)"),
            (1, " 3/ 3", ""),
            (0, " 1/ 1", ""),
            (0, " 2/ 3", ""),
        ]
    )
    rates = find_rates(text)
    assert (rates.accepted, rates.drafted, rates.rounds) == (9, 12, 4)
    simple = "accepted 3/3 draft tokens, the last\npartial acceptance: 1 < 3, restoring checkpoint\n"
    simple += "accepted 2/2 draft tokens\n"
    assert (find_rates(simple).accepted, find_rates(simple).drafted) == (4, 6)


def test_short_drafts_are_read_both_ways():
    """p_min cuts drafts: of 1207 drafted 98 % were accepted, of the 2070 that n_max asks for 57 %."""
    ways = readings(with_n_max(find_rates(LINES[3][0]), 3))
    assert sorted(round(way.rate, 2) for way in ways) == [0.57, 0.98]


# ------------------------------------------------------------------------------------------- what people type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(0.843, 0.686)", {"positions": (0.843, 0.686)}), ("0.843 0.686", {"positions": (0.843, 0.686)}),
        ("[84.3%; 68.6%]", {"positions": (0.843, 0.686)}), ("84.3,68.6", {"positions": (0.843, 0.686)}),
        ("83.4%", {"aggregate": 0.834}), ("36.667 %", {"aggregate": 0.36667}),
        ("83.4", {"aggregate": 0.834}), ("0.5%", {"aggregate": 0.005}),
        ("44/120", {"accepted": 44, "drafted": 120}), ("44 of 120", {"accepted": 44, "drafted": 120}),
        ("mean 2.34", {"mean": 2.34}), ("mean len = 2.34", {"mean": 2.34}), ("AL 2.34", {"mean": 2.34}),
        ("accept len: 2.34", {"mean": 2.34}), ("mean acceptance length: 2.34", {"mean": 2.34}),
    ],
)  # fmt: skip
def test_rates_in_every_spelling(text, expected):
    found = parse_stats(text)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "args",
    [["44/30"], ["0/0"], ["mean 0.5"], ["mean 9", "--n-max", "3"], ["44/120", "--n-max", "0"],
     ["44/120", "--n-max", "65"], ["0.8,0.6", "--n-max", "1"], ["0.8,0.6", "--rounds", "0"], ["1e9"], ["0.5;;0.4"],
     ["44/120/7"], ["9" * 400], ["0.8," * 70 + "0.1"], ["mean"], ["draft acceptance = x"], ["\x00\ud800"], ["120%"],
     ["mean 1e400"]],
)  # fmt: skip
def test_what_cannot_be_rates_ends_in_one_line(args, capsys):
    assert main(["diagnose", f"--stats={args[0]}", *args[1:]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mtpref diagnose: error: ")
    assert err.count("\n") == 1


def test_a_bare_rate_is_read_as_position_1_and_as_an_aggregate():
    """Healthy or found only where both readings say so."""
    assert {way.n for way in readings(parse_stats("0.36667"))} == {1, 2, 3, 4, 5}
    assert verdict("0.36667") == "undecided"
    assert verdict("0.82") == "healthy"
    assert verdict("0.002") == "found"
    assert verdict("0.13") == "undecided" != verdict("0.13", n_max=1)


def test_exit_codes_and_words(capsys):
    assert main(["diagnose", "--stats", "44/120", "--n-max", "3"]) == 3
    assert capsys.readouterr().out.startswith("CANNOT TELL: lower than on ordinary text")
    assert main(["diagnose", "--stats", "mean 2.34"]) == 3
    assert "--n-max" in capsys.readouterr().out.split("\n")[0]
    assert main(["diagnose", "--stats", "(0.843, 0.686)", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "healthy"
    assert main(["diagnose", "--log", str(DATA / "server-norms-raw.log")]) == 1
    assert "healthy engines are not known to accept so little" in capsys.readouterr().out


@pytest.mark.parametrize("n_max", [1, 3, 5])
def test_few_counts_cannot_tell_and_more_of_the_same_can(n_max):
    n = n_max
    assert verdict(f"0/{2 * n}", n_max) == "undecided"
    assert "too few rounds" in diagnose_stats(with_n_max(parse_stats(f"0/{2 * n}"), n)).headline
    assert verdict(f"0/{400 * n}", n_max) == "found"
    share = sum(usual(n)) / n
    assert verdict(f"{round(4 * n * share)}/{4 * n}", n_max) == "undecided"
    assert verdict(f"{round(400 * n * share)}/{400 * n}", n_max) == "healthy"
    assert verdict("0.8,0.66,0.54", rounds=4) == "undecided"


def test_other_programs_logs_are_refused_truly(tmp_path, capsys):
    log = tmp_path / "other.log"
    log.write_text("INFO: Application startup complete.\nno line missing here\n")
    assert main(["diagnose", "--log", str(log)]) == 2
    err = capsys.readouterr().err
    assert "--stats" in err
    assert "no line missing" not in err
    assert err.count("\n") == 1
    assert main(["diagnose", "--log", str(tmp_path / "none.log")]) == 2


def test_options_of_rates_are_refused_beside_a_run(capsys, tmp_path):
    run = tmp_path / "run.json"
    run.write_text('{"schema": "mtpref-run-1"}')
    assert main(["diagnose", "--log", str(run), "--n-max", "3"]) == 2
    assert "--n-max: goes with rates" in capsys.readouterr().err
    assert main(["diagnose", "--log", str(DATA / "simple.log"), "--n-max", "4"]) == 2
    assert "n_max is 3 there" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ the likelihood


def test_an_aggregate_of_one_position_is_that_position():
    for rounds in (None, 3, 50, 4000):
        for effect in (0.0, -1.3, -6.0, 2.0):
            one = Reading(1, (0.4,), None, rounds).log_likelihood([effect])
            other = Reading(1, (), 0.4, rounds).log_likelihood([effect])
            base = Reading(1, (0.4,), None, rounds).log_likelihood([0.0])
            other -= Reading(1, (), 0.4, rounds).log_likelihood([0.0])
            assert other == pytest.approx(one - base, abs=0.1)


def test_an_aggregate_tells_less_than_its_positions():
    """What C2 leaves of positions 2 .. 4 stands out by position; the same drop spread over all of them does not."""
    by_position, aggregate = (0.85, 0.45, 0.25, 0.15), sum((0.85, 0.45, 0.25, 0.15)) / 4
    effects = [0.0, -1.0, -1.4, -1.8]

    def gain(reading):
        return reading.log_likelihood(effects) - reading.log_likelihood([0.0] * 4)

    assert gain(Reading(4, by_position)) > gain(Reading(4, (), aggregate)) + 0.5


@pytest.mark.parametrize("rounds", [10, 1000, 10**12])
def test_more_rounds_never_turn_the_order_of_causes(rounds):
    gains = [
        Reading(3, (), 0.05, r).log_likelihood([-4.0] * 3) - Reading(3, (), 0.05, r).log_likelihood([0.0] * 3)
        for r in (rounds, 10 * rounds)
    ]
    assert 0 < gains[0] <= gains[1] + 0.2


# ------------------------------------------------------------------------------------------------ published

# https://github.com/SemiAnalysisAI/InferenceX/pull/3304 (Qwen3.8-27B, thinking off and on)
INFERENCEX = [(1, 1.90), (2, 2.68), (3, 3.28), (4, 3.79), (1, 1.73), (2, 2.21), (3, 2.52), (4, 2.72)]
HEALTHY = [
    *((f"InferenceX {al}", f"mean {al}", n) for n, al in INFERENCEX),
    ("llama.cpp 24340, Q8_0", "1178/1607", 3), ("llama.cpp 24340, python", "83.4%", 3),
    ("llama.cpp 24340, creative", "63.1%", 3), ("llama.cpp 22673, 1", "0.8835", 1), ("llama.cpp 22673, 2", "0.815", 2),
    ("llama.cpp 22673, 3", "0.7127", 3), ("llama.cpp 22673, 4", "0.6421", 4), ("the same, translation", "13/32", 4),
    ("the same, creative", "124/264", 4), ("llama.cpp 27210", "74.1%", 3), ("the same, p_min 0.8", "94.6%", None),
    ("llama.cpp 25187, long", "68.1%", 4), ("llama.cpp 25187, short", "49.4%", 4), ("qwen38-mtp 42", "64.8%", 4),
    ("ik 1718, code", "93%", 1), ("ik 1718, extract", "97%", 1), ("ik 1718, extract, 2", "98%", 2),
    ("ik 1987, repetitive", "99.43%", 4), ("ik 1987, repetitive, 8", "92.98%", 8), ("ik 1862, story", "45.6%", None),
    ("club-3090 85", "210/267", None), ("ROCmFPX 15, mended", "332/1071", None), ("LightLLM 1402", "mean 2.738", 3),
    ("mlx-vlm 1167, 4B", "73.5%", 3), ("mlx-vlm 1167, bf16", "63.9%", 3), ("mlx-vlm 1167, 27B", "82%", 2),
    ("mlx-vlm 1788", "81/90", None), ("vllm-mlx 245", "76%", 1), ("omlx 2402", "84%", 1), ("imp 1800", "73%", 1),
    ("imp 1462, prose, 6", "23.9%", 6), ("xinfer 369", "60%", 2), ("b70", "mean 2.21", 2), ("xllm 1929", "61.579%", 5),
    ("vllm-ascend 9871, 0.17", ".867,.743,.615", None), ("vllm-ascend 9871, 0.18", ".773,.559,.401", None),
    ("fastllm 728, exact", "72.3,53.2,39.6", None), ("vLLM 48892", "22021/26407", 1),
    ("vLLM 48892, 8", "76.17,61.58,51.25,42.43,36.40,30.94,27.22,23.65", None),
    ("transformers 46129", "96.6,79.4", None),
    ("mlx-serve 433, code", ".97,.81,.63", None), ("mlx-serve 433, thinking prose", ".50,.22,.09", None),
    ("ATOM 1216, deepseek", "0.9393 0.6789 0.3387", None), ("ATOM 1216, qwen3next", "0.9323 0.8153 0.6440", None),
    ("vllm-ascend-deepseekv4 131, mended", ".98,.64,.15", None),
]  # fmt: skip
# Of these the verdict is healthy: code and mixed prompts, thinking off, counts where they are known.
ORDINARY = {
    "InferenceX 1.9", "InferenceX 2.68", "InferenceX 3.28", "InferenceX 3.79", "llama.cpp 24340, Q8_0",
    "llama.cpp 24340, python", "llama.cpp 22673, 1", "llama.cpp 22673, 2", "llama.cpp 22673, 3", "llama.cpp 22673, 4",
    "omlx 2402", "vllm-ascend 9871, 0.17", "vLLM 48892", "vLLM 48892, 8", "mlx-vlm 1167, 4B",
}  # fmt: skip
FAULTY = [
    ("omlx 1507, mixed norms", "0/148", None, True), ("vLLM 34385, no lm_head", "0/279", None, True),
    ("SGLang 35797, NVFP4", "mean 1.00", 3, True), ("SGLang 35797, code", "mean 1.463", 3, False),
    ("SGLang 35797, math", "mean 1.403", 3, True), ("SGLang 35797, prose", "mean 1.208", 3, True),
    ("llama.cpp 27151", "1/633", None, True), ("vLLM 41789", "0.2%", None, True), ("vLLM 43455", "1.82%", 2, True),
    ("xinfer 450, YaRN", "0/19998", None, True), ("llama.cpp 20700, inline", "13%", 1, True),
    ("llama.cpp 20700, n_max unknown", "13%", None, False), ("ROCmFPX 15", "141/2211", None, True),
    ("imp 804, silu gate, prose", "10.2%", 1, True), ("imp 175, plateau", "20%", 1, True),
    ("imp 175, plateau, above", "37%", 1, False), ("imp 175, k0 and k1", "22.4%,1.6%", None, True),
    ("MTPLX 306", "2.9,0,0", None, True), ("LightLLM 1402, pre-norm", "mean 1.804", 3, False),
    ("omlx 3742", "35%", None, False), ("MTPLX 208, not primed", "26%", None, False),
    ("colibri 163", "4%", None, True), ("tenstorrent 442, off by one", "0.0055", None, True),
    ("fastllm 728, lax", "99.33,97.35,94.37", None, False), ("llama.cpp 23322", "35%", None, False),
    ("vllm-ascend 12521", "9%", None, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "n_max"), HEALTHY, ids=[case[0] for case in HEALTHY])
def test_no_published_healthy_engine_is_accused(name, text, n_max):
    found = verdict(text, n_max)
    assert found != "found"
    if name in ORDINARY:
        assert found == "healthy"


@pytest.mark.parametrize(("name", "text", "n_max", "is_found"), FAULTY, ids=[case[0] for case in FAULTY])
def test_no_published_fault_is_called_healthy(name, text, n_max, is_found):
    assert verdict(text, n_max) == ("found" if is_found else "undecided")


def test_rates_refuse_what_no_run_gives():
    for rates in (
        Rates("x"),
        Rates("x", accepted=2, drafted=1),
        Rates("x", positions=(0.2, 0.9)),
        Rates("x", mean=0.2),
    ):
        with pytest.raises(MtprefError):
            diagnose_stats(rates)


def test_the_page_counts_the_published_rates():
    page = (Path(__file__).resolve().parent.parent / "docs" / "diagnosis.md").read_text()
    assert f"Of {len(HEALTHY)} published rates of healthy engines" in page
    assert f"of {len(FAULTY)} of faults none is called healthy" in page


@pytest.mark.parametrize("n_max", [0, -1, 65, 10**9])
def test_an_n_max_that_none_can_have_is_named_by_its_option(n_max):
    with pytest.raises(MtprefError, match=rf"^`n_max`: {n_max}, expected 1 .. 64"):
        verdict("44/120", n_max)


@pytest.mark.parametrize(
    "line",
    [
        "draft acceptance rate = 0.00000 (    0 accepted /     0 generated)",
        "slot print_timing: id  0 | task 0 | draft acceptance = nan ( 0 accepted / 0 generated), mean len = nan",
        "n_drafted = 0\nn_accept  = 0\n",
    ],
)
def test_a_log_of_a_drafter_that_drafted_nothing_says_so(line, tmp_path, capsys):
    log = tmp_path / "server.log"
    log.write_text(f"{line}\n")
    assert main(["diagnose", "--log", str(log)]) == 2
    err = capsys.readouterr().err
    assert ": nothing was drafted in it" in err
    assert "mtpref check FILE" in err
    assert err.count("\n") == 1
