"""What the embedded tiny model is asked where other programs are recorded running it: every such prompt, in one place.

The tools that record read them here, and so do the tests that compare with the recordings: who changes one makes the
recording anew (``python tools/make_derived.py``).
"""

# tests/data/llama_cpp/tiny.log.gz, tools/record_llama_cpp.py; of one line each
DECISIONS = ("def main(argv):", "class Point:", "import os", "This module provides")

# tests/data/llama_cpp/broken, tools/record_broken.py: texts with rejections, in the middle of a line and after one
BROKEN = ("class Stack:\n    def push(self, item):\n", 'def parse_header(line):\n    """Split')

# tests/data/llama_cpp/logs, tools/record_logs.py: logs are told apart by the number of tokens, so no two of the first,
# the second and the fourth have as many
FIRST, SECOND, THIRD, FOURTH = LOGS = ("def main(argv):", "class Point:", "This module provides", "import os")

# tests/data/rates, tools/record_logs.py: the server is asked all of these, then all of them as a comment
RATES = (
    "import json\n\ndef merge(a, b):\n    ",
    "class Queue:\n    def get(self",
    "def f(x):",
    "This module provides",
    "import os\nimport sys",
)

# tests/data/hf_tiny.npz, tools/record_hf.py: the first 40 ids of this, again and again
HF_TEXT = '''def read_lines(path, encoding="utf-8"):
    """Return the lines of a file."""
    with open(path) as file:
'''
