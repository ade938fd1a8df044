"""Experiments and recorders: their life cycle, params, metrics, tags and artifacts.

Usable without ``R``, with several stores and several runs open at once.
"""
