"""Makers of the golden vectors, a file per level."""
