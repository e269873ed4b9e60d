"""Commands: ordered by people, leased to agents, ended by what executors sign."""
