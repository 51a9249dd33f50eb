# %% [markdown]
# # Three ways to roll back
#
# Snapshot, replay and two-phase leave the same state after a rejected draft. They differ in what they cost.

# %% [markdown]
# ## The same round three times
#
# The opening token, then a draft of three whose second token is wrong. After the round the state must hold the
# opening token and the first draft token, and nothing else.

# %%
import mtpref
from mtpref.front.learn.show import bars

lm = mtpref.load()
model = lm.core
ids = lm.encode("The hat flew over the roof")
plain = lm.generate(ids, mtpref.Options(n_predict=40, spec_type="none")).finish()
good, wrong = plain.ids[0], (plain.ids[1] + 1) % model.n_vocab
batch = [ids[-1], good, wrong, wrong]


def fresh():
    state = model.new_state(128)
    model.trunk(state, ids[:-1], n_logits=0)
    return state


# %% [markdown]
# **Snapshot**: one pass that keeps the recurrent state after *each* token; rolling back is choosing one of them.

# %%
snapshot = fresh()
model.trunk(snapshot, batch, n_logits=len(batch), keep=len(batch))
snapshot.choose_plane(2)

# %% [markdown]
# **Replay**: a copy before the pass. After a rejection the copy is put back and the kept tokens are run again.

# %%
replay = fresh()
copy = replay.checkpoint()
model.trunk(replay, batch, n_logits=len(batch))
replay.restore(copy)
model.trunk(replay, batch[:2], n_logits=0)

# %% [markdown]
# **Two-phase**: a token is run only once the row before has accepted it. Nothing wrong is ever in the state.

# %%
two_phase = fresh()
model.trunk(two_phase, batch[:1], n_logits=1)
model.trunk(two_phase, batch[1:2], n_logits=1)

digests = {state.digest() for state in (snapshot, replay, two_phase)}
print("three states,", len(digests), "digest")
assert len(digests) == 1, "the same bits, recurrent matrices and cells alike"

# %% [markdown]
# ## What each costs
#
# A whole run, counted: passes of the trunk, and tokens that it ran. Plain decoding needs a pass per token.

# %%
rows, texts = [], {tuple(plain.ids)}
for strategy in ("snapshot", "replay", "two-phase"):
    run = lm.generate(
        ids, mtpref.Options(n_predict=40, policy=mtpref.PolicyConfig(n_max=3), rollback=strategy)
    ).finish()
    counts = run.statistics
    n_run = sum(counts.tokens[kind] for kind in ("plain", "verify", "replay"))
    n_replays = counts.passes["replay"]
    print(f"{strategy:10} {counts.n_trunk_passes:3d} passes over {n_run:3d} tokens, of them {n_replays} replays")
    rows.append((strategy, counts.n_trunk_passes / counts.n_predict))
    texts.add(tuple(run.ids))
assert len(texts) == 1, "the same text, by every strategy and by none"
bars("passes", "Trunk passes per token", [("plain", 1.0), *rows], top=1.0)
passes = dict(rows)
assert passes["snapshot"] < passes["replay"] < 1
assert passes["two-phase"] == 1

# %% [markdown]
# Snapshot needs memory for one recurrent state per token of the batch. Replay needs one copy, and a second pass after
# each rejection. Two-phase needs neither, and gains nothing: it runs the trunk once per token, whatever the
# acceptance. It is there for engines that cannot bring a state back. `mtpref plan` turns such counts into tokens
# per second with your costs (docs/plan.md).

# %%
planes = sum(a.nbytes for n, a in snapshot.live_arrays() if n.startswith(("cache_r", "cache_s")))
print(f"one recurrent state: {planes} bytes; for a draft of 3, snapshot keeps 4 of them, replay 1")
assert copy.n_bytes >= planes
