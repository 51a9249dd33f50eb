"""`mtpref generate`: text on stdout, everything else on stderr."""

import argparse
import contextlib
import json
from functools import partial
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.chat_options import ChatSettings, add_chat
from mtpref.front.cli.fault_options import refuse_in_conversation
from mtpref.front.cli.options import (
    DEFAULT_PROMPT,
    add_model,
    add_prompt,
    has_piped_prompt,
    load_model,
    read_prompt,
    refuse_model,
)
from mtpref.front.cli.output import Notes, Text, begin, wants_text_color
from mtpref.front.cli.sampling_options import add_sampling
from mtpref.front.cli.session_options import PromptCache, add_session
from mtpref.front.cli.signals import sigterm_as_interrupt
from mtpref.front.cli.spec_options import add_spec, decode_options
from mtpref.front.cli.writing import OutputPath

SCHEMA = "mtpref-generate-1"
DEFAULT_N_PREDICT = 128


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "generate",
        usage="mtpref generate [options]",
        help="generate text, drafting with the model's MTP head",
        description="Generate text, drafting with the model's MTP head and verifying with the model itself; greedily, "
        "unless --temp says otherwise. "
        "stdout is the text only; notes and statistics go to stderr.",
    )
    add_model(parser)
    add_prompt(parser)
    add_chat(parser)
    run = parser.add_argument_group("generation")
    run.add_argument(
        "-n",
        "--predict",
        "--n-predict",
        dest="n_predict",
        type=int,
        default=DEFAULT_N_PREDICT,
        metavar="N",
        help=f"tokens to generate at most, -1: no limit (default: {DEFAULT_N_PREDICT})",
    )
    run.add_argument(
        "-c", "--ctx-size", type=int, default=0, metavar="N", help="context length, 0: the model's (default: 0)"
    )
    run.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="prompt tokens per pass (default: 512)"
    )
    add_sampling(parser)
    add_spec(parser)
    add_session(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "-co",
        "--color",
        nargs="?",
        const="auto",
        default="never",
        choices=("auto", "always", "never", "on", "off"),
        metavar="WHEN",
        help="the text by where each token came from: draft, correction, bonus, plain, with a legend; auto, as "
        "--color alone: on a terminal, unless NO_COLOR is set; always; never (default: never)",
    )
    out.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the text (default: off)")
    out.add_argument(
        "--trace",
        type=OutputPath,
        metavar="FILE.jsonl",
        help="write every event to a file as it happens (default: none)",
    )
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    from mtpref import kernels
    from mtpref.faults import refuse_faults
    from mtpref.look.trace import TraceWriter

    chat = ChatSettings(args)
    cache = PromptCache(args)
    if cache.path:
        refuse_faults(args.fault, "--prompt-cache: states on file")
    prompt = _given_prompt(args, chat)
    say = Notes()
    say.when_compiling(args)
    started = kernels.clock()
    model = load_model(args)
    load_seconds = kernels.clock() - started
    options = decode_options(args, model)
    say.model(args, model, options)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(TraceWriter(args.trace)) if args.trace else None
        if chat.is_conversation:
            return _converse(args, chat, cache, model, options, prompt, writer, say)
        if chat.is_chat:
            prompt = chat.prompt(model, [*chat.first_messages(), {"role": "user", "content": prompt}])
            say.line(prompt.describe())
        elif prompt is DEFAULT_PROMPT:
            say.line(f"prompt: {prompt!r} (give your own with -p or -f)")
        n_ctx = _n_ctx(args, model)
        session = cache.open(model, n_ctx, say) if cache.path else None
        run = model.generate(prompt, options, n_ctx=n_ctx, session=session)
        run.statistics.seconds["load"] = load_seconds
        is_colored = wants_text_color(args)
        if is_colored:
            say.legend()
        text = Text(is_silent=args.json, is_colored=is_colored)
        reason = _consume(run, writer, text, say)
    if session is not None:
        cache.close(session, say)
    if args.json:
        _print_json(model, run, reason)
    for line in (*([] if args.json or text.is_at_line_start else [""]), *run.statistics.lines()):
        say.line(line)
    say.compiled()
    return 130 if reason == "interrupted" else 0


def _given_prompt(args: argparse.Namespace, chat: ChatSettings) -> Any:
    """The prompt's text; None where a conversation begins with its first typed turn."""
    is_given = args.prompt is not None or args.file is not None
    if chat.is_conversation and not is_given:
        return None
    if chat.is_chat and not is_given and not has_piped_prompt(args):
        refuse_model(args)
        raise MtprefError("prompt: none is given, expected the user's message; use -p TEXT, -f FNAME, or -cnv")
    return read_prompt(args)


def _converse(
    args: argparse.Namespace,
    chat: ChatSettings,
    cache: PromptCache,
    model: Any,
    options: Any,
    first: str | None,
    writer: Any,
    say: Notes,
) -> int:
    from mtpref.front.cli.conversation import Conversation, run_conversation

    refuse_in_conversation(args)
    say.line(chat.describe(model))
    session = cache.open(model, _n_ctx(args, model), say)
    conversation = Conversation(model, chat, options, session, lambda run, text: _consume(run, writer, text, say))
    try:
        return run_conversation(args, conversation, first, say, partial(_print_json, model))
    finally:
        cache.close(session, say)


def _n_ctx(args: argparse.Namespace, model: Any) -> int:
    n_train = model.core.config.n_ctx_train
    if args.ctx_size < 0 or args.ctx_size > n_train:
        raise MtprefError(f"--ctx-size: {args.ctx_size} is out of range, expected 0 .. {n_train}, the model's context")
    return int(args.ctx_size)


def _consume(run: Any, writer: Any, text: Text, say: Notes) -> str:
    """Print the text as it comes; returns why it ended."""
    from mtpref.base.events import PromptProgress, RunEnded, Token
    from mtpref.look.trace import tee

    reason = "interrupted"
    try:
        with sigterm_as_interrupt():
            for event in tee(run, writer):
                begin()
                if isinstance(event, Token):
                    say.end_progress()
                    text.event(event)
                elif isinstance(event, PromptProgress):
                    say.progress(event.n_done, event.n_total)
                elif isinstance(event, RunEnded):
                    reason = event.reason
                    text.event(event)
    except KeyboardInterrupt:
        text.write(run.held)
        if writer is not None:
            writer.write(RunEnded(reason, run.statistics.to_json(), run.held))
    say.end_progress()
    text.end()
    return reason


def _print_json(model: Any, run: Any, reason: str) -> None:
    from mtpref.engine.memory import head_memory, measured

    record = {
        "schema": SCHEMA,
        "prompt_ids": run.prompt_ids,
        "ids": run.ids,
        "text": run.text,
        "reason": reason,
        "statistics": run.statistics.to_json(),
        "memory": {"head": head_memory(model.core).to_json(), "allocated": measured(run.state)},
    }
    print(json.dumps(record, ensure_ascii=True))
