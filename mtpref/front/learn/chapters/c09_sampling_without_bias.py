# %% [markdown]
# # Sampling without bias
#
# At a temperature the drafted token is one of many that could be right. Two rules accept it without changing what
# the text is drawn from, and an obvious third one does change it.

# %% [markdown]
# ## The rule of residuals
#
# The draft was drawn from q, the target has p. Accept the drafted token x with probability min(1, p(x) / q(x)).
# If it is rejected, draw from what the target has more of than the draft: max(0, p - q), scaled to 1. Five
# tokens, in numbers:

# %%
import numpy as np

from mtpref import spec
from mtpref.front.learn.show import bars

ids = np.arange(5)
p = spec.Distribution(ids, np.array([0.40, 0.30, 0.20, 0.10, 0.00]))
q = spec.Distribution(ids, np.array([0.10, 0.50, 0.10, 0.10, 0.20]))


def chance(token, after_rejection):
    """The exact probability that a round's first token is `token`."""
    total = 0.0
    for x in ids:
        keep = min(1.0, p.prob(x) / q.prob(x))
        total += q.prob(x) * (keep * (x == token) + (1 - keep) * after_rejection(x).prob(token))
    return total


right = [chance(t, lambda x: spec.residual(p, q)) for t in ids]
print("target         ", np.round(p.p, 3))
print("with residuals ", np.round(right, 3))
assert np.allclose(right, p.p, atol=1e-12)
print(f"a drafted token is accepted with probability {spec.overlap(p, q):.2f} = sum of min(p, q)")

# %% [markdown]
# ## The obvious mistake
#
# After a rejection, draw from the target itself. It looks right: the target knows best. But tokens that the draft
# likes have had a chance already, so they come too often.

# %%
biased = [chance(t, lambda x: p) for t in ids]
print("from the target", np.round(biased, 3))
bars(
    "bias",
    "Too often, or too rarely: what the mistake gives, by token",
    [(f"token {t}: target {p.prob(t):.2f}", biased[t]) for t in ids],
    digits=3,
    top=0.5,
)
assert abs(biased[1] - p.prob(1)) > 0.04, "the draft's favourite, too often"
assert biased[0] < p.prob(0)

# %% [markdown]
# ## The rule of matching
#
# llama.cpp does something simpler. The target draws its own token, as if there were no draft; the draft is
# accepted if it is that token. No ratio, no residual, and nothing to get wrong about q. It accepts less often,
# with probability p(x) instead of sum of min(p, q), if the draft is the head's best token.
#
# Here every draw is keyed by seed and *position*, so a run that matches gives the very tokens of plain sampling.

# %%
import mtpref
from mtpref.measure.story import PROMPTS

lm = mtpref.load()


def written(accept, **options):
    sampling = mtpref.SamplingConfig(temp=0.8, seed=7, accept=accept)
    return [
        lm.generate(prompt, mtpref.Options(n_predict=48, sampling=sampling, **options)).finish()
        for prompt in PROMPTS[:6]
    ]


def told(runs):
    accepted, drafted = (sum(getattr(run.statistics, n) for run in runs) for n in ("n_accepted", "n_drafted"))
    return accepted / drafted, f"{accepted} of {drafted} accepted"


plain, match = written("match", spec_type="none"), written("match")
assert [run.ids for run in match] == [run.ids for run in plain], "token for token"
match_rate, words = told(match)
print(f"match: {words}, the texts of plain sampling")

# %% [markdown]
# With residuals the text is another one of the same distribution, and which one depends on the drafts. That the
# distribution is right can be checked by enumerating every draw (tests/test_sampling_exact.py does).

# %%
residual_rate, words = told(written("residual"))
print(f"residual: {words}")
assert residual_rate > match_rate + 0.05, "as told above"

# %% [markdown]
# One trap is left: a gate such as p_min must look at the draft's distribution *before* its token is drawn. A gate
# that throws away drawn tokens because they were improbable changes what is drawn (docs/spec.md).
