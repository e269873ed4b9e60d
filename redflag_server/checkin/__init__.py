"""Requests of agents: authentication, nonces, check-in."""
