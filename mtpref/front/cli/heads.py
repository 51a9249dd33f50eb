"""`mtpref extract`, `strip` and `graft`: an MTP head out of a model, off it, or into one."""

import argparse
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.graft_folders import add_options, check_options, run_hf, write_shard
from mtpref.front.cli.writing import OutputPath, add_writing, writing

UNITS = {"M": 1_000_000, "G": 1_000_000_000}  # as llama-gguf-split counts


def add_parser(verbs: Any) -> None:
    _add_extract(verbs)
    _add_strip(verbs)
    _add_graft(verbs)


def _add_extract(verbs: Any) -> None:
    parser = verbs.add_parser(
        "extract",
        usage="mtpref extract [options] FILE [-o OUT.gguf]",
        help="write the MTP head of a model as a file of its own",
        description="Write the MTP head of a GGUF model as a stand-alone file for -md, the one that llama.cpp's "
        "converter makes with --mtp: the same tensors, keys and order. Of a checkpoint folder it is what `mtpref "
        "convert --mtp` writes. docs/keeping-the-head.md explains.",
    )
    parser.add_argument(
        "file", metavar="FILE", help="GGUF file with a head, the first of a split model, or a checkpoint folder"
    )
    parser.add_argument(
        "--outtype",
        choices=("f32", "f16", "bf16", "q8_0"),
        help="type of the matrices of a checkpoint folder, but of 4-bit codes that stay (default: bf16)",
    )
    parser.add_argument(
        "-o", "--output", type=OutputPath, metavar="OUT", help="the file to write (default: mtp-FILE beside FILE)"
    )
    _add_split(parser)
    add_writing(parser)
    parser.set_defaults(run=run_extract)


def _add_strip(verbs: Any) -> None:
    parser = verbs.add_parser(
        "strip",
        usage="mtpref strip [options] FILE -o OUT.gguf",
        help="write a model without its MTP head",
        description="Write a GGUF model without its MTP head, the file that llama.cpp's converter makes with --no-mtp. "
        "It also repairs a file whose keys declare a head that is not there.",
    )
    parser.add_argument("file", metavar="FILE", help="GGUF file, or the first of a split model")
    parser.add_argument("-o", "--output", type=OutputPath, required=True, metavar="OUT", help="the file to write")
    _add_split(parser)
    add_writing(parser)
    parser.set_defaults(run=run_strip)


def _add_graft(verbs: Any) -> None:
    parser = verbs.add_parser(
        "graft",
        usage="mtpref graft [options] TRUNK SOURCE -o OUT.gguf\n"
        "       mtpref graft --as-shard [options] TRUNK-00001-of-0000N.gguf SOURCE -o DIR\n"
        "       mtpref graft --hf [options] QUANTISED_DIR ORIGINAL_DIR -o DIR",
        help="put the MTP head of another file into a model",
        description="Write a model with the MTP head of another file; the trunk's tensors are copied as they are. A "
        "head that cannot fit is refused; whether it belongs to the trunk is for the probe to say. With --as-shard the "
        "head becomes one file more of a split model, whose other files are linked into a new folder; with --hf the "
        "head of a checkpoint goes into a quantised one that lost it.",
    )
    parser.add_argument("trunk", metavar="TRUNK", help="GGUF model; a head of its own is replaced")
    parser.add_argument(
        "source", metavar="SOURCE", help="where the head is: mtp-*.gguf, another GGUF model, or a checkpoint folder"
    )
    parser.add_argument(
        "-o", "--output", type=OutputPath, required=True, metavar="OUT", help="the file to write, or the new folder"
    )
    parser.add_argument(
        "--outtype",
        choices=("f32", "f16", "bf16", "q8_0"),
        help="type of the head's matrices from a checkpoint folder, but of 4-bit codes that stay (default: bf16)",
    )
    add_options(parser)
    proof = parser.add_mutually_exclusive_group()
    proof.add_argument(
        "--probe",
        action="store_true",
        default=None,
        help="measure the head's acceptance on a built-in text, against controls (default: for models up to 64 MiB)",
    )
    proof.add_argument("--no-probe", dest="probe", action="store_false", help="do not")
    _add_split(parser)
    add_writing(parser)
    parser.set_defaults(run=run_graft)


def _add_split(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several files (OUT-00001-of-0000N.gguf)").add_mutually_exclusive_group()
    group.add_argument("--split-max-tensors", type=int, metavar="N", help="tensors in a file at most (default: all)")
    group.add_argument("--split-max-size", metavar="N(M|G)", help="bytes of tensors in a file at most (default: all)")


# RUN


def run_extract(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import open_gguf
    from mtpref.heads import extract

    source = Path(args.file)
    if source.is_dir():
        return _extract_folder(args, source)
    if args.outtype is not None:
        raise MtprefError("--outtype: FILE is a GGUF file, whose head keeps its types; expected a checkpoint folder")
    output = args.output or source.with_name(f"mtp-{re.sub(r'-00001-of-[0-9]{5}(?=[.]gguf$)', '', source.name)}")
    with open_gguf(source) as file:
        _write(args, output, extract(file), [file])
    return 0


def _extract_folder(args: argparse.Namespace, folder: Path) -> int:
    from mtpref.heads.checkpoint import head_contents
    from mtpref.heads.hf import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        contents, notes = head_contents(checkpoint, args.outtype or "bf16")
        for note in notes:
            say(f"note: {note}")
        output = args.output or folder.resolve().with_name(f"mtp-{folder.resolve().name}.gguf")
        _write(args, output, contents, [], [folder / name for name in checkpoint.files])
    return 0


def run_strip(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import open_gguf
    from mtpref.heads import strip

    with open_gguf(args.file) as file:
        _write(args, args.output, strip(file), [file])
    return 0


def run_graft(args: argparse.Namespace) -> int:
    from mtpref.architectures import ARCHITECTURES
    from mtpref.files.gguf import open_gguf
    from mtpref.heads import graft
    from mtpref.heads.proof import SMALL

    check_options(args)
    if args.hf:
        return run_hf(args, say)
    with contextlib.ExitStack() as stack:
        trunk = stack.enter_context(open_gguf(args.trunk))
        source, inputs = _open_source(args, stack)
        joined = graft(trunk, source)
        if args.probe:
            _check_readable(joined.contents)
        for note in joined.notes:
            say(f"note: {note}")
        for doubt in joined.doubts:
            say(f"warning: the head may be another trunk's: {doubt}")
        if args.as_shard:
            paths = write_shard(args, trunk, joined, inputs, say)
        else:
            paths = _write(args, args.output, joined.contents, [trunk], inputs)
    if joined.arch not in ARCHITECTURES:
        say(f"not probed: mtpref does not run {joined.arch}; its acceptance is for another engine to say")
        return 0
    is_probed = args.probe if args.probe is not None else joined.contents.n_bytes <= SMALL
    if is_probed:
        return _prove(paths[0], is_asked=bool(args.probe))
    if joined.doubts or args.probe is None:
        say(f"to prove that the head belongs to this trunk: mtpref probe -m {paths[0]} -f TEXT")
    return 0


def _open_source(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Any, list[Path]]:
    """Where the head is, opened until the stack ends, and the files that it is in."""
    from mtpref.files.gguf import open_gguf
    from mtpref.heads.contents import files_of

    if not Path(args.source).is_dir():
        if args.outtype is not None:
            raise MtprefError(
                "--outtype: SOURCE is a GGUF file, whose head keeps its types; expected a checkpoint folder"
            )
        file = stack.enter_context(open_gguf(args.source))
        return file, files_of(file)
    from mtpref.heads.checkpoint import checkpoint_source
    from mtpref.heads.hf import open_checkpoint

    checkpoint = stack.enter_context(open_checkpoint(args.source))
    source, notes = checkpoint_source(checkpoint, args.outtype or "bf16")
    for note in notes:
        say(f"note: {note}")
    return source, [Path(args.source) / name for name in checkpoint.files]


def _check_readable(contents: Any) -> None:
    """Refuse --probe before anything is written, where a type cannot be read."""
    from mtpref.architectures import D2T
    from mtpref.spec.quants import DEQUANTIZABLE

    for item in contents.items:
        if item.type_name not in DEQUANTIZABLE and item.name != D2T.name:
            raise MtprefError(
                f"--probe: tensor {item.name} has type {item.type_name}, whose values mtpref cannot read, expected a "
                "known type; --no-probe writes the file"
            )


def _prove(path: Path, *, is_asked: bool) -> int:
    """The file is written: what cannot be run is a note, unless the run was asked for or shows that the file is bad."""
    from mtpref.base.errors import UnsupportedError
    from mtpref.front.cli.output import Notes, begin
    from mtpref.heads.proof import prove

    Notes().when_compiling(argparse.Namespace(ops=None))
    try:
        proof = prove(path)
    except UnsupportedError as error:
        if is_asked:
            raise
        begin()
        say(f"not probed: {error}")
        return 0
    begin()
    print("\n".join(proof.lines()))
    return 1 if proof.belongs is False else 0


def _write(
    args: argparse.Namespace, output: str | Path, contents: Any, files: list[Any], more: Sequence[Path] = ()
) -> list[Path]:
    from mtpref.files.gguf import human_bytes, printable
    from mtpref.heads.contents import files_of, write_contents

    limits = {"max_tensors": args.split_max_tensors, "max_bytes": _size(args.split_max_size)}
    with writing(args, [*files_of(*files), *more]) as options:
        paths = write_contents(output, contents, options, **limits)
    parts = f" in {len(paths)} files" if len(paths) > 1 else ""
    print(f"{printable(str(paths[0]), 400)}: {len(contents.items)} tensors, {human_bytes(contents.n_bytes)}{parts}")
    return paths


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in UNITS or int(number) < 1:
        raise MtprefError(f"--split-max-size: {text!r}, expected a whole number and M or G, such as 4G")
    return int(number) * UNITS[unit]


def say(text: str) -> None:
    from mtpref.files.vocab import terminal_safe
    from mtpref.front.cli.flags import flagged
    from mtpref.front.cli.output import note

    note(terminal_safe(flagged(text)))
