"""The one exception that a user is meant to see.

Owns the rule for refusals: one line that names what is wrong, the value found, the value expected and
what to try. The command line prints it and exits with code 2, without a traceback.
"""


class MtprefError(Exception):
    """A refusal. `str(error)` is one line: what, found, expected, what to try."""
