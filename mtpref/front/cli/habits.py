"""Flags that fingers know from llama.cpp: each is taken as what it means here, or answered in one line.

Owns the two tables, which docs/cli.md prints. A flag that a verb has of its own is never looked up here.
"""

import argparse

_NO_GPU = "there is no GPU here; leave it out"
_NO_NET = "nothing is downloaded here; get the file first and give it with -m"
_ONE = "one sequence runs at a time here; leave it out"
_SAMPLER = "this sampler is not here; leave it out, or choose among --samplers top_k;top_p;min_p;temperature"

# What is answered: flags, and what to do instead.
ANSWERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("-ngl", "--gpu-layers", "--n-gpu-layers", "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"), _NO_GPU),
    (("-dev", "--device", "-devd", "--device-draft", "-sm", "--split-mode", "-ts", "--tensor-split", "-mg",
      "--main-gpu", "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "-fit", "--fit",
      "-kvo", "--kv-offload", "-nkvo", "--no-kv-offload", "--op-offload", "--no-op-offload", "--list-devices",
      "--spec-draft-ngl", "--spec-draft-device"), _NO_GPU),
    (("-fa", "--flash-attn"), "attention has one order of sums here, so there is nothing to choose; leave it out"),
    (("-ub", "--ubatch-size"), "a pass is as wide as -b says, with the same bits for every width; leave it out"),
    (("-np", "--parallel", "-cb", "--cont-batching"), _ONE),
    (("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hfd", "-hfrd", "--hf-repo-draft", "-mu", "--model-url",
      "-hft", "--hf-token", "--offline", "-dr", "--docker-repo", "--spec-draft-hf"), _NO_NET),
    (("-tb", "--threads-batch", "-td", "--threads-draft", "-tbd", "--threads-batch-draft",
      "--spec-draft-threads", "--spec-draft-threads-batch"),
     "-t sets the threads of every pass; leave it out"),
    (("--mlock", "--no-mmap", "--mmap", "-dio", "--direct-io", "--numa"),
     "weights are mapped, and what is read often is packed; leave it out (-nr packs nothing)"),
    (("--no-warmup", "--warmup"), "generate has no warm-up pass; leave it out (mtpref warmup compiles ahead)"),
    (("-v", "--verbose", "-lv", "--verbosity", "--log-verbosity", "--log-disable", "--verbose-prompt"),
     "notes are few, and go to stderr; leave it out (--trace FILE.jsonl writes every event)"),
    (("--log-file",), "notes go to stderr; leave it out and add 2> FILE, or use --trace FILE.jsonl"),
    (("--perf", "--no-perf", "--show-timings", "--no-show-timings"),
     "statistics go to stderr after every text; leave it out"),
    (("-rea", "--reasoning", "--reasoning-budget", "--reasoning-effort"),
     "the template decides on thinking; see --chat-template-kwargs, e.g. '{\"enable_thinking\": false}'"),
    (("--reasoning-format",), "a thought is printed as the model writes it; leave it out"),
    (("-sysf", "--system-prompt-file"), 'give the text itself: -sys "$(cat FILE)"'),
    (("-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll"),
     "the system places threads; leave it out (-t says how many)"),
    (("--no-display-prompt", "--display-prompt"), "the prompt is never printed; leave it out"),
    (("-sp", "--special"), "control tokens are never printed as text; leave it out (--trace has every id)"),
    (("--no-escape",), "escapes are read with -e alone; leave it out"),
    (("-i", "--interactive", "-if", "--interactive-first"), "use -cnv"),
    (("--repeat-penalty", "--repeat-last-n", "--presence-penalty", "--frequency-penalty", "--dry-multiplier",
      "--mirostat", "--mirostat-lr", "--mirostat-ent", "--typical", "--typical-p", "--xtc-probability",
      "--xtc-threshold", "--top-n-sigma", "--top-nsigma", "--dynatemp-range", "--dynatemp-exp",
      "--dry-base", "--sampler-seq", "--sampling-seq"), _SAMPLER),
    (("--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file", "-l", "--logit-bias"),
     "output is not constrained here; leave it out"),
    (("--lora", "--lora-scaled", "--control-vector", "-mm", "--mmproj", "--image", "--override-kv"),
     "the model runs as its file has it; leave it out"),
    (("--spec-draft-p-split", "--draft-p-split"), "the draft is one chain, no tree; leave it out"),
    (("--spec-default",), "drafting is on wherever the file has a head; leave it out"),
    (("-kvu", "--kv-unified", "--swa-full", "-ctxcp", "--ctx-checkpoints", "--cache-ram", "-cram", "--context-shift",
      "--no-context-shift"),
     "the state is as long as -c says and is rolled back exactly; leave it out (--spec-rollback chooses how)"),
    (("--keep",), "nothing is dropped from a context here; leave it out"),
)  # fmt: skip
# What is taken: flags, and what they are here.
TAKEN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--draft", "--draft-n", "--draft-max"), "--spec-draft-n-max"),
    (("--draft-min", "--draft-n-min"), "--spec-draft-n-min"),
    (("--draft-p-min",), "--spec-draft-p-min"),
    (("--spec-type mtp",), "--spec-type draft-mtp"),
    (("--spec-draft-type-k", "--spec-draft-type-v"), "--cache-type-k-draft, --cache-type-v-draft"),
    (("-st", "--single-turn"), "--chat"),
    (("-no-cnv", "--no-conversation"), "what generate does without -cnv"),
    (("--jinja",), "what --chat does always"),
    (("-co",), "--color"),
)

_ANSWER = {flag: answer for flags, answer in ANSWERS for flag in flags}


def answer(flag: str) -> str | None:
    """What to do instead of a flag of llama.cpp that is not here; None for any other word."""
    return _ANSWER.get(flag)


def add_taken_spec(group: argparse._ArgumentGroup) -> None:
    """The older names of the draft's limits."""
    for names, dest, kind in (
        (("--draft-max", "--draft", "--draft-n"), "spec_draft_n_max", int),
        (("--draft-min", "--draft-n-min"), "spec_draft_n_min", int),
        (("--draft-p-min",), "spec_draft_p_min", float),
    ):
        group.add_argument(*names, dest=dest, type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_taken_chat(group: argparse._ArgumentGroup) -> None:
    """-st is --chat, -no-cnv and --jinja are what happens anyway."""
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    group.add_argument("-st", "--single-turn", dest="chat", action="store_true", **hidden)  # type: ignore[arg-type]
    group.add_argument("-no-cnv", "--no-conversation", dest="conversation", action="store_false", **hidden)  # type: ignore[arg-type]
    group.add_argument("--jinja", action="store_true", **hidden)  # type: ignore[arg-type]
