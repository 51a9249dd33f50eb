"""`mtpref graft` where it makes a folder: --as-shard (a file more of a split model), --hf (a quantised checkpoint)."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.writing import writing

Say = Callable[[str], None]
# Options of --hf -> the value without them
OF_HF = {"head_type": None, "method": None, "group_size": None, "calibration": None, "hidden": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("into a new folder")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--as-shard",
        action="store_true",
        help="write the head as one file more of a split TRUNK; its other files are linked (default: off)",
    )
    what.add_argument(
        "--hf",
        action="store_true",
        help="TRUNK is a quantised checkpoint folder that lost its head, SOURCE the original; its files are linked",
    )
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--symlink",
        dest="how",
        action="store_const",
        const="symbolic",
        help="link by name, which crosses devices and breaks when the trunk moves (default: hard links)",
    )
    how.add_argument("--copy", dest="how", action="store_const", const="copy", help="copy the files, link none")
    hf = parser.add_argument_group("with --hf")
    hf.add_argument(
        "--head-type",
        choices=("bf16", "fp8-block", "w4a16"),
        help="of the head's experts, or of its feed-forward network (default: as the base has its own; bf16: all of "
        "the head)",
    )
    hf.add_argument(
        "--method", choices=("rtn", "gptq"), help="of w4a16: round to nearest, or calibrated (default: rtn)"
    )
    hf.add_argument(
        "--group-size", type=int, metavar="N", help="columns of w4a16 with one scale (default: the base's, else 128)"
    )
    hf.add_argument("--calibration", nargs="+", action="extend", metavar="FILE", help="texts for gptq")
    hf.add_argument(
        "--hidden", metavar="FILE", help="for gptq, in place of texts: a safetensors file of h, ids and positions"
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and a folder that is there, before anything is read."""
    if not (args.as_shard or args.hf) and args.how is not None:
        flag = "--symlink" if args.how == "symbolic" else "--copy"
        raise MtprefError(f"{flag}: says how files come into a new folder, expected it with --as-shard or --hf")
    given = next((name for name, without in OF_HF.items() if getattr(args, name) != without), None)
    if given is not None and not args.hf:
        raise MtprefError(f"--{given.replace('_', '-')}: is about checkpoint folders, expected it with --hf")
    if not (args.as_shard or args.hf):
        return
    for flag, value in (("--split-max-tensors", args.split_max_tensors), ("--split-max-size", args.split_max_size)):
        if value is not None:
            raise MtprefError(f"{flag}: the head is one file and the others stay as they are, expected no such option")
    if args.hf and (args.outtype is not None or args.probe is not None):
        flag = "--outtype" if args.outtype is not None else "--probe"
        raise MtprefError(f"{flag}: is about GGUF files, expected it without --hf; --head-type says the head's type")
    if getattr(args.output, "shown", "") == "-":
        raise MtprefError("-o: what is made is a folder, which standard output cannot take; expected a name")
    from mtpref.files.gguf import check_folder

    check_folder(args.output)


def write_shard(args: argparse.Namespace, trunk: Any, joined: Any, inputs: Sequence[Path], say: Say) -> list[Path]:
    from mtpref.files.gguf import human_bytes, printable
    from mtpref.heads.as_shard import as_shard, notes_of, write_as_shard
    from mtpref.heads.contents import files_of

    made = as_shard(trunk, joined)
    for note in notes_of(made):
        say(f"note: {note}")
    with writing(args, [*files_of(trunk), *inputs]) as options:
        paths = write_as_shard(args.output, made, args.how or "hard", options, lambda text: say(f"note: {text}"))
    print(
        f"{printable(str(paths[0]), 400)}: {len(paths)} files, 2 of them new: {len(made.head)} tensors of the head, "
        f"{human_bytes(made.n_new)} written; {len(made.kept)} are the trunk's"
    )
    return paths


def run_hf(args: argparse.Namespace, say: Say) -> int:
    from mtpref.files.gguf import human_bytes, printable
    from mtpref.front.cli.output import Notes
    from mtpref.front.cli.probe import Progress
    from mtpref.heads.into_hf import Settings, graft_hf

    settings = Settings(
        head_type=args.head_type,
        method=args.method or "rtn",
        group_size=args.group_size,
        calibration=tuple(args.calibration or ()),
        hidden=args.hidden,
        how=args.how or "hard",
    )
    if settings.method == "gptq":
        Notes().when_compiling(argparse.Namespace(ops=None))
    inputs = [*settings.calibration, *([settings.hidden] if settings.hidden else [])]
    with writing(args, inputs) as options:
        made = graft_hf(
            args.trunk,
            args.source,
            args.output,
            settings,
            options=options,
            say=lambda text: say(f"note: {text}"),
            progress=Progress("calibrate"),
        )
    types = (
        ", ".join(f"{n} {'matrix' if n == 1 else 'matrices'} in {words}" for words, n in made.formats.items())
        or "all as the original has it"
    )
    kept = "1 file" if made.n_kept == 1 else f"{made.n_kept} files"
    by = f", {made.n_calibrated} of them by GPTQ" if made.n_calibrated else ""
    print(
        f"{printable(str(made.path), 400)}: a head of {made.n_tensors} tensors, {human_bytes(made.n_bytes)}: "
        f"{types}{by}; {kept} of weights {'is' if made.n_kept == 1 else 'are'} the base's"
    )
    return 0
