"""Bridges from RedFlag to other systems. None is built yet; the contract comes with ``redflag_core.bridge``."""
