"""mtpref: the reference MTP speculative decoder for GGUF models.

    import mtpref
    model = mtpref.load()                      # or mtpref.load("model.gguf")
    run = model.generate("def main(", mtpref.Options(n_predict=32))
    for text in run.stream(): print(text, end="")   # or: for event in run: ...
    print(run.statistics.acceptance)

Names below are loaded when they are first used, so that `import mtpref` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from mtpref.base.errors import MtprefError

if TYPE_CHECKING:
    from mtpref.base.events import (
        Drafted,
        DraftStep,
        Draw,
        Event,
        PromptProgress,
        RolledBack,
        RunEnded,
        RunStarted,
        Token,
        Verified,
    )
    from mtpref.base.settings import SettingError
    from mtpref.engine.decode import (
        AdaptiveConfig,
        Drafter,
        MtpDrafter,
        NoDrafter,
        Options,
        PolicyConfig,
        SamplingConfig,
        ScriptedDrafter,
        Statistics,
    )
    from mtpref.engine.session import Session
    from mtpref.files.chat import ChatPrompt, ChatTemplate
    from mtpref.front.api import LanguageModel, Run, load
    from mtpref.spec.contract import MtpContract
    from mtpref.spec.rope_scaling import RopeOverrides
    from mtpref.spec.state import ModelState

__version__ = "0.1.0"

_HOME = {
    "AdaptiveConfig": "mtpref.engine.decode",
    "ChatPrompt": "mtpref.files.chat",
    "ChatTemplate": "mtpref.files.chat",
    "DraftStep": "mtpref.base.events",
    "Drafted": "mtpref.base.events",
    "Drafter": "mtpref.engine.decode",
    "Draw": "mtpref.base.events",
    "Event": "mtpref.base.events",
    "LanguageModel": "mtpref.front.api",
    "ModelState": "mtpref.spec.state",
    "MtpContract": "mtpref.spec.contract",
    "MtpDrafter": "mtpref.engine.decode",
    "NoDrafter": "mtpref.engine.decode",
    "Options": "mtpref.engine.decode",
    "PolicyConfig": "mtpref.engine.decode",
    "PromptProgress": "mtpref.base.events",
    "RolledBack": "mtpref.base.events",
    "RopeOverrides": "mtpref.spec.rope_scaling",
    "Run": "mtpref.front.api",
    "RunEnded": "mtpref.base.events",
    "RunStarted": "mtpref.base.events",
    "SamplingConfig": "mtpref.engine.decode",
    "ScriptedDrafter": "mtpref.engine.decode",
    "Session": "mtpref.engine.session",
    "SettingError": "mtpref.base.settings",
    "Statistics": "mtpref.engine.decode",
    "Token": "mtpref.base.events",
    "Verified": "mtpref.base.events",
    "load": "mtpref.front.api",
}

__all__ = [
    "AdaptiveConfig",
    "ChatPrompt",
    "ChatTemplate",
    "DraftStep",
    "Drafted",
    "Drafter",
    "Draw",
    "Event",
    "LanguageModel",
    "ModelState",
    "MtpContract",
    "MtpDrafter",
    "MtprefError",
    "NoDrafter",
    "Options",
    "PolicyConfig",
    "PromptProgress",
    "RolledBack",
    "RopeOverrides",
    "Run",
    "RunEnded",
    "RunStarted",
    "SamplingConfig",
    "ScriptedDrafter",
    "Session",
    "SettingError",
    "Statistics",
    "Token",
    "Verified",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mtpref' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any"})
