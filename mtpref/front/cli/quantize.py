"""`mtpref quantize` and `mtpref imatrix`: a smaller file with its head kept, and the inputs of its matrices."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.output import Notes
from mtpref.front.cli.writing import OutputPath, add_writing, type_counts, writing

TYPES = (
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_1",
    "Q5_0",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_1",
    "Q4_0",
    "MXFP4_MOE",
)
MAX_TOLD = 8  # layers in a line
# File types that llama-quantize writes and `quantize` does not.
LLAMA_TYPES = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_XS"),
    *("IQ4_NL", "Q2_K", "Q2_K_S", "Q3_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"),
)


def add_parser(verbs: Any) -> None:
    _add_quantize(verbs)
    _add_imatrix(verbs)


def _add_quantize(verbs: Any) -> None:
    parser = verbs.add_parser(
        "quantize",
        usage="mtpref quantize [options] IN.gguf OUT.gguf TYPE",
        help="quantise a model and keep its MTP head",
        description="Quantise a GGUF model by llama.cpp's mixtures. The MTP head's own matrices are kept at Q8_0 or "
        "better unless --pure-llama, --mtp-type or --tensor say otherwise. K-quants and --imatrix need the extra "
        "`quantize`. docs/keeping-the-head.md explains.",
    )
    parser.add_argument("source", metavar="IN", help="GGUF model of float tensors, or the first of a split model")
    parser.add_argument("target", type=OutputPath, metavar="OUT", help="the GGUF file to write")
    parser.add_argument(
        "type",
        type=str.upper,
        metavar="TYPE",
        help=f"one of {', '.join(TYPES)}; for others (IQ2_XS, ...): strip, llama-quantize the trunk, graft",
    )
    parser.add_argument(
        "--pure-llama", action="store_true", help="llama.cpp's types exactly, the head's too (default: off)"
    )
    parser.add_argument(
        "--mtp-type", type=str.upper, metavar="TYPE", help="type of the head's matrices (default: at least Q8_0)"
    )
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="type of tensors whose names match; repeatable",
    )
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix, GGUF or .dat (default: none)")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=("rtn", "imatrix", "gptq"),
        help="rtn: round to nearest; imatrix: needs --imatrix; gptq: the head alone, needs --calibration "
        "(default: imatrix where one is given, else rtn)",
    )
    method.add_argument("--calibration", nargs="+", action="extend", metavar="FILE", help="texts for gptq")
    method.add_argument(
        "--gptq-group", type=int, default=32, metavar="N", help="columns that share a scale, for Q4_0 (default: 32)"
    )
    parser.add_argument(
        "--allow-requantize", action="store_true", help="take quantised tensors apart again (default: off)"
    )
    add_writing(parser)
    parser.set_defaults(run=run_quantize)


def run_quantize(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import human_bytes, printable
    from mtpref.heads.quantize import ENCODABLE, Settings, Wanted, quantize_file
    from mtpref.heads.quantize.importance import read_importance

    _check_mixture(args)
    _check_method(args)
    overrides = tuple(_override(text, ENCODABLE) for text in args.tensor)
    if args.mtp_type is not None:
        _check_type("--mtp-type", args.mtp_type, ENCODABLE)
        if args.pure_llama:
            raise MtprefError("--mtp-type: not with --pure-llama, which gives the head llama.cpp's types, expected one")
    found = None if args.imatrix is None else read_importance(args.imatrix)
    wanted = Wanted(
        mixture=args.type,
        pure_llama=args.pure_llama,
        mtp_type=args.mtp_type,
        overrides=overrides,
        has_imatrix=found is not None,
    )
    name = None if args.imatrix is None else Path(args.imatrix).name
    inputs = [] if args.imatrix is None else [args.imatrix]
    settings = Settings(wanted=wanted, importance=found, importance_name=name, allow_requantize=args.allow_requantize)
    replacements = _by_gptq(args, overrides) if args.method == "gptq" else None
    with writing(args, [*inputs, *(args.calibration or [])]) as options:
        made = quantize_file(args.source, args.target, settings, replacements=replacements, options=options)
    for note in made.notes:
        print(f"mtpref quantize: {note}", file=sys.stderr)
    types = type_counts(made.types)
    sizes = f"{human_bytes(made.n_bytes_before)} -> {human_bytes(made.n_bytes)}"
    print(f"{printable(args.target, 400)}: {sizes}; {types}")
    print(_head_line(made))
    return 0


def _check_mixture(args: argparse.Namespace) -> None:
    """Refuse a type that is not written here, and name the road to it where there is one."""
    if args.type in TYPES:
        return
    road = ""
    if args.type in LLAMA_TYPES:
        road = (
            f"; llama.cpp writes it: mtpref strip {args.source} -o trunk.gguf, llama-quantize [--imatrix FILE] "
            f"trunk.gguf small.gguf {args.type}, mtpref graft small.gguf {args.source} -o {args.target}"
        )
    raise MtprefError(f"TYPE: {args.type} is no type that mtpref writes, expected one of {', '.join(TYPES)}{road}")


def _check_method(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.method == "imatrix" and args.imatrix is None:
        raise MtprefError("--method imatrix: no matrix, expected --imatrix FILE; mtpref imatrix makes one")
    if args.method == "rtn" and args.imatrix is not None:
        raise MtprefError("--method rtn: takes no --imatrix, expected --method imatrix or neither")
    if args.method != "gptq":
        if args.calibration:
            raise MtprefError("--calibration: for gptq alone, expected --method gptq with it")
        return
    if not args.calibration:
        raise MtprefError("--method gptq: no texts, expected --calibration FILE...")
    if args.mtp_type not in ("Q4_0", "Q4_1", "Q8_0"):
        raise MtprefError(f"--method gptq: --mtp-type is {args.mtp_type}, expected Q4_0, Q4_1 or Q8_0")


def _by_gptq(args: argparse.Namespace, overrides: tuple[tuple[str, str], ...]) -> Any:
    """The head's matrices, calibrated; those that --tensor names are left to it."""
    from mtpref.engine.model import load
    from mtpref.front.cli.probe import Progress
    from mtpref.heads.quantize.grid import Grid
    from mtpref.heads.quantize.head import gptq_head, tensors_of, trunk_rows
    from mtpref.measure.probe import read_texts

    Notes().when_compiling(argparse.Namespace(ops=None))
    grid = Grid(args.mtp_type, args.gptq_group)
    model = load(args.source)
    texts = [text.ids for text in read_texts(args.calibration, model.vocab, "calibration")]
    n_ctx = min(512, model.config.n_ctx_train)
    folder = Path(args.target).resolve().parent
    made = gptq_head(model, trunk_rows(model, texts, n_ctx, Progress("calibrate")), grid, folder=folder)
    note = made.note()
    if note is not None:
        print(f"mtpref quantize: {note}", file=sys.stderr)
    taken = [re.compile(pattern) for pattern, _ in overrides]
    return {name: one for name, one in tensors_of(made.made).items() if not any(p.search(name) for p in taken)}


def _head_line(made: Any) -> str:
    from mtpref.files.gguf import human_bytes

    if not made.head:
        return "MTP head: none in this file"
    text = type_counts(Counter(made.head.values()))
    cost = f"; {human_bytes(made.head_cost)} more than llama.cpp's types" if made.head_cost > 0 else ""
    return f"MTP head: {text}{cost}"


def _override(text: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise MtprefError(f"--tensor {text}: expected REGEX=TYPE, such as 'ffn_down=Q8_0'")
    kind = kind.upper()
    _check_type(f"--tensor {text}", kind, kinds)
    return pattern, kind


def _check_type(what: str, kind: str, kinds: tuple[str, ...]) -> None:
    from mtpref.spec.quants import DEQUANTIZABLE

    if kind not in kinds:
        road = f"; llama-quantize --tensor-type NAME={kind} writes it" if kind in DEQUANTIZABLE else ""
        raise MtprefError(f"{what}: {kind} is no type that can be written, expected one of {', '.join(kinds)}{road}")


# IMATRIX


def _add_imatrix(verbs: Any) -> None:
    parser = verbs.add_parser(
        "imatrix",
        usage="mtpref imatrix [options] -f TEXT... -o OUT.gguf",
        help="measure an importance matrix that covers the MTP head",
        description="Run texts through trunk and MTP head and write the mean square of every matrix's inputs, in "
        "llama.cpp's GGUF format, for mtpref quantize --imatrix or llama-quantize --imatrix.",
    )
    from mtpref.front.cli.options import add_model

    add_model(parser)
    parser.add_argument("-f", "--file", nargs="+", required=True, action="extend", metavar="FILE", help="texts")
    parser.add_argument("-o", "--output", type=OutputPath, required=True, metavar="OUT", help="the GGUF file to write")
    parser.add_argument("-c", "--ctx-size", type=int, default=512, metavar="N", help="tokens of a chunk (default: 512)")
    add_writing(parser)
    parser.set_defaults(run=run_imatrix)


def run_imatrix(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import printable
    from mtpref.front.cli.options import load_model
    from mtpref.front.cli.probe import Progress
    from mtpref.heads.quantize.collect import Collector, run_text, stacks_of, watched
    from mtpref.heads.quantize.importance import write_importance
    from mtpref.measure.probe import read_texts

    if args.ctx_size < 2:
        raise MtprefError(f"--ctx-size: {args.ctx_size} is out of range, expected 2 or more")
    say = Notes()
    say.when_compiling(args)
    model = load_model(args).core
    texts = read_texts(args.file, model.vocab)
    seen = Collector(stacks_of(model))
    n_chunks = 0
    for text in texts:
        n_chunks += run_text(
            watched(model, seen.see),
            text.ids,
            n_ctx=min(args.ctx_size, model.config.n_ctx_train),
            progress=Progress("imatrix"),
        )
    names = [re.sub(r".*[/\\]", "", path) for path in args.file]
    with writing(args, [*args.file, *([args.model] if args.model else [])]) as options:
        write_importance(args.output, seen.sums, names, n_chunks, args.ctx_size, options)
    note = _unreached(seen.unreached(), seen.stacks)
    if note is not None:
        print(f"mtpref imatrix: {note}", file=sys.stderr)
    head = sum(name.startswith(f"blk.{model.config.n_layer}.") for name in seen.sums)
    print(f"{printable(args.output, 400)}: {len(seen.sums)} matrices, {head} of them the head's; {n_chunks} chunks")
    return 0


def _unreached(found: dict[str, int], sizes: Any) -> str | None:
    """One line on experts that no text reached, layer by layer."""
    layers = {
        name.partition(".ffn_")[0]: f"{n} of {sizes[name]} in {name.partition('.ffn_')[0]}" for name, n in found.items()
    }
    if not layers:
        return None
    told = ", ".join(list(layers.values())[:MAX_TOLD]) + ", ..." * (len(layers) > MAX_TOLD)
    return f"no text reached some experts: {told}; quantising counts their columns alike; more text reaches more"
