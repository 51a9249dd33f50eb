# %% [markdown]
# # What a DeltaNet layer keeps
#
# An attention layer keeps a cell per token. A DeltaNet layer keeps one matrix, whatever the length of the text,
# and every token writes into it.

# %% [markdown]
# ## Writing and reading
#
# The matrix M maps keys to values. A token with key k and value v first reads what M has for its key, and then
# writes the *difference*, so that M answers v from now on. That difference is the "delta" of the name:
#
#     M = exp(g) M        forget a little (g <= 0)
#     d = (v - M k) beta  what is missing (beta: how much of it to write)
#     M = M + d k^T       write it
#     o = M q             read with the query
#
# `mtpref.spec.delta_rule` is this, in the order of operations that every implementation here must follow (rule
# S13). One head of size 4, two tokens with keys that do not overlap, nothing forgotten:

# %%
import numpy as np

from mtpref import spec
from mtpref.front.learn.show import bars, matrices


def write(state, key, value, decay=0.0, beta=1.0):
    """One token into the matrix; returns the matrix and what the key reads there afterwards."""
    key, value = np.float32(key).reshape(1, 1, 4), np.float32(value).reshape(1, 1, 4)
    gate, strength = np.float32([[decay]]), np.float32([[beta]])
    out, states = spec.delta_rule(key, key, value, gate, strength, state, 1, spec.dot64)
    return states[-1], out[0, 0] * 2  # the rule divides by sqrt(4)


empty = np.zeros((1, 4, 4), np.float32)
first_key, second_key = [1, 0, 0, 0], [0, 1, 0, 0]
one, read = write(empty, first_key, [3, -1, 2, 0])
print("the first key reads", read)
two, read = write(one, second_key, [0, 2, 2, 1])
print("the second key reads", read)
assert np.array_equal(two[0] @ np.float32(first_key), [3, -1, 2, 0]), "the first value is still there"

# %% [markdown]
# ## Overwriting
#
# Now the first key comes again with another value. A sum of products would give the sum of both values. The delta
# rule writes only what is missing, so the new value stands alone and the old one is gone. Where `exp(g)` is below
# 1, all of it fades a little with each token.

# %%
three, read = write(two, first_key, [1, 1, 1, 1])
print("the first key reads", read)
assert np.array_equal(read, [1, 1, 1, 1]), "not [4, 0, 3, 1], the sum"
faded, _ = write(three, second_key, [0, 2, 2, 1], decay=float(np.log(np.float32(0.5))))
print("after a token that halves: the first key reads", faded[0] @ np.float32(first_key))
assert np.allclose(faded[0] @ np.float32(first_key), 0.5, atol=1e-6)

matrices(
    "writes",
    "The matrix after each token (rows: values, columns: keys)",
    {"token 1": one[0], "token 2": two[0], "token 3": three[0], "token 4": faded[0]},
)

# %% [markdown]
# ## In the model
#
# The tiny model has three DeltaNet layers and one of attention. Besides the matrices (`cache_s`) a DeltaNet layer
# keeps the last three rows in front of its short convolution (`cache_r`). Watch what grows with the text:

# %%
import mtpref

model = mtpref.load().core
ids = model.vocab.encode("The hat flew over the roof of the bakery. Nina ran after it, but the wind was quicker.")
sizes = {}
for n in (1, 8, len(ids)):
    state = model.new_state(128)
    model.trunk(state, ids[:n], n_logits=0)
    cells, fixed = 0, 0
    for name, array in state.live_arrays():
        if name.startswith("cache_k") or name.startswith("cache_v"):
            cells += array.nbytes
        elif name.startswith("cache_"):
            fixed += array.nbytes
    sizes[n] = cells, fixed
    print(f"{n:3d} tokens: attention {cells:6d} bytes, DeltaNet {fixed:6d} bytes")
recurrent = {fixed for _, fixed in sizes.values()}
assert len(recurrent) == 1, "the DeltaNet part has the same size at every length"
assert sizes[8][0] == 8 * sizes[1][0], "the attention part has a cell per token"

bars(
    "bytes",
    f"Bytes of state after {len(ids)} tokens",
    [("attention", sizes[len(ids)][0]), ("DeltaNet", sizes[len(ids)][1])],
    digits=0,
)

# %% [markdown]
# That is why such models are cheap at long context, and it is why speculative decoding is harder with them: the
# next chapter takes a token back.
