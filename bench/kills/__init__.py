"""A storm of `kill -9` on whole SOMAs, without Ray: what must hold holds after every one.

`life` is what is killed: the real runtime over real files, with `script`'s trainer and examiner.
`storm` starts, kills, stops and resumes lives over the same data directory. `promises` says what
must hold afterwards, `replay` compares the state with one made anew from the log.
"""
