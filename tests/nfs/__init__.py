"""qwf on a real NFS server with two client nodes, in a kernel that runs as a program.

`make test-nfs` calls `run`, which prepares what the guest needs and boots it; the guest's first
process is `guest`, which calls `scenarios` on each kind of mount; `summary` judges and prints.
"""
