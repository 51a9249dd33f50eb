"""Fuzzing of everything that is read from outside: edits of real files, targets, and what counts as a failure.

Read in this order: fields (a GGUF header as fields), edits (one change to a field or to bytes), texts (the same for
JSON and plain text), targets (a case by its number), catalogue (what is read and run), judge (what may come of it).
tools/fuzz.py is the long mode, tests/test_hostile.py the short one.
"""
