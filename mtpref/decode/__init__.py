"""The draft/verify loop: loop.py, then rollback.py, sampling.py, drafters.py, stops.py, statistics.py."""

from mtpref.adaptive import AdaptiveConfig, AdaptiveState
from mtpref.decode.drafters import Drafter, MtpDrafter, NoDrafter, ScriptedDrafter
from mtpref.decode.inline import InlineDrafter
from mtpref.decode.loop import SPEC_TYPES, Decoder, Options
from mtpref.decode.rollback import STRATEGIES
from mtpref.decode.sampling import ACCEPT_RULES, SAMPLERS, SamplingConfig
from mtpref.decode.statistics import NEAR_TIE, Statistics
from mtpref.policy import PolicyConfig, PolicyState

__all__ = [
    "ACCEPT_RULES",
    "NEAR_TIE",
    "SAMPLERS",
    "SPEC_TYPES",
    "STRATEGIES",
    "AdaptiveConfig",
    "AdaptiveState",
    "Decoder",
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
]
