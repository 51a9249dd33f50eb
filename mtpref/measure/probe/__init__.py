"""The probe: teacher-forced acceptance of a head over texts, with controls, and draft vocabularies made from texts.

head.py runs chains of drafts from every position in batches, walk.py walks a text, count.py defines acceptance,
controls.py says what a number is to be compared with, report.py puts it together. docs/probe.md explains the numbers.
"""

from mtpref.measure.probe.report import Report, Settings, probe
from mtpref.measure.probe.texts import Text, Window, read_texts, windows_of
from mtpref.measure.probe.walk import Seen, Variant, walk

__all__ = ["Report", "Seen", "Settings", "Text", "Variant", "Window", "probe", "read_texts", "walk", "windows_of"]
