"""Chat: a conversation's messages through the model's own template to token ids. docs/chat.md.

Owns templates and their sandbox. It knows vocabularies, and nothing of models.
"""

from mtpref.files.chat.prompt import ChatPrompt, Message, chat_prompt
from mtpref.files.chat.render import render
from mtpref.files.chat.template import ChatTemplate, find_template, variant_names

__all__ = ["ChatPrompt", "ChatTemplate", "Message", "chat_prompt", "find_template", "render", "variant_names"]
