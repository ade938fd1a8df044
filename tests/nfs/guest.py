"""The first process of the guest: an NFS server, two nodes that mount it, then the scenarios.

The guest's root directory is the host's, read-only. What is written goes to a directory of the
host that is mounted for it, to memory, or to the exported disk.

Run as ``python -m tests.nfs.guest PACKAGES RESULTS``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from . import kernel, server
from .nodes import LOSING, Mount, Node

__all__ = ["ANSWER", "LOG", "SHADOWED", "main"]

MEMORY = Path("/mnt")
EXPORT = MEMORY / "export"
RESULTS = MEMORY / "results"
NODES = MEMORY / "nodes"

LOG = "log"
ANSWER = "result.json"

# Directories of the host in whose place the guest has its own.
SHADOWED = (MEMORY, Path("/run"), Path("/var/lib"), Path("/dev/shm"))


def main(packages: Path, results: Path) -> None:
    """Do everything and end the guest.

    Parameters
    ----------
    packages : Path
        Where the packages are unpacked.
    results : Path
        The directory of the host in which ``log`` and, when all went to its end, ``result.json``
        are left.
    """
    try:
        _mount_own(results)
        with (RESULTS / LOG).open("w", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        answer = _answer(packages)
        (RESULTS / ANSWER).write_text(json.dumps(answer, indent=1))
    except BaseException:  # noqa: BLE001 - the kernel must be ended whatever happens
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        kernel.power_off()


def _mount_own(results: Path) -> None:
    kernel.mount("proc", Path("/proc"), "proc")
    kernel.mount("sysfs", Path("/sys"), "sysfs")
    for directory in SHADOWED:
        kernel.mount("tmpfs", directory, "tmpfs")
    kernel.mount("hostfs", RESULTS, "hostfs", str(results))
    os.environ["TMPDIR"] = str(MEMORY)


def _say(text: str) -> None:
    print(f"[{Path('/proc/uptime').read_text().split()[0]}] {text}", flush=True)


def _answer(packages: Path) -> dict[str, Any]:
    from . import scenarios

    tools = server.Tools(packages)
    _say(f"Linux {os.uname().release} has started")
    server.serve(tools, "/dev/ubda", EXPORT, MEMORY)
    lost_replies = server.start_proxy()
    nodes = (_node(tools, "A", 1), _node(tools, "B", 2))
    mounts = _mount_all(server.mount_port(tools), nodes)
    _say("two nodes have mounted " + ", ".join(mount.name for mount in mounts))
    return {
        "kernel": os.uname().release,
        "mounts": {mount.name: mount.kinds() for mount in mounts},
        "clients": server.client_names(),
        "scenarios": scenarios.run(mounts, MEMORY, lost_replies, _say),
    }


def _node(tools: server.Tools, name: str, number: int) -> Node:
    node = Node.create(name, f"10.77.0.1{number}")
    tools(f"ip link add to{name} type veth peer name eth0 netns {node.holder}")
    tools(f"ip link set to{name} master cluster up")
    for line in ("link set lo up", f"addr add {node.address}/24 dev eth0", "link set eth0 up"):
        node.ask(tools, f"ip {line}")
    return node


def _mount_all(mount_port: str, nodes: tuple[Node, Node]) -> list[Mount]:
    at = f"addr={server.ADDRESS},proto=tcp"
    # Without statd on the nodes version 3 cannot lock, and is told not to try.
    version_3 = f"vers=3,{at},mountproto=tcp,mountport={mount_port},nolock"
    below = f"{server.ADDRESS}:{EXPORT}"
    table = [
        ("v4.2", "nfs4", f"{server.ADDRESS}:/", f"vers=4.2,{at},clientaddr=CLIENT"),
        ("v3", "nfs", below, version_3),
        (LOSING, "nfs", below, f"{version_3},port={server.LOSING_PORT},nosharecache"),
    ]
    mounts = []
    for name, kind, source, options in table:
        mount = Mount(name, kind, nodes, NODES, EXPORT)
        mount.attach(source, options)
        mounts.append(mount)
    return mounts


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
