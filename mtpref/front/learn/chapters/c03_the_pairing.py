# %% [markdown]
# # The pairing
#
# The MTP head reads a token and a hidden row of the trunk, and proposes the token after next. Which row belongs
# to which token is the first thing that goes wrong in a port.

# %% [markdown]
# ## The rule
#
# At position p the head takes the token x_p and the trunk's hidden row of the position *before*, h_(p-1), and
# predicts x_(p+1). It is what is known when x_p has just been sampled: h_(p-1) is the row that x_p was sampled
# from. The trunk has not seen x_p yet; the head gets it as an embedding.
#
#     position   0      1      2      3
#     token      x_0    x_1    x_2    x_3
#     hidden     0      h_0    h_1    h_2      rule S20: shifted by one
#     predicts   x_1    x_2    x_3    x_4
#
# Position 0 has no row before it. llama.cpp gives it zeros; the models were trained without that cell. Engines
# differ on points like this, so they are the fields of a *contract* (docs/spec.md).

# %%
import numpy as np

import mtpref
from mtpref import spec
from mtpref.front.learn.show import bars
from mtpref.measure.story import PROMPTS

model = mtpref.load().core
texts = [
    mtpref.load().generate(prompt, mtpref.Options(n_predict=40, spec_type="none")).finish() for prompt in PROMPTS[:6]
]
texts = [run.prompt_ids + run.ids for run in texts]
hidden = spec.pair_hidden(np.float32([[1], [2], [3], [4]]), np.float32([0]))
print("rows 1 2 3 4 with nothing pending are paired as", hidden[:, 0])
assert hidden[:, 0].tolist() == [0, 1, 2, 3]

# %% [markdown]
# ## Three pairings on the same text
#
# Texts that the model wrote itself, so that the token after next is what the trunk would choose. The same head,
# the same rows, shifted by one, not shifted, and shifted by two:


# %%
def share_right(shift):
    """How often the head's best id is the text's next token, with hidden rows shifted down by `shift`."""
    right = counted = 0
    for ids in texts:
        state = model.new_state(len(ids))
        rows = model.trunk(state, ids, n_logits=0).hidden.post
        zeros = np.zeros((2, rows.shape[1]), np.float32)
        paired = np.concatenate([zeros, rows])[2 - shift : len(rows) + 2 - shift]
        logits = model.mtp(state, ids, paired, 0, n_logits=len(ids)).logits
        best = spec.argmax(logits)
        right += int((best[2:-1] == np.array(ids[3:])).sum())
        counted += len(ids) - 3
    return right / counted


rates = {shift: share_right(shift) for shift in (1, 0, 2)}
bars(
    "pairings",
    "Share of positions at which the head is right",
    [("h_(p-1), the rule", rates[1]), ("h_p, the token's own row", rates[0]), ("h_(p-2), one too early", rates[2])],
    top=1.0,
)
assert rates[1] > 0.6
assert rates[2] < rates[1] - 0.2

# %% [markdown]
# ## Why a wrong pairing is hard to see
#
# No pairing crashes, and none changes the text: the trunk judges every draft. The symptom is a rate. And the
# head's own numbers look healthy: it is a language model with a strange input, and it is sure of itself.
#
# The row h_p is the most tempting mistake, since it is "the hidden state of the token". An engine cannot even
# have it in time: h_p exists only once the trunk has run x_p. Over a prompt, where all rows are there, the
# mistake is easily made, and then the head's cache is filled with cells that it was never trained on.

# %%
print(f"the rule {rates[1]:.3f}, the token's own row {rates[0]:.3f}, one too early {rates[2]:.3f}")
assert rates[0] < rates[1]

# %% [markdown]
# `mtpref probe -f TEXT --contracts` does this for a model and texts of yours, with every field of the contract,
# and `mtpref diagnose` finds the pairing in a port's dump.
