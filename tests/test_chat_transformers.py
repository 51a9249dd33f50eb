"""The same text as transformers' apply_chat_template, for small templates and for those of real models."""

import os
from pathlib import Path

import pytest

from mtpref.files.chat import worker
from mtpref.files.chat.template import CHATML
from tests.chat_cases import CONVERSATIONS, NOW, THINKING, TOOLS


def published_templates():
    """Templates of real models, from a llama.cpp source tree; none without one."""
    root = os.environ.get("MTPREF_LLAMA_CPP")
    return sorted((Path(root) / "models" / "templates").glob("*.jinja")) if root else []


@pytest.fixture(scope="module")
def theirs():
    reason = "transformers is not installed (extra: oracle)"
    return pytest.importorskip("transformers.utils.chat_template_utils", reason=reason).render_jinja_template


def both(theirs, template, messages, **variables):
    """(transformers' text, ours); an error is its message."""
    try:
        expected = theirs([messages], chat_template=template, **variables)[0][0]
    except Exception as error:
        expected = str(error)[:300]
    request = {"template": template, "now": NOW.isoformat(), "n_max": 10**7}
    request |= {"variables": {"messages": messages, "documents": None, **variables}, "variants": [{}]}
    reply = worker.render(request)
    return expected, reply["texts"][0] if "texts" in reply else reply["error"]


@pytest.mark.oracle
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    "template", [CHATML, THINKING, "{% for m in messages %}{{ m | tojson(indent=2) }}{% endfor %}"]
)
def test_small_templates_render_as_in_transformers(theirs, template, conversation):
    tools = TOOLS if conversation == "tools" else None
    for args in ({"enable_thinking": False}, {"add_generation_prompt": True}):
        variables = {"tools": tools, "add_generation_prompt": False} | args
        expected, text = both(theirs, template, CONVERSATIONS[conversation], **variables)
        assert text == expected


@pytest.mark.oracle
def test_published_templates_render_as_in_transformers(theirs):
    templates = published_templates()
    if not templates:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp source tree (models/templates/*.jinja)")
    n_texts = 0
    for path in templates:
        template = path.read_text(encoding="utf-8").replace("strftime_now(", "'{}'.format(")  # clocks differ
        for name, messages in CONVERSATIONS.items():
            variables = {"tools": TOOLS if name == "tools" else None, "bos_token": "<s>", "eos_token": "</s>"}
            expected, text = both(theirs, template, messages, add_generation_prompt=True, **variables)
            assert text == expected, (path.name, name)
            n_texts += 1
    assert n_texts >= 100
