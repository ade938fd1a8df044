"""The guest's NFS server, and before it a proxy that loses replies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from . import kernel
from .losing_proxy import LosingProxy
from .nodes import FORK
from .packages import find_program

__all__ = ["ADDRESS", "LOSING_PORT", "Tools", "client_names", "mount_port", "serve", "start_proxy"]

ADDRESS = "10.77.0.1"
LOSING_PORT = 3049

_PORT = 2049
_LOSE_EVERY = 10
_MOUNT_PROGRAM = "100005"
_MODULES = ("nfsd", "nfs", "nfsv3", "nfsv4", "lockd", "veth", "bridge")

# The server's programs give up being root for these; the host need not know them.
_USERS = ("_rpc:x:103:65534::/run:/bin/false", "statd:x:104:65534::/run:/bin/false")


class Tools:
    """Runs the programs of the packages, which are not where they would be if installed.

    Parameters
    ----------
    root : Path
        Where the packages are unpacked.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
        programs = [root / place for place in ("usr/sbin", "usr/bin", "sbin", "bin")]
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }

    def __call__(self, line: str) -> str:
        name, *arguments = line.split()
        program = find_program(name, self._root)
        if program is None:
            raise FileNotFoundError(f"the packages have no program {name}")
        done = subprocess.run(
            [str(program), *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def modules(self) -> Path:
        """Return the directory of this kernel's modules."""
        below = f"usr/lib/uml/modules/{os.uname().release}"
        return next(top / below for top in (self._root, Path("/")) if (top / below).is_dir())


def serve(tools: Tools, disk: str, export: Path, memory: Path) -> None:
    """Export a directory to everyone, as NFS 3 and 4.

    Parameters
    ----------
    tools : Tools
        The programs.
    disk : str
        The device with the directory's filesystem.
    export : Path
        Where it is mounted; the root of what is exported as version 4.
    memory : Path
        A directory for small files.
    """
    kernel.load_modules(tools.modules(), _MODULES)
    kernel.mount(disk, export, "ext4")
    kernel.mount("nfsd", Path("/proc/fs/nfsd"), "nfsd")
    _add_users(memory / "passwd")
    for directory in ("/var/lib/nfs/sm", "/var/lib/nfs/v4recovery", "/run/rpcbind"):
        Path(directory).mkdir(parents=True)
    for name in ("etab", "rmtab", "state"):
        Path("/var/lib/nfs", name).touch()
    tools("ip link set lo up")
    tools("ip link add cluster type bridge")
    tools(f"ip addr add {ADDRESS}/24 dev cluster")
    tools("ip link set cluster up")
    tools("rpcbind -w")
    tools(f"exportfs -i -o rw,no_root_squash,no_subtree_check,fsid=0,insecure *:{export}")
    tools("rpc.mountd")
    tools("rpc.nfsd --grace-time 10 --lease-time 10 8")
    Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")


def _add_users(users: Path) -> None:
    lines = Path("/etc/passwd").read_text().splitlines()
    known = {line.partition(":")[0] for line in lines}
    lines += [user for user in _USERS if user.partition(":")[0] not in known]
    users.write_text("\n".join(lines) + "\n")
    kernel.bind(users, Path("/etc/passwd"))


def mount_port(tools: Tools) -> str:
    """Return the port at which version 3 is asked for the handle of a directory."""
    rows = [line.split() for line in tools("rpcinfo -p 127.0.0.1").splitlines()]
    return next(row[3] for row in rows if row[:3] == [_MOUNT_PROGRAM, "3", "tcp"])


def client_names() -> list[str]:
    """Return the clients of version 4 that the server knows."""
    known = Path("/proc/fs/nfsd/clients").glob("*/info")
    lines = [line for path in known for line in path.read_text().splitlines()]
    return sorted(line.partition(":")[2].strip() for line in lines if line.startswith("name:"))


def start_proxy() -> Callable[[], int]:
    """Start the proxy in a process; return a function that asks it how many replies it has lost."""
    here, there = FORK.Pipe()

    def listen(questions: Connection) -> None:
        proxy = LosingProxy((ADDRESS, LOSING_PORT), (ADDRESS, _PORT), _LOSE_EVERY)
        proxy.start()
        while True:
            questions.recv()
            questions.send(proxy.lost)

    def ask() -> int:
        here.send("how many?")
        return int(here.recv())

    FORK.Process(target=listen, args=(there,), daemon=True).start()
    ask()  # so that it listens when this returns
    return ask
