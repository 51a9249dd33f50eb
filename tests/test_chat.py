"""Chat templates: which one, what it writes, which tokens that is, and what a run says of it."""

import json

import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.chat import ChatTemplate, chat_prompt, find_template, variant_names
from mtpref.files.chat.template import CHATML
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from tests.chat_cases import NOW, THINKING, USER, text_of


@pytest.fixture(scope="module")
def model():
    return mtpref.load()


# WHAT A TEMPLATE WRITES


def test_chatml_frames_every_message_and_opens_the_answer():
    messages = [{"role": "system", "content": " Be brief. \n"}, {"role": "user", "content": "a <b> & \u00e9\n\n"}]
    framed = (
        "<|im_start|>system\n Be brief. \n<|im_end|>\n"
        "<|im_start|>user\na <b> & \u00e9\n\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert text_of(CHATML, messages, add_generation_prompt=True) == framed
    assert text_of(CHATML, messages) == framed.removesuffix("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("  {% if true %}\na{% endif %}\n\nb", "a\nb"),  # trim_blocks and lstrip_blocks
        ("{{ {'a': \"<&>'\", 'k': '\u00e9'} | tojson }}", '{"a": "<&>\'", "k": "\u00e9"}'),
        ("{{ [1, {'b': 2}] | tojson(indent=1) }}", '[\n 1,\n {\n  "b": 2\n }\n]'),
        ("{% for x in range(9) %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}", "012"),
        ("a{% generation %}b{{ 1 + 1 }}{% endgeneration %}c", "ab2c"),
        ("{{ strftime_now('%d %b %Y') }}", "31 Jan 2026"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ dict(a=1).a }}", "21"),
        ("{{ none_such }}|{{ none_such is defined }}", "|False"),
        ("{{ '\ud800' }}", "\ud800"),
    ],
)
def test_a_template_has_what_transformers_gives_it(template, expected):
    assert text_of(template) == expected


def test_chance_is_the_same_in_every_run():
    template = "{{ range(99999) | random }}"
    assert text_of(template) == text_of(template)


def test_template_arguments_reach_the_template(model):
    on = model.chat_prompt([USER], template=THINKING)
    off = model.chat_prompt([USER], template=THINKING, enable_thinking=False)
    assert off.text == on.text + "<think>\n\n</think>\n\n"
    assert (on.args, off.args) == ({}, {"enable_thinking": False})
    assert on.template.sha256 == off.template.sha256


def test_the_date_is_named_only_where_the_template_asked_for_it(model):
    asks = model.chat_prompt([USER], template="{{ strftime_now('%Y') }}", now=NOW)
    assert asks.text == "2026"
    assert asks.to_json()["now"] == "2026-01-31T12:00:00"
    assert "2026-01-31" in asks.describe()
    assert model.chat_prompt([USER], template="chatml", now=NOW).to_json()["now"] is None


# TOKENS


class StubVocab:
    """Ids of characters; BOS is B and EOS is E."""

    bos_id, eos_id = ord("B"), ord("E")

    def __init__(self, add_bos, add_eos=False):
        self.add_bos, self.add_eos = add_bos, add_eos

    def piece(self, id, *, special):
        assert special
        return bytes([id])

    def encode(self, text, *, limit=0):
        return [self.bos_id] * self.add_bos + [ord(c) for c in text] + [self.eos_id] * self.add_eos


@pytest.mark.parametrize(
    ("add_bos", "add_eos", "template", "expected"),
    [
        (False, False, "{{ bos_token }}xB", "BxB"),
        (False, False, "x", "x"),
        (True, False, "{{ bos_token }}x", "Bx"),
        (True, False, "x", "Bx"),
        (True, False, "BBx", "BBx"),
        (False, True, "x{{ eos_token }}", "xE"),
    ],
)
def test_bos_is_never_doubled_and_never_lost(add_bos, add_eos, template, expected):
    prompt = chat_prompt(ChatTemplate("t", template), StubVocab(add_bos, add_eos), [USER], {}, NOW)
    assert "".join(map(chr, prompt.ids)) == expected


def test_special_tokens_of_the_text_are_parsed(model):
    prompt = model.chat_prompt([USER], template="<|endoftext|>{{ messages[0].content }}")
    assert prompt.ids == model.encode("<|endoftext|>Hi")
    assert prompt.ids[0] == model.core.vocab.eos_id


def test_what_stands_before_the_answer_is_known_unless_the_template_refuses_to_say(model):
    prompt = model.chat_prompt([USER], template="chatml")
    opening = model.encode("<|im_start|>assistant\n")
    assert prompt.ids[prompt.n_before_answer :] == opening
    refuses = "x{% if not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    assert model.chat_prompt([USER], template=refuses).n_before_answer == 0


# WHICH TEMPLATE


def test_the_files_own_template_its_variants_and_the_built_in_one_are_found_by_name():
    kv = {"tokenizer.chat_template": "{{ 1 }}", "tokenizer.chat_template.tool_use": "{{ 2 }}", "tokenizer.x": "y"}
    assert variant_names(kv) == ["default", "tool_use"]
    assert find_template(kv) == ChatTemplate("default", "{{ 1 }}")
    assert find_template(kv, "tool_use") == ChatTemplate("tool_use", "{{ 2 }}")
    assert find_template({}, "chatml") == ChatTemplate("chatml", CHATML)
    assert find_template({"tokenizer.chat_template.default": "d"}) == ChatTemplate("default", "d")
    assert find_template(kv, "{{ 3 }}") == ChatTemplate("given", "{{ 3 }}")


def test_a_template_can_be_a_file(tmp_path):
    path = tmp_path / "my.jinja"
    path.write_text("{{ messages[0].content }}\u00e9", encoding="utf-8")
    assert find_template({}, str(path)).text == "{{ messages[0].content }}\u00e9"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(MtprefError, match="no UTF-8 text"):
        find_template({}, str(path))


@pytest.mark.parametrize(
    ("kv", "wanted", "expected"),
    [
        ({}, None, "try: `template` chatml"),
        ({"tokenizer.chat_template.rag": "x"}, None, "the file has rag"),
        ({"tokenizer.chat_template.a\x1b[2Jb": "x"}, None, r"a\x1b[2Jb"),
        ({"tokenizer.chat_template.rag": "x"}, "tool_use", "one of rag, chatml"),
        ({"tokenizer.chat_template": 7}, None, "a value of type int, expected a string"),
        ({"tokenizer.chat_template": "x" * (2 << 20)}, None, "2097152 characters, expected at most"),
        ({}, "nul\0name", "expected a template's text"),
    ],
)
def test_no_template_is_one_line_that_lists_what_there_is(kv, wanted, expected):
    with pytest.raises(MtprefError) as caught:
        find_template(kv, wanted)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_gguf_without_template_generates_and_one_with_template_chats(model, tmp_path, capfdbinary):
    path = tmp_path / "chatting.gguf"
    with open_gguf(tiny_path()) as file:
        kv = [(key, file.kv[key], file.kv.kind(key)) for key in file.kv]
        kv.append(("tokenizer.chat_template", THINKING, "str"))
        tensors = [(t.name, t.type_name, t.shape, file.data(t)) for t in file.tensors.values()]
        write_gguf(path, kv, tensors)
    code = main(["generate", "-m", str(path), "--chat", "-p", "Hi", "-n", "2", "--json"])
    record = json.loads(capfdbinary.readouterr().out)
    assert code == 0
    assert record["prompt_ids"] == model.chat_prompt([USER], template=THINKING).ids
    assert record["statistics"]["chat"]["template"] == "default"


# MESSAGES


def test_a_long_conversation_is_no_attack():
    long = "a word or two. " * 200_000
    assert len(text_of(CHATML, [{"role": "user", "content": long}])) > len(long)


@pytest.mark.parametrize(
    ("messages", "args", "expected"),
    [
        ([{"content": "x"}], {}, "message 0: \"{'content': 'x'}\", expected an object with role and content"),
        (["x"], {}, "message 0: 'x', expected an object"),
        ([{"role": "user", "content": b"x"}], {}, "are no JSON values"),
        ([USER], {"messages": []}, "messages is the conversation itself"),
        ([USER], {"f": print}, "are no JSON values"),
    ],
)
def test_messages_and_arguments_must_be_json_values(model, messages, args, expected):
    with pytest.raises(MtprefError) as caught:
        chat_prompt(ChatTemplate("t", "x"), model.core.vocab, messages, args, NOW)
    assert expected in str(caught.value)


# THE COMMAND LINE


def run_main(capfdbinary, *argv):
    code = main(list(argv))
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


def test_a_run_names_its_template_and_arguments(model, capfdbinary, tmp_path):
    trace = tmp_path / "run.jsonl"
    code, out, err = run_main(
        capfdbinary, "generate", "--chat", "-p", "Hi", "-n", "3", "--json", "--trace", str(trace),
        "--system", "Be brief.", "--chat-template", THINKING, "--chat-template-kwargs", '{"enable_thinking": false}',
    )  # fmt: skip
    messages = [{"role": "system", "content": "Be brief."}, USER]
    prompt = model.chat_prompt(messages, template=THINKING, enable_thinking=False)
    record, events = json.loads(out), [json.loads(line) for line in trace.read_text().splitlines()]
    assert code == 0
    assert record["prompt_ids"] == prompt.ids
    assert record["statistics"]["chat"] == events[0]["settings"]["chat"] == prompt.to_json()
    assert f"chat template given ({prompt.template.sha256[:12]}), arguments: enable_thinking=False" in err
    assert f'chat template = given ({prompt.template.sha256[:12]}), arguments = {{"enable_thinking": false}}' in err


def test_a_run_without_chat_names_no_template(model):
    run = model.generate("Hi", mtpref.Options(n_predict=1)).finish()
    assert "chat" not in run.statistics.to_json()


def test_the_api_generates_from_messages_what_the_command_line_does(model, capfdbinary):
    run = model.generate(model.chat_prompt([USER], template="chatml"), mtpref.Options(n_predict=5)).finish()
    _, out, _ = run_main(
        capfdbinary, "generate", "--chat", "-p", "Hi", "-n", "5", "--chat-template", "chatml", "--json"
    )
    assert json.loads(out)["ids"] == run.ids


def test_the_date_of_a_run_can_be_given(capfdbinary):
    template = "{{ strftime_now('%Y-%m-%d') }}"
    argv = [
        "generate",
        "--chat",
        "-p",
        "x",
        "-n",
        "1",
        "--chat-template",
        template,
        "--chat-date",
        "2024-02-29",
        "--json",
    ]
    _, out, err = run_main(capfdbinary, *argv)
    assert json.loads(out)["statistics"]["chat"]["now"] == "2024-02-29T00:00:00"
    assert "it was told the date 2024-02-29" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--chat", "-p", "x"], "tokenizer.chat_template: missing"),
        (["--chat", "--chat-template", "chatml"], "prompt: none is given, expected the user's message"),
        (["-p", "x", "--system", "y"], "--system: it is for chats"),
        (["-p", "x", "--chat-template", "chatml"], "--chat-template: it is for chats"),
        (["--chat", "-p", "x", "--chat-template-kwargs", "{x}"], "--chat-template-kwargs: no JSON"),
        (["--chat", "-p", "x", "--chat-template-kwargs", "[" * 99999], "JSON nested more than 32 deep"),
        (["--chat", "-p", "x", "--chat-template-kwargs", "[1]"], "expected a JSON object"),
        (["--chat", "-p", "x", "--chat-date", "soon"], "--chat-date: 'soon', expected a date"),
        (["--chat", "-p", "x", "--chat-template", "{{ ''.__class__ }}"], "line 1: refused"),
        (["--chat", "-p", "x", "--chat-template", "{% if %}"], "line 1: Expected an expression"),
        (["--chat", "-p", "x", "--chat-template", "{{ '' }}"], "prompt: it has no tokens"),
    ],
)
def test_bad_chat_input_is_one_line_and_exit_code_2(capfdbinary, argv, expected):
    code, out, err = run_main(capfdbinary, "generate", *argv)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("mtpref generate: error: ")
    assert expected in last
    assert "Traceback" not in err
