"""The plan: which settings of the loop give most tokens a second, from measured acceptance and measured costs.

record.py measures what the head drafts at every position of a continuation; replay.py makes the loop's decisions again
under any setting, from that record alone; price.py turns counts into milliseconds; report.py compares settings.
docs/plan.md explains the numbers.
"""

from mtpref.measure.plan.record import Continuation, Trim, prompts_of, record
from mtpref.measure.plan.replay import Setting, Tally, replay
from mtpref.measure.plan.report import Plan, plan

__all__ = ["Continuation", "Plan", "Setting", "Tally", "Trim", "plan", "prompts_of", "record", "replay"]
