"""Scanners of this agent: each finds out what one package manager has and lacks, and changes nothing."""

from redflag_agent.scanners.apt import AptScanner

__all__ = ["AptScanner"]
