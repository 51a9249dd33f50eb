"""What can be checked on the user's own machine and file: `mtpref selftest`.

Owns the table of checks and the run over it. Each check is a function of a Bench, in a file by its subject; it
returns what it found, or raises Failed or Skipped. docs/checks.md says what each one means.
"""

from mtpref.look.selftest.bench import Bench, Failed, Size, Skipped, full, quick
from mtpref.look.selftest.run import CHECKS, Check, Result, run_checks

__all__ = ["CHECKS", "Bench", "Check", "Failed", "Result", "Size", "Skipped", "full", "quick", "run_checks"]
