"""Arguments of the draft/verify loop, and the `Options` that they make. Names are llama.cpp's."""

import argparse
import re
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.front.cli.habits import add_taken_spec
from mtpref.front.cli.sampling_options import sampling_config, stop_strings


def add_spec(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speculative decoding")
    group.add_argument(
        "--spec-type",
        type=lambda text: "draft-mtp" if text.lower() == "mtp" else text,
        choices=("draft-mtp", "none"),
        help="draft-mtp or none (default: draft-mtp where the file has an MTP head)",
    )
    add_taken_spec(group)
    group.add_argument(
        "--spec-draft-n-max", type=int, default=3, metavar="N", help="longest draft, 0: none (default: 3)"
    )
    group.add_argument("--spec-draft-n-min", type=int, default=0, metavar="N", help="shortest draft (default: 0)")
    group.add_argument(
        "--spec-draft-p-min",
        type=float,
        default=0.0,
        metavar="P",
        help="least probability of a drafted token among the ten best (default: 0.0)",
    )
    group.add_argument(
        "--spec-draft-vocab",
        metavar="N|FILE",
        help="draft only the first N ids, or the ids of a file: text with one a line, a JSON list, or a GGUF with the "
        "tensor d2t (FastMTP; default: all)",
    )
    group.add_argument(
        "--spec-rollback",
        choices=("snapshot", "replay", "two-phase", "replay-with-correction"),
        default="snapshot",
        help="how a rejected draft leaves the model state; the last is llama.cpp's loop for models without recurrent "
        "snapshots, with --contract replay=stale (default: snapshot)",
    )
    group.add_argument(
        "--spec-cooldown", type=int, default=0, metavar="K", help="rounds without drafts after rejections (default: 0)"
    )
    group.add_argument(
        "--spec-cooldown-after",
        type=int,
        default=1,
        metavar="R",
        help="cool down after R rounds without an acceptance (default: 1)",
    )

    group.add_argument(
        "--spec-adaptive",
        choices=("off", "heuristic", "expected"),
        default="off",
        help="draft fewer than --spec-draft-n-max tokens: heuristic (2 more after a draft accepted whole, else 1 "
        "fewer) or expected (while a further token's expected gain is worth its cost; default: off)",
    )
    group.add_argument(
        "--spec-adaptive-costs",
        metavar="DRAFT,ROW",
        help="expected: cost of a draft step and of a further verified token, in plain decode passes (default: "
        "0.125,0.125)",
    )


def decode_options(args: argparse.Namespace, model: Any) -> Any:
    from mtpref.engine.decode import Options, PolicyConfig

    policy = PolicyConfig(
        n_max=args.spec_draft_n_max,
        n_min=args.spec_draft_n_min,
        p_min=args.spec_draft_p_min,
        cooldown=args.spec_cooldown,
        cooldown_after=args.spec_cooldown_after,
    )
    return Options(
        n_predict=args.n_predict,
        spec_type=args.spec_type or ("draft-mtp" if model.has_mtp else "none"),
        policy=policy,
        rollback=args.spec_rollback,
        n_batch=args.batch_size,
        sampling=sampling_config(args),
        stop=stop_strings(args),
        adaptive=_adaptive(args.spec_adaptive, args.spec_adaptive_costs),
        **_draft_vocab(args.spec_draft_vocab, model.core.n_vocab),
    )


def _adaptive(rule: str, costs: str | None) -> Any:
    """The adaptive rule and its costs: `DRAFT,ROW` in plain decode passes."""
    from mtpref.engine.decode import AdaptiveConfig

    if costs is None:
        return AdaptiveConfig(rule=rule)
    if rule != "expected":
        raise MtprefError(
            f"--spec-adaptive-costs: only the rule expected reads costs, found --spec-adaptive {rule}; "
            "use --spec-adaptive expected"
        )
    parts = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{0,9})?),([0-9]{1,9}(?:\.[0-9]{0,9})?)", costs)
    if parts is None:
        raise MtprefError(f"--spec-adaptive-costs: {costs!r} is not DRAFT,ROW, expected two numbers such as 0.1,0.2")
    draft_cost, row_cost = map(float, parts.groups())
    return AdaptiveConfig(rule=rule, draft_cost=draft_cost, row_cost=row_cost)


def _draft_vocab(text: str | None, n_vocab: int) -> dict[str, Any]:
    """`N` or `FILE`, as the field of Options that it sets."""
    from mtpref.files.draft_vocab import read_draft_ids

    if text is None:
        return {}
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return {"n_draft_vocab": int(text)}
    return {"draft_ids": read_draft_ids(text, n_vocab)}
