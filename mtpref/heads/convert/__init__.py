"""From a checkpoint folder to a GGUF file, as llama.cpp's converter would write it: `convert`.

keys.py makes the hyper-parameters, vocabulary.py the tokenizer, pre.py finds the pre-tokenizer by what it does,
general.py the description of the model; run.py puts them together. docs/keeping-the-head.md says where it differs.
"""

from mtpref.heads.convert.run import OUTTYPES, Converted, Plan, Settings, convert, plan

__all__ = ["OUTTYPES", "Converted", "Plan", "Settings", "convert", "plan"]
