"""Diagnosis: which known mistake, if any, explains what a port printed.

hypotheses.py is the list of what may be; port_tensors.py, predict.py and evidence_dump.py the evidence of tensors;
rank.py and report.py what all entrances share.
"""

from mtpref.diagnose.of_dump import diagnose_dump
from mtpref.diagnose.port_tensors import PortTensors, read_port
from mtpref.diagnose.report import Report, render

__all__ = ["PortTensors", "Report", "diagnose_dump", "read_port", "render"]
