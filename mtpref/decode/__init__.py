"""The draft/verify loop. Start with loop.py; then rollback.py, drafters.py, policy.py, statistics.py."""

from mtpref.decode.drafters import Drafter, MtpDrafter, NoDrafter, ScriptedDrafter
from mtpref.decode.inline import InlineDrafter
from mtpref.decode.loop import SPEC_TYPES, Decoder, Options
from mtpref.decode.policy import PolicyConfig, PolicyState
from mtpref.decode.rollback import STRATEGIES
from mtpref.decode.statistics import NEAR_TIE, Statistics

__all__ = [
    "NEAR_TIE",
    "SPEC_TYPES",
    "STRATEGIES",
    "Decoder",
    "Drafter",
    "InlineDrafter",
    "MtpDrafter",
    "NoDrafter",
    "Options",
    "PolicyConfig",
    "PolicyState",
    "ScriptedDrafter",
    "Statistics",
]
