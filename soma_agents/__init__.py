"""Embody: the only place that knows Ray, torch, SQLite and HTTP."""
