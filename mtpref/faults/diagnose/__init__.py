"""Diagnosis: which known mistake, if any, explains what a port printed.

hypotheses.py is the list of what may be; port_tensors.py, predict.py and evidence_dump.py the evidence of tensors;
port_run.py, forced.py and evidence_log.py that of a run's tokens; rates*.py, rate_*.py and of_stats.py that of rates
alone; rank.py and report.py what all entrances share.
"""

from mtpref.faults.diagnose.of_dump import diagnose_dump
from mtpref.faults.diagnose.of_log import diagnose_log
from mtpref.faults.diagnose.of_stats import diagnose_stats
from mtpref.faults.diagnose.port_run import LogSource, PortRound, PortRun, open_log, read_port_runs
from mtpref.faults.diagnose.port_tensors import PortTensors, read_port
from mtpref.faults.diagnose.rate_lines import parse_stats, read_rates
from mtpref.faults.diagnose.rates import Rates, with_n_max
from mtpref.faults.diagnose.report import Report, render

__all__ = [
    "LogSource",
    "PortRound",
    "PortRun",
    "PortTensors",
    "Rates",
    "Report",
    "diagnose_dump",
    "diagnose_log",
    "diagnose_stats",
    "open_log",
    "parse_stats",
    "read_port",
    "read_port_runs",
    "read_rates",
    "render",
    "with_n_max",
]
