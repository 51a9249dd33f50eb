# %% [markdown]
# # Reading an acceptance curve
#
# "Acceptance is 40 %" says little. Acceptance by draft position says where to look: three mistakes, three shapes.

# %% [markdown]
# ## Conditional and unconditional
#
# *Unconditional* at position k: the share of rounds that accepted at least k tokens; it can only fall.
# *Conditional*: of the rounds that accepted k - 1, those that accepted one more; it says how good the head is at
# step k by itself. The first is the product of the second.

# %%
import numpy as np

import mtpref
from mtpref.faults import find_fault, inject
from mtpref.front.learn.show import curves
from mtpref.measure.story import PROMPTS

healthy = mtpref.load().core
policy = mtpref.PolicyConfig(n_max=4)
begun = [
    mtpref.LanguageModel(healthy).generate(prompt, mtpref.Options(n_predict=100, spec_type="none")).finish()
    for prompt in PROMPTS[:8]
]
begun = [run.prompt_ids + run.ids for run in begun]  # eight stories of about 100 tokens, to be gone on with


def curve(model):
    """Acceptance by draft position, where the stories go on: unconditional, conditional."""
    reached, accepted, rounds = np.zeros(4), np.zeros(4), 0
    lm = mtpref.LanguageModel(model)
    for prompt in begun:
        counts = lm.generate(prompt, mtpref.Options(n_predict=40, policy=policy)).finish().statistics
        rounds += counts.n_draft_rounds
        for k in range(4):
            reached[k] += counts.reached_at[k]
            accepted[k] += counts.accepted_at[k]
    return accepted / rounds, accepted / np.maximum(reached, 1)


unconditional, conditional = curve(healthy)
print("unconditional", np.round(unconditional, 2))
print("conditional  ", np.round(conditional, 2))
assert (np.diff(unconditional) <= 0).all()

# %% [markdown]
# ## Three mistakes
#
# * **C2**: the hidden row that the chain hands on is overwritten before it is read. The first step does not use
#   it.
# * **K0**: the head's cache does not hold the prompt. Every step suffers, most right after the prompt: then the text's
#   own cells fill the cache.
# * **G1**: the two halves of the head's input are swapped. The head reads noise.

# %%
shapes = {"healthy": unconditional}
for name in ("C2", "K0", "G1"):
    shapes[f"{name}, {find_fault(name).title}"] = curve(inject(healthy, find_fault(name)))[0]
curves("shapes", "Unconditional acceptance by draft position", shapes, "draft position", top=1.0)
chain, unprimed, swapped = list(shapes.values())[1:]
assert chain[0] > unconditional[0] - 0.05, "the first step is as good as before ..."
assert chain[1] < unconditional[1] - 0.05, "... and the second is not: look at the chain"
assert (unprimed < unconditional - 0.03).all(), "every step is worse, and none falls off: look at the head's cells"
assert swapped[0] < 0.2, "low from the first step on: look at what the head is fed, or at its weights"


def first_rounds(model):
    """In how many stories the first round after the prompt accepts a token."""
    n_right = 0
    for prompt in begun:
        events = mtpref.LanguageModel(model).generate(prompt, mtpref.Options(n_predict=8, policy=policy))
        n_right += next(e.n_accepted > 0 for e in events if isinstance(e, mtpref.base.events.Verified))
    return n_right


first = first_rounds(healthy), first_rounds(inject(healthy, find_fault("K0")))
print(f"first rounds that accept a token: healthy {first[0]} of {len(begun)}, K0 {first[1]} of {len(begun)}")
assert first[1] <= first[0] - 3

# %% [markdown]
# ## Reading it
#
# | what you see | where to look |
# |---|---|
# | position 1 right, then a fall | the chain: which row, which position, which cache cells |
# | position 1 low, the rest in proportion | the head's input: pairing, norm, order of concatenation |
# | low after the prompt, better as the text grows | the head's cache: cells of the prompt that are not there |
# | next to nothing anywhere | weights: norms without their +1, a head that was not loaded |
# | right after full acceptances, wrong after rejections | roll back, or the pending row (S24) |
# | right at first, lower with every token | state that is not rolled back, positions that drift |
#
# The fifth row needs one more split, by what the round before did. `mtpref diagnose --stats` takes both numbers:


# %%
def after_rejections(model):
    """Acceptance of position 1 after a round that was accepted whole, and after any other."""
    right, n = {True: 0, False: 0}, {True: 0, False: 0}
    for prompt in begun:
        whole = None
        for event in mtpref.LanguageModel(model).generate(prompt, mtpref.Options(n_predict=40, policy=policy)):
            if isinstance(event, mtpref.base.events.Verified) and event.draft_ids:
                if whole is not None:
                    right[whole] += event.n_accepted > 0
                    n[whole] += 1
                whole = event.n_accepted == len(event.draft_ids)
    return right[True] / n[True], right[False] / n[False]


good, stale = after_rejections(healthy), after_rejections(inject(healthy, find_fault("C3")))
print(f"healthy: {good[0]:.2f} after a whole draft, {good[1]:.2f} after a rejection")
print(f"C3:      {stale[0]:.2f} after a whole draft, {stale[1]:.2f} after a rejection")
assert stale[1] < good[1] - 0.2
