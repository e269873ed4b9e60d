"""The server's keys, root documents and trust bundle."""
