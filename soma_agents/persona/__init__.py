"""Computed measures of how a text speaks."""
