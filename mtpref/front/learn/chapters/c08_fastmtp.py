# %% [markdown]
# # FastMTP: a smaller vocabulary for the draft
#
# Most of a draft step is the product with the output matrix. Drafting needs only the ids that are often right, so
# the head may have a vocabulary of its own. Verification keeps the whole one.

# %% [markdown]
# ## What a draft step reads
#
# In Qwen3.5-0.8B the output matrix has 248320 rows of 1024 numbers, more than the rest of the head many times
# over. In the tiny model, too, it is the largest thing that a step reads:

# %%
import mtpref
from mtpref.front.learn.show import bars
from mtpref.measure.story import PROMPTS

lm = mtpref.load()
model = lm.core
head = model.heads[0].weights.shared_head_head
print(f"output matrix of the head: {head.n_out} rows of {head.n_in} numbers")
assert head.n_out == model.n_vocab

# %% [markdown]
# ## Which ids to keep
#
# The first N rows, since common pieces were merged first, or a list counted from texts (`mtpref draft-vocab`).
# Here the list is counted from what the model writes after half of the prompts, and tried on the other half:


# %%
def written(prompts, n_predict=40, **options):
    return [lm.generate(prompt, mtpref.Options(n_predict=n_predict, **options)).finish() for prompt in prompts]


counts = {}
for run in written(PROMPTS[:6], n_predict=160, spec_type="none"):
    for id in [*run.prompt_ids, *run.ids]:
        counts[id] = counts.get(id, 0) + 1
ranked = sorted(counts, key=lambda id: (-counts[id], id))
listed = tuple(sorted(ranked[:256]))
print(
    f"{len(counts)} different ids were written; the 256 most frequent are {sum(counts[i] for i in listed)} of "
    f"{sum(counts.values())} tokens"
)

# %% [markdown]
# ## The text does not change
#
# A trimmed head can only name the ids that it has. Where the trunk wants another, the draft is wrong, which costs
# a rejection and nothing else: the trunk judges with its full vocabulary.

# %%
policy = mtpref.PolicyConfig(n_max=2)
plain = [run.ids for run in written(PROMPTS[6:], spec_type="none")]
rates = {}
for name, options in {
    "full": {},
    "first 1024": {"n_draft_vocab": 1024},
    "first 512": {"n_draft_vocab": 512},
    "first 256": {"n_draft_vocab": 256},
    "256 listed": {"draft_ids": listed},
}.items():
    runs = written(PROMPTS[6:], policy=policy, **options)
    assert [run.ids for run in runs] == plain, "the same text with every head"
    accepted, drafted = (sum(getattr(run.statistics, n) for run in runs) for n in ("n_accepted", "n_drafted"))
    rates[name] = accepted / drafted
bars("heads", "Acceptance by head vocabulary (drafts of 2)", list(rates.items()), top=1.0)
assert rates["full"] > rates["first 1024"] > rates["first 512"] > rates["first 256"]
assert rates["256 listed"] > 3 * rates["first 256"]
assert abs(rates["256 listed"] - rates["first 512"]) < 0.05

# %% [markdown]
# The first 256 ids of this vocabulary are the end of the text and single bytes: not one word is among them. A list of
# the same length, counted from a thousand tokens, does as much as the first 512.

# %%
assert max(len(model.vocab.piece(id)) for id in range(256)) == 1
print("the listed ids that are longest:", *sorted((model.vocab.piece(id) for id in listed), key=len)[-6:])

# %% [markdown]
# ## What can be named bounds what can be accepted
#
# A head with N ids can be right at most as often as the text takes one of them. That is its *coverage*, and it
# can be counted without any head:

# %%
tokens = [id for ids in plain for id in ids]
coverage = {
    "first 1024": sum(i < 1024 for i in tokens),
    "first 512": sum(i < 512 for i in tokens),
    "first 256": sum(i < 256 for i in tokens),
    "256 listed": sum(i in set(listed) for i in tokens),
}
for name, n in coverage.items():
    print(f"{name:10}  coverage {n / len(tokens):.2f}, acceptance {rates[name]:.2f}")
    assert rates[name] < n / len(tokens)

# %% [markdown]
# Whether a trimmed head pays depends on what a step costs and on what its ids cover. With 2048 ids there is little to
# save, and half of them miss nearly one token in five; with 248320 a head of 32768 saves most of a step. What it
# covers of your texts is counted by `mtpref draft-vocab`, and `mtpref plan --trims full,32768` says what it is worth.
