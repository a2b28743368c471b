"""SQLite: the event log, the arbiters' stores, the model registry."""
