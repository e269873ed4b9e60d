"""Rate limits: policies that operators set, and what is charged in the database."""
