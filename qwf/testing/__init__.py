"""Harnesses that kill an operation at every system call, or record the calls it makes.

Shipped, so that others can test what they build on the same files.
"""
