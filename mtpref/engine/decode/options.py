"""What a run may be told: how many tokens, who drafts, how drafts are verified and sampled."""

from dataclasses import dataclass, field

from mtpref.base.errors import MtprefError
from mtpref.engine.decode.rollback import STRATEGIES
from mtpref.engine.decode.sampling import SamplingConfig
from mtpref.spec.policy import AdaptiveConfig, PolicyConfig

SPEC_TYPES = ("draft-mtp", "none")


@dataclass(frozen=True)
class Options:
    """The options of one run.

    n_predict      tokens to generate at most; -1: until the end of generation or of the context
    spec_type      draft-mtp or none
    policy         draft length and cooldown
    rollback       snapshot, replay or two-phase
    n_draft_vocab  FastMTP: only the first so many rows of the head can be drafted (None: all)
    draft_ids      FastMTP: only these ids can be drafted (None: all)
    n_batch        prompt tokens per trunk pass
    sampling       temperature, filters, seed, the rule that accepts a draft
    stop           strings that end the text and are not part of it
    adaptive       a rule that makes drafts shorter than the policy allows (docs/adaptive.md)
    """

    n_predict: int = 128
    spec_type: str = "draft-mtp"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollback: str = "snapshot"
    n_draft_vocab: int | None = None
    n_batch: int = 512
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()
    draft_ids: tuple[int, ...] | None = None
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        if self.spec_type not in SPEC_TYPES:
            raise MtprefError(f"--spec-type: {self.spec_type!r} is unknown, expected one of {', '.join(SPEC_TYPES)}")
        if self.rollback not in STRATEGIES:
            raise MtprefError(f"--spec-rollback: {self.rollback!r} is unknown, expected one of {', '.join(STRATEGIES)}")
        if self.n_predict < -1:
            raise MtprefError(f"--predict: {self.n_predict} is out of range, expected -1 (no limit) or more")
        if self.n_draft_vocab is not None and self.n_draft_vocab < 1:
            raise MtprefError(f"--spec-draft-vocab: {self.n_draft_vocab} is out of range, expected 1 or more")
        if self.n_batch < 1:
            raise MtprefError(f"--batch-size: {self.n_batch} is out of range, expected 1 or more")
        if "" in self.stop:
            raise MtprefError("--reverse-prompt: the string is empty, expected at least one character")
