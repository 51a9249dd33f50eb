"""The chapters, in reading order. Each runs by itself: python mtpref/front/learn/chapters/c01_draft_and_verify.py"""
