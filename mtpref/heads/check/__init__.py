"""Is the MTP head there, and is it sound? `check_path` for a GGUF file or a checkpoint folder.

static.py reads headers and samples, running.py runs the head beside itself with one thing changed, against.py compares
with another file, checkpoint.py looks at folders, marks.py knows which tool loses what. Findings and their meaning are
in findings.py. docs/keeping-the-head.md explains.
"""

from mtpref.heads.check.findings import CATALOGUE, Finding
from mtpref.heads.check.report import Report, check_path

__all__ = ["CATALOGUE", "Finding", "Report", "check_path"]
