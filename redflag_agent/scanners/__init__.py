"""Scanners of this agent: each finds out what one package manager, or the machine, has; none changes anything."""

from redflag_agent.scanners.apt import AptScanner
from redflag_agent.scanners.storage import StorageScanner
from redflag_agent.scanners.system import SystemScanner

__all__ = ["AptScanner", "StorageScanner", "SystemScanner"]
