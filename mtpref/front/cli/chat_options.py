"""Arguments of a chat: the template, its arguments, the system message. Names are llama.cpp's where it has them."""

import argparse
from datetime import datetime
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json_at
from mtpref.front.cli.habits import add_taken_chat


def add_chat(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chat")
    group.add_argument(
        "--chat", action="store_true", help="the prompt is a user's message, put into the chat template (default: off)"
    )
    group.add_argument(
        "-cnv",
        "--conversation",
        action="store_true",
        help="turn after turn, typed on a terminal or one a line; -p or -f is the first; implies --chat (default: off)",
    )
    add_taken_chat(group)
    group.add_argument("-sys", "--system", "--system-prompt", metavar="TEXT", help="system message (default: none)")
    group.add_argument(
        "--chat-template",
        "--chat-template-file",
        dest="chat_template",
        metavar="TEMPLATE",
        help="a template's text or file, chatml, or the name of one of the model file's templates (default: its own)",
    )
    group.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""arguments of the template, e.g. '{"enable_thinking": false}' (default: none)""",
    )
    group.add_argument(
        "--chat-date",
        metavar="DATE",
        help="what a template that asks for the date is told, e.g. 2026-01-31 (default: now)",
    )


class ChatSettings:
    """What the arguments say about messages and template, checked.

    Errors  MtprefError for arguments of a chat without a chat, kwargs that are no JSON object, a date that is none
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.is_conversation = bool(args.conversation)
        self.is_chat = bool(args.chat) or self.is_conversation
        for name in ("system", "chat_template", "chat_template_kwargs", "chat_date"):
            if not self.is_chat and getattr(args, name) is not None:
                raise MtprefError(f"--{name.replace('_', '-')}: it is for chats, expected --chat or -cnv as well")
        self.system: str | None = args.system
        self.template: str | None = args.chat_template
        self.kwargs = _object("--chat-template-kwargs", args.chat_template_kwargs)
        self.now = None if args.chat_date is None else _date(args.chat_date)

    def first_messages(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def describe(self, model: Any) -> str:
        """The template and its arguments, before any message.

        Errors  MtprefError where there is no such template
        """
        from mtpref.files.chat import ChatPrompt

        return ChatPrompt("", [], model.chat_template(self.template), self.kwargs).describe()

    def prompt(self, model: Any, messages: list[dict[str, str]]) -> Any:
        """The ChatPrompt of a conversation."""
        from mtpref.files.chat import chat_prompt

        template, core = model.chat_template(self.template), model.core
        return chat_prompt(template, core.vocab, messages, self.kwargs, self.now, core.config.n_ctx_train)


def _object(flag: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    example = 'object, e.g. {"enable_thinking": false}'
    value = parse_json_at(text.encode("utf-8", "surrogateescape"), flag, f", expected an {example}")
    if not isinstance(value, dict):
        raise MtprefError(f"{flag}: {text[:40]}, expected a JSON {example}")
    return value


def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise MtprefError(
            f"--chat-date: {text[:40]!r}, expected a date such as 2026-01-31 or 2026-01-31T12:00"
        ) from None
