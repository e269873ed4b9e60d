"""Decisions about packages, plans made on machines, and their installation."""
