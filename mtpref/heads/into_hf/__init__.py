"""`graft --hf`: the head of an original checkpoint put into a quantised one that lost it.

encode.py writes matrices in a checkpoint's formats, plan.py says what of the head becomes what (as the base has the
same modules of its trunk), config.py what config.json and the index say then, calibrate.py runs the head for GPTQ,
run.py does all of it. The base's files are linked or copied, never written.
"""

from mtpref.heads.into_hf.plan import HEAD_TYPES
from mtpref.heads.into_hf.run import METHODS, Grafted, Settings, graft_hf

__all__ = ["HEAD_TYPES", "METHODS", "Grafted", "Settings", "graft_hf"]
