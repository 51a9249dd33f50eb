"""Settings of all tests: property tests draw the same examples on every machine and in every run."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "mtpref", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtpref")
