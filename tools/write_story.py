"""Write docs/pr-20700.md: the table of `mtpref story` on the embedded tiny model, beside llama.cpp PR #20700's figures.

    python tools/write_story.py

Everything in it is counted, so the page is the same on every machine.
"""

import sys
from pathlib import Path

import mtpref
from mtpref.front.cli.story import DEFAULT_N_PREDICT, ceilings, notes, table
from mtpref.measure.story import PROMPTS, ROWS, Line, Story, speed_with_cooldown, stale_acceptance, stale_from, tell

TARGET = Path(__file__).parent.parent / "docs" / "pr-20700.md"

INTRO = """# The story of llama.cpp PR #20700

Written by `python tools/write_story.py`; the tables are what `mtpref story` prints. A test compares them with a new
run.

[PR #20700](https://github.com/ggml-org/llama.cpp/pull/20700) (March 2026, closed, not merged) was the first MTP for
Qwen3.5 in llama.cpp. Its head runs *inline*: every row of a trunk pass goes on through the head, which pairs the
row with the trunk's own greedy token and so proposes the token after it. A draft is one token, read from the last
row of the last batch. The PR met every question that an MTP loop has to answer: which row, what after a rejection,
how to roll back recurrent state, how large a head. Here its design is one drafter (`mtpref/engine/decode/inline.py`), so
the questions can be put one at a time.

## The PR's figures

These are the PR's claims, on other models and machines than ours; nothing in this section was measured here.

| claim | figure | where it stands |
|---|---|---|
| acceptance, Qwen3.5-9B Q4_K_M, temperature 0, head trimmed to 32 Ki of 248 Ki ids, one-phase | 82 %, 28.1 tokens/s | [commit message](https://git.9pm.me/happyz/llama.cpp/commit/19fdba56b5fc86f9a23bb8d1ab0e0c899c6b6a26) |
| the same, two-phase ("correct output") | 92 %, 15 tokens/s | the same |
| a draft with the trimmed head, with the full one | 6.1 ms, 22.4 ms | the same |
| acceptance with stale rows, and with a cooldown after each rejection | 13 %, 95 % | [the PR](https://github.com/ggml-org/llama.cpp/pull/20700), as others quote it |
| best case with a cooldown every other step | 1.33x | the same |

The last two lines are at second hand: this page was written without the thread's own text.
"""  # noqa: E501

WORDS = """## The same on the tiny model

`mtpref story`, {n_prompts} prompts, {n_predict} tokens each, greedy, `{numerics}` numerics. All of this section is
measured here.

{table}

{notes}

* **decoding**: *one-phase* verifies the draft in the pass of the token before it and rolls back to a snapshot; *no
  roll back* cuts KV cells but leaves the rejected token in the recurrent state (what the PR's two-phase option is
  there to avoid); *two-phase* runs the opening token alone, and the draft only if it was right.
* **row**: `last` reads the draft from the last row of the last batch, `right` from the row of the last kept token.
  **cooldown**: rounds without a draft after a rejection.
* **fresh**, **stale**: accepted / drafted, of drafts read from the row of a kept token, and of a rejected one.
* **passes / token**: fewer than {n_tokens} tokens where a text ended early; only texts that went wrong did.

### Stale rows

The batch is [opening token, draft]. Accepted, the last row is that of the draft, and the head goes on from there.
Rejected, the last row still is that of the draft: the head continues a text that was never written, and its guess
is for one place further on. On the tiny model {fresh} of the fresh drafts are accepted, {stale} of the stale ones.
One rejection makes the next draft stale, and only a lucky stale draft ends it. So with p the acceptance of fresh
drafts and s that of stale ones, the acceptance A is also the share of fresh drafts:

    A = p A + s (1 - A), so A = s / (1 - p + s)

Here that gives {law} (measured: {measured}; each text begins with a fresh draft, which the law does not know). The
PR's two figures, 95 % fresh and 13 % overall, need s = 0.13 (1 - 0.95) / (1 - 0.13) = {pr_s}: one stale draft in
{pr_one_in} is right. On the tiny model it is one in {one_in}: where the text goes on with something that fits nearly
anywhere (a full stop, `a`, `the`, `and`), a guess for another place is right by chance. On planted micro models,
whose texts have no such words, almost none is accepted (tests/test_inline.py).

**Stale rows cost acceptance and nothing else**: with a right roll back all {n_prompts} texts are those of plain
decoding in every line, bit for bit. What is drafted cannot change what is verified.

### Cooldown

After a rejection the next round decodes one token alone, so the last row is a kept one again: no draft is stale,
and acceptance goes from {measured} to {cooled}; with a trimmed head, as in the PR, from {trimmed_stale} to
{trimmed_cooled} (the PR: 13 % to 95 %). It is a repair that costs a pass. Taking the right row instead costs nothing:
{right_passes} trunk passes instead of {cooled_passes}, {stale_passes} with stale rows, {n_tokens} without MTP.

### Roll back: 82 % and 92 %

Where recurrent state keeps rejected tokens the text is another one ({n_same_dirty} of {n_prompts} texts survive,
with the PR's trimmed head and its cooldown), and the drafts get worse too: {dirty}, against {clean} with either a
right roll back or two-phase. That has the direction of the PR's 82 % and 92 %. That the PR's own gap has this cause
is an inference: its message says that two-phase is there against corruption of the recurrent state, and gives the
two figures. Two-phase needs no roll back, and stale rows cannot occur in it: a rejected token is never run, so
`last` and `right` are the same. But every token costs a pass of its own, whatever is accepted: 1.00 tokens / pass
(the PR: 15 tokens/s against 28.1). A snapshot of the recurrent state after each token of the batch gives
two-phase's acceptance in one-phase's passes; that is what merged llama.cpp does.

### The trimmed head

A draft can name only ids that the head has, so the share of nameable tokens above is an upper bound on acceptance.
Acceptance falls from {right} to {right_trimmed}, the text stays. `--spec-draft-vocab` takes a count, as here, or a
file with a list of ids.

## Ceilings

One draft a round can at best give two tokens a pass. Each line is derived, and run with a drafter that knows the
text:

{ceilings}

1.33x is the third line: a cooldown after every other draft, because every other one is rejected. In general a
drafting round with cooldown gives 2 tokens in 1 pass (accepted) or in 2 (rejected): 2 / (2 - a) tokens a pass at
acceptance a, which is {speed_half} at a = 0.5 and {speed_cooled} at the {cooled} above (measured: {cooled_speed}).
Without cooldown it is 1 + a. Trunk passes are not time: a pass over two tokens costs more than one over one, and
the head has its price.

## What to take from it

1. Take the draft from the row of the last kept token: the row n_accepted of the verified batch (S24). llama.cpp's
   merged line does (`accept`). Then cooldown is a question of cost, not of truth.
2. Roll recurrent state and conv window back with the KV. Compare with plain decoding: equal text is the test.
3. Acceptance that is fine until the first rejection and near zero after it means a stale row.
4. Acceptance that falls with the length of the text, with text that differs, means state that was not rolled back.

What is simplified: the prompt's rows are paired with the prompt's own next tokens (not with greedy ones); the
head's cells of rejected rows are cut with the trunk's; the head runs when the draft is read, which gives the same
bits as inside the pass.
"""


def render() -> str:
    story = tell(mtpref.load().core, PROMPTS, DEFAULT_N_PREDICT)
    return INTRO + "\n" + WORDS.format(**values(story))


def values(story: Story) -> dict[str, object]:
    """What the page says in its sentences, from the runs."""
    stale, cooled, right = (find(story, "one-phase", row, k, None) for row, k in ROWS)
    trimmed = story.n_draft_vocab
    trimmed_stale, trimmed_cooled, trimmed_right = (find(story, "one-phase", row, k, trimmed) for row, k in ROWS)
    dirty, clean = (find(story, decoding, "last", 1, trimmed) for decoding in ("no roll back", "two-phase"))
    law = stale_acceptance(stale.fresh[0] / stale.fresh[1], stale.stale[0] / stale.stale[1])
    pr_s = stale_from(0.13, 0.95)
    return {
        "n_prompts": story.n_prompts,
        "n_predict": story.n_predict,
        "numerics": story.numerics,
        "n_tokens": story.n_tokens,
        "table": "\n".join(table(story)),
        "notes": "\n\n".join(notes(story)),
        "ceilings": "\n".join(ceilings(story)),
        "fresh": percent(stale.fresh[0] / stale.fresh[1]),
        "stale": percent(stale.stale[0] / stale.stale[1]),
        "law": percent(law),
        "measured": acceptance(stale),
        "pr_s": f"{100 * pr_s:.2f} %",
        "pr_one_in": round(1 / pr_s),
        "one_in": round(stale.stale[1] / stale.stale[0]),
        "cooled": acceptance(cooled),
        "stale_passes": stale.n_passes,
        "cooled_passes": cooled.n_passes,
        "trimmed_stale": acceptance(trimmed_stale),
        "trimmed_cooled": acceptance(trimmed_cooled),
        "right_passes": right.n_passes,
        "n_same_dirty": dirty.n_same,
        "dirty": acceptance(dirty),
        "clean": acceptance(clean),
        "right": acceptance(right),
        "right_trimmed": acceptance(trimmed_right),
        "speed_half": f"{speed_with_cooldown(0.5):.2f}",
        "speed_cooled": f"{speed_with_cooldown(cooled.n_accepted / cooled.n_drafted):.2f}",
        "cooled_speed": f"{cooled.n_tokens / cooled.n_passes:.2f}",
    }


def find(story: Story, decoding: str, row: str, cooldown: int, n_draft_vocab: int | None) -> Line:
    wanted = (decoding, row, cooldown, n_draft_vocab)
    return next(
        line
        for line in story.lines
        if (line.setup.decoding, line.setup.row, line.setup.cooldown, line.setup.n_draft_vocab) == wanted
    )


def acceptance(line: Line) -> str:
    return percent(line.n_accepted / line.n_drafted)


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def main() -> int:
    TARGET.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
