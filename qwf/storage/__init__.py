"""How bytes reach a shared filesystem: atomically, durably, under safe names, versioned.

Knows no experiment, task, model or trading day.
"""
