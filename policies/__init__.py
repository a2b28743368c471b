"""Decide: pure functions from facts and rules to a decision with its reason."""
