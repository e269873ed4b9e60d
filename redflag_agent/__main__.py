"""``python -m redflag_agent``: the same as ``redflag agent``."""

from redflag_agent.cli import main

main()
