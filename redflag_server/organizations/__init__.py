"""Organizations and sites."""
