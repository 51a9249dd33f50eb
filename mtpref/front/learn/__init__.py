"""The chapters: short programs that explain MTP on the tiny model, offline. `mtpref learn` shows them.

A chapter is one file of front/learn/chapters in percent format: cells of prose, and cells of code whose asserts are
the chapter's claims. chapter.py reads and runs them, show.py draws, render.py writes them for a terminal, for docs/
and as a Jupyter notebook, mystery.py holds the exercise of chapter 11.
"""

from mtpref.front.learn.chapter import CHAPTERS, Cell, Chapter, find_chapter, run_chapter
from mtpref.front.learn.mystery import EXERCISE, N_MYSTERIES, is_answer, is_family, mystery

__all__ = [
    "CHAPTERS",
    "EXERCISE",
    "N_MYSTERIES",
    "Cell",
    "Chapter",
    "find_chapter",
    "is_answer",
    "is_family",
    "mystery",
    "run_chapter",
]
