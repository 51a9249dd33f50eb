"""A probe from end to end: settings in, one report out, as an object and as JSON.

Owns the order of the parts and the schema. render.py prints it, plot.py draws it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.settings import Bounds, SettingError, check_fields
from mtpref.engine.decode import NEAR_TIE
from mtpref.engine.model import Model
from mtpref.measure.probe.controls import (
    INVISIBLE,
    MAIN,
    Control,
    compare_controls,
    contracts,
    controls,
    invisible,
    verdict,
)
from mtpref.measure.probe.count import Estimate, Judged, difference, judge, total_difference
from mtpref.measure.probe.tables import (
    MARGIN_EDGES,
    Bin,
    Calibration,
    Group,
    Language,
    Ranks,
    binned,
    by_context,
    by_label,
    calibration,
    group,
    joined,
    language,
    margins,
    ranks,
)
from mtpref.measure.probe.texts import Text, windows_of
from mtpref.measure.probe.walk import Progress, Seen, Variant, walk_all

SCHEMA = "mtpref-probe-1"
MAX_DRAFT = 16
TEN = "p among the ten best (p_min's)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """n_draft     draft steps
    stride, n_positions   which positions are probed: every so manieth, at most so many a text (0: all)
    n_ctx       tokens of a window (0: the model's context length)    n_batch: tokens of a trunk pass
    block       tokens of a block, the unit of the intervals
    """

    n_draft: Annotated[int, Bounds(1, MAX_DRAFT)] = 3
    stride: Annotated[int, Bounds(1)] = 1
    n_positions: Annotated[int, Bounds(0)] = 1024
    n_ctx: Annotated[int, Bounds(0)] = 0
    n_batch: Annotated[int, Bounds(1)] = 512
    block: Annotated[int, Bounds(1)] = 128
    with_controls: bool = True
    with_contracts: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "probe.Settings")
        if self.n_ctx == 1:
            raise SettingError("probe.Settings.n_ctx", "1 is out of range, expected 0 (the model's own) or 2 or more")


@dataclass(frozen=True)
class ContractLine:
    """A contract's acceptance, and how far it is above the probed contract at the same positions."""

    contract: str
    is_probed: bool
    group: Group
    a1_less_probed: Estimate
    length_less_probed: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "contract": self.contract,
            "is_probed": self.is_probed,
            **self.group.to_json(),
            "a1_less_probed": self.a1_less_probed.to_json(),
            "mean_length_less_probed": self.length_less_probed.to_json(),
        }


@dataclass(frozen=True)
class Report:
    """Everything that a probe found. n_tokens: of all texts; reached, right: counts by draft step, against the trunk;
    invisible: fields of a contract that these texts do not show"""

    contract: str
    numerics: str
    settings: Settings
    n_windows: int
    n_tokens: int
    n_blocks: int
    reached: list[int]
    right: list[int]
    trunk: Group
    text: Group
    language: Language
    domains: list[Group]
    contexts: list[Group]
    calibrations: list[Calibration]
    ranks: Ranks
    margins: list[Bin]
    n_near_ties: int
    controls: list[Control]
    contracts: list[ContractLine]
    invisible: tuple[str, ...] = INVISIBLE

    @property
    def verdict(self) -> str | None:
        return verdict(self.controls, bool(self.contracts)) if self.controls else None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "contract": self.contract,
            "numerics": self.numerics,
            "settings": asdict(self.settings),
            "n_windows": self.n_windows,
            "n_tokens": self.n_tokens,
            "n_positions": self.reached[0],
            "n_blocks": self.n_blocks,
            "reached": self.reached,
            "right": self.right,
            "against_trunk": self.trunk.to_json(),
            "against_text": self.text.to_json(),
            "language": self.language.to_json(),
            "domains": [g.to_json() for g in self.domains],
            "contexts": [g.to_json() for g in self.contexts],
            "calibration": [c.to_json() for c in self.calibrations],
            "ranks": self.ranks.to_json(),
            "margins": [b.to_json() for b in self.margins],
            "n_near_ties": self.n_near_ties,
            "controls": [c.to_json() for c in self.controls],
            "verdict": self.verdict,
            "contracts": [c.to_json() for c in self.contracts],
            "contract_fields_not_visible": list(self.invisible),
        }


def probe(model: Model, texts: Sequence[Text], settings: Settings, progress: Progress | None = None) -> Report:
    """Teacher-forced acceptance of a model's head on texts.

    progress   called with (tokens done, tokens in all)
    Errors     MtprefError without a head or without text
    """
    n_ctx = settings.n_ctx or model.config.n_ctx_train
    windows = windows_of(texts, n_ctx, settings.stride, settings.n_positions)
    if not windows:
        raise MtprefError("probe: no position to look at, expected a text of at least 2 tokens; give `a text file`")
    main = Variant(MAIN, model, settings.n_draft)
    controlled = controls(model) if settings.with_controls else []
    others = contracts(model, settings.n_draft) if settings.with_contracts else []
    variants = [main, *controlled, *_renamed(others[1:])]
    seen = walk_all(model, windows, variants, progress, settings.n_batch)
    return report(model, seen, settings, controlled, others)


def _renamed(others: Sequence[Variant]) -> list[Variant]:
    """Contracts beside controls, some of which have the same name and fewer steps."""
    return [Variant(f"contract {v.name}", v.model, v.n_draft) for v in others]


def report(
    model: Model, seen: list[Seen], settings: Settings, controlled: Sequence[Variant], others: Sequence[Variant]
) -> Report:
    block = settings.block
    trunk, text = (judge(seen, MAIN, against, block) for against in ("trunk", "text"))
    head, margin = joined(seen, MAIN), margins(seen)
    first, right = trunk.reached[:, 0], trunk.right[:, 0]
    reached_all, right_all = trunk.reached.reshape(-1), trunk.right.reshape(-1)
    return Report(
        contract=model.contract_name,
        numerics=model.recipe.numerics,
        settings=settings,
        n_windows=len(seen),
        n_tokens=sum(len(s.window.ids) for s in seen),
        n_blocks=len(set(trunk.blocks.tolist())),
        reached=trunk.n_reached,
        right=trunk.n_right,
        trunk=group("all", trunk),
        text=group("all", text),
        language=language(seen, MAIN),
        domains=by_label(seen, trunk),
        contexts=by_context(seen, trunk),
        calibrations=[
            calibration(f"{TEN}, every reached step, against the trunk", head.p.reshape(-1), reached_all, right_all),
            calibration("p among all ids, step 1, against the trunk", head.p_full, first, right),
            calibration("p among all ids, step 1, against the text", head.p_full, text.reached[:, 0], text.right[:, 0]),
        ],
        ranks=ranks(head.rank, head.lp_target),
        margins=binned(margin, MARGIN_EDGES, first, right),
        n_near_ties=int((margin < NEAR_TIE).sum()),
        controls=compare_controls(seen, controlled, block) if controlled else [],
        contracts=_contract_lines(seen, others, trunk, block),
        invisible=invisible(model),
    )


def _contract_lines(seen: list[Seen], others: Sequence[Variant], probed: Judged, block: int) -> list[ContractLine]:
    lines = []
    for i, variant in enumerate(others):
        judged = probed if i == 0 else judge(seen, f"contract {variant.name}", "trunk", block)
        less = difference(judged, probed), total_difference(judged, probed)
        lines.append(ContractLine(variant.name, i == 0, group(variant.name, judged), *less))
    return lines
