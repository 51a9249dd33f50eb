"""Chat templates that are wrong or mean harm: one line, in little time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.files.chat import worker
from tests.chat_cases import NOW, THINKING, USER, text_of
from tests.samples import some_examples


def refusal_of(template, messages=(USER,), **variables):
    with pytest.raises(MtprefError) as caught:
        text_of(template, messages, **variables)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 400
    return line


# REFUSED, WITH THE LINE


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a\n{{ raise_exception('roles must alternate\x1b[2J\\nplease') }}", "line 2: the template refuses this"),
        ("a\nb\n{% if %}", "line 3: Expected an expression"),
        ("\n{{ 1 | nofilter }}", "line 2: No filter named 'nofilter'"),
        ("\n\n{{ nothing.here }}", "line 3: UndefinedError: 'nothing' is undefined"),
        ("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n{{ m() }}", "line 2: ZeroDivisionError"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
    ],
)
def test_an_error_of_a_template_is_one_line_with_its_line_number(template, expected):
    assert expected in refusal_of(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{a.__class__}'.format_map({'a': ''}) }}",
        "{% set f = '{0.__class__}'.format %}{{ f('') }}",
        "{{ ('{0.__class__}' | attr('format'))('') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}",
        "{% macro m() %}{% endmacro %}{{ m._environment }}",
        "{% for a in [1] %}{{ loop._iterator }}{% endfor %}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'system'}) %}",
    ],
)
def test_a_template_that_reaches_for_what_is_internal_is_refused(template):
    assert "line 1: refused: a" in refusal_of(template)


@pytest.mark.parametrize("tag", ["include '/etc/passwd'", "import 'os' as os", "extends 'x'", "from 'x' import y"])
def test_a_template_reads_no_other_template(tag):
    assert "no loader for this environment" in refusal_of("{% " + tag + " %}")


LARGE = [
    "{{ 'a' * 10**9 }}",
    "{{ ('a' * 10**9) | length }}",
    "{{ ([0] * 10**9) | length }}",
    "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a\nb' | indent(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}{{ 'a'.zfill(10**9) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ [1] | batch(10**9, 0) | list }}",
    "{{ ('a' * 10**5) | replace('', 'b' * 10**5) }}",
    "{{ range(99999) | join('a' * 99999) }}",
]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
@pytest.mark.parametrize("template", LARGE)
def test_a_template_that_needs_much_memory_is_refused(template):
    assert "it needs more than 128 MB of memory" in refusal_of(template)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_a_refused_template_took_less_than_200_mb():
    code = (
        "import json, resource, sys\n"
        "from datetime import datetime\n"
        "from mtpref.files.chat import render\n"
        "from mtpref.base.errors import MtprefError\n"
        "for template in json.load(sys.stdin):\n"
        "    try: render(template, {}, datetime(2026, 1, 31))\n"
        "    except MtprefError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(LARGE[3::3]),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert 10 < int(done.stdout) < 200


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",  # one operation of the interpreter, which no check inside it could interrupt
    ],
)
def test_a_template_that_does_not_end_is_ended(template):
    assert "it runs for more than 1.5 s" in refusal_of(template)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        (
            "{% for a in range(9999) %}{% for b in range(99) %}" + "a" * 99 + "{% endfor %}{% endfor %}",
            "is longer than",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it recurses too deeply"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "it recurses too deeply"),
        ("{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}", "it recurses too deeply"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "it recurses too deeply"),
        ("x" * (1 << 20) + "y", "1048577 characters, expected at most 1048576"),
    ],
)
def test_a_template_that_grows_or_recurses_is_refused(template, expected):
    assert expected in refusal_of(template)


def test_a_renderer_that_dies_is_one_line(monkeypatch, tmp_path):
    from mtpref.files.chat import render as room

    for code, expected in (
        ("print('+', end='', flush=True); raise SystemExit(9)", "ended with code 9 and no text"),
        ("raise SystemExit(1)", "could not start jinja2"),
    ):
        path = tmp_path / "worker.py"
        path.write_text(code)
        monkeypatch.setitem(room.__globals__, "_WORKER", path)
        assert expected in refusal_of("x")


FRAGMENTS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "-",
    "|",
    "(",
    "'",
    "__class__",
    "loop",
    "endif",
    "for",
    "\ud800",
    "\0",
    "1",
    ".",
]


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")  # in a literal of the template
@settings(max_examples=some_examples(150))
@given(st.lists(st.tuples(st.integers(0, len(THINKING)), st.integers(0, 9), st.sampled_from(FRAGMENTS)), max_size=6))
def test_a_damaged_template_gives_texts_or_one_error_with_a_kind(edits):
    template = THINKING
    for at, n_dropped, inserted in edits:
        template = template[:at] + inserted + template[at + n_dropped :]
    request = {"template": template, "now": NOW.isoformat(), "n_max": 9999, "variables": {"messages": [USER]}}
    reply = worker.render(request | {"variants": [{}]})
    assert reply.keys() in ({"texts", "uses_date"}, {"kind", "error", "line"})
    json.dumps(reply)
