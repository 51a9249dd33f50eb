"""Traces and long runs for the tests of mtpref/look/html."""

from pathlib import Path

from mtpref.front import cli
from mtpref.look.html import Side

HOSTILE = "</script><script>pwned=1</script><img src=x onerror=pwned=1><b>\u2028&amp;\u202e'\"`${pwned=1}"


def trace_of(path: Path, *more: str, prompt: str = "Once upon a time") -> Path:
    """A run of 120 tokens with drafts of 4 and a cooldown of 1; more: options such as --fault S2."""
    settings = ["-p", prompt, "-n", "120", "--spec-draft-n-max", "4", "--spec-cooldown", "1"]
    assert cli.main(["generate", *settings, "--trace", str(path), *more]) == 0
    return path


def long_side(n_rounds: int) -> Side:
    """A run of so many rounds, each with three drafts and ten candidates a draft."""
    side = Side("long", [("model", "made up")], [1])
    names = [f"'w{i}'" for i in range(50)]
    for r in range(n_rounds):
        n_accepted = r * 7 % 4
        drafts = []
        for i in range(3):
            verdict = "accept" if i < n_accepted else "reject" if i == n_accepted else "discard"
            candidates = [[k, names[(r + i + k) % 50], round(0.5**k, 4)] for k in range(10)]
            drafts.append([r % 50, names[(r + i) % 50], verdict, candidates, []])
        origin = "bonus" if n_accepted == 3 else "correction"
        side.rounds.append({"n": r, "p": r, "a": n_accepted, "c": 0, "t": n_accepted + 1, "o": names[r % 50],
                            "b": "snapshot" if n_accepted < 3 else None, "u": [], "d": drafts,
                            "g": [1, names[r % 50], origin, 1.5, r % 9 == 0]})  # fmt: skip
        for i in range(n_accepted):
            side.tokens.append([r % 50, f"w{(r + i) % 50} ", "draft", r])
        side.tokens.append([1, f"w{r % 50}\n", origin, r])
    side.ids = [token[0] for token in side.tokens]
    side.per_pos = [[n_rounds, n_rounds, n_rounds // 2]] * 3
    side.over_time = [[i, 0.5] for i in range(0, n_rounds, 50)]
    return side
