"""Traces: a run's events as JSON lines. write.py records them, read.py reads them back, rounds.py groups them, show.py
puts them into words. docs/trace.md describes the fields.
"""

from mtpref.look.trace.read import TraceReader, read_trace
from mtpref.look.trace.rounds import Round, rounds_of
from mtpref.look.trace.write import TraceWriter, tee

__all__ = ["Round", "TraceReader", "TraceWriter", "read_trace", "rounds_of", "tee"]
