"""Figures: each module is one command that prints one JSON line last."""
