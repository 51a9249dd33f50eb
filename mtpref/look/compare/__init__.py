"""Comparison of what two engines computed.

Read in this order: sources (any file of tensors), files (the comparison and its verdict), measures, layouts, printed
(digests of llama-eval-callback), producers (the graph of names); text and html render. log compares runs: a log of
llama-speculative-simple with our own events.
"""

from mtpref.look.compare.files import DEFAULT_LIMIT, Comparison, Difference, Feed, compare_files
from mtpref.look.compare.html import render_html
from mtpref.look.compare.log import LogAgreement, compare_log
from mtpref.look.compare.sources import Source, open_source, parse_map
from mtpref.look.compare.text import render

__all__ = [
    "DEFAULT_LIMIT",
    "Comparison",
    "Difference",
    "Feed",
    "LogAgreement",
    "Source",
    "compare_files",
    "compare_log",
    "open_source",
    "parse_map",
    "render",
    "render_html",
]
