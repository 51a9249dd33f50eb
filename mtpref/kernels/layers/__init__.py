"""Twins of `mtpref.spec.layers` (S8 to S18): norms, RoPE, the delta rule and attention, one function each."""
