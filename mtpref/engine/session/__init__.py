"""Sessions: a sequence that outlives a run. Start with session.py; then file.py and identity.py."""

from mtpref.engine.session.session import N_CHECKPOINTS, Session, has_whole_head

__all__ = ["N_CHECKPOINTS", "Session", "has_whole_head"]
