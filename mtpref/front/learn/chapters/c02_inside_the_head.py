# %% [markdown]
# # Inside the head
#
# One draft step, tensor by tensor: what the head is made of, what goes through it, and what is lost when a part of
# it is left out.

# %% [markdown]
# ## What it is made of
#
# A head is one layer like those of the trunk, with a piece in front that joins two inputs, and a norm after it. Its
# tensors are called `nextn` in a GGUF file. The embedding and the output matrix are the trunk's, unless the file
# brings its own:

# %%
import numpy as np

import mtpref
from mtpref import spec
from mtpref.files.gguf import open_gguf
from mtpref.front.api import tiny_path

lm = mtpref.load()
model = lm.core
own = [(name, t) for name, t in open_gguf(tiny_path()).tensors.items() if name.startswith("blk.4.")]
for name, t in own:
    print(f"{name.removeprefix('blk.4.'):32} {t.type_name:5} {' x '.join(map(str, t.shape))}")
n_embd = model.config.n_embd
shapes = {name.removeprefix("blk.4.nextn."): t.shape for name, t in own}
assert sorted(shapes["eh_proj.weight"]) == [n_embd, 2 * n_embd]
weights = model.heads[0].weights
print("borrowed from the trunk:", ", ".join(weights.borrowed))

# %% [markdown]
# ## One step, by hand
#
# The trunk has read a prompt but for its last token. That token and the trunk's last row go in; chapter 3 says why
# these two.
#
#     token --- embedding --- enorm --+
#                                     +-- concat --- eh_proj --+
#     row of the trunk ------ hnorm --+                        |
#                                                              |
#         logits --- shared_head_norm --- FFN --- attention ---+
#
# `enorm` and `hnorm` bring two vectors of different origin to one scale. `eh_proj` mixes them, 512 numbers into 256.
# From there on it is a layer as in the trunk: attention over the cells that the head has of its own, and a
# feed-forward network, each added to what came in.

# %%
prompt = "The hat flew over the roof"
ids = lm.encode(prompt)
state = model.new_state(64)
trunk = model.trunk(state, ids[:-1], n_logits=0)
rows = spec.pair_hidden(trunk.hidden.post, np.zeros_like(state.pending_h))
model.mtp(state, ids[:-1], rows, 0, n_logits=0)

seen = {}
row = trunk.hidden.post[-1:]
out = model.mtp(state, ids[-1:], row, len(ids) - 1, n_logits=1, tap=lambda name, x: seen.setdefault(name, x.copy()))
part = {name.removeprefix("mtp_").removesuffix("-4"): x[0] for name, x in seen.items()}


def rms_norm(x, weight):
    return x / np.sqrt((x**2).mean() + 1e-6) * weight


def close(a, b):
    return np.allclose(a, b, rtol=1e-4, atol=1e-4)


enorm = rms_norm(part["tok_embd"], weights.enorm)
hnorm = rms_norm(row[0], weights.hnorm)
assert close(enorm, part["enorm"])
assert close(hnorm, part["hnorm"])
assert np.array_equal(part["concat"], np.concatenate([part["enorm"], part["hnorm"]])), "the embedding first"
assert close(part["attn_residual"], part["eh_proj"] + part["attn_out"]), "attention is added"
assert close(part["l_out"], part["attn_residual"] + part["ffn_out"]), "the FFN, too"
assert close(part["h_nextn"], rms_norm(part["l_out"], weights.shared_head_norm))
assert np.array_equal(part["result_output"], out.logits[0])

# %% [markdown]
# The same under their names in a dump (`mtpref dump`), in the order in which they come to be. The length is the
# vector's norm: watch how `enorm` and `hnorm` make the two inputs alike.

# %%
told = {
    "tok_embd": "the token's embedding",
    "enorm": "normed",
    "hnorm": "the trunk's row, normed",
    "concat": "both, the embedding first",
    "eh_proj": "mixed",
    "attn_norm": "normed for attention",
    "Qcur": "queries, normed and rotated",
    "Kcur": "key of the new cell",
    "Vcur": "value of the new cell",
    "attn_pregate": "what attention has read",
    "attn_gated": "times the gate",
    "attn_out": "back to the layer's width",
    "attn_residual": "added to what came in",
    "attn_post_norm": "normed for the FFN",
    "ffn_swiglu": "inside the FFN",
    "ffn_out": "what it adds",
    "l_out": "the layer's result",
    "h_nextn": "normed: the row for the next step",
    "result_output": "logits",
}
print(f"row of the trunk: length {np.linalg.norm(row):.1f}")
for name, about in told.items():
    print(f"{name:15} {part[name].size:5d} numbers, length {np.linalg.norm(part[name]):6.1f}   {about}")
assert np.linalg.norm(part["tok_embd"]) < 5 < np.linalg.norm(part["enorm"])
best, p = spec.top_candidates(out.logits[0])
print("proposals:", ", ".join(f"{model.vocab.piece(int(id))!r} {q:.2f}" for id, q in zip(best[:4], p, strict=False)))
n_cells = state.heads[0].n_cells
assert n_cells == len(ids), "the step left a cell of its own"

# %% [markdown]
# `h_nextn` does two things. The output matrix makes logits of it, and the second step of a draft takes it where the
# first took the trunk's row. So a draft of three is this step three times.

# %% [markdown]
# ## What each part is for
#
# Leave parts out, one at a time, and count how often the head still names the token that the text has. Only the
# head is changed: the texts, the rows and the trunk are the same.

# %%
from dataclasses import replace

from mtpref.front.learn.show import bars
from mtpref.measure.story import PROMPTS

texts = [lm.generate(p, mtpref.Options(n_predict=64, spec_type="none")).finish() for p in PROMPTS[:8]]
texts = [run.prompt_ids + run.ids for run in texts]
head_ops = model.recipe.head_ops  # the table of operations, see mtpref/spec/ops/table.py


def guesses(trunk_rows="post", **entries):
    """Logits of the head, the texts' own tokens and the head's rows, with some of its operations replaced.

    trunk_rows: what the head is given, the trunk's rows from after (post) or from in front of (pre) its final norm
    """
    changed = replace(model, recipe=replace(model.recipe, mtp_ops=head_ops.replaced(**entries)))
    logits, wanted, own_rows = [], [], []
    for text in texts:
        own = changed.new_state(len(text))
        rows = getattr(changed.trunk(own, text, n_logits=0).hidden, trunk_rows)
        paired = spec.pair_hidden(rows, np.zeros_like(own.pending_h))
        out = changed.mtp(own, text, paired, 0, n_logits=len(text))
        logits.append(out.logits[2:-1])
        own_rows.append(out.hidden.post[2:-1])
        wanted += text[3:]
    return np.concatenate(logits), np.array(wanted), np.concatenate(own_rows)


def share_right(trunk_rows="post", **entries):
    """How often the head's best id is the text's token after next."""
    logits, wanted, _ = guesses(trunk_rows, **entries)
    return float((spec.argmax(logits) == wanted).mean())


norm = head_ops.rms_norm


def without_norm(weight):
    return lambda x, w, eps: x if w is weight else norm(x, w, eps)


no_head_norm = {"mtp_norm": lambda ops, x, w, eps: x}


found = {
    "the whole head": share_right(),
    "no hidden row": share_right(mtp_concat=lambda e, h: np.concatenate([e, 0 * h], axis=-1)),
    "no embedding": share_right(mtp_concat=lambda e, h: np.concatenate([0 * e, h], axis=-1)),
    "halves swapped": share_right(mtp_concat=lambda e, h: np.concatenate([h, e], axis=-1)),
    "no enorm": share_right(rms_norm=without_norm(weights.enorm)),
    "no hnorm": share_right(rms_norm=without_norm(weights.hnorm)),
    "no attention": share_right(attn_gate=lambda o, gate: 0 * o),
    "no gate": share_right(attn_gate=lambda o, gate: o),
    "no FFN": share_right(swiglu=lambda gate, up: 0 * up),
    "no shared_head_norm": share_right(**no_head_norm),
}
bars("parts", "Share of positions at which the head is right", list(found.items()), top=1.0)
whole = found.pop("the whole head")
norm_left_out = found.pop("no shared_head_norm")
assert whole > 0.6
assert max(found["no embedding"], found["no hidden row"], found["halves swapped"], found["no enorm"]) < whole / 2
assert whole - 0.08 < found.pop("no hnorm") < whole - 0.02, "a little"
assert all(rate < whole - 0.08 for rate in found.values()), "each of the others costs much"

# %% [markdown]
# Without `hnorm` little is lost, since the trunk's rows come out of its final norm: they have one length already, only
# half as much again as the head expects beside the embedding. Give the head the rows from in front of that norm, as
# some engines do, and `hnorm` is what makes them usable:

# %%
before_norm = share_right("pre"), share_right("pre", rms_norm=without_norm(weights.hnorm))
print("rows from in front of the final norm: right at {:.2f} with hnorm, at {:.2f} without".format(*before_norm))
assert before_norm[0] > whole - 0.04
assert before_norm[1] < whole / 2

# %% [markdown]
# One part seems to be there for nothing. A norm changes a row's length far more than its direction, so without
# `shared_head_norm` the best id stays nearly always what it was. What changes is how *sure* the head is: where the
# layer's result is longer than the norm would make it, the head is surer than before, and where it is shorter, less
# sure. On that rests every draft length that looks at a probability (`--spec-draft-p-min`, `--spec-adaptive
# expected`):

# %%
assert abs(norm_left_out - whole) < 0.02
(logits, wanted, normed), (bare_logits, _, bare) = guesses(), guesses(**no_head_norm)
p, bare_p = (np.array([spec.top_candidates(row)[1][0] for row in rows]) for rows in (logits, bare_logits))
length = np.linalg.norm(bare, axis=-1)
print(f"the norm makes every row {np.linalg.norm(normed, axis=-1).mean():.1f} long; without it")
shifts = []
for name, where in (
    ("below 21", length < 21),
    ("21 to 26", (length >= 21) & (length < 26)),
    ("above 26", length >= 26),
):
    right = float((spec.argmax(logits) == wanted)[where].mean())
    shifts.append(float((bare_p - p)[where].mean()))
    print(
        f"length {name}: {where.sum():3d} rows, right at {right:.2f}; the best id has p = {p[where].mean():.2f} "
        f"with the norm, {bare_p[where].mean():.2f} without"
    )
same = float((spec.argmax(logits) == spec.argmax(bare_logits)).mean())
print(f"the best id is the same at {same:.3f} of the positions")
print(f"its p moves by {np.abs(bare_p - p).mean():.3f} on average, by {np.abs(bare_p - p).max():.2f} at most")
assert same > 0.95
assert shifts[0] < 0 < shifts[2], "less sure where the row is short, surer where it is long"

# %% [markdown]
# None of these crashes, and none changes a text: the trunk judges every draft. Each has happened in an engine or a
# converter; `mtpref faults` has their names, and a dump shows the first tensor that differs (`mtpref compare`).
