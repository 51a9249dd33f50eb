"""Arguments of sampling and of stop strings, and the settings that they make. Names are llama.cpp's."""

import argparse
import secrets
from typing import Any

from mtpref.front.cli.options import unescape

SAMPLERS = "top_k;top_p;min_p;temperature"
ALIASES = {"temp": "temperature"}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temp",
        "--temperature",
        dest="temp",
        type=float,
        default=0.0,
        metavar="T",
        help="temperature; 0: greedy, the filters do nothing (default: 0)",
    )
    group.add_argument(
        "--top-k", type=int, default=40, metavar="K", help="keep the K most probable tokens, 0: all (default: 40)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="keep the fewest tokens that reach probability P, 1: all (default: 0.95)",
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.05,
        metavar="P",
        help="keep tokens at least P times as probable as the best, 0: all (default: 0.05)",
    )
    group.add_argument(
        "--samplers", default=SAMPLERS, metavar="NAMES", help=f"the filters in their order (default: {SAMPLERS})"
    )
    group.add_argument(
        "-s",
        "--seed",
        type=int,
        default=0,
        metavar="SEED",
        help="key of every draw, up to 2**64 - 1; -1: a random one, which is told (default: 0)",
    )
    group.add_argument(
        "--spec-accept",
        choices=("match", "residual"),
        default="match",
        help="match: the model's own draw is compared with the draft, so the text is that of plain sampling; residual: "
        "the draft is drawn too, and accepted with probability min(1, p/q) (default: match)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="never choose an end-of-generation token (default: off)"
    )
    group.add_argument(
        "-r",
        "--reverse-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the text before TEXT; may be given several times, -e applies (default: none)",
    )


def sampling_config(args: argparse.Namespace) -> Any:
    """The SamplingConfig that the arguments make.

    Errors  MtprefError naming the flag, the value and the range
    """
    from mtpref.engine.decode import SamplingConfig

    names = [name.strip() for name in args.samplers.split(";") if name.strip()]
    return SamplingConfig(
        temp=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        samplers=tuple(ALIASES.get(name, name) for name in names),
        seed=_seed(args),
        ignore_eos=args.ignore_eos,
        accept=args.spec_accept,
    )


def stop_strings(args: argparse.Namespace) -> tuple[str, ...]:
    """The texts of -r, escapes read where -e says so."""
    return tuple(unescape(text) if args.escape else text for text in args.reverse_prompt)


def _seed(args: argparse.Namespace) -> int:
    return secrets.randbits(32) if args.seed == -1 else int(args.seed)
