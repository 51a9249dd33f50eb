"""Twins of `mtpref.spec.products` (S6): matrix products, of rows in place and of panels."""
