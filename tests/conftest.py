"""What holds for all tests."""

from hypothesis import settings

# A machine that is busy is not wrong: nothing here is judged by the clock.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
