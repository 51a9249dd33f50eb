"""Arguments that several verbs share: the model, the prompt, the numerics. Names are llama.cpp's."""

import argparse
import os
import re
import select
import stat
import sys
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.doors import read_text
from mtpref.front.cli.fault_options import add_fault, apply_faults

KV_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
DEFAULT_PROMPT = "The pie was gone."
WAIT_SECONDS = 1.0  # for the beginning of a piped prompt, before that is said
MAX_PROMPT_BYTES = 8 << 20  # more than a million tokens


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="FNAME",
        help="GGUF file, or the first of a split model (default: the embedded tiny model)",
    )
    group.add_argument(
        "-md",
        "--model-draft",
        "--spec-draft-model",
        metavar="FNAME",
        help="MTP head in a file of its own, mtp-*.gguf, or Gemma 4's assistant; replaces a head of the model's own "
        "(default: that one)",
    )
    group.add_argument(
        "--check-tensors", action="store_true", help="look for NaN and infinity in all weights first (default: off)"
    )
    group.add_argument(
        "--numerics",
        choices=("ggml", "exact"),
        default="ggml",
        help="ggml: activations quantised as ggml does; exact: float32 with float64 sums (default: ggml)",
    )
    group.add_argument(
        "--contract",
        default="llama.cpp",
        metavar="C",
        help="what the MTP head is fed: a preset (llama.cpp, training), fields (hidden=pre,...) or both "
        "(default: llama.cpp)",
    )
    group.add_argument(
        "--ops",
        choices=("numba", "spec"),
        help="numba: compiled kernels; spec: the readable NumPy specification, same bits, slow "
        "(default: numba, or spec with NUMBA_DISABLE_JIT=1)",
    )
    group.add_argument(
        "-nr",
        "--no-repack",
        action="store_true",
        help="read weights as they lie in the file: no copy in memory, same bits, slower (default: off)",
    )
    for flag, long, what in (
        ("-ctk", "--cache-type-k", "the trunk's keys"),
        ("-ctv", "--cache-type-v", "the trunk's values"),
        ("-ctkd", "--cache-type-k-draft", "the MTP block's keys"),
        ("-ctvd", "--cache-type-v-draft", "the MTP block's values"),
    ):
        if flag.endswith("d"):  # llama.cpp's newer name
            group.add_argument(
                f"--spec-draft-type-{flag[-2]}",
                dest=long[2:].replace("-", "_"),
                choices=tuple(KV_TYPES),
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        group.add_argument(
            flag, long, choices=tuple(KV_TYPES), help=f"KV type of {what} (default: f16 in ggml, f32 in exact numerics)"
        )
    group.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all processors)")
    add_fault(group)
    _add_rope(parser)


# Flag, field of RopeOverrides, metavar, help.
ROPE_NUMBERS = (
    ("--rope-freq-scale", "freq_scale", "S", "frequencies times S (default: 1 / rope.scaling.factor)"),
    ("--rope-freq-base", "freq_base", "B", "base of the frequencies (default: rope.freq_base)"),
    ("--yarn-orig-ctx", "n_ctx_orig", "N", "original context length (default: the file's, else its context length)"),
    (
        "--yarn-ext-factor",
        "ext_factor",
        "X",
        "0: linear scaling of every pair; 1: YaRN (default: 1 in type yarn, else 0)",
    ),
    (
        "--yarn-attn-factor",
        "attn_factor",
        "X",
        "magnitude of cosine and sine where --yarn-ext-factor is 0 (default: 1)",
    ),
    ("--yarn-beta-fast", "beta_fast", "R", "rotations from which on a pair is not scaled (default: 32)"),
    ("--yarn-beta-slow", "beta_slow", "R", "rotations up to which a pair is scaled in full (default: 1)"),
)


def _add_rope(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("RoPE (in place of the file's keys, for trunk and head alike)")
    group.add_argument(
        "--rope-scaling", choices=("none", "linear", "yarn"), help="type of scaling (default: the file's, else linear)"
    )
    group.add_argument(
        "--rope-scale", type=float, metavar="N", help="context times N: the same as --rope-freq-scale 1/N"
    )
    for flag, _, metavar, text in ROPE_NUMBERS:
        group.add_argument(flag, type=int if metavar == "N" else float, metavar=metavar, help=text)


def rope_overrides(args: argparse.Namespace) -> Any:
    """The RopeOverrides that the arguments make."""
    from mtpref.spec.rope_scaling import MAX_FACTOR, MIN_FACTOR, RopeOverrides, freq_scale_of

    given = {field: getattr(args, flag[2:].replace("-", "_")) for flag, field, _, _ in ROPE_NUMBERS}
    if args.rope_scale is not None:
        if given["freq_scale"] is not None:
            raise MtprefError("--rope-scale and --rope-freq-scale: both are given, expected one of them")
        if not MIN_FACTOR <= args.rope_scale <= MAX_FACTOR:
            raise MtprefError(
                f"--rope-scale: {args.rope_scale:g} is out of range, expected {MIN_FACTOR:g} .. {MAX_FACTOR:g}"
            )
        given["freq_scale"] = freq_scale_of(args.rope_scale)
    return RopeOverrides(scaling_type=args.rope_scaling, **given)


def add_prompt(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "-p", "--prompt", metavar="TEXT", help="the prompt; - reads standard input, as a pipe without -p and -f does"
    )
    group.add_argument("-f", "--file", metavar="FNAME", help="read the prompt from a file")
    group.add_argument("-e", "--escape", action="store_true", help=r"read \n, \t, \\ in -p as escapes (default: off)")


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text. Without -p and -f: a built-in one for the embedded model, an error for any other.

    Errors  MtprefError for -p with -f, an unreadable file, or no prompt
    """
    try:
        return _read_prompt(args)
    except MtprefError:
        refuse_model(args)
        raise


def refuse_model(args: argparse.Namespace) -> None:
    """Where the model cannot be read, that is what to say first; only its header is looked at.

    Errors  MtprefError for a model or a stand-alone head that is no GGUF file of a known architecture
    """
    from mtpref.files.gguf import open_gguf

    for path in filter(None, (args.model, args.model_draft)):
        with open_gguf(path):
            pass


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None and args.file is not None:
        raise MtprefError("-p and -f: both are given, expected one of them")
    if args.prompt == "-":
        return read_file("-", "-p")
    if args.prompt is not None:
        return unescape(args.prompt) if args.escape else str(args.prompt)
    if args.file is not None:
        return read_file(args.file)
    if has_piped_prompt(args):
        if sys.stderr.isatty() and not select.select([sys.stdin], [], [], WAIT_SECONDS)[0]:
            print("prompt: waiting for standard input; -p TEXT gives one", file=sys.stderr, flush=True)
        if text := read_file("-", "-p"):
            return text
    if args.model is not None:
        raise MtprefError("prompt: none is given, expected a text; use -p TEXT or -f FNAME")
    return DEFAULT_PROMPT


def has_piped_prompt(args: argparse.Namespace) -> bool:
    """Whether standard input is a pipe or a file and no flag names a prompt: then the prompt is what comes there."""
    if args.prompt is not None or args.file is not None or sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_file(path: str, flag: str = "-f") -> str:
    """A prompt from a file, a pipe or standard input ("-")."""
    raw = read_text(path, f"{flag} {path}", "expected a text that is a prompt", MAX_PROMPT_BYTES)
    return raw.decode("utf-8", "surrogateescape")


def unescape(text: str) -> str:
    """llama.cpp's escapes that a prompt needs; an unknown one stays as it is written."""
    meant = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
    return re.sub(r"\\(.)", lambda match: meant.get(match[1], match[0]), text, flags=re.DOTALL)


def load_model(args: argparse.Namespace) -> Any:
    """The LanguageModel that the arguments name; threads are set."""
    from mtpref.front import api

    use_kernels = None if args.ops is None else args.ops == "numba"
    kv_type = _one_type("-ctk/-ctv", args.cache_type_k, args.cache_type_v)
    kv_type_draft = _one_type("-ctkd/-ctvd", args.cache_type_k_draft, args.cache_type_v_draft)
    set_threads(args.threads)
    _compile_ahead(args, (kv_type, kv_type_draft))
    model = api.load(
        args.model,
        numerics=args.numerics,
        contract=args.contract,
        kv_type=kv_type,
        kv_type_draft=kv_type_draft,
        use_kernels=use_kernels,
        repack=not args.no_repack,
        rope=rope_overrides(args),
        model_draft=args.model_draft,
        mtp=getattr(args, "spec_type", None) != "none",
        check_tensors=args.check_tensors,
    )
    return api.LanguageModel(apply_faults(args, model.core))


def _compile_ahead(args: argparse.Namespace, kv_types: tuple[str | None, ...]) -> None:
    """Where no kernel is in the cache yet, other processes compile what the files need while they are loaded.

    Only there: starting a process takes as long as compiling two or three kernels.
    """
    from mtpref import kernels
    from mtpref.engine.model.load import default_kv_type
    from mtpref.files.gguf import open_gguf
    from mtpref.front import api

    if args.ops == "spec" or not kernels.available() or kernels.n_threads() == 1 or not kernels.is_cold():
        return
    tensors: dict[str, Any] = {}
    try:
        for i, path in enumerate(filter(None, (args.model or api.tiny_path(), args.model_draft))):
            with open_gguf(path) as file:
                tensors |= {f"{i} {name}": tensor for name, tensor in file.tensors.items()}
    except (MtprefError, OSError):
        return  # loading says what is wrong
    kv = {kv_type or default_kv_type(args.numerics) for kv_type in kv_types}
    wide, repack, n_threads = args.numerics == "exact", not args.no_repack, kernels.n_threads()
    needs = kernels.needs_of(tensors)
    kernels.compile_ahead(kernels.needed_kernels(needs, kv, wide=wide, repack=repack, n_threads=n_threads))


def set_threads(n: int | None) -> None:
    from mtpref import kernels

    if n is None or not kernels.available():
        return
    if n < 1:
        raise MtprefError(f"--threads: {n} is out of range, expected 1 or more")
    kernels.set_threads(n)


def threads_in_use() -> int:
    """Threads of the kernels; the specification has one."""
    from mtpref import kernels

    return kernels.n_threads() if kernels.available() else 1


def whole_numbers(text: str, flag: str, n_digits: int, example: str) -> tuple[int, ...]:
    """A list of whole numbers, joined by commas, each once: at most n_digits digits each."""
    parts = text.split(",")
    if not all(re.fullmatch(rf"[0-9]{{1,{n_digits}}}", part) for part in parts):
        raise MtprefError(f"{flag}: {text[:60]!r} is no list of whole numbers, expected some such as {example}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _one_type(flags: str, key: str | None, value: str | None) -> str | None:
    if key is not None and value is not None and key != value:
        raise MtprefError(f"{flags}: {key} and {value} differ, expected the same type for keys and values")
    chosen = key or value
    return None if chosen is None else KV_TYPES[chosen]
