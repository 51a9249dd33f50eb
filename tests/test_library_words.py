"""The library's errors speak the library's words; the command line puts its flags there."""

import ast
import re
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError, with_flags
from mtpref.base.settings import SettingError
from mtpref.front.cli import build_parser
from mtpref.front.cli.flags import FLAGS, flagged

PACKAGE = Path(__file__).parent.parent / "mtpref"
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-(?:m|md|p|f|o|n|ctk|ctv|ctkd|ctvd)(?![\w-]))")
# A flag may stand in a refusal where it is another program's, or belongs to a verb that is named as the next step.
OTHERS = ("convert_hf_to_gguf.py", "llama-", "llama.cpp", "cmake", "mtpref ", "docs/")
ALLOWED = {
    "faults/diagnose/evidence_log.py": {"--spec-accept"},  # of the run whose log it is
    "look/selftest/numerics.py": {"--quick"},  # why a check of `mtpref selftest` was left out
}


def raised(path: Path) -> list[tuple[int, str]]:
    """(line, text) of each string in a raise statement; an f-string is one text, its values are {}."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            inner = {id(part) for n in ast.walk(node.exc) if isinstance(n, ast.JoinedStr) for part in ast.walk(n)}
            for one in ast.walk(node.exc):
                if isinstance(one, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in one.values)
                    found.append((one.lineno, "".join(map(str, parts))))
                elif isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in inner:
                    found.append((one.lineno, one.value))
    return found


def flags_in(text: str) -> set[str]:
    """The flags of a text, but for those after the name of a program or verb that takes them."""
    return {m[1] for m in FLAG.finditer(text) if not any(name in text[: m.start()] for name in OTHERS)}


def library():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "front"]


def test_no_refusal_of_the_library_says_a_flag():
    found = {}
    for path in library():
        name = path.relative_to(PACKAGE).as_posix()
        flags = {flag for _, text in raised(path) for flag in flags_in(text)}
        if flags:
            found[name] = flags
    assert found == ALLOWED


def test_the_search_finds_what_it_looks_for(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('raise E(f"{a}: {b} tokens; use a larger --ctx-size", "try: mtpref graft A B -o C")\n')
    assert [flags_in(text) for _, text in raised(path)] == [{"--ctx-size"}, set()]


def test_every_setting_that_is_named_between_backquotes_has_its_flag():
    named = set()
    for path in library():
        named |= {name for _, text in raised(path) for name in re.findall(r"`([^`{}]+)`", text)}
    others = {name for name in named if name not in FLAGS}
    assert others <= {"tokens"} | {name for name in named if name.startswith("mtpref ")}, others
    assert {"n_ctx", "RopeOverrides.freq_base", "template"} <= named


def test_flags_are_those_of_the_command_line():
    known = {flag for verb in build_parser()._subparsers._group_actions[0].choices.values() for flag in _flags_of(verb)}
    for text in FLAGS.values():
        assert {flag for flag in FLAG.findall(text) if flag != "--rope"} <= known, text


def _flags_of(parser):
    for action in parser._actions:
        yield from action.option_strings
        for choice in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from _flags_of(choice)


def test_a_refusal_is_told_in_flags_where_there_are_some():
    error = MtprefError("f.gguf: 9 tokens, expected at most 8; use a larger `n_ctx`, or `unknown`")
    assert str(error).endswith("use a larger `n_ctx`, or `unknown`")
    assert error.told(FLAGS).endswith("use a larger --ctx-size, or `unknown`")
    nested = MtprefError(f"{Path('out')} is written; {error}")
    assert "--ctx-size" in nested.told(FLAGS)
    assert SettingError("n_ctx", "-1 is out of range").told(FLAGS) == "--ctx-size: -1 is out of range"
    assert SettingError("x.gguf", "{name} and {n}", n="n_ctx").told(FLAGS) == "x.gguf: {name} and --ctx-size"
    assert with_flags("`{}`", FLAGS) == "`{}`"
    assert flagged("`out` x") == "-o x"


@pytest.mark.parametrize("text", ["`", "``", "`n_ctx", "a`b`c", "`" * 1000])
def test_backquotes_of_other_texts_stay(text):
    assert flagged(text) == text
