"""Backups of an installation on SQLite, and the restores that take up from them."""
