"""A mount of a directory whose answers follow rules: one client of a file server, as it may be.

``mounted(directory, *rules)`` runs this file as a program of its own, one for each mount. Two
mounts of one directory are two nodes, each with its own faults. Nothing is cached by the kernel;
what is remembered for too long, the rules say (`qwf.testing.faults`). Their paths are those below
the directory. As on NFS, a file that is removed while it is open is renamed instead, here to a
name that begins with ``.fuse_hidden``.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import qwf
from qwf.testing import faults

Rule = faults.Fault | faults.StaleListing | faults.LateNames

# What libfuse passes for "now" and for "as it is", in place of nanoseconds; Linux's utimensat(2).
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SECONDS_TO_END = 30  # something may still be open


class MountError(Exception):
    """There can be no such mount here."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def __str__(self) -> str:
        return (
            f"no FUSE mount can be made here ({' '.join(self.said) or 'no reason given'}): it "
            "takes /dev/fuse, libfuse (apt-get install fuse3) and mfusepy (pip install mfusepy)"
        )


class Node:
    """One mount, and after its end how often each call was lied to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.injected: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def mounted(directory: Path, mountpoint: Path, *rules: Rule, seed: int = 0) -> Iterator[Node]:
    """Mount `directory` at `mountpoint`, which is created."""
    mountpoint.mkdir()
    told = json.dumps([{"kind": type(rule).__name__, **asdict(rule)} for rule in rules])
    roots = [str(Path(qwf.__file__).parent.parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, __file__, str(directory), str(mountpoint), told, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    assert process.stdout
    assert process.stderr
    node = Node(mountpoint)
    try:
        if process.stdout.readline() != "mounted\n":
            raise MountError(process.stderr.read().splitlines()[-1:])
        yield node
    finally:
        process.terminate()
        try:
            said, _ = process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)
            process.kill()
            raise
    node.injected.update(json.loads(said))


@functools.cache
def reason_against() -> str:
    """Why no mount can be made here; empty if one can."""
    with tempfile.TemporaryDirectory() as root:
        try:
            with mounted(Path(root), Path(root, "mount")):
                return ""
        except MountError as error:
            return str(error)


class FaultFS:
    """What `mfusepy` calls: each operation is done below a directory, by a `LyingOs`."""

    use_ns = True

    def __init__(self, directory: str, lying: faults.LyingOs) -> None:
        self._directory = directory
        self._os = lying

    def _below(self, path: str) -> str:
        return f"{self._directory}{path}".rstrip("/")

    def init(self, path: str) -> None:
        print("mounted", flush=True)

    def destroy(self, path: str) -> None:
        print(json.dumps(collections.Counter(one.call for one in self._os.injected)), flush=True)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        found = self._os.lstat(self._below(path)) if fh is None else self._os.fstat(fh)
        plain = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_blocks")
        times = ("st_atime", "st_mtime", "st_ctime")
        return {name: getattr(found, name) for name in plain} | {
            name: getattr(found, f"{name}_ns") for name in times
        }

    def opendir(self, path: str) -> int:
        return self._os.open(self._below(path), os.O_RDONLY | os.O_DIRECTORY)

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        with self._os.scandir(self._below(path)) as entries:
            found = [(entry.name, entry.inode()) for entry in entries]
        # An inode of 0 would hide the entry.
        return [(name, {"st_ino": inode}, 0) for name, inode in [(".", 1), ("..", 1), *found]]

    def releasedir(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._os.fsync(fh)

    def open(self, path: str, flags: int) -> int:
        return self._os.open(self._below(path), flags)

    def create(self, path: str, mode: int, flags: int) -> int:
        return self._os.open(self._below(path), flags | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._below(path) if fh is None else fh, length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._os.fsync(fh)

    def flush(self, path: str, fh: int) -> None:
        pass

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def rename(self, old: str, new: str) -> None:
        self._os.rename(self._below(old), self._below(new))

    def link(self, target: str, source: str) -> None:  # in this order, whatever FUSE says
        self._os.link(self._below(source), self._below(target))

    def unlink(self, path: str) -> None:
        self._os.unlink(self._below(path))

    def mkdir(self, path: str, mode: int) -> None:
        self._os.mkdir(self._below(path), mode)

    def rmdir(self, path: str) -> None:
        self._os.rmdir(self._below(path))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        if times is None or set(times) <= {UTIME_NOW, UTIME_OMIT}:
            self._os.utime(self._below(path))
        else:
            self._os.utime(self._below(path), ns=times)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._below(path), mode)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._below(path))
        return {
            name: getattr(found, name)
            for name in dir(found)
            if name.startswith("f_") and name != "f_fsid"
        }


def serve(directory: str, mountpoint: str, told: str, seed: str) -> None:
    """Mount, answer until SIGTERM, and print how often each call was lied to."""
    import mfusepy

    rules = [getattr(faults, rule.pop("kind"))(**rule) for rule in json.loads(told)]
    lying = faults.LyingOs(*rules, seed=int(seed))
    os.umask(0)  # the caller's is in the mode already
    with contextlib.suppress(RuntimeError):  # which says that a signal has ended it
        mfusepy.FUSE(
            FaultFS(os.path.realpath(directory), lying),
            mountpoint,
            foreground=True,
            fsname="faultfs",
            use_ino=True,  # else each name would be a file of its own
            attr_timeout=0,
            entry_timeout=0,
            negative_timeout=0,
        )


if __name__ == "__main__":
    serve(*sys.argv[1:])
