# %% [markdown]
# # The cooldown story
#
# llama.cpp PR #20700 reported an acceptance of 13 % that became 95 % when the engine stayed silent for a round
# after each rejection. Why silence helped, and what it hid.

# %% [markdown]
# ## A head inside the pass
#
# In that PR the head runs *inline*: each row of a trunk pass goes on through the head, and the next draft, of one
# token, is read from the last row of the last pass. While drafts are accepted the last row is the right one.
# After a rejection the last row is the rejected token's: a draft for a text that is not being written. It is
# *stale*. The next verify pass rejects it, and its last row is stale again.

# %%
import mtpref
from mtpref.front.learn.show import bars
from mtpref.measure.story import PROMPTS, ROWS, Setup, run_setup, speed_with_cooldown, stale_acceptance

lm = mtpref.load()
prompts = [lm.encode(prompt) for prompt in PROMPTS]
plain = [lm.generate(ids, mtpref.Options(n_predict=32, spec_type="none")).finish().ids for ids in prompts]
lines = {
    (row, cooldown): run_setup(lm.core, Setup("one-phase", row, cooldown, None), prompts, plain, 32)
    for row, cooldown in ROWS
}
for (row, cooldown), line in lines.items():
    fresh, stale = (f"{a} of {n}" for a, n in (line.fresh, line.stale))
    print(
        f"row {row:5} cooldown {cooldown}: {100 * line.n_accepted / line.n_drafted:5.1f} % accepted "
        f"(fresh {fresh}, stale {stale}), {line.n_tokens / line.n_passes:.2f} tokens per pass"
    )

# %% [markdown]
# A fresh draft is right three times out of four. A stale one is right by luck, most often where the text goes on with a
# full stop, `a`, `the` or `and`, which fit nearly anywhere. And only luck ends a run of stale drafts, so most drafts
# are stale.
#
# ## What the cooldown did
#
# A silent round decodes one token alone. Its last row is its only row, so it is the right one, and the next draft
# is fresh. The stale drafts are gone and the acceptance jumps, here as in the PR. Most of the speed comes with it, but
# not all: each rejection is paid for with a pass that drafts nothing. To read the right row costs no pass at all:

# %%
last, cooled, right = lines["last", 0], lines["last", 1], lines["right", 0]
rate = {name: line.n_accepted / line.n_drafted for name, line in (("last", last), ("cooled", cooled), ("right", right))}
per_pass = {
    name: line.n_tokens / line.n_passes for name, line in (("last", last), ("cooled", cooled), ("right", right))
}
bars(
    "acceptance",
    "Acceptance",
    [("last row", rate["last"]), ("last row, cooldown", rate["cooled"]), ("right row", rate["right"])],
    top=1.0,
)
bars(
    "speed",
    "Tokens per trunk pass",
    [("last row", per_pass["last"]), ("last row, cooldown", per_pass["cooled"]), ("right row", per_pass["right"])],
    top=2.0,
)
assert rate["cooled"] > 2 * rate["last"], "silence removes the stale drafts"
assert per_pass["right"] > per_pass["cooled"] > per_pass["last"], "the right row needs no silence, and is the fastest"
assert cooled.stale == (0, 0)
assert 0.7 < last.fresh[0] / last.fresh[1] < 0.8
assert last.stale[0] / last.stale[1] < 0.1
assert last.stale[1] > last.fresh[1], "most drafts are stale"

# %% [markdown]
# ## Two small laws
#
# With a round of silence after each rejection, a draft gives two tokens in one pass if it is accepted, or two
# tokens in two passes if not: 2 / (2 - a) tokens per pass at acceptance a. At a = 1/2 that is 1.33, the PR's
# "best case".
#
# Without it, let p be the acceptance of fresh drafts and s that of stale ones. Each rejection makes the next draft
# stale and each acceptance the next one fresh, so the acceptance A over all drafts satisfies A = p A + s (1 - A). Texts
# as short as ours come out a little above it, since each begins with a fresh draft.

# %%
print(f"2 / (2 - 1/2) = {speed_with_cooldown(0.5):.2f}")
own = stale_acceptance(last.fresh[0] / last.fresh[1], last.stale[0] / last.stale[1])
print(f"our fresh and stale drafts: {100 * own:.0f} % over all by the law, {100 * rate['last']:.0f} % counted")
assert own < rate["last"] < own + 0.08
p, s = 0.95, 0.01
print(f"fresh 95 %, stale 1 %: {100 * stale_acceptance(p, s):.0f} % over all")
assert abs(stale_acceptance(p, s) - (p * stale_acceptance(p, s) + s * (1 - stale_acceptance(p, s)))) < 1e-12
assert abs(speed_with_cooldown(rate["cooled"]) - per_pass["cooled"]) < 0.12, "the law, but for the ends of the texts"

# %% [markdown]
# A head that is right 19 times out of 20 shows 17 % when it is read from the wrong row. The tiny model's, right almost
# four times out of five, shows 26 %. The rate says nothing about the head; it says that the engine feeds on its own
# mistakes. The whole story, with the engine that does not roll back and with a trimmed head, is docs/pr-20700.md.
