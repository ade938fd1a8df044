"""A pool of tasks in a directory, shared by processes and nodes: who holds which, and what follows.

One directory entry per task, the token, says all about its state; every change of state is one
rename of it. FORMAT.md, "Task pools", is the contract.
"""
