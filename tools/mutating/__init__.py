"""Mutations: one-line edits of the package, each of which some test should notice.

Read in this order: mutations.toml (the edits), places (where in a tree an edit belongs, and which functions stand
above it), recording (which test runs which line), judging (a tree with one edit, up to the first test that fails).
pytest_side.py is loaded by the pytest processes. tools/mutations.py is the command.
"""
