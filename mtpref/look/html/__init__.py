"""Traces as a page to look at: rows.py reduces a run to what is shown, page.py makes one HTML file of it.

page.css and page.js are the page's own; nothing is loaded from elsewhere.
"""

from mtpref.look.html.page import render_page
from mtpref.look.html.rows import MAX_ROUNDS, Side, divergence, read_side

__all__ = ["MAX_ROUNDS", "Side", "divergence", "read_side", "render_page"]
