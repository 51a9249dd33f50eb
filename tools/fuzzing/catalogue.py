"""All targets. Building their seeds loads models and runs one, so it is done when asked for.

Owns what each kind of input goes through.
"""

import base64
import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtpref
from fuzzing.checkpoints import CHECKPOINTS
from fuzzing.edits import Edit
from fuzzing.fields import ARR, BOOL, F32, I32, STR, U32, Doc, Key, Tensor, array, scalar, text, u64, write
from fuzzing.judge import Unclear, check_line
from fuzzing.kernel_files import kernel_target
from fuzzing.models import MICRO, head_target, heads_target, put, run_whole, shards_target, tiny_target
from fuzzing.readers import READERS
from fuzzing.servers import server_target
from fuzzing.targets import Random, Target
from fuzzing.texts import random_json_edit, random_text_edit
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import Options
from mtpref.files import gguf
from mtpref.files.chat.render import render
from mtpref.files.draft_vocab import read_draft_ids
from mtpref.files.vocab import load_vocab
from mtpref.golden import Folder, Port, check_folder
from mtpref.golden.filter import reply_outputs, serve
from mtpref.heads import inspect
from mtpref.look import compare, dump

ROOT = Path(__file__).parent.parent.parent


def catalogue(names: tuple[str, ...] = ()) -> dict[str, Target]:
    """The targets of these names (none: all)."""
    unknown = set(names) - set(MAKERS)
    if unknown:
        raise SystemExit(f"target {', '.join(sorted(unknown))} is unknown, expected some of {', '.join(MAKERS)}")
    return {name: make() for name, make in MAKERS.items() if not names or name in names}


# CONTAINER


def small_container() -> bytes:
    """A header with every kind of value, and three tensors."""
    keys = [Key(f"s{kind}".encode(), kind, scalar(kind, 1)) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)]
    keys += [
        Key(b"general.architecture", STR, text(b"qwen35")),
        Key(b"text", STR, text("a text, \u00e4".encode())),
        Key(b"texts", ARR, array(STR, text(b"one") + text(b"") + text(b"three"), 3)),
        Key(b"numbers", ARR, array(F32, scalar(F32, 1.5) * 5, 5)),
        Key(b"flags", ARR, array(BOOL, b"\1\0\1", 3)),
        Key(b"nested", ARR, array(ARR, array(U32, scalar(U32, 7) * 2, 2) + array(STR, text(b"x"), 1), 2)),
        Key(b"general.alignment", U32, scalar(U32, 32)),
    ]
    tensors = [Tensor(b"a.weight", (8, 4), 0, 0), Tensor(b"b", (32, 2), 8, 128), Tensor(b"c", (3,), 1, 224)]
    return write(Doc(tuple(keys), tuple(tensors), bytes(range(256))))


def run_container(raw: bytes, folder: Path, i: int) -> None:
    """Open it, decode every value, view every tensor, describe it."""
    path = put(folder, "container.gguf", raw)
    with gguf.open_gguf(path) as file:
        for key in file.kv:
            with contextlib.suppress(MtprefError):
                value = file.kv[key]
                if isinstance(value, gguf.GgufArray):
                    value[-1:]
                    list(value)
        for info in file.tensors.values():
            if info.n_bytes is not None and file.data(info).size != info.n_bytes:
                raise AssertionError(f"{info} has {file.data(info).size} bytes")
    json.dumps(inspect.inspect_file(path))


# VOCABULARIES


def vocab_target() -> Target:
    """Vocabularies of every model, without weights."""

    def doc(model: bytes, *keys: Key) -> bytes:
        head = (Key(b"general.architecture", STR, text(b"qwen35")), Key(b"tokenizer.ggml.model", STR, text(model)))
        special = tuple(
            Key(f"tokenizer.ggml.{name}_token_id".encode(), U32, scalar(U32, n))
            for n, name in enumerate(("bos", "eos", "eot"))
        )
        flags = (Key(b"tokenizer.ggml.add_bos_token", BOOL, b"\1"), Key(b"tokenizer.ggml.add_eos_token", BOOL, b"\0"))
        return write(Doc((*head, *special, *flags, *keys), (), b""))

    def texts(name: bytes, items: list[bytes]) -> Key:
        return Key(b"tokenizer.ggml." + name, ARR, array(STR, b"".join(map(text, items)), len(items)))

    def types(items: list[int]) -> Key:
        payload = b"".join(scalar(I32, n) for n in items)
        return Key(b"tokenizer.ggml.token_type", ARR, array(I32, payload, len(items)))

    bytes_of = [bytes([b]) for b in range(33, 127)]
    bpe = [b"<s>", b"</s>", b"<eot>", *bytes_of, b"ab", b"abc", "\u0120a".encode()]
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % b for b in range(256)), "\u2581".encode(), b"a", b"b",
              b"ab", "\u2581ab".encode()]  # fmt: skip
    scores = b"".join(scalar(F32, -n) for n in range(len(pieces)))
    return Target(
        "vocab",
        [
            doc(b"gpt2", Key(b"tokenizer.ggml.pre", STR, text(b"qwen2")), texts(b"tokens", bpe),
                types([3] * 3 + [1] * 97),
                texts(b"merges", [b"a b", b"ab c", "\u0120 a".encode()])),
            doc(b"llama", texts(b"tokens", pieces), types([2, 3, 3] + [6] * 256 + [1] * 5),
                Key(b"tokenizer.ggml.scores", ARR, array(F32, scores, len(pieces)))),
            doc(b"test", texts(b"tokens", bpe)),
        ],
        run_vocab,
        1200,
    )  # fmt: skip


TEXT = "ab abc \n\t  <s>\u00e4\u4e2d\U0001f600 12345 don't </s>\x00\ud83d"


def run_vocab(raw: bytes, folder: Path, i: int) -> None:
    with gguf.open_gguf(put(folder, "vocab.gguf", raw)) as file:
        vocab = load_vocab(file.kv)
        for special in (False, True):
            with contextlib.suppress(MtprefError):
                check_ids(vocab, vocab.encode(TEXT, add_special=special, parse_special=special))


def check_ids(vocab: Any, ids: list[int]) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocab.n_vocab:
        raise AssertionError(f"ids from {min(ids)} to {max(ids)} of {vocab.n_vocab}")
    vocab.detokenize(ids)
    for id in ids:
        vocab.piece(id)


# BESIDE MODELS


def state_target() -> Target:
    model = mtpref.load(MICRO)
    session = model.new_session(64, checkpoint_every=4)
    model.generate(model.encode("a b c d e f")[:12], Options(n_predict=3), session=session).finish()
    with tempfile.TemporaryDirectory() as name:
        session.save(Path(name) / "state.gguf")
        raw = (Path(name) / "state.gguf").read_bytes()

    def run(case: bytes, folder: Path, i: int) -> None:
        loaded = model.load_session(put(folder, "state.gguf", case), 64, checkpoint_every=4)
        model.generate([*loaded.ids, 1], Options(n_predict=2), session=loaded).finish()

    return Target("state", [raw], run, 200)


def dump_target() -> Target:
    """Either file of a comparison."""
    model = mtpref.load(MICRO)
    recorder = dump.record(model.core, [1, 2, 3], "^(l_out|result_norm|mtp_eh_proj)")
    with tempfile.TemporaryDirectory() as name:
        dump.write_dump(Path(name) / "dump.gguf", model.core, [1, 2, 3], recorder.tensors)
        raw = (Path(name) / "dump.gguf").read_bytes()

    def run(case: bytes, folder: Path, i: int) -> None:
        sound, path = put(folder, "sound.gguf", raw), put(folder, "dump.gguf", case)
        json.dumps(compare.compare_files(sound, path).to_json(), allow_nan=False)
        compare.render(compare.compare_files(path, sound))

    return Target("dump", [raw], run, 400)


def d2t_target() -> Target:
    ids = [3, 1, 4, 15, 9, 2, 6]
    tensor = Tensor(b"d2t", (len(ids),), 27, 0)
    data = b"".join(u64(n) for n in ids)
    seeds = [write(Doc((Key(b"general.architecture", STR, text(b"x")),), (tensor,), data)),
             "\n".join(map(str, ids)).encode(), json.dumps(ids).encode()]  # fmt: skip
    words = (b"-1", b"256", b"1e9", b"9" * 30, b"[", b"]", b"{", b",", b"\xff", b"\xef\xbb\xbf", b"\0", b"null", b"NaN",
             b"[" * 3000, b"\r", "\u0663".encode(), b"0x1", b"1.0", b"true", b"+1")  # fmt: skip

    def edit(rng: Random, raw: bytes) -> Edit:
        return random_text_edit(rng, len(raw), words)

    def run(case: bytes, folder: Path, i: int) -> None:
        found = read_draft_ids(put(folder, "ids", case), 256)
        if sorted(set(found)) != list(found) or not 0 <= found[0] <= found[-1] < 256:
            raise AssertionError(f"{found[:20]}")

    return Target("d2t", seeds, run, 2000, edit)


def prompt_target() -> Target:
    vocabs = [mtpref.load().core.vocab, mtpref.load(MICRO).core.vocab]
    words = (b"\xff", b"\xed\xa0\x80", b"\0", b"\xf4\x90\x80\x80", b"<|endoftext|>", "\u202e".encode(), b" " * 300,
             "e\u0301".encode(), "\U0001f468\u200d\U0001f469".encode(), b"1" * 300, b"\r\n",
             "\ufeff".encode())  # fmt: skip

    def edit(rng: Random, raw: bytes) -> Edit:
        return random_text_edit(rng, len(raw), words)

    def run(case: bytes, folder: Path, i: int) -> None:
        given = case[:20000].decode("utf-8", "surrogateescape")
        for vocab in vocabs:
            check_ids(vocab, vocab.encode(given))

    return Target("prompt", [TEXT.encode("utf-8", "surrogatepass"), b"def f(x):\n    return x\n"], run, 200, edit)


# TEMPLATES


TEMPLATE_WORDS = tuple(
    word.encode()
    for word in (
        "{{", "}}", "{%", "%}", "{#", "messages", "[0]", ".__class__", "self", "loop", "namespace()", "range(10**9)",
        "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "|tojson", "|string", "raise_exception('a\\nb')", "{% include 'x' %}", "{% import 'os' as os %}", "None", "-%}",
        "{{ 10**10**10 }}", "strftime_now('%Y')", "{{ cycler.__init__.__globals__ }}", "{% set ns = namespace(a=1) %}",
    )
)  # fmt: skip


def template_target() -> Target:
    """Rendered as they always are, in a process of their own: some seconds for a hundred."""
    from datetime import datetime

    from mtpref.files.chat.template import CHATML

    def edit(rng: Random, raw: bytes) -> Edit:
        return random_text_edit(rng, len(raw), TEMPLATE_WORDS)

    def run(case: bytes, folder: Path, i: int) -> None:
        variables = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True, "bos_token": "<s>"}
        render(case.decode("utf-8", "replace"), variables, datetime(2026, 1, 31))

    return Target("template", [CHATML.encode()], run, 6, edit)


# GOLDEN VECTORS


LOOPS = (
    "accept_greedy",
    "accept_match",
    "accept_residual",
    "policy",
    "near_tie",
    "filtered",
    "uniform",
    "draw",
    "rope",
)


def golden_target(name: str = "golden", chosen: tuple[str, ...] = ()) -> Target:
    """A folder with a manifest and suites; hashes are made right again, or nothing would pass."""
    folder = ROOT / "golden"
    manifest = json.loads((folder / "manifest.json").read_text())
    known = manifest["suites"]
    suites = [s for s in known if s["suite"] in chosen] or [s for s in known if s["level"] == "L1"][:6]
    seeds, named = [json.dumps({**manifest, "suites": suites}).encode()], ["manifest.json"]
    files = {"manifest.json": seeds[0]}
    for suite in suites:
        path = Path(suite["path"])
        files[str(path)] = (folder / path).read_bytes()
        seeds.append(files[str(path)])
        named.append(str(path))
        tensors = json.loads(files[str(path)]).get("tensors")
        if tensors:
            files[str(path.with_name(tensors))] = (folder / path).with_name(tensors).read_bytes()

    def edit(rng: Random, raw: bytes) -> Edit:
        return random_json_edit(rng, json.loads(raw))

    def run(case: bytes, at: Path, i: int) -> None:
        now = {**files, named[i]: case}
        if i:
            index = json.loads(now["manifest.json"])
            index["suites"] = [s for s in index["suites"] if s["path"] == named[i]]
            for record in index["files"]:
                if record["path"] in now:
                    record["sha256"] = hashlib.sha256(now[record["path"]]).hexdigest()
            now["manifest.json"] = json.dumps(index).encode()
        for name, raw in now.items():
            (at / name).parent.mkdir(exist_ok=True)
            put(at, name, raw)
        for _ in check_folder(
            Folder(at), Port(at, use_kernels=False), suite=None if i else chosen[0] if chosen else "rms_norm"
        ):
            pass

    return Target(name, seeds, run, 150, edit)


def filter_target() -> Target:
    """Replies of a program to the checker, and requests to mtpref as such a program."""
    tensor = {"type": "F32", "shape": [2, 3], "data": base64.b64encode(bytes(24)).decode()}
    reply = {"id": "c", "out": {"y": tensor, "n": {"value": [1, 2]}}}
    asked = {"format": "mtpref-golden-case-1", "suite": "s", "op": "rms_norm", "id": "c", "numerics": "exact",
             "params": {"eps": "0x1p-20"},
             "in": {"x": tensor, "weight": {**tensor, "shape": [3], "data": "AAAA" * 4}}}  # fmt: skip
    port = Port(ROOT / "golden", use_kernels=False)

    def edit(rng: Random, raw: bytes) -> Edit:
        return (
            random_json_edit(rng, json.loads(raw))
            if rng.random() < 0.8
            else random_text_edit(rng, len(raw), (b"}", b"]"))
        )

    def run(case: bytes, folder: Path, i: int) -> None:
        line = case.decode("utf-8", "replace").replace("\n", " ")
        if i == 0:
            reply_outputs(line, "c", "program")
            return
        out = io.StringIO()
        serve(port, [line], out)
        if line.strip():
            json.loads(out.getvalue())

    return Target("filter", [json.dumps(reply).encode(), json.dumps(asked).encode()], run, 1500, edit)


# COMMAND LINE

OPTION_VALUES = (
    "", "0", "1", "-1", "2", "3", "64", "1e9", "1000000000", "2147483648", "4294967296", "18446744073709551616",
    "9" * 40, "-0", "0.5", "-0.5", "nan", "inf", "-inf", "1e-300", "1e300", "x", "none", "-", "--", "\u00e4", "a\nb",
    "\x1b[31m", "\udcff", "\0", "/no/such", "/", "/dev/null", "/dev/full", "[]", "{}", '{"a":1}', "[" * 5000,
    "hidden=pre", "training,chain=pre", "temp;top_k", "yarn", "linear", "f32", "exact", "residual", "two-phase",
    "2026-01-31", "chatml", "{{ 1 }}", "(a+)+$", "y" * 5000,
)  # fmt: skip


def options_target() -> Target:
    """One sound command line with options added or changed; a line of the seed is an argument."""
    flags = _flags("generate")
    base = ["generate", "-m", str(MICRO), "-p", "a", "-n", "2", "-c", "64"]
    others = [["inspect", str(MICRO)], ["dump", "-m", str(MICRO), "-p", "a", "-o", "OUT"], ["compare", "OUT", "OUT"],
              ["golden", "list", str(ROOT / "golden")]]  # fmt: skip
    seeds = ["\x1e".join(argv).encode() for argv in (base, *others)]

    def edit(rng: Random, raw: bytes) -> Edit:
        value = rng.choice(OPTION_VALUES).encode("utf-8", "surrogatepass")
        verb = raw.split(b"\x1e")[0].decode()
        flag = rng.choice(flags if verb == "generate" else _flags(verb)).encode()
        if rng.random() < 0.75:
            return Edit(f"{flag!r} {value[:20]!r}", on_bytes=lambda r: r + b"\x1e" + flag + b"\x1e" + value)
        at = rng.randrange(raw.count(b"\x1e") + 1)

        def change(r: bytes) -> bytes:
            parts = r.split(b"\x1e")
            parts[min(at, len(parts) - 1)] = value
            return b"\x1e".join(parts)

        return Edit(f"argument {at}: {value[:20]!r}", on_bytes=change)

    return Target("options", seeds, run_cli, 40, edit)


def _flags(verb: str) -> list[str]:
    from mtpref.front.cli import build_parser

    verbs = next(action for action in build_parser()._actions if action.dest == "verb")
    chosen = dict(verbs.choices or {}).get(verb)
    names = [name for action in chosen._actions for name in action.option_strings] if chosen else []
    return [name for name in names if name not in ("-cnv", "--conversation", "--cmd", "-h", "--help")] or ["--json"]


def run_cli(case: bytes, folder: Path, i: int) -> None:
    """In this process: exit code 0, 1 or 2; for 2 nothing on stdout, and one line of error at the end of stderr."""
    argv = [a.decode("utf-8", "surrogateescape") for a in case.split(b"\x1e")]
    argv = [str(folder / "out.gguf") if a == "OUT" else a for a in argv]
    cli_outcome(argv, folder)


def cli_outcome(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line that runs in this process, in `folder`, with an empty stdin.

    Errors  Unclear for an exit code or output that a refusal must not have; whatever escapes
    """
    from mtpref.front.cli import main

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _stdin(), contextlib.chdir(folder):
        try:
            code = main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
    out.flush()
    written = out.buffer.getvalue().decode("utf-8", "replace")
    said = err.getvalue()
    if code == 2:
        if written:
            raise Unclear(f"stdout: {written[:100]!r}")
        check_line(said.removesuffix("\n").rpartition("\n")[2])
        if said.count(": error: ") > 1 or "Traceback" in said:
            raise Unclear(said[:300])
    elif code not in (0, 1):
        raise Unclear(f"exit code {code}: {said[-200:]!r}")
    return code, written, said


@contextlib.contextmanager
def _stdin() -> Any:
    import sys

    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"from stdin"), "utf-8")
    try:
        yield
    finally:
        sys.stdin = before


MAKERS: dict[str, Callable[[], Target]] = {
    "container": lambda: Target("container", [small_container()], run_container, 3500),
    "tiny": tiny_target,
    "micro": lambda: Target("micro", [MICRO.read_bytes()], run_whole, 100),
    "shards": shards_target,
    "head": head_target,
    "heads": heads_target,
    "vocab": vocab_target,
    "state": state_target,
    "dump": dump_target,
    "d2t": d2t_target,
    "d2t-gguf": lambda: _gguf_part(d2t_target()),
    "prompt": prompt_target,
    "template": template_target,
    "golden": golden_target,
    "golden-loops": lambda: golden_target("golden-loops", LOOPS),
    "filter": filter_target,
    "options": options_target,
    "kernel": kernel_target,
    "server": server_target,
    **READERS,
    **CHECKPOINTS,
}


def _gguf_part(target: Target) -> Target:
    return Target(target.name + "-gguf", target.seeds[:1], target.run, target.share // 2)
