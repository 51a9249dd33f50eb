# %% [markdown]
# # Draft and verify by hand
#
# One round of speculative decoding, with nothing but calls of the trunk and of the head: draft, verify, accept,
# and what is left for the next round.

# %% [markdown]
# The model proper is called the *trunk* here: it reads all tokens so far and gives the next one, a pass at a time. The
# *head* is one small extra layer that ships in the same file and guesses the token after. Chapter 2 opens it; here it
# is enough that it is cheap and mostly right. What it guesses is never trusted: the trunk checks several guesses in
# one pass, and only what it would have chosen itself is kept.

# %% [markdown]
# ## Where a round begins
#
# The prompt is in the model's state but for its last token, which opens the round (this is what
# llama-speculative-simple does). The head has seen the prompt, too, and the trunk's last hidden row is pending.

# %%
import numpy as np

import mtpref
from mtpref import spec

lm = mtpref.load()
model = lm.core
prompt = "The hat flew over the roof"
ids = lm.encode(prompt)
opening = ids[-1]

state = model.new_state(64)
out = model.trunk(state, ids[:-1], n_logits=0)
rows = spec.pair_hidden(out.hidden.post, np.zeros_like(state.pending_h))
model.mtp(state, ids[:-1], rows, 0, n_logits=0)
pending = out.hidden.post[-1]
print(f"{state.n_past} tokens in the trunk, {state.heads[0].n_cells} in the head")
print(f"the round opens with {model.vocab.piece(opening)!r}")
assert state.n_past == state.heads[0].n_cells == len(ids) - 1

# %% [markdown]
# ## Draft
#
# The head takes the opening token and the pending row and names a token; then it takes that token and *its own*
# row, and so on. The cells that this leaves in the head's cache hold guesses. They are cut when the draft is
# done.

# %%
draft, token, row = [], opening, pending[None]
for step in range(3):
    out = model.mtp(state, [token], row, state.n_past + step, n_logits=1)
    token, row = int(spec.argmax(out.logits)[0]), out.hidden.post
    best, p = spec.top_candidates(out.logits[0])
    draft.append(token)
    print(f"step {step + 1}: {model.vocab.piece(token)!r:14} p = {p[0]:.2f} among the ten best")
state.trim_heads(state.n_past)
assert state.heads[0].n_cells == len(ids) - 1, "as it was"

# %% [markdown]
# ## Verify
#
# One pass of the trunk over the opening token and the draft gives the trunk's own choice after each of them.
# Reading four tokens costs hardly more than reading one: the weights are read once. That is the whole gain.

# %%
before = state.checkpoint()
batch = [opening, *draft]
out = model.trunk(state, batch, n_logits=len(batch))
target = [int(id) for id in spec.argmax(out.logits)]
n_accepted = spec.accept_greedy(draft, target, frozenset(model.vocab.eog_ids))
for i, chosen in enumerate(target):
    verdict = "accept" if i < n_accepted else "reject" if i == n_accepted < len(draft) else "past the end"
    drafted = repr(model.vocab.piece(draft[i])) if i < len(draft) else "-"
    print(f"drafted {drafted:14} trunk {model.vocab.piece(chosen)!r:14} {verdict}")
text = [*draft[:n_accepted], target[n_accepted]]
assert 0 < n_accepted < len(draft), "a round with both"
print(f"{n_accepted} accepted; the round gives {b''.join(map(model.vocab.piece, text))!r}")

# %% [markdown]
# The rows are the same bits as if the tokens had come one at a time. That is no accident of this model: sums have
# a fixed order here, whatever the width of a batch (rule S2). So the text with drafts *is* the text without.

# %%
alone = model.new_state(64)
model.trunk(alone, ids[:-1], n_logits=0)
for i, token in enumerate(batch):
    one = model.trunk(alone, [token], n_logits=1).logits[0]
    assert np.array_equal(one, out.logits[i]), "not one bit differs"
plain = lm.generate(prompt, mtpref.Options(n_predict=len(text), spec_type="none")).finish()
assert plain.ids == text
print(f"plain decoding takes {plain.statistics.n_trunk_passes} passes for the same {len(text)} tokens")

# %% [markdown]
# ## What the next round starts from
#
# Rejected tokens leave the state (chapters 4 to 6). Kept ones go through the head once more, with the trunk's rows in
# place of the head's guesses: the catch-up pass. And the pending row is the one of the last *accepted* token, row
# number `n_accepted` of the batch (rule S24), not the last row: after a rejection the last row belongs to a text
# that is not going to be written.

# %%
state.restore(before)
kept = batch[: n_accepted + 1]
out = model.trunk(state, kept, n_logits=0)
model.mtp(state, kept, spec.pair_hidden(out.hidden.post, pending), before.n_past, n_logits=0)
state.pending_h = spec.next_pending(out.hidden.post, n_accepted)

loop = lm.generate(prompt, mtpref.Options(n_predict=len(text))).finish()
assert loop.ids == text
assert state.n_past == state.heads[0].n_cells == len(ids) - 1 + len(kept)
print(
    f"after the round: {state.n_past} tokens in the trunk, {state.heads[0].n_cells} in the head, next opening token "
    f"{model.vocab.piece(text[-1])!r}"
)
