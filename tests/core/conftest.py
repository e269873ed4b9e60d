"""Settings shared by the tests of the core."""

from hypothesis import HealthCheck, settings

from tests.beds.postgres import postgres, postgres_server

__all__ = ["postgres", "postgres_server"]

# No deadline: the machine that runs the tests may be busy. Sixty examples: the suite is run after every change.
settings.register_profile("core", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("core")
