"""The chapters, in reading order. Each runs by itself, too: python mtpref/learn/chapters/c01_what_a_layer_keeps.py"""
