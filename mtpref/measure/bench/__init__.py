"""What passes cost: `Costs` as an object and as a file (costs.py), and how they are measured (passes.py)."""

from mtpref.measure.bench.costs import Costs, CostSet, read_costs, write_costs
from mtpref.measure.bench.passes import measure_costs

__all__ = ["CostSet", "Costs", "measure_costs", "read_costs", "write_costs"]
