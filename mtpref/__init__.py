"""mtpref: the reference MTP speculative decoder for GGUF models.

    import mtpref
    model = mtpref.load()                      # or mtpref.load("model.gguf")
    run = model.generate("def main(", mtpref.Options(n_predict=32))
    for event in run: ...
    print(run.text, run.statistics.acceptance)

Names below are loaded when they are first used, so that `import mtpref` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from mtpref.base.errors import MtprefError

if TYPE_CHECKING:
    from mtpref.engine.decode import Options, PolicyConfig, SamplingConfig, Statistics
    from mtpref.engine.session import Session
    from mtpref.front.api import LanguageModel, Run, load
    from mtpref.spec.contract import MtpContract
    from mtpref.spec.rope_scaling import RopeOverrides

__version__ = "0.1.0"

_HOME = {
    "LanguageModel": "mtpref.front.api",
    "MtpContract": "mtpref.spec.contract",
    "Options": "mtpref.engine.decode",
    "PolicyConfig": "mtpref.engine.decode",
    "RopeOverrides": "mtpref.spec.rope_scaling",
    "Run": "mtpref.front.api",
    "SamplingConfig": "mtpref.engine.decode",
    "Session": "mtpref.engine.session",
    "Statistics": "mtpref.engine.decode",
    "load": "mtpref.front.api",
}

__all__ = [
    "LanguageModel",
    "MtpContract",
    "MtprefError",
    "Options",
    "PolicyConfig",
    "RopeOverrides",
    "Run",
    "SamplingConfig",
    "Session",
    "Statistics",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mtpref' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
