"""`mtpref convert`: a checkpoint folder to a GGUF file, with its MTP head."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mtpref.front.cli.writing import OutputPath, add_writing, type_counts, writing


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "convert",
        usage="mtpref convert [options] HF_DIR -o OUT.gguf",
        help="make a GGUF file of a checkpoint folder, head included",
        description="Convert a checkpoint folder (config.json, safetensors, tokenizer.json) of an architecture of "
        "docs/architectures.md to GGUF: the bytes that llama.cpp's converter writes. Quantised checkpoints are read as "
        "the values that they stand for (docs/checkpoints.md). The MTP head is kept unless "
        "--no-mtp says otherwise; a tensor that has no place in the file is an error. docs/keeping-the-head.md "
        "explains.",
    )
    parser.add_argument("folder", metavar="HF_DIR", help="checkpoint folder")
    parser.add_argument("-o", "--output", type=OutputPath, required=True, metavar="OUT", help="the GGUF file to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--mtp", action="store_true", help="the head alone, for -md, as llama.cpp's --mtp (default: trunk and head)"
    )
    which.add_argument("--no-mtp", action="store_true", help="the trunk alone (default: trunk and head)")
    parser.add_argument(
        "--outtype", choices=("f32", "f16", "bf16", "q8_0"), default="bf16", help="type of the matrices (default: bf16)"
    )
    parser.add_argument(
        "--allow-unmapped", action="store_true", help="leave out tensors that have no place in a GGUF (default: off)"
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="write 4-bit codes of the source in --outtype too (default: they stay, in Q4_0 or MXFP4 blocks, where "
        "those hold the very same values)",
    )
    parser.add_argument(
        "--drop-copies",
        action="store_true",
        help="leave out of the head's own embedding, output and norm those that are the trunk's, value by value: a run "
        "takes the trunk's then (default: off, as llama.cpp's converter)",
    )
    parser.add_argument("--pre", metavar="NAME", help="pre-tokenizer (default: found by what tokenizer.json does)")
    add_writing(parser)
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    from mtpref.files.gguf import printable
    from mtpref.files.vocab.pretokenizers import rules_of
    from mtpref.heads.convert import Settings, convert

    if args.pre is not None:
        rules_of(args.pre)
    which = "mtp" if args.mtp else "trunk" if args.no_mtp else "both"
    settings = Settings(
        outtype=args.outtype,
        which=which,
        allow_unmapped=args.allow_unmapped,
        pre=args.pre,
        keeps_codes=not args.decode,
        drops_copies=args.drop_copies,
    )
    with writing(args, sorted(Path(args.folder).glob("*.safetensors"))) as options:
        made = convert(args.folder, args.output, settings, options=options)
    for note in made.notes:
        print(f"mtpref convert: {note}", file=sys.stderr)
    types = type_counts(made.types)
    head = f"MTP blocks: {made.n_mtp}"
    print(f"{printable(args.output, 400)}: {made.n_tensors} tensors ({types}), {made.n_bytes / 1e6:.1f} MB, {head}")
    return 0
