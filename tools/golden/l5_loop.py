"""L5: the loop: what is accepted, how long drafts are, what a roll back leaves, whole rounds."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden import sampling
from golden.l3_trunk import F32_MODEL, ours, tokens_of, weights
from mtpref.golden.build import SuiteBuilder, close, value
from mtpref.golden.format import hex_float
from mtpref.spec import P_ONE
from tests import naive, naive_loop, naive_model
from tests.portable import usual_arithmetic

QUARTER = P_ONE // 4
STRATEGIES = ("snapshot", "replay", "two-phase")
SAFE_MARGIN = 0.05  # logits; hundreds of times what float32 engines differ by on this model
SEED = 20700


def accept_greedy() -> SuiteBuilder:
    about = "The longest prefix of the draft that the target chose too; an accepted end of generation ends it."
    suite = SuiteBuilder("L5", "accept_greedy", "accept_greedy", ("S23", "S40"), about)
    for id, comment, draft, target, eog, n, flags in (
        ("all", "every token accepted: one bonus token", [5, 6, 7], [5, 6, 7, 8], [], 3, ("basic", "V7-bonus-dropped")),
        ("none", "the first is rejected: the target's own token", [5, 6, 7], [4, 6, 7, 8], [], 0, ("basic",)),
        ("first_of_three", "what agrees after a rejection does not count", [5, 6, 7], [5, 1, 7, 8], [], 1,
         ("V1-lax-accept", "V21-wrong-verify-row")),
        ("no_draft", "a plain step", [], [9], [], 0, ("basic",)),
        ("eog_inside", "an accepted end inside the draft: nothing after it", [5, 2, 7], [5, 2, 7, 8], [2], 2,
         ("V14-eog-passed",)),
        ("eog_last", "an accepted end comes last: no bonus", [5, 6, 2], [5, 6, 2, 8], [2], 3, ("basic",)),
        ("eog_as_correction", "the target ends the text itself", [5, 6], [5, 2, 1], [2], 1, ("basic",)),
        ("id_zero", "id 0 is a token like any other, not padding", [0], [0, 3], [], 1, ("V20-padding-compared",)),
    ):  # fmt: skip
        ended = n > 0 and draft[n - 1] in eog
        emitted = draft[:n] + ([] if ended else [target[n]])
        suite.case(id, comment, inputs={}, params={"draft": draft, "target": target, "eog": eog}, flags=flags,
                   out={"n_accepted": value(n), "emitted": value(emitted)})  # fmt: skip
    return suite


def policy() -> SuiteBuilder:
    about = (
        "Draft length, p_min, n_min and cooldown over rounds: limit of each round, drafted tokens, rounds of silence "
        "left after it. Probabilities are integers in units of 2**-32; n_accepted is cut to what was drafted."
    )
    suite = SuiteBuilder("L5", "policy", "policy", ("S22", "S35", "S36"), about)
    sure, half = 4 * QUARTER, 2 * QUARTER

    def rounds(*steps: tuple[int, Sequence[int], int]) -> list[dict[str, Any]]:
        return [{"n_room": room, "p": list(p), "n_accepted": n} for room, p, n in steps]

    for id, comment, config, steps, limits, drafted, cooldown, flags in (
        ("p_min", "a candidate below p_min is not proposed and ends the draft; equal is proposed",
         {"n_max": 3, "p_min": half}, rounds((9, [half, half - 1, sure], 0)), [3], [1], [0], ("L4-p-min",)),
        ("n_min", "fewer than n_min: nothing is proposed",
         {"n_max": 3, "n_min": 2, "p_min": half}, rounds((9, [sure, 0, sure], 0), (9, [sure, sure, 0], 2)),
         [3, 3], [0, 2], [0, 0], ("P3-n-min-ignored",)),
        ("room", "a draft is no longer than the budget can use; a limit below n_min is no reason to be silent",
         {"n_max": 3, "n_min": 2}, rounds((1, [sure] * 3, 1), (0, [sure] * 3, 0)), [1, 0], [1, 0], [0, 0],
         ("P4-draft-past-budget",)),
        ("cooldown_of_one", "a miss, one silent round, then drafts again: llama.cpp PR #20700",
         {"n_max": 1, "cooldown": 1}, rounds(*[(9, [sure], 0)] * 5), [1, 0, 1, 0, 1], [1, 0, 1, 0, 1],
         [1, 0, 1, 0, 1], ("P1-cooldown-endless",)),
        ("cooldown_after_two", "two misses in a row; an acceptance between them starts the count again",
         {"n_max": 1, "cooldown": 2, "cooldown_after": 2},
         rounds((9, [sure], 0), (9, [sure], 1), (9, [sure], 0), (9, [sure], 0), (9, [sure], 0), (9, [sure], 0)),
         [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 2, 1, 0], ("P2-cooldown-after-acceptance",)),
    ):  # fmt: skip
        out = {"limits": value(limits), "n_drafted": value(drafted), "n_cooldown": value(cooldown)}
        suite.case(id, comment, inputs={}, params=config | {"rounds": steps}, out=out, flags=flags)
    return suite


def accumulated() -> SuiteBuilder:
    about = "Hashes over the outputs of generated cases of the two machines; golden/README.md says how they are drawn."
    suite = SuiteBuilder("L5", "accumulated", "accumulated", ("S23", "S35", "S36", "S40"), about)
    for machine, flags in (
        ("accept_greedy", ("V1-lax-accept", "V14-eog-passed", "basic")),
        ("policy", ("P1-cooldown-endless", "P2-cooldown-after-acceptance", "P3-n-min-ignored", "basic")),
    ):
        params = {"machine": machine, "seed": SEED, "after": [10, 1000, 100000]}
        suite.case(machine, f"100,000 cases of {machine}", inputs={}, params=params, flags=flags,
                   out={"hashes": value(ours("accumulated", params, {}, "exact")["hashes"])})  # fmt: skip
    return suite


@lru_cache(maxsize=8)
def continuation(name: str, n_prompt: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt and the oracle's greedy continuation; all its margins are safe.

    Errors  ValueError for a prompt with a near tie: choose another name
    """
    hparams, w = weights()
    prompt = [int(i) for i in tokens_of(name, n_prompt)]
    with usual_arithmetic():
        ids = naive_loop.greedy(w, hparams, prompt, n)
        logits = naive_model.trunk(w, hparams, prompt + ids).logits[n_prompt - 1 : -1]
    top = np.sort(logits, axis=1)[:, -2:]
    if (top[:, 1] - top[:, 0]).min() < SAFE_MARGIN:
        raise ValueError(f"prompt {name} has a near tie")
    return tuple(prompt), tuple(ids)


def state_after(tokens: Sequence[int]) -> dict[str, NDArray]:
    """What the trunk must hold after these tokens, from nothing, by the oracle."""
    hparams, w = weights()
    result = naive_model.trunk(w, hparams, list(tokens))
    arrays: dict[str, NDArray] = {}
    for il in range(naive_model.n_layer(hparams)):
        if naive_model.is_recurrent(hparams, il):
            arrays[f"cache_r_l{il}"] = result.tensors[f"conv_state_last-{il}"].T
            arrays[f"cache_s_l{il}"] = result.tensors[f"new_state-{il}"]
    return arrays | {"pending_h": result.h_post[-1]}


def wrong(id: int) -> int:
    return (id + 1) % 256


# What a case catches depends on the strategy: two-phase never runs a rejected token, replay has no planes.
ROLLED_BACK = ("S2-no-rollback", "S3-conv-window-kept", "S3b-recurrent-state-kept")
FROM_PLANES = ("C3-last-verify-row", "S4-checkpoint-after", "S5-first-plane-read", "S18-kept-on-full-accept")


def scripts(ids: Sequence[int]) -> Iterator[tuple[str, str, list[list[int]], tuple[str, ...]]]:
    """Drafts by round against the continuation `ids`: ids[0] is emitted by the first round that accepts nothing."""
    bad = [wrong(i) for i in ids]
    yield "reject_first", "one draft, rejected", [[bad[0]], []], ROLLED_BACK
    yield ("accept_one_of_three", "the second of three is rejected", [[ids[0], bad[1], ids[2]]],
           (*ROLLED_BACK, "C3-last-verify-row", "S4-checkpoint-after", "S5-first-plane-read"))  # fmt: skip
    yield ("accept_one_then_plain", "the second of three is rejected; then a round without a draft",
           [[ids[0], bad[1], ids[2]], []],
           (*ROLLED_BACK, "S4-checkpoint-after", "S5-first-plane-read", "V21-wrong-verify-row"))  # fmt: skip
    yield ("accept_all", "a full acceptance: nothing is rolled back", [[ids[0], ids[1]], []],
           ("S18-kept-on-full-accept", "V7-bonus-dropped", "basic"))  # fmt: skip
    yield "two_rejections", "two roll backs in a row", [[bad[0], ids[1]], [bad[1]], []], ROLLED_BACK
    yield ("reject_then_plain", "a roll back, then more steps than the window is long", [[bad[0]], [], [], [], []],
           ("S2-no-rollback", "S3b-recurrent-state-kept"))  # fmt: skip


def flags_of(flags: Sequence[str], strategy: str) -> tuple[str, ...]:
    """The flags that hold under a strategy."""
    without = {"snapshot": (), "replay": FROM_PLANES, "two-phase": (*FROM_PLANES, *ROLLED_BACK)}[strategy]
    return tuple(flag for flag in flags if flag not in without) or ("basic",)


def expected_rounds(ids: Sequence[int], drafts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Emitted ids and acceptances by round, by the rule of S23."""
    emitted: list[int] = []
    accepted = []
    for draft in drafts:
        n = 0
        while n < len(draft) and draft[n] == ids[len(emitted) + n]:
            n += 1
        emitted += ids[len(emitted) : len(emitted) + n + 1]
        accepted.append(n)
    return emitted, accepted


def rollback() -> SuiteBuilder:
    about = (
        "Rounds whose drafts are given, and the state that they leave: as if the rejected tokens had never been run. "
        "Every strategy gives the same; the head follows the text."
    )
    suite = SuiteBuilder("L5", "rollback", "rounds", ("S11", "S13", "S23", "S24", "S33", "S38", "S40"), about)
    prompt, ids = continuation("rollback", 7, 8)
    for id, comment, drafts, flags in scripts(ids):
        emitted, accepted = expected_rounds(ids, drafts)
        held = [*prompt, *emitted][:-1]
        oracle = state_after(held)
        for strategy in STRATEGIES:
            params = {"model": F32_MODEL, "kv_type": "F32", "rollback": strategy, "n_max": 3, "drafts": drafts,
                      "n_predict": 99}  # fmt: skip
            inputs = {"tokens": np.array(prompt, np.int32)}
            given = ours("rounds", params, inputs, "exact")
            out = {"ids": value(emitted), "n_accepted": value(accepted), "n_past": value(len(held)),
                   "n_mtp": value(len(held))}  # fmt: skip
            out |= {name: close("model_f32", array, given[name]) for name, array in oracle.items()}
            suite.case(f"{id}_{strategy.replace('-', '_')}", f"{comment}; {strategy}", inputs=inputs, params=params,
                       out=out, flags=flags_of(flags, strategy), requires=["mtp", strategy])  # fmt: skip
    return suite


def runs() -> SuiteBuilder:
    about = "Whole runs that draft with the head: ids, drafts and acceptances by round, and why they ended."
    suite = SuiteBuilder(
        "L5",
        "runs",
        "generate",
        ("S20", "S22", "S23", "S24", "S30", "S31", "S32", "S33", "S34", "S35", "S36", "S38", "S40"),
        about,
    )
    _hparams, _w = weights()
    prompt, ids = continuation("runs", 8, 14)
    eog_mid = ids[6]
    for id, comment, changes, flags in (
        ("snapshot", "drafts of three", {}, ("basic", "C3-last-verify-row")),
        ("replay", "the same by checkpoint and replay", {"rollback": "replay"}, ("basic",)),
        ("two_phase", "the same one token at a time", {"rollback": "two-phase"}, ("basic",)),
        ("one_draft", "drafts of one", {"n_max": 1}, ("basic",)),
        ("plain", "no drafts", {"n_max": 0}, ("basic",)),
        ("budget_of_three", "the budget ends inside a round", {"n_predict": 3}, ("P4-draft-past-budget",)),
        ("cooldown", "one silent round after a miss: the head stays warm", {"cooldown": 1}, ("P1-cooldown-endless",)),
        ("end_of_generation", "the text ends inside a run", {"eog": [eog_mid]}, ("V14-eog-passed",)),
        ("small_context", "the context ends before the budget", {"n_ctx": 14}, ("edge.context",)),
    ):
        params: dict[str, Any] = {"model": F32_MODEL, "kv_type": "F32", "n_max": 3, "n_predict": 12, **changes}
        inputs = {"tokens": np.array(prompt, np.int32)}
        given = ours("generate", params, inputs, "exact")
        n = min(params["n_predict"], int(params.get("n_ctx", 99)) - len(prompt) + 1)
        wanted = list(ids[:n])
        if "eog" in params:
            wanted = wanted[: wanted.index(eog_mid) + 1]
        with usual_arithmetic():
            check_drafts(prompt, wanted, given, params)
        out = {"ids": value(wanted), "drafts": value(given["drafts"]), "n_accepted": value(given["n_accepted"]),
               "reason": value(given["reason"])}  # fmt: skip
        need = ["mtp", *([params["rollback"]] if "rollback" in params else [])] if params["n_max"] else []
        suite.case(id, comment, inputs=inputs, params=params, out=out, flags=flags, requires=need)
    return suite


def head_cells() -> SuiteBuilder:
    about = (
        "The cells that a run leaves in the head: keys (rotated) and values of every token that the trunk has run, "
        "from the trunk's own rows. No cell comes from a draft."
    )
    suite = SuiteBuilder("L5", "head_cells", "head_cells", ("S15", "S20", "S24", "S33", "S34"), about)
    hparams, w = weights()
    prompt, ids = continuation("runs", 8, 14)
    il = naive_model.n_layer(hparams)
    for id, comment, changes, flags in (
        ("snapshot", "drafts of three, some rejected", {},
         ("K7-not-trimmed", "K4-generated-discarded", "K8-accepted-row-missing", "C3-last-verify-row")),
        ("replay", "the same by checkpoint and replay", {"rollback": "replay"}, ("K7-not-trimmed",)),
        ("two_phase", "the same one token at a time", {"rollback": "two-phase"}, ("K7-not-trimmed",)),
        ("cooldown", "silent rounds leave cells too", {"cooldown": 2}, ("K14-cooldown-cold",)),
        ("small_batches", "the prompt in batches of three: the pending row crosses them", {"n_batch": 3},
         ("C7-batch-boundary-row", "K3-chunk-tail-sampled")),
    ):  # fmt: skip
        params: dict[str, Any] = {"model": F32_MODEL, "kv_type": "F32", "n_max": 3, "n_predict": 12, **changes}
        inputs = {"tokens": np.array(prompt, np.int32)}
        given = ours("head_cells", params, inputs, "exact")
        held = [*prompt, *ids[:12]][:-1]
        rows = naive_model.trunk(w, hparams, held).h_post
        paired = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
        taps = naive_model.mtp(w, hparams, held, paired, list(range(len(held)))).tensors
        out = {"ids": value(list(ids[:12])), "n_mtp": value(len(held)),
               "k": close("model_f32", taps[f"Kcur-{il}"], given["k"]),
               "v": close("model_f32", taps[f"mtp_Vcur-{il}"], given["v"])}  # fmt: skip
        suite.case(id, comment, inputs=inputs, params=params, out=out, flags=flags,
                   requires=["mtp", str(params.get("rollback", "snapshot"))])  # fmt: skip
    return suite


def accept_match() -> SuiteBuilder:
    about = "`match`: the target draws with its own uniform number; a drafted token is accepted where it is that draw."
    suite = SuiteBuilder("L5", "accept_match", "accept_match", ("S23", "S28", "S39", "S40"), about)
    row = [0.5, 0.25, 0.25, 0.0]
    for id, comment, draft, u, n, emitted, flags in (
        ("accept_all", "every draw is the drafted token; a bonus token", [0, 2], [0.1, 0.8, 0.6], 2, [0, 2, 1],
         ("basic", "V4-argmax-verify")),
        ("reject_likely", "a likely token is rejected where the draw is another", [0], [0.7, 0.1], 0, [1],
         ("V4-argmax-verify", "V1-lax-accept")),
    ):  # fmt: skip
        target = np.array([row] * (len(draft) + 1), np.float32)
        params = {"draft": draft, "eog": [], "u": [hex_float(x) for x in u]}
        suite.case(id, comment, inputs={"target_p": target}, params=params, flags=flags,
                   out={"n_accepted": value(n), "emitted": value(emitted)}, requires=["sampling"])  # fmt: skip
    return suite


def check_drafts(prompt: Sequence[int], ids: Sequence[int], given: dict[str, Any], params: dict[str, Any]) -> None:
    """The specification's drafts against the oracle's, round by round, each from the tokens alone.

    Errors  ValueError where they differ, or where a draft hangs on a near tie
    """
    hparams, w = weights()
    if list(given["ids"]) != list(ids):
        raise ValueError(f"ids {given['ids']}, the oracle has {list(ids)}")
    at = 0
    for draft, n_accepted in zip(given["drafts"], given["n_accepted"], strict=True):
        tokens = [*prompt, *ids[:at]]
        wanted, candidates = naive_loop.draft(w, hparams, tokens, len(draft))
        if wanted != list(draft):
            raise ValueError(f"draft {draft}, the oracle has {wanted}")
        if any(c.p[0] - c.p[1] < 1e-3 for c in candidates):
            raise ValueError(f"draft {draft} hangs on a near tie: choose another prompt")
        at += n_accepted + 1


def near_tie() -> SuiteBuilder:
    about = "Choices between nearly equal logits: an engine of other summation order may take either id."
    suite = SuiteBuilder("L5", "near_tie", "argmax", ("S21",), about)
    logits = np.array([[0.0, 5.0, 5.0 + 2.0**-19, 1.0], [3.0, 3.0, -1.0, 0.5]], np.float32)
    ids = [naive.argmax(row) for row in logits]
    either = {0: [1, 2]}
    suite.case("two_ulps", "the first row's best two differ by two units of the last place", inputs={"logits": logits},
               out={"ids": value(ids, either) | {"margins": [(2.0**-19).hex(), (0.0).hex()]}},
               flags=["edge.tie"])  # fmt: skip
    return suite


def suites() -> Iterator[SuiteBuilder]:
    for make in (
        accept_greedy,
        accept_match,
        sampling.accept_residual,
        policy,
        accumulated,
        rollback,
        head_cells,
        runs,
        near_tie,
    ):
        yield make()
