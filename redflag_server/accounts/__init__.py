"""People, sessions, API keys."""
