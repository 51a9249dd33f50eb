"""What a check can find: ids, how bad each is, what it means and what to do.

Data only. A finding of severity `fail` makes the exit code 1, one of `cannot-judge` without any of
those 3. Read next: report.py.
"""

from dataclasses import dataclass

OK, NOTE, WARNING, CANNOT, FAIL = "ok", "note", "warning", "cannot-judge", "fail"


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its severity, what it means in a clause, what to do about it."""

    severity: str
    meaning: str
    remedy: str


_AGAIN = "convert again from the original checkpoint with `mtpref convert`"
GRAFT = _GRAFT = "`mtpref graft` puts in the head of another file or of the original checkpoint"
_DROPPED = f"{_GRAFT}; `mtpref strip` drops the declaration; or {_AGAIN}"
_EITHER = f"{_GRAFT}; a trunk's: {_AGAIN}"
TRUNK = _TRUNK = "get the trunk anew: download it again, or convert the original checkpoint; another head does not help"

CATALOGUE: dict[str, Kind] = {
    "head-absent": Kind(FAIL, "no key declares a head and no tensor of one is there", _GRAFT),
    "head-apart": Kind(
        CANNOT, "the head is a model of its own, in another file", "give it too: `mtpref check TARGET -md ASSISTANT`"
    ),
    "head-dropped": Kind(FAIL, "the head is declared, and its tensors are not there", _DROPPED),
    "head-undeclared": Kind(
        FAIL,
        "tensors of a head are there, and no key declares it: engines do not use it",
        "`mtpref graft FILE FILE -o OUT.gguf` (FILE twice) declares it",
    ),
    "head-incomplete": Kind(FAIL, "a part of the head is missing", _GRAFT),
    "heads-overcounted": Kind(
        FAIL, "the key counts more MTP blocks than are there, so the trunk loses its last layers", _AGAIN
    ),
    "shards-missing": Kind(FAIL, "a file of a split model is missing; the head is mostly in the last", "find it"),
    "other-counts": Kind(
        NOTE,
        "later files of a split model count other files than the first: a head was put beside them",
        "nothing; `llama-gguf-split --merge` makes one file for a program that refuses the set",
    ),
    "inventory": Kind(FAIL, "a tensor or key is missing, misshapen, unexpected or contradicts another", _AGAIN),
    "unused-tensor": Kind(WARNING, "a tensor that nothing reads", "see where it comes from; nothing is lost by it"),
    "trailing-bytes": Kind(
        WARNING,
        "bytes after the last tensor that belong to none: appended, or its type is not the one that was written",
        "--against the original tells",
    ),
    "cannot-load": Kind(FAIL, "the model cannot be loaded", _AGAIN),
    "unsupported": Kind(
        CANNOT,
        "something that this version of mtpref does not know; it may be right",
        "run the head in an engine that knows it, or check the file that it was quantised from",
    ),
    "cannot-convert": Kind(FAIL, "`mtpref convert` refuses the folder", "the reason is beside it"),
    "not-finite": Kind(FAIL, "a weight is NaN or infinite", "download or convert the file again"),
    "not-finite-run": Kind(FAIL, "a run of the model gives NaN or infinity", _AGAIN),
    "tensor-zero": Kind(FAIL, "a matrix or norm is zero", _EITHER),
    "gate-zero": Kind(
        WARNING,
        "a gate is zero, so that what it gates counts one half for every token; other layers' is not",
        "--against the original tells",
    ),
    "tensor-few-values": Kind(FAIL, "a matrix has a few values where others have many: quantised to nothing", _EITHER),
    "tensor-doubled": Kind(FAIL, "a matrix has the values of another layer's: one of the two is misplaced", _EITHER),
    "eh-proj-half-zero": Kind(FAIL, "one half of eh_proj's columns is zero: half of a shard, 4 bits a row", _GRAFT),
    "random-matrix": Kind(FAIL, "a matrix of the head is noise: made and never loaded", _GRAFT),
    "norms-never-loaded": Kind(FAIL, "every norm of the head is exactly 1: it was made and never loaded", _GRAFT),
    "norms-suspect": Kind(
        WARNING, "the head's layer norms lie one below or above the trunk's", "let the check run, without --fast"
    ),
    "norm-convention": Kind(
        FAIL, "with 1 added to or taken from these norms the head is better: converted wrongly", _GRAFT
    ),
    "trunk-norm-convention": Kind(
        FAIL, "with 1 added to or taken from the trunk's norms the model reads text better", _AGAIN
    ),
    "halves-swapped": Kind(FAIL, "with the halves of eh_proj's input swapped the head is better", _GRAFT),
    "exchanged": Kind(FAIL, "with these two weights in each other's place the head is better", _GRAFT),
    "part-harmful": Kind(FAIL, "without this part the head is better: random, altered or wrongly read", _GRAFT),
    "head-unclear": Kind(
        FAIL,
        "a change makes the head better for sure and none mends it: a part is wrong, the file alone does not say which",
        f"--against the original names it; {_GRAFT}",
    ),
    "part-idle": Kind(
        WARNING, "without this part the head is as good: altered, or never trained", "--against the original tells"
    ),
    "head-useless": Kind(
        FAIL, "the head guesses no better than without a model, and no single change tells which part is wrong", _GRAFT
    ),
    "head-ignores-trunk": Kind(
        FAIL, "the hidden rows of another position serve the head as well: not this trunk's head, or half of it", _GRAFT
    ),
    "constant-draft": Kind(FAIL, "the head drafts one token whatever it reads", _GRAFT),
    "trunk-part-harmful": Kind(FAIL, "without this part the trunk reads the text better", _TRUNK),
    "trunk-useless": Kind(
        FAIL, "the trunk reads the text no better than a count of its tokens, so the head cannot be judged", _TRUNK
    ),
    "trunk-behind": Kind(
        WARNING,
        "the head reads the text better than its trunk: something of the trunk is altered, the file alone does not say "
        "what",
        "--against the original names it",
    ),
    "trunk-unclear": Kind(
        FAIL,
        "the head is found wrong against a trunk that reads the text worse than it does: the trunk is altered, the "
        "file alone does not say where",
        _TRUNK,
    ),
    "trunk-odd": Kind(
        WARNING,
        "the trunk reads the text no better than a count of its tokens, though the head follows it: altered, or never "
        "trained on text",
        "--against the original tells",
    ),
    "no-text": Kind(
        WARNING,
        "its ids hold no text, so the trunk was not judged, and the head only against guesses",
        "--against the original compares values",
    ),
    "head-not-judged": Kind(NOTE, "the head was run on a trunk that is not sound", "mend the trunk, then check again"),
    "low-bits": Kind(NOTE, "eh_proj or a head of its own has few bits", "`mtpref quantize` keeps them at Q8_0"),
    "fallbacks": Kind(OK, "what the head shares with the trunk", ""),
    "types": Kind(OK, "types of the head's tensors", ""),
    "acceptance": Kind(OK, "teacher-forced acceptance on a built-in text", ""),
    "too-little": Kind(NOTE, "too little text for intervals", "`mtpref probe -f` on a text of yours"),
    "unversioned": Kind(NOTE, "a server does not say which version of a file it gives", ""),
    "not-run": Kind(NOTE, "the head was not run", "see the reason beside it"),
    "tokenizer": Kind(FAIL, "the vocabulary cannot be right", _AGAIN),
    "tokenizer-note": Kind(NOTE, "the vocabulary is odd", ""),
    "template": Kind(WARNING, "the chat template cannot be rendered", "give another one with --chat-template"),
    "template-ok": Kind(OK, "the chat template renders", ""),
    "d2t": Kind(FAIL, "the ids of a trimmed head are out of order, doubled or out of range", _GRAFT),
    "dropper": Kind(NOTE, "a tool that is known to lose heads has left its mark", ""),
    "config-undeclared": Kind(
        NOTE, "config.json does not declare the head that the tensors have", "`mtpref convert` keeps it"
    ),
    "head-beside": Kind(
        NOTE, "the head is in a file that the index does not list: programs that go by it miss the head", ""
    ),
    "stored-as": Kind(NOTE, "tensors are quantised, and read as the values that they stand for", ""),
    "trunk-unread": Kind(
        NOTE,
        "the trunk is stored in a format that mtpref does not read; the head can be taken all the same",
        "`mtpref graft TRUNK.gguf FOLDER -o OUT.gguf`",
    ),
    "unmapped": Kind(FAIL, "tensors have no place in a GGUF", "`mtpref convert --allow-unmapped` leaves them out"),
    "against-missing": Kind(FAIL, "the other file has a tensor that this one lacks", _GRAFT),
    "against-extra": Kind(NOTE, "this file has a tensor that the other lacks", ""),
    "against-shape": Kind(FAIL, "a tensor has another shape in the other file", _AGAIN),
    "against-skipped": Kind(NOTE, "a tensor could not be compared: the type of one of them cannot be read", ""),
    "against-unread": Kind(
        NOTE,
        "tensors of the other folder cannot be read, and were not compared",
        "`mtpref check` of that folder says more",
    ),
    "against-value": Kind(FAIL, "a tensor differs by more than its type explains", _AGAIN),
    "against-values": Kind(OK, "the tensors are the other file's, as well as their types can say", ""),
    "against-acceptance": Kind(OK, "acceptance beside the other file's", ""),
    "against-worse": Kind(WARNING, "acceptance is lower than the other file's", "quantise its head less"),
}
# What a cause among the findings explains: never the verdict beside one.
SYMPTOMS = ("head-useless", "head-ignores-trunk", "constant-draft", "head-unclear")


@dataclass(frozen=True)
class Finding:
    """One thing found. what: the tensor, key or part; text: found and expected, one line; own_remedy: instead of its
    kind's, where the place of it says more."""

    id: str
    what: str
    text: str
    own_remedy: str = ""

    @property
    def severity(self) -> str:
        return CATALOGUE[self.id].severity

    @property
    def remedy(self) -> str:
        return self.own_remedy or CATALOGUE[self.id].remedy

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "severity": self.severity, "what": self.what, "text": self.text, "remedy": self.remedy}
