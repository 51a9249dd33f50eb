"""What the embedded tiny model is asked where other programs are recorded running it: every such prompt, in one place.

The tools that record read them here, and so do the tests that compare with the recordings: who changes one makes the
recording anew (``python tools/make_derived.py``).
"""

# tests/data/llama_cpp/tiny.log.gz and tiny-f32.log.gz, tools/record_llama_cpp.py; of one line each, the last one code.
# The texts after them keep clear of near ties
DECISIONS = (
    "Once upon a time there was",
    "The lamp went out",
    "It was a cold evening in the village.",
    "Hugo found an egg in the grass.",
    "import os",
)

# tests/data/llama_cpp/broken, tools/record_broken.py: texts with rejections, in the middle of a line and after one
BROKEN = ("The fog lay over the harbour", "Nina ran after the hat.\n\n")

# tests/data/llama_cpp/logs, tools/record_logs.py: logs are told apart by the number of tokens, so no two of the first,
# the second and the fourth have as many; the second and the third have. The texts after them keep clear of near ties
FIRST, SECOND, THIRD, FOURTH = LOGS = (
    "Once upon a time there was",
    "The lamp went out",
    "In the attic",
    "The church",
)

# tests/data/llama_cpp/logs/sampled.log.gz: its first token is a near tie
SAMPLED = "It had rained all night, and"

# tests/data/rates, tools/record_logs.py: the server is asked all of these, then all of them after LISTEN
RATES = (
    "The pie was gone.",
    "The river had risen in the night.",
    "Ruby wanted a drum.",
    "On the hill stood",
    SAMPLED,
)
LISTEN = '"Listen," said Nina. '

# tests/data/hf_tiny.npz, tools/record_hf.py: the first 40 ids of this, again and again
HF_TEXT = """The hat flew over the roof of the bakery. Nina ran after it, but the wind was quicker.

"Wait here," said Oscar.
"""
