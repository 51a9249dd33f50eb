"""mtpref: the reference MTP speculative decoder for GGUF models.

    import mtpref
    model = mtpref.load()                      # or mtpref.load("model.gguf")
    run = model.generate("def main(", mtpref.Options(n_predict=32))
    for event in run: ...
    print(run.text, run.statistics.acceptance)

Names below are loaded when they are first used, so that `import mtpref` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from mtpref.errors import MtprefError

if TYPE_CHECKING:
    from mtpref.api import LanguageModel, Run, load
    from mtpref.contract import MtpContract
    from mtpref.decode import Options, PolicyConfig, SamplingConfig, Statistics
    from mtpref.rope_scaling import RopeOverrides
    from mtpref.session import Session

__version__ = "0.1.0"

_HOME = {
    "LanguageModel": "mtpref.api",
    "MtpContract": "mtpref.contract",
    "Options": "mtpref.decode",
    "PolicyConfig": "mtpref.decode",
    "RopeOverrides": "mtpref.rope_scaling",
    "Run": "mtpref.api",
    "SamplingConfig": "mtpref.decode",
    "Session": "mtpref.session",
    "Statistics": "mtpref.decode",
    "load": "mtpref.api",
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
