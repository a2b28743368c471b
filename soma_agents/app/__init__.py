"""One SOMA on one machine: runtimes, supervisor, start and stop."""
