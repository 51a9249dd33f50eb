"""Checks of the MTP head: is it there, and does it use what it is fed?"""

from math import comb

import numpy as np

from mtpref.look.selftest.bench import Bench, Failed, Skipped

# One-sided sign test: how likely the real head is better than its control by luck.
MAX_LUCK = 0.01


def head_is_there(bench: Bench) -> str:
    """Which of its tensors are the head's own, and which are the trunk's."""
    model = bench.model
    if not model.heads:
        declared = model.kv.get(f"{model.config.arch}.nextn_predict_layers", 0)
        if declared:
            raise Failed(f"{model.config.arch}.nextn_predict_layers is {declared}, but the head is not there")
        raise Skipped("the file has no MTP head, and declares none")
    mtp = model.heads[0].weights
    for name, norm in (("enorm", mtp.enorm), ("hnorm", mtp.hnorm), ("shared_head_norm", mtp.shared_head_norm)):
        if not np.isfinite(norm).all():
            raise Failed(f"nextn.{name}.weight holds NaN or infinity; try: mtpref generate --check-tensors")
        if norm.size and not norm.any():  # an assistant has none before its block
            raise Failed(f"nextn.{name}.weight is zero: the head can't see what it is fed")
    own = [part for part in mtp.origin if part not in mtp.borrowed]
    borrowed = f"; the trunk's: {', '.join(mtp.borrowed)}" if mtp.borrowed else ""
    where = f" in {mtp.file}" if mtp.file else ""
    entry = f"{_input_of(mtp.eh_proj.name)} {mtp.eh_proj.type_name}"
    return f"{entry}{where}; its own: {', '.join(own) or 'nothing optional'}{borrowed}"


def _input_of(name: str) -> str:
    """Of the product that the head's rows come in by, what its name calls it."""
    return name.rpartition("nextn.")[2].removesuffix(".weight") or "eh_proj"


def teacher_forced(bench: Bench) -> str:
    """How often the head names the token that the trunk names, on a given text, against two controls.

    hidden  the right tokens with hidden rows of other positions: a head that does not use the hidden state, or is fed
            the wrong one, is no better
    pairs   tokens and hidden rows of other positions: a head whose weights are in another convention, or half loaded,
            is no better
    Planted models (tokenizer `test`) follow a rule that rarely needs the hidden row: there the second must do.
    """
    if not bench.model.has_mtp:
        raise Skipped("the file has no MTP head")
    model, ids = bench.model, bench.passage
    out = model.trunk(bench.new_state(), ids, n_logits=len(ids))
    target = model.recipe.ops.argmax(out.logits)[1:]
    hidden = model.recipe.steps.target_hidden(out.hidden, model.recipe.contract)[:-1]
    order = np.random.default_rng(0).permutation(len(hidden))
    shuffled = [ids[1:][i] for i in order]
    right = _named(bench, ids[1:], hidden) == target
    controls = {
        "hidden rows": _named(bench, ids[1:], hidden[order]) == target,
        "pairs": _named(bench, shuffled, hidden[order]) == target,
    }
    told = f"head and trunk agree at {right.sum()} of {len(right)} positions" + "".join(
        f", with shuffled {what} at {control.sum()}" for what, control in controls.items()
    )
    for what, control in controls.items():
        luck = _sign_test(int((right & ~control).sum()), int((control & ~right).sum()))
        if luck > MAX_LUCK and not (what == "hidden rows" and model.vocab.model == "test"):
            raise Failed(
                f"{told}: no better than with shuffled {what} (p = {luck:.2g}); is the head in another "
                "convention? try: mtpref inspect, --contract"
            )
    return told


def _named(bench: Bench, ids: list[int], hidden: np.ndarray) -> np.ndarray:
    """The head's best token at each position, from the tokens and the hidden rows before them."""
    model, state = bench.model, bench.new_state()
    if not any(head.sheet.reads_target for head in model.heads):
        logits = model.mtp(state, ids, hidden, 1, n_logits=len(ids)).logits
        return np.asarray(model.recipe.ops.argmax(logits))
    rows = []  # a head that reads the trunk's cells: position by position, over those that are there then
    for i, id in enumerate(ids):
        model.trunk(state, [bench.passage[i]], n_logits=0)
        rows.append(model.mtp(state, [id], hidden[i : i + 1], i + 1, n_logits=1).logits)
    return np.asarray(model.recipe.ops.argmax(np.concatenate(rows)))


def _sign_test(n_better: int, n_worse: int) -> float:
    """The probability of n_better or more of n_better + n_worse fair coins."""
    n = n_better + n_worse
    return sum(comb(n, k) for k in range(n_better, n + 1)) / 2**n
