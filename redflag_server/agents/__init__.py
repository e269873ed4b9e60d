"""Registration, access tokens and the records of agents."""
