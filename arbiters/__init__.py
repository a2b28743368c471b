"""Orchestrate: hear an event, ask a policy, act through a port, say events."""
