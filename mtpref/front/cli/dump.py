"""`mtpref dump`: activations of trunk and head as a GGUF of named tensors."""

import argparse
import sys
from typing import Any

from mtpref.front.cli.options import add_model, add_prompt, load_model, read_prompt
from mtpref.front.cli.output import begin
from mtpref.front.cli.writing import OutputPath


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "dump",
        usage="mtpref dump [options] -o OUT.gguf",
        help="write activations of any layer to a GGUF file",
        description="Run a prompt once through trunk and MTP head and write the tensors whose llama.cpp cb() name "
        "matches to a GGUF file, for `mtpref compare` or for a port's own checker. NaN and infinity are written as "
        "they are; exit code 2 says that there are some.",
    )
    add_model(parser)
    add_prompt(parser)
    parser.add_argument(
        "--tensors", default=".", metavar="REGEX", help="which tensors, e.g. '^(l_out|mtp_.*)-' (default: all)"
    )
    parser.add_argument("-o", "--output", type=OutputPath, required=True, metavar="OUT.gguf", help="the file to write")
    parser.set_defaults(run=run_dump)


def run_dump(args: argparse.Namespace) -> int:
    from mtpref.look import dump

    prompt = read_prompt(args)
    model = load_model(args)
    ids = model.encode(prompt, limit=model.core.config.n_ctx_train)
    recorder = dump.record(model.core, ids, args.tensors)
    dump.write_dump(args.output, model.core, ids, recorder.tensors)
    begin()
    print(f"{args.output.shown}: {len(recorder.tensors)} tensors of {len(ids)} tokens", file=sys.stderr)
    if recorder.first_bad.name is not None and model.core.is_checked:
        raise recorder.first_bad.error(model.core, f"{args.output.shown} is written; the model")
    return 0
