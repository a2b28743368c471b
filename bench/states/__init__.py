"""The bus against a plain model of it, in random histories of publishing, dying and restarting.

`parts` holds two subscribers that die and stumble when told to; `machine` is the state machine.
"""
