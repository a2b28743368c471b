"""Putting the arbiters together: what every runtime shares, and the runtime in one process."""
