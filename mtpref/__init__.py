"""mtpref: the reference MTP speculative decoder for GGUF models."""

__version__ = "0.1.0"
