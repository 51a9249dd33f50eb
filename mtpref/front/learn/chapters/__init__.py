"""The chapters, in reading order. Each runs by itself: python mtpref/front/learn/chapters/c01_what_a_layer_keeps.py"""
