"""
The executor: the part of the agent that speaks for the machine, and the only part that will change it.

It has a key of its own and becomes a process of its own. What the network process asks of it goes through the
few methods of `Executor`: plain values in, signed bytes out.
"""

from redflag_agent.executor.commander import Commander, OnError, Rescan, Undelivered
from redflag_agent.executor.identity import Evidence, Executor
from redflag_agent.executor.journal import Journal
from redflag_agent.executor.local import LocalCommander

__all__ = [
    "Commander",
    "Evidence",
    "Executor",
    "Journal",
    "LocalCommander",
    "OnError",
    "Rescan",
    "Undelivered",
]
