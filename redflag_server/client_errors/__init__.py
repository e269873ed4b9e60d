"""Errors of agents."""
