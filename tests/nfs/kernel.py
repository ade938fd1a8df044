"""System calls that Python's library does not have (mount, setns, unshare, modules, power off)."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["bind", "join", "load_modules", "mount", "power_off", "separate"]

_BIND = 0x1000
_NEW_UTS = 0x04000000
_NEW_NET = 0x40000000
_POWER_OFF = 0x4321FEDC
_ALREADY_LOADED = 17
_FINIT_MODULE = 313  # of x86-64; libc has no function of this name

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, options: str = "") -> None:
    """Mount, making the mount point.

    The program mount.nfs refuses a version 3 server on a port of its own, the system call does not.
    """
    target.mkdir(parents=True, exist_ok=True)
    arguments = [text.encode() for text in (source, str(target), kind)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(0), options.encode()), f"mount {target}")


def bind(source: Path, target: Path) -> None:
    """Show the file `source` in the place of `target`."""
    arguments = [str(source).encode(), str(target).encode(), None]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(_BIND), None), f"bind {target}")


def separate(hostname: str) -> None:
    """Give this process a network and a hostname of its own."""
    _checked(_libc.unshare(_NEW_NET | _NEW_UTS), "unshare")
    socket.sethostname(hostname)


def join(pid: int) -> None:
    """Enter the network and the hostname of another process."""
    for name in ("net", "uts"):
        namespace = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        _checked(_libc.setns(namespace, 0), f"setns {name}")
        os.close(namespace)


def load_modules(directory: Path, names: Sequence[str]) -> None:
    """Load kernel modules after those that they need, as modprobe would.

    Parameters
    ----------
    directory : Path
        Where ``modules.dep`` is.
    names : sequence of str
        Modules; one that is built into the kernel is in no file and is passed over.
    """
    needs = dict(_dependencies(directory))
    files = {_module_name(file): file for file in needs}
    loaded: set[str] = set()

    def load(file: str) -> None:
        if file not in loaded:
            loaded.add(file)
            for needed in needs[file]:
                load(needed)
            _insert(directory / file)

    for name in names:
        if _module_name(name) in files:
            load(files[_module_name(name)])


def _dependencies(directory: Path) -> Iterator[tuple[str, list[str]]]:
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        yield file, needed.split()


def _module_name(file: str) -> str:
    return Path(file).name.partition(".ko")[0].replace("-", "_")


def _insert(path: Path) -> None:
    with path.open("rb") as module:
        result = _libc.syscall(_FINIT_MODULE, module.fileno(), b"", 0)
    if result != 0 and ctypes.get_errno() != _ALREADY_LOADED:
        _checked(result, f"load {path.name}")


def power_off() -> None:
    """End this kernel, and every process on it."""
    os.sync()
    _libc.reboot(_POWER_OFF)
