"""Engine, transactions, migrations and tenant scoping: all SQL goes through here."""
