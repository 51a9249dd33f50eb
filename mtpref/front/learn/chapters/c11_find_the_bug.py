# %% [markdown]
# # Find the bug
#
# Three models, one mistake in each, and what an engineer would look at. The answers are not in this chapter: you
# check yours with a command.

# %% [markdown]
# ## The suspects
#
# `mtpref.front.learn.mystery(1)` is the tiny model with a mistake of the catalogue in it (`mtpref faults` lists all;
# docs/faults.md has what each does). First what any engine prints: does the text stay right, and what is
# accepted?

# %%
import numpy as np

import mtpref
from mtpref.front.learn import N_MYSTERIES, mystery
from mtpref.measure.story import PROMPTS

healthy = mtpref.load()
policy = mtpref.PolicyConfig(n_max=3)


def seen(lm):
    """Acceptance by position, and in how many of six prompts the text is plain decoding's."""
    accepted, rounds, same = np.zeros(3), 0, 0
    for prompt in PROMPTS[:6]:
        run = lm.generate(prompt, mtpref.Options(n_predict=40, policy=policy)).finish()
        plain = healthy.generate(prompt, mtpref.Options(n_predict=40, spec_type="none")).finish()
        same += run.ids == plain.ids
        rounds += run.statistics.n_draft_rounds
        accepted += [run.statistics.accepted_at[k] for k in range(3)]
    return accepted / rounds, same


facts = {0: seen(healthy)} | {n: seen(mystery(n)) for n in range(1, N_MYSTERIES + 1)}
for n, (rates, same) in facts.items():
    print(f"{f'mystery {n}' if n else 'healthy':9}  acceptance {np.round(rates, 2)}  right text {same} of 6")
assert facts[0][1] == 6
assert all(rates[0] < facts[0][0][0] for n, (rates, _) in facts.items() if n), "each costs acceptance"

# %% [markdown]
# ## Three questions
#
# 1. *Is the text right?* The trunk judges every draft, so a wrong head cannot spoil it. If the text changes, the
#    mistake is in verification or in the trunk's state.
# 2. *Is position 1 low, or only what follows?* (Chapter 10.)
# 3. *Does it depend on the round before?* Split position 1 by whether the last draft was accepted whole.


# %%
def split(lm):
    """Acceptance of position 1 after a whole draft, and after a rejection."""
    right, n = [0, 0], [0, 0]
    for prompt in PROMPTS[:6]:
        before = None
        for event in lm.generate(prompt, mtpref.Options(n_predict=40, policy=policy)):
            if isinstance(event, mtpref.base.events.Verified) and event.draft_ids:
                if before is not None:
                    right[before] += event.n_accepted > 0
                    n[before] += 1
                before = int(event.n_accepted < len(event.draft_ids))
    return [f"{r / m:.2f}" if m else "never" for r, m in zip(right, n, strict=True)]


for n in range(N_MYSTERIES + 1):
    whole, rejected = split(mystery(n) if n else healthy)
    print(
        f"{f'mystery {n}' if n else 'healthy':9}  position 1: {whole} after a whole draft, {rejected} after a rejection"
    )

# %% [markdown]
# ## A tensor, if you still doubt
#
# A dump compares the insides. The first tensor that differs from the reference is where the mistake is, or right
# after it. Mistakes of the loop leave a dump of a prompt as it was.


# %%
def first_difference(lm):
    """The first tensor of a pass over a prompt, trunk and head, that is not the reference's."""
    found = []
    for one in (healthy, lm):
        tensors = {}
        model, ids = one.core, one.encode(PROMPTS[0])
        state = model.new_state(64)
        out = model.trunk(state, ids, n_logits=1, tap=lambda name, x, kept=tensors: kept.setdefault(name, x.copy()))
        rows = np.concatenate([np.zeros((1, out.hidden.post.shape[1]), np.float32), out.hidden.post[:-1]])
        model.mtp(state, ids, rows, 0, n_logits=1, tap=lambda name, x, kept=tensors: kept.setdefault(name, x.copy()))
        found.append(tensors)
    reference, other = found
    return next((name for name in reference if not np.array_equal(reference[name], other[name])), "none")


for n in range(1, N_MYSTERIES + 1):
    print(f"mystery {n}: first tensor that differs: {first_difference(mystery(n))}")

# %% [markdown]
# ## The state after a rejection
#
# Where the text changes, look at what a roll back leaves. A token's activations are the same bits alone and in any
# batch (chapter 1), so the state after a rejection can be compared *exactly* with the state after 0, 1, 2, ... tokens
# of the verified batch. With the opening token, a round that accepted k of its draft must leave k + 1 tokens of it.


# %%
def parts(state):
    """The recurrent state, by kind."""
    arrays = [(name, array.copy()) for name, array in state.live_arrays()]
    kinds = {"conv windows": "cache_r", "matrices": "cache_s"}
    return {kind: [array for name, array in arrays if name.startswith(start)] for kind, start in kinds.items()}


def same(some, others):
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def after_first_rejection(lm, prompt):
    """(tokens kept, tokens run, for each part of the state: the tokens that it has seen), or None without one."""
    run = lm.generate(prompt, mtpref.Options(n_predict=40, policy=policy))
    ids, batch = list(run.prompt_ids), []
    for event in run:
        if isinstance(event, mtpref.base.events.Drafted):
            before, batch = ids[: event.pos0], [event.id_last, *event.ids]
        elif isinstance(event, mtpref.base.events.Token):
            ids.append(event.id)
        elif isinstance(event, mtpref.base.events.RolledBack):
            now, state = parts(run.state), healthy.core.new_state(256)
            healthy.core.trunk(state, before, n_logits=0)
            known = [parts(state)]
            for token in batch:
                healthy.core.trunk(state, [token], n_logits=0)
                known.append(parts(state))
            found = {kind: [n for n, one in enumerate(known) if same(one[kind], now[kind])] for kind in now}
            cells = run.state.n_past - len(before)
            return event.to_pos - len(before), len(batch), {**found, "attention cells": [cells]}
    return None


def left_behind(lm):
    """What the first roll back of each prompt leaves, once for each number of tokens kept."""
    found = [left for prompt in PROMPTS[:6] if (left := after_first_rejection(lm, prompt))]
    return {(kept, n): told for kept, n, told in sorted(found, key=lambda left: left[:2])}


for n in range(N_MYSTERIES + 1):
    for (kept, n_run), told in left_behind(mystery(n) if n else healthy).items():
        named = ", ".join(f"{kind} {' or '.join(map(str, ns)) or 'of no such state'}" for kind, ns in told.items())
        print(f"{f'mystery {n}' if n else 'healthy':9}  {kept} of {n_run} tokens kept; the state has seen: {named}")
assert all(set(map(tuple, told.values())) == {(kept,)} for (kept, _), told in left_behind(healthy).items())

# %% [markdown]
# ## Your answer
#
# Name a fault by its number and check it. Exit code 0 means right; after a wrong answer you are told whether the
# family is right (W weights, G graph, C hidden rows, K the head's cache, S roll back, V verification, P policy):
#
#     mtpref learn 11 --answer 1=W6
#
# `mtpref diagnose` would tell you, given a trace: that is the tool for the day when the model is yours. Reading
# the numbers first is how you learn to trust it.

# %%
from mtpref.front.learn import is_answer

assert not is_answer(1, "W6"), "a random head would be low at every position"
print("mystery 1 is not W6, a random head")
