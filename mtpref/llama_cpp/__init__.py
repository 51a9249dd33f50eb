"""What stock llama.cpp's programs print and write, read (and, where they read it again, written) here.

log          llama-speculative-simple at -lv 5
callback     llama-eval-callback and llama-debug
results      the files of llama-results
conversion   the .bin files of examples/model-conversion and of llama-debug --save-logits
"""
