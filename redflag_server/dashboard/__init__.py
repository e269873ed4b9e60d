"""The dashboard: pages made on the server, which also work without JavaScript."""
