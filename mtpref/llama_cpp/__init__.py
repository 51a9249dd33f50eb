"""What stock llama.cpp's programs print and write, read (and, where they read it again, written) here.

log   llama-speculative-simple at -lv 5
"""
