"""A power cut, simulated: what is recorded once is cut at many places, and each must be survived.

`recorder` notes every effect on the disk in order: `vfs` sees SQLite's, `watch` those of plain
files. `disk` says what may be left of them when the power fails. `logs` and `models` hold the
workloads and what must hold afterwards, `weaknesses` the mistakes that must be found.
"""
