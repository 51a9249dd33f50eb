"""Stock llama.cpp beside mtpref: its programs, what they print and write, and how closely decisions agree.

programs     llama-tokenize, llama-results and llama-speculative-simple, run
log          llama-speculative-simple at -lv 5
agree        its rounds beside the events of a run here
callback     llama-eval-callback and llama-debug
results      the files of llama-results
conversion   the .bin files of examples/model-conversion and of llama-debug --save-logits
"""
