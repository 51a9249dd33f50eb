"""Write the measured section of docs/probe.md: the embedded tiny model on texts that it was not trained on.

    python tools/write_probe.py

The texts are held-out stories of tools/tiny/stories, and held-out files of tools/tiny/data.py, whose numbers belong to
one version of CPython: the section says which, by the hash of these files. Everything in it is counted, so it is the
same on every machine.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from compare_head_quants import SEED
from tiny.data import Corpus, load_corpus
from tiny.text import held_out_stories, training_stories

import mtpref
from mtpref.engine.model import Model
from mtpref.measure.probe import Report, Settings, Text, probe
from mtpref.measure.probe.report import ContractLine
from mtpref.measure.probe.tables import Group
from mtpref.measure.probe.vocabulary import Domain, always_ids, rank_ids
from mtpref.measure.probe.vocabulary_report import VocabularyReport, measure

TARGET = Path(__file__).parent.parent / "docs" / "probe.md"
BEGIN, END = "<!-- measured: tools/write_probe.py -->\n", "<!-- end of measured -->\n"
STORIES, PROSE = "stories", "docstrings"
N_STORIES, N_TRAINING_STORIES = 8, 1000
FILES = ("ast.py", "typing.py")
N_TOKENS = 1024
SETTINGS = Settings(n_positions=400, with_contracts=True)
LIST_SIZES = (256, 512, 1024)


def texts_of(model: Model, corpus: Corpus) -> list[Text]:
    """Stories, then the first tokens of each file, and of all docstrings of the held-out files."""
    held_out = dict(corpus.held_out)
    named = [(STORIES, story) for story in held_out_stories(N_STORIES)]
    named += [(name, held_out[name]) for name in FILES] + [(PROSE, docstrings(held_out.values()))]
    return [Text(name, tuple(model.vocab.encode(text[: 16 * N_TOKENS])[:N_TOKENS])) for name, text in named]


def docstrings(sources: Iterable[str]) -> str:
    """Every docstring of more than 200 characters, in order, parted by blank lines."""
    found = []
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in found if len(text) > 200)


def row(g: Group) -> list[str]:
    """A domain in the table; a test measures one of them again."""
    rates = [e.shown() for e in g.unconditional]
    return [g.name, str(g.n), *rates, g.mean_length.shown(2)]


def render(report: Report, lists: list[VocabularyReport], corpus: Corpus) -> str:
    own = report.language
    parts = [
        f"Embedded tiny model, `{report.numerics}` numerics, contract `{report.contract}`. Texts: {N_STORIES} stories "
        f"that are held out of its training, the first {N_TOKENS} tokens of each of {len(FILES)} held-out files of "
        f"CPython {corpus.python_version}'s library, "
        f"and of the docstrings of all held-out files (sha256 `{corpus.sha256_held_out[:16]}...`, "
        f"[the tiny model](models.md#the-tiny-model)); at most {SETTINGS.n_positions} positions of each. "
        "Brackets: 95 %.",
        _table(["domain", "positions", "a_1", "a_2", "a_3", "tokens per round"],
               [row(g) for g in [*report.domains, report.trunk]]),
        f"The text's own next token: trunk right {own.trunk_right:.3f}, head right {own.head_right:.3f}. The "
        "head was trained to say what the finished trunk says, so the text's own token is one step further from it.",
        "These texts are others than those of [the model's card](models.md#measured), hence other rates.",
        "Controls, same positions:",
        _table(["control", "a_1", "head less control"],
               [[f"`{c.name}`", c.rate.shown(), c.head_less_control.shown()] for c in report.controls]),
        f"The verdict line: \"{report.verdict}\".",
        "`--contracts`:",
        _table(["contract", "a_1", "a_2", "tokens per round", "a_1 less probed"],
               [_contract(line) for line in report.contracts]),
        CONTRACT_WORDS,
        "### Draft vocabularies",
        f"Ids ranked on the first {N_TRAINING_STORIES} training stories and the training files ({lists[0].n_counted} "
        "tokens), measured on the texts above:",
        _table(["head", "ids", "text covered", "targets covered", "a_1", "a_1 lost", "tokens per round"],
               _list_rows(lists)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


CONTRACT_WORDS = (
    "This settles the quarrel over pre- and post-norm for *this* file only, whose head hardly cares. Others report -1 "
    "to -6 points at 27B and 35B, and a mean length of 1.80 against 2.74 at 0.8B "
    "([LightLLM #1402](https://github.com/ModelTC/LightLLM/pull/1402))."
)


def _contract(line: ContractLine) -> list[str]:
    rates = [e.shown() for e in line.group.unconditional[:2]]
    less = "(probed)" if line.is_probed else line.a1_less_probed.shown()
    return [f"`{line.contract}`", *rates, line.group.mean_length.shown(2), less]


def _list_rows(lists: list[VocabularyReport]) -> list[list[str]]:
    rows = []
    for i, report in enumerate(lists):
        for line in report.domains[-1][1]:
            if line.head == "full head" and i:
                continue
            lost = "" if line.head == "full head" else line.a1_lost.shown()
            covered = [f"{line.text_coverage or 0:.3f}", f"{line.target_coverage or 0:.3f}"]
            a1, length = line.group.unconditional[0].shown(), line.group.mean_length.shown(2)
            rows.append([line.head, str(line.n_ids), *covered, a1, lost, length])
    return rows


def _table(titles: list[str], rows: list[list[str]]) -> str:
    body = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)


def vocabularies(model: Model, corpus: Corpus, texts: list[Text]) -> list[VocabularyReport]:
    counts = np.zeros(model.n_vocab, np.int64)
    for source in (*training_stories(SEED, N_TRAINING_STORIES, 1), *(source for _, source in corpus.train)):
        counts += np.bincount(model.vocab.encode(source), minlength=model.n_vocab)
    domains = []
    for text in texts:
        ids = np.array(text.ids, np.int32)
        domains.append(Domain(text.label, np.zeros_like(counts), np.bincount(ids, minlength=model.n_vocab), [ids]))
    domains[0].counts = counts
    always = always_ids(model.vocab, model.n_vocab, "control")
    settings = Settings(n_positions=SETTINGS.n_positions)
    return [measure(model, rank_ids(counts, n, always), domains, settings) for n in LIST_SIZES]


def main() -> int:
    model, corpus = mtpref.load().core, load_corpus()
    texts = texts_of(model, corpus)
    section = render(probe(model, texts, SETTINGS), vocabularies(model, corpus, texts), corpus)
    page = TARGET.read_text(encoding="utf-8")
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    TARGET.write_text(f"{before}\n{section}\n{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
