"""Twins of `mtpref.spec.quant` and `mtpref.spec.quants` (S5): activations to int8, and the codes of weights."""
