"""Twins of the layers of `mtpref.spec.ops.compose`: what lies between the products of a layer, or all in one call."""
