"""Whether a store, and whether a task pool, may live in a directory: what qwf relies on, tried out.

`examine` tries a directory on this host, `meeting` between two; `findings` is how it is told.
"""
