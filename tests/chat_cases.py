"""What the tests of chats share: templates and conversations."""

from datetime import datetime

from mtpref.files.chat import render

NOW = datetime(2026, 1, 31, 12)
USER = {"role": "user", "content": "Hi"}
# A template in the manner of a thinking model's: earlier thoughts are dropped, an argument closes the new one.
THINKING = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and "</think>" in content and not loop.last %}
        {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
    {%- endif %}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ content ~ "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""


def text_of(template, messages=(USER,), **variables):
    return render(template, {"messages": list(messages)} | variables, NOW).text


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "w", "arguments": {"city": "K\u00f6ln", "n": 1}}}
CONVERSATIONS = {
    "plain": [USER],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "\u00e9\u4f60\U0001f600 <&>'\" "},
    ],
    "thinking": [
        USER,
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello"},
        {"role": "user", "content": "and\n  now?\n"},
    ],
    "tools": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "w", "tool_call_id": "abcdefghi", "content": "rain"},
        {"role": "user", "content": "thanks"},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "w", "description": "<w>", "parameters": {"type": "object"}}}]
