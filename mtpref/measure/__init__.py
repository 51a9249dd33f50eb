"""What a head is worth and a pass costs: probe, bench, plan, and the story of PR #20700."""
