"""The event log (SQLite or PostgreSQL), the arbiters' stores, the model registry."""
