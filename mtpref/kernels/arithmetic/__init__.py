"""Twins of `mtpref.spec.arith` (S1 to S4): single values, the 32 lanes of a sum, and vectors of either."""
