"""Evaluation: the only one allowed to say that a candidate is better."""
