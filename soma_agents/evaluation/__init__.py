"""Frozen suites, paired replay, guardrails."""
