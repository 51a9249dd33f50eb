"""The draft/verify loop: loop.py, then drafters.py and lengths.py, rollback.py, sampling.py, passes.py, stops.py,
statistics.py; options.py says what a run may be told."""

from mtpref.engine.decode.drafters import (
    Drafter,
    MtpDrafter,
    NoDrafter,
    ScriptedDrafter,
    most_drafted,
    n_in_chain,
    notes_of,
)
from mtpref.engine.decode.inline import InlineDrafter
from mtpref.engine.decode.lengths import DraftLength
from mtpref.engine.decode.loop import Decoder
from mtpref.engine.decode.options import SPEC_TYPES, AdaptiveConfig, Options, PolicyConfig
from mtpref.engine.decode.rollback import ALL_STRATEGIES, STRATEGIES, WITH_CORRECTION
from mtpref.engine.decode.sampling import ACCEPT_RULES, SAMPLERS, SamplingConfig
from mtpref.engine.decode.statistics import NEAR_TIE, Statistics
from mtpref.spec.policy import AdaptiveState, PolicyState

__all__ = [
    "ACCEPT_RULES",
    "ALL_STRATEGIES",
    "NEAR_TIE",
    "SAMPLERS",
    "SPEC_TYPES",
    "STRATEGIES",
    "WITH_CORRECTION",
    "AdaptiveConfig",
    "AdaptiveState",
    "Decoder",
    "DraftLength",
    "Drafter",
    "InlineDrafter",
    "MtpDrafter",
    "NoDrafter",
    "Options",
    "PolicyConfig",
    "PolicyState",
    "SamplingConfig",
    "ScriptedDrafter",
    "Statistics",
    "most_drafted",
    "n_in_chain",
    "notes_of",
]
