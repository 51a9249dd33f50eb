# %% [markdown]
# # Why it cannot be rolled back
#
# Attention forgets a token by shortening its cache. A matrix that a token was written into does not come apart
# again, and a rejected draft that stays in it does harm for a long time.

# %% [markdown]
# ## Two pasts, one present
#
# Take two different matrices and write the same token into both, with full strength. Whatever they held under
# that key is replaced, so the two become one. A function that gives one result for two arguments has no inverse:
# from the matrix after a token nobody can compute the matrix before it.

# %%
import numpy as np

from mtpref import spec

key = np.float32([0.5, 0.5, 0.5, 0.5])
value = np.float32([1, 2, 3, 4])
before = np.arange(16, dtype=np.float32).reshape(4, 4) / 8
other = before + np.outer(np.float32([8, -4, 2, 1]), key)  # differs under this key, and nowhere else


def after(state):
    ones, none = np.float32([[1]]), np.float32([[0]])
    k, v = key.reshape(1, 1, 4), value.reshape(1, 1, 4)
    return spec.delta_rule(k, k, v, none, ones, state[None], 1, spec.dot64)[1][0, 0]


print("before: they differ by up to", np.abs(before - other).max())
print("after:  they differ by up to", np.abs(after(before) - after(other)).max())
assert not np.array_equal(before, other)
assert np.array_equal(after(before), after(other))

# %% [markdown]
# ## An engine that only cuts its cache
#
# Let the model read a text, and then a drafted token that turns out wrong: the one that the trunk rejected in chapter
# 1. One engine keeps a copy from before and goes back to it. The other shortens its attention cache by one cell, as it
# always did, and forgets the matrices.

# %%
import mtpref
from mtpref.front.learn.show import curves

model = mtpref.load().core
ids = model.vocab.encode("The hat flew over the roof of the bakery. Nina ran after it, but the wind was quicker.")
n, wrong = 8, model.vocab.encode(" church")[0]
print(f"after {b''.join(map(model.vocab.piece, ids[:n]))!r} comes {model.vocab.piece(ids[n])!r}")


def logits_after(state):
    """Rows of logits for the rest of the text."""
    return model.trunk(state, ids[n:], n_logits=len(ids) - n).logits


right = model.new_state(64)
model.trunk(right, ids[:n], n_logits=0)
saved = right.checkpoint()
model.trunk(right, [wrong], n_logits=0)
right.restore(saved)

cut = model.new_state(64)
model.trunk(cut, ids[:n], n_logits=0)
model.trunk(cut, [wrong], n_logits=0)
cut.n_past -= 1  # the attention cells of the wrong token are past the end now; the matrices still hold it

never = model.new_state(64)
model.trunk(never, ids[:n], n_logits=0)
assert right.digest() == never.digest(), "restored: as if the token had never been seen, bit for bit"
assert cut.digest() != never.digest()

# %% [markdown]
# Both go on with the same text. The curve is the largest difference of a logit, token by token.

# %%
good, bad = logits_after(right), logits_after(cut)
assert np.array_equal(good, logits_after(never))
off = np.abs(good - bad).max(axis=1)
changed = np.flatnonzero(good.argmax(axis=1) != bad.argmax(axis=1))
shown = off[:16]
curves(
    "harm",
    "Largest difference of a logit after a token that was not rolled back",
    {"difference": shown},
    "tokens later",
)
print(f"the best token differs at {len(changed)} of {len(off)} positions")
for i in changed:
    one, other = (model.vocab.piece(int(rows[i].argmax())) for rows in (good, bad))
    print(f"{i + 1:2d} later, after {model.vocab.piece(ids[n + i])!r}: {one!r} is now {other!r}")
assert off[0] > 1, "at once"
assert off.min() > 0.05, "and at every later token"
assert 0 < len(changed) < len(off) / 2, "another text, but for a few words the same"

# %% [markdown]
# It fades, because the model forgets, but it does not vanish: text that is only slightly worse than it should be
# is how this mistake hides. So an engine must be able to bring back the matrices as they were. Chapter 6 shows
# three ways.
