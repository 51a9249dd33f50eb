"""From messages to token ids.

Owns the variables that a template sees and the rule for its BOS. Read next: template.py, render.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.chat.render import render
from mtpref.files.chat.template import ChatTemplate
from mtpref.files.vocab import Vocab

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as a prompt.

    text             what the template wrote
    ids              its tokens, BOS and EOS as the vocabulary asks for them, never doubled
    template         which one
    args             the template arguments that were given
    now              the date that the template was told (None: it did not ask)
    n_before_answer  so many ids stand before the opening of the answer. The next turn's prompt begins with these too,
                     whatever the template makes of the answer then (it may drop a thought): a session keeps a
                     checkpoint there
    """

    text: str
    ids: list[int]
    template: ChatTemplate
    args: dict[str, Any] = field(default_factory=dict)
    now: datetime | None = None
    n_before_answer: int = 0

    def to_json(self) -> dict[str, Any]:
        """What a run must name, since it changes the prompt and with it the acceptance."""
        now = None if self.now is None else self.now.isoformat(timespec="seconds")
        return {"template": self.template.name, "sha256": self.template.sha256, "args": self.args, "now": now}

    def describe(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        date = "" if self.now is None else f"; it was told the date {self.now:%Y-%m-%d %H:%M:%S}"
        return f"{self.template.label}, arguments: {args or 'none'}{date}"


def chat_prompt(
    template: ChatTemplate,
    vocab: Vocab,
    messages: Sequence[Message],
    args: Mapping[str, Any],
    now: datetime | None,
    limit: int = 0,
) -> ChatPrompt:
    """Render messages and tokenize the text, special tokens parsed.

    Variables  messages, add_generation_prompt=True, tools=None, documents=None, bos_token and eos_token (their texts,
               empty where there is none); args come last and may replace any of these but messages
    BOS        where the vocabulary adds BOS, one that the template wrote as well is dropped; EOS likewise at the end
               (llama.cpp's rule)
    limit      tokens that there is room for (0: no limit), as for `Vocab.encode`
    now        what strftime_now tells (None: the time of the call)
    Errors     MtprefError for messages without a role, what a template refuses, or a template that is refused
    """
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise MtprefError(f"message {i}: {str(message)[:60]!r}, expected an object with role and content")
    if "messages" in args:
        raise MtprefError("`template_args`: messages is the conversation itself, expected other names")
    bos, eos = _token_text(vocab, vocab.bos_id), _token_text(vocab, vocab.eos_id)
    variables = {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
    moment = now or datetime.now().astimezone()
    variables |= {"bos_token": bos, "eos_token": eos} | dict(args)
    without_answer = {"add_generation_prompt": False}
    rendered = render(template.text, variables, moment, name=template.label, others=[without_answer])

    def encode(text: str) -> list[int]:
        if vocab.add_bos and bos:
            text = text.removeprefix(bos)
        if vocab.add_eos and eos:
            text = text.removesuffix(eos)
        return vocab.encode(text, limit=limit)

    ids = encode(rendered.text)
    before = encode(rendered.others[0] or "")
    n_before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, before, strict=False)))
    date = moment if rendered.uses_date else None
    return ChatPrompt(rendered.text, ids, template, dict(args), date, n_before)


def _token_text(vocab: Vocab, id: int | None) -> str:
    return "" if id is None else vocab.piece(id, special=True).decode("utf-8", "replace")
